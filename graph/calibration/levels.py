"""What a range is chosen for: the integers of a quantizer."""

from dataclasses import dataclass

from torch import Tensor

from ...qcore import GridQuant, RangeZeroPoint
from ...qcore.scaling import StoredScaling

__all__ = ["Levels"]


@dataclass(frozen=True)
class Levels:
    """The levels that a range is chosen for.

    A range is a list of tensors with one number for each row, as statistics measure it: a magnitude, or, for quantizers
    with a zero point, the width of an interval and its lower end.

    Args:
        quant: the quantizer, whose scaling stores the range.

    Example:
        >>> import torch, bitwright.nn as qnn
        >>> levels = Levels(qnn.QuantIdentity(bit_width=4).act_quant)
        >>> levels.grid([torch.tensor([8.0])])
        (tensor([[1.]]), tensor([[-8.]]), tensor([[7.]]))
    """

    quant: GridQuant

    @property
    def scaling(self) -> StoredScaling:
        """What stores the range."""
        scaling = self.quant.scaling
        assert isinstance(scaling, StoredScaling)
        return scaling

    @property
    def signed(self) -> bool:
        """Whether there are levels below 0."""
        return self.quant.number_format.signed

    @property
    def interval(self) -> bool:
        """Whether a range has a lower end of its own, for a zero point."""
        return isinstance(self.quant.zero_point, RangeZeroPoint)

    @property
    def count(self) -> int:
        """How many levels there are; of the widest row, where bit widths are learned."""
        low, high = self._bounds()
        span = high - low + 1
        return int(span.max()) if isinstance(span, Tensor) else span

    def _bounds(self) -> tuple[int | Tensor, int | Tensor]:
        levels = self.quant._range().settled(lambda widths: widths.reshape(-1, 1))
        return levels.low, levels.high  # type: ignore[return-value]  # of integers, whole

    def grid(self, found: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """The scales of a range, and its smallest and largest level in scales: (rows, 1) each."""
        scale = self.scaling.scale_for(found[0])[:, None]
        low, high = (each + 0 * scale for each in self._bounds())
        if not self.interval:
            return scale, low, high
        zero = (low - (found[1][:, None] / scale).round()).minimum(high).maximum(low)
        return scale, low - zero, high - zero

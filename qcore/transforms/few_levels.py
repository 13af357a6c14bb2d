"""Two levels and three: weights that literature puts on a grid with gradients of their own."""

import torch
from torch import Tensor, nn

from ..errors import SettingError
from ..granularity import Granularity
from ..grid import Grid
from ..kernels.derivatives import straight_through
from ..protocols import Rounding
from ..rounding import HalfEven, HalfUp
from ..scaling.magnitude import finite, usable

__all__ = ["Ternary", "XnorSigns"]


_BEYOND = 1 + 2.0**-23  # between two such ends, a hard tanh has a slope at -1 and at 1
_HALF_EVEN = HalfEven()


def _check_rounding(rounding: Rounding) -> None:
    """Refuse one that could not do its work, as the levels are chosen before it."""
    if not isinstance(rounding, (HalfEven, HalfUp)):
        raise SettingError(
            "rounding", rounding, "'half_even': the transform chooses the levels, and leaves nothing to round"
        )


class Ternary(nn.Module):
    """Weights become ``-scale``, 0 or ``scale``: 0 up to a threshold, and the mean magnitude of those above it.

    The threshold is a share of the mean magnitude: 0.7 of it in Ternary Weight Networks (Li, Zhang and Liu, 2016),
    which nearly minimizes the distance to the weights. The gradient passes straight through. A quantizer to the
    integers -1, 0 and 1 whose scale is the largest magnitude keeps the numbers as they are.

    Args:
        granularity: which weights share a threshold and a scale.
        ternary_threshold: the share of the mean magnitude, 0 or more.
        rounding: to nearest, as nothing is left to round.

    Raises:
        SettingError: another share, or another rounding.

    Example:
        >>> from bitwright.qcore import PerTensor
        >>> Ternary(PerTensor())(torch.tensor([1.0, -0.5, 0.25, -0.1]), None)
        tensor([ 0.7500, -0.7500,  0.0000,  0.0000])
    """

    rounds = True

    def __init__(
        self, granularity: Granularity, ternary_threshold: float = 0.7, rounding: Rounding = _HALF_EVEN
    ) -> None:
        super().__init__()
        _check_rounding(rounding)
        expected = "a share of the mean magnitude, 0 or more, such as 0.7"
        self.threshold = finite("ternary_threshold", ternary_threshold, expected)
        if self.threshold < 0:
            raise SettingError("ternary_threshold", ternary_threshold, expected)
        self.granularity = granularity

    def forward(self, weight: Tensor, inputs: Grid | None) -> Tensor:
        """The three levels."""
        rows = self.granularity.rows(weight.detach())
        size = rows.abs()
        beyond = size - self.threshold * usable(size.mean(1, keepdim=True))
        above = beyond.clamp(0, 1).ceil()  # 1 or 0, and NaN for NaN: half the time of masks
        mean = usable((size * above).sum(1, keepdim=True) / above.sum(1, keepdim=True).clamp_min(1))
        return straight_through(weight, self.granularity.unrows(torch.copysign(above * mean, rows), weight))

    def scheme(self) -> str:
        """What a file says of it."""
        return f"ternary above {self.threshold:g} of the mean"

    def extra_repr(self) -> str:
        return f"{self.threshold:g} of the mean, {self.granularity}"


class XnorSigns(nn.Module):
    """Weights become their signs times their mean magnitude, with the gradient of XNOR-Net (Rastegari et al., 2016).

    The sign's gradient is 1 where a weight lies from -1 to 1, and 0 beyond; the scale has one, too. A quantizer to -1
    and 1 whose scale is the largest magnitude keeps the numbers as they are.

    Args:
        granularity: which weights share a scale.
        rounding: to nearest, as nothing is left to round.

    Raises:
        SettingError: another rounding.

    Example:
        >>> from bitwright.qcore import PerTensor
        >>> XnorSigns(PerTensor())(torch.tensor([1.0, -0.5, 0.0, 2.5]), None)
        tensor([ 1., -1.,  1.,  1.])
    """

    rounds = True

    def __init__(self, granularity: Granularity, rounding: Rounding = _HALF_EVEN) -> None:
        super().__init__()
        _check_rounding(rounding)
        self.granularity = granularity

    def forward(self, weight: Tensor, inputs: Grid | None) -> Tensor:
        """The two levels."""
        rows = self.granularity.rows(weight)
        signs = rows.detach().clamp(-1, 0.5).floor() * 2 + 1  # NaN for NaN: a third of the time of masks
        mean = usable((rows * signs).mean(1, keepdim=True))
        slope = nn.functional.hardtanh(rows, -_BEYOND, _BEYOND)
        through = signs + (slope - slope.detach())
        return self.granularity.unrows(through * mean, weight)

    def scheme(self) -> str:
        """What a file says of it."""
        return "signs times the mean"

    def extra_repr(self) -> str:
        return str(self.granularity)

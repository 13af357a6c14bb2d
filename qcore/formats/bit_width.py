"""Bit widths that are learned."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.types import Device

from ..errors import SettingError
from ..granularity import Granularity, PerTensor
from ..kernels.derivatives import straight_through
from ..models import require_model
from ..rounding import HalfEven, round_straight_through
from .int_range import MAX_BIT_WIDTH, check_bit_width

__all__ = ["LearnedBitWidth", "bit_width_report", "block_sizes", "size_penalty"]

# Who shares a bit width, by the granularity of the scales
BIT_WIDTH_GRANULARITIES: dict[str, Callable[[Granularity], Granularity]] = {
    "tensor": lambda scales: PerTensor(),
    "scale": lambda scales: scales,
}


class LearnedBitWidth(nn.Module):
    """A bit width that training adjusts: ``weight_bit_width=LearnedBitWidth``, with a penalty on size in the loss.

    The parameter is the distance from the smallest width; its use is rounded to a whole number of bits, gradients
    straight through (after Brevitas' `BitWidthParameter`). At either end of the allowed widths, and beyond, the
    gradient goes on, so that training may leave the end again.

    Args:
        initial_bit_width: where training starts.
        min_bit_width: the smallest width allowed.
        max_bit_width: the largest.
        shape: of the tensor that is quantized, where known.
        channels: how many scales there are, where the shape is not known.
        granularity: which values share a scale.
        bit_width_granularity: which values share a bit width: ``"tensor"``, all; ``"scale"``, those that share a scale:
            one width for each channel or group; or a `Granularity` whose blocks hold whole blocks of the scales', such
            as ``PerAxis(0)`` above groups.

    Raises:
        SettingError: widths that are no whole numbers from 2 to 32, or not in order; blocks that cut those of the
            scales; several widths of a tensor whose shape is not known.

    Example:
        >>> width = LearnedBitWidth(initial_bit_width=6)
        >>> width(), width.report()
        (tensor(6., grad_fn=<AddBackward0>), {'bit_width': 6, 'exact': 6.0, 'min': 2, 'max': 8})
        >>> import bitwright.nn as qnn
        >>> from bitwright.quantizers import Int8WeightPerChannel
        >>> class Mixed(Int8WeightPerChannel):
        ...     bit_width = LearnedBitWidth
        ...     bit_width_granularity = "scale"
        >>> qnn.QuantLinear(4, 2, weight_quant=Mixed).weight_quant.bit_width().tolist()
        [8.0, 8.0]
    """

    def __init__(
        self,
        initial_bit_width: int = 8,
        min_bit_width: int = 2,
        max_bit_width: int = 8,
        shape: tuple[int, ...] | None = None,
        channels: int | None = None,
        granularity: Granularity | None = None,
        bit_width_granularity: str | Granularity = "tensor",
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.min_bit_width = check_bit_width("min_bit_width", min_bit_width)
        self.max_bit_width = check_bit_width("max_bit_width", max_bit_width)
        initial = check_bit_width("initial_bit_width", initial_bit_width)
        if not self.min_bit_width <= initial <= self.max_bit_width:
            raise SettingError(
                "initial_bit_width",
                initial,
                f"a bit width from min_bit_width={self.min_bit_width} to max_bit_width={self.max_bit_width}",
                f"Write max_bit_width={initial}." if self.max_bit_width < initial <= MAX_BIT_WIDTH else "",
            )
        self.elements = None if shape is None else int(torch.Size(shape).numel())
        self.shape = None if shape is None else tuple(shape)
        self.scales = PerTensor() if granularity is None else granularity
        self.granularity = _granularity_of(bit_width_granularity, self.scales, self.shape)
        self.start = float(initial - self.min_bit_width)
        count = _count(self.granularity, self.scales, self.shape, channels, bit_width_granularity)
        start = torch.full((count,), self.start, device=device, dtype=dtype)  # not 0-d: may be sharded
        self.offset = nn.Parameter(start)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Set the width to where training starts."""
        self.offset.fill_(self.start)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "LearnedBitWidth":
        left = self.offset.is_meta
        super()._apply(fn, recurse)
        if left and not self.offset.is_meta:
            self.reset_parameters()  # what replaces the meta device is not left empty
        return self

    def exact(self) -> Tensor:
        """The width before rounding, differentiable; beyond the largest width too, so that training finds back.

        0-d for one width, else 1-d.
        """
        offset = self.offset.reshape(()) if self.granularity.single else self.offset
        above = torch.where(offset < 0, -offset, offset)  # abs has no gradient at 0, where some start
        width = above + self.min_bit_width
        return straight_through(width, width.detach().clamp_max(self.max_bit_width))

    def forward(self) -> Tensor:
        """The width in use: a whole number in a 0-d tensor; of several widths, one for each scale, 1-d."""
        widths = round_straight_through(self.exact(), HalfEven())
        if self.shape is None or self.granularity.single or self.granularity == self.scales:
            return widths
        spread = self.granularity.spread(self.granularity.compact(widths, self.shape), self.shape).expand(self.shape)
        steps = self.scales._block(self.shape)
        return spread[tuple(slice(None, None, step) for step in steps)].reshape(-1)

    def report(self) -> dict[str, float | int | list[int] | list[float]]:
        """The width in use, the one before rounding, and the limits, as plain numbers; of several widths, lists."""
        with torch.no_grad():
            exact = self.exact()
            widths: list[int] = torch.round(exact).reshape(-1).int().tolist()
            known: list[float] = [round(each, 4) for each in exact.reshape(-1).tolist()]
            one = self.granularity.single
            return {
                "bit_width": widths[0] if one else widths,
                "exact": known[0] if one else known,
                "min": self.min_bit_width,
                "max": self.max_bit_width,
            }

    def extra_repr(self) -> str:
        several = "" if self.granularity.single else f", {self.offset.numel()} widths, {self.granularity}"
        return f"min_bit_width={self.min_bit_width}, max_bit_width={self.max_bit_width}{several}"


def _granularity_of(given: object, scales: Granularity, shape: tuple[int, ...] | None) -> Granularity:
    """Which values share a bit width; all that share a scale do."""
    if isinstance(given, str) and given in BIT_WIDTH_GRANULARITIES:
        return BIT_WIDTH_GRANULARITIES[given](scales)
    names = ", ".join(map(repr, BIT_WIDTH_GRANULARITIES))
    if not isinstance(given, Granularity):
        raise SettingError("bit_width_granularity", given, f"{names}, or a Granularity such as PerAxis(0)")
    given.check()
    if shape is None:
        if given in (scales, PerTensor()):
            return given
        raise SettingError(
            "bit_width_granularity", given, f"{names}: the shape of the tensor is not known before there is data"
        )
    blocks = zip(given._block(shape), scales._block(shape), shape, strict=True)
    if any(step % inner and step < size for step, inner, size in blocks):
        raise SettingError(
            "bit_width_granularity",
            given,
            f"blocks of whole scales, and there is one for each of {scales}"
            if not scales.single
            else "'tensor': there is one scale, and values with a scale in common have a bit width in common",
            "Take a quantizer with a scale for each bit width, such as Int8WeightPerChannel.",
        )
    return given


def _count(
    own: Granularity, scales: Granularity, shape: tuple[int, ...] | None, channels: int | None, given: object
) -> int:
    """How many bit widths there are."""
    if own.single:
        return 1
    if shape is not None:
        return own.count(shape)
    if channels is None:
        expected = f"'tensor' where nobody says how many of {scales} there are"
        raise SettingError("bit_width_granularity", given, expected, "Give the quantizer that number too: channels=64.")
    return channels


def block_sizes(granularity: Granularity, shape: Sequence[int]) -> Tensor:
    """How many values of a tensor share each of its scales, or other numbers like them: 1-d.

    Example:
        >>> from bitwright.qcore import PerGroup
        >>> block_sizes(PerGroup(4), (2, 10))
        tensor([4., 4., 2., 4., 4., 2.])
    """
    found = torch.ones(1)
    for size, step in zip(shape, granularity._block(shape), strict=True):
        starts = torch.arange(0, size, step)
        sizes = (size - starts).clamp_max(step).float()
        found = (found[:, None] * sizes).reshape(-1)
    return found


def bit_width_report(model: nn.Module) -> dict[str, dict[str, float | int | list[int] | list[float]]]:
    """What every learned bit width of a model stands at, by the path of its module.

    Raises:
        QuantizerError: not a model.

    Example:
        >>> import bitwright.nn as qnn
        >>> from bitwright.qcore import LearnedBitWidth
        >>> model = nn.Sequential(qnn.QuantLinear(4, 2, weight_bit_width=LearnedBitWidth))
        >>> bit_width_report(model)
        {'0.weight_quant.bit_width': {'bit_width': 8, 'exact': 8.0, 'min': 2, 'max': 8}}
    """
    require_model("bit_width_report", model)
    return {name: module.report() for name, module in model.named_modules() if isinstance(module, LearnedBitWidth)}


def size_penalty(model: nn.Module) -> Tensor:
    """The average number of bits of the weights whose width is learned, weighted by size: add a share to the loss.

    Returns:
        A differentiable 0-d tensor; 0 if nothing is learned.

    Raises:
        QuantizerError: not a model.

    Example:
        >>> import bitwright.nn as qnn
        >>> from bitwright.qcore import LearnedBitWidth
        >>> size_penalty(qnn.QuantLinear(4, 2, weight_bit_width=LearnedBitWidth)).item()
        8.0
    """
    require_model("size_penalty", model)
    learned = [module for module in model.modules() if isinstance(module, LearnedBitWidth) and module.elements]
    if not learned:
        return torch.zeros(())
    total = sum(module.elements or 0 for module in learned)
    return torch.stack([_bits(module) for module in learned]).sum() / total


def _bits(module: LearnedBitWidth) -> Tensor:
    """Bits of a tensor, differentiable."""
    exact = module.exact()
    if exact.ndim == 0 or module.shape is None:
        return exact * (module.elements or 0)
    return (exact * block_sizes(module.granularity, module.shape).to(exact)).sum()

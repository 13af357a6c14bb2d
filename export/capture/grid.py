"""The grid of a quantized tensor as plain numbers, for files and for integer arithmetic."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...qcore import Grid, quantize_to_int
from ...qcore.formats.int_range import int_bounds
from ...qcore.granularity import Granularity

__all__ = ["Entering", "IntegerGrid", "QuantizedTensor", "place_in", "place_of"]


@dataclass(frozen=True, eq=False)
class IntegerGrid:
    """Where the integers of a tensor stand: ``value = (integer - zero_point) * scale``.

    Of other number formats it has the codes, and a table: ``value = (levels[code] - zero_point) * scale``.

    Args:
        name: path of the quantizer that the grid comes from; of the layer, for sums of products.
        scale: float32, 0-d, or 1-d with one for each index of ``axis``; in groups, one for each block of the tensor.
        zero_point: int64, shaped like the scale; float32 where levels are counted from a number between two of them.
        bit_width: number of bits.
        signed: whether integers may be negative.
        narrow_range: whether the smallest (signed) or largest (unsigned) integer is left out.
        axis: the dimension with several scales, None without one, and -1 where they vary in another way.
        block: how many neighbours along ``axis`` share a scale, at every index of the other dimensions; None where the
            whole index does.
        levels: float32, the level of each code, where these are no integers themselves; else None. The codes are
            unsigned.
        number_format: what such levels are called.

    Example:
        >>> grid = IntegerGrid("act", torch.tensor(0.5), torch.tensor(3), 4, signed=False)
        >>> grid.bounds, grid.values(torch.tensor([3, 5]))
        ((0, 15), tensor([0., 1.]))
    """

    name: str
    scale: Tensor
    zero_point: Tensor
    bit_width: int
    signed: bool
    narrow_range: bool = False
    axis: int | None = None
    block: int | None = None
    levels: Tensor | None = None
    number_format: str | None = None

    @staticmethod
    def of(name: str, grid: Grid, shape: Sequence[int]) -> "IntegerGrid":
        """The grid of values of a shape, as it stands."""
        scale = grid.scale.detach()
        zero_point = torch.zeros_like(scale) if grid.zero_point is None else grid.zero_point.detach().expand_as(scale)
        axis, block = place_of(grid, shape)
        if block is None and scale.ndim == len(shape) and axis not in (None, -1):
            scale, zero_point = (grid.along(each, shape) for each in (scale, zero_point))  # one for each index
        flat, zero = (
            each.cpu().reshape(() if axis is None else each.shape if block else -1).clone()
            for each in (scale, zero_point)
        )
        whole = grid.number_format.whole or grid.zero_point is None
        zero = zero.round().to(torch.int64) if whole else zero.float()
        if grid.number_format.whole:
            kind = (int(grid.bit_width), grid.signed, grid.narrow_range)
            return IntegerGrid(name, flat.float(), zero, *kind, axis, block)
        levels = torch.tensor(grid.number_format.levels, dtype=torch.float32)
        kind = (grid.number_format.bits, False, False)
        return IntegerGrid(name, flat.float(), zero, *kind, axis, block, levels, str(grid.number_format))

    @property
    def bounds(self) -> tuple[int, int]:
        """The smallest and the largest integer, or code."""
        return int_bounds(self.bit_width, self.signed, self.narrow_range)

    @property
    def centred_bounds(self) -> tuple[int, int]:
        """The same for integers minus their zero points, over all scales."""
        low, high = self.bounds
        return low - int(self.zero_point.max()), high - int(self.zero_point.min())

    def shaped(self, tensor: Tensor, ndim: int) -> Tensor:
        """The scale or zero point, shaped so that it broadcasts against a tensor of ``ndim`` dimensions."""
        if self.axis is None or self.block is not None:
            return tensor
        return tensor.reshape([-1 if dim == self.axis % ndim else 1 for dim in range(ndim)])

    def spread(self, tensor: Tensor) -> tuple[Tensor, Tensor]:
        """The scale and the zero point, shaped to broadcast against a tensor, and on its device."""
        scale, zero_point = (self.shaped(each, tensor.ndim) for each in (self.scale, self.zero_point))
        if self.block is not None and self.axis is not None:
            size = tensor.shape[self.axis]
            scale, zero_point = (
                each.repeat_interleave(self.block, self.axis).narrow(self.axis, 0, size) for each in (scale, zero_point)
            )
        return scale.to(tensor.device), zero_point.to(tensor.device)

    def codes(self, values: Tensor, rounding: Callable[[Tensor], Tensor]) -> Tensor:
        """The integers of values, int64, computed as ``QuantizeLinear`` does."""
        scale, zero_point = self.spread(values)
        return quantize_to_int(values, scale, *self.bounds, zero_point, rounding).to(torch.int64)

    def values(self, codes: Tensor) -> Tensor:
        """The float32 values of integers, computed as ``DequantizeLinear`` does; or of codes."""
        scale, zero_point = self.spread(codes)
        steps = codes.to(torch.int64) if self.levels is None else self.levels.to(codes.device)[codes.long()]
        return (steps - zero_point).to(torch.float32) * scale

    def code_of(self, number: float) -> int | None:
        """The integer, zero point subtracted, whose value is exactly a number; None without one, or of several scales.

        Example:
            >>> grid = IntegerGrid("act", torch.tensor(0.5), torch.tensor(3), 4, signed=False)
            >>> grid.code_of(-1.5), grid.code_of(0.7), grid.code_of(6.5)
            (-3, None, None)
        """
        if self.axis is not None or self.levels is not None:
            return None
        value, scale = torch.tensor(number, dtype=torch.float32), self.scale.cpu()
        code, (low, high) = torch.round(value / scale), self.centred_bounds
        return int(code) if low <= code <= high and torch.equal(code * scale, value) else None

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, IntegerGrid):
            return NotImplemented
        plain = ("name", "bit_width", "signed", "narrow_range", "axis", "block", "number_format")
        return (
            all(getattr(self, each) == getattr(other, each) for each in plain)
            and torch.equal(self.scale, other.scale)
            and torch.equal(self.zero_point, other.zero_point)
            and _same_levels(self.levels, other.levels)
        )

    __hash__ = None  # type: ignore[assignment]

    def __str__(self) -> str:
        """Such as ``int4 narrow, scale 0.5, zero point 3``."""
        kind = f"{'' if self.signed else 'u'}int{self.bit_width}{' narrow' if self.narrow_range else ''}"
        kind = kind if self.number_format is None else self.number_format
        if self.axis is not None:
            groups = "" if self.block is None else f", in groups of {self.block}"
            scale = f"{self.scale.numel()} scales along axis {self.axis}{groups}"
        else:
            scale = f"scale {self.scale.item():.6g}"
        zero = f", zero point {self.zero_point.item()}" if self.axis is None and bool(self.zero_point != 0) else ""
        return f"{kind}, {scale}{zero}"


def _same_levels(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return one.shape == other.shape and bool(((one == other) | (one.isnan() & other.isnan())).all())


def place_of(grid: Grid, shape: Sequence[int]) -> tuple[int | None, int | None]:
    """The dimension along which scales vary, and how many neighbours share one where that is not all of an index.

    The dimension is None where there is one scale, and -1 where scales vary in a way that QuantizeLinear does not take.

    Example:
        >>> from bitwright.qcore import PerGroup
        >>> place_of(Grid(torch.ones(2, 3), granularity=PerGroup(4)), (2, 10))
        (1, 4)
    """
    granularity, scale = grid.granularity, grid.scale
    if granularity.axis is not None or granularity.single or tuple(scale.shape) != granularity.scales_shape(shape):
        return _axis_of(scale, shape), None
    axis, block = place_in(granularity, shape)
    several = sum(count > 1 for count in scale.shape) > 1
    return axis, block if several else None  # along one dimension alone there is a scale for each index


def place_in(granularity: Granularity, shape: Sequence[int]) -> tuple[int | None, int | None]:
    """The dimension along which scales vary in a tensor, and how many neighbours along it share one.

    The dimension is None where there is one scale, and -1 where QuantizeLinear has no word for it; the number is None
    where a whole index shares a scale.

    Example:
        >>> from bitwright.qcore import PerBlock, PerGroup
        >>> place_in(PerGroup(4), (2, 10)), place_in(PerGroup(-1), (2, 10)), place_in(PerBlock((2, 2)), (4, 4))
        ((1, 4), (0, None), (-1, None))
    """
    if granularity.single or granularity.axis is not None:
        return (None if granularity.axis is None else granularity.axis % len(shape)), None
    block = granularity.block(shape)
    counted = [dim for dim, size in enumerate(shape) if block[dim] < size]
    shared = [dim for dim in range(len(shape)) if block[dim] > 1]
    if len(counted) < 2:
        whole = not counted or block[counted[0]] == 1
        return (counted[0] if counted else None), None if whole else block[counted[0]]
    if len(shared) > 1:
        return -1, None
    axis = shared[0] if shared else len(shape) - 1
    return axis, block[axis]


def _axis_of(scale: Tensor, shape: Sequence[int]) -> int | None:
    if scale.numel() == 1:
        return None
    long = [dim for dim, size in enumerate(scale.shape) if size > 1]
    fits = len(long) == 1 and scale.ndim == len(shape) and scale.numel() == shape[long[0]]
    return long[0] if fits else -1


@dataclass(frozen=True, eq=False)
class Entering:
    """The integers that a quantizer takes: ``value = sum of integer * scale``, over terms, and then the bounds.

    Args:
        scales: of each term, float32: 0-d, or 1-d with one for each index of ``axis``. Integers are centred: their zero
            point is subtracted.
        axis: the dimension with several scales, None without one, and -1 where they vary along several dimensions.
        low: values below count as this (ReLU), or None.
        high: values above count as this (ReLU6), or None.
        rounding: of the quantizer: the name of its class or function.

    Example:
        >>> Entering((torch.tensor(0.5),), low=0.0) == Entering((torch.tensor(0.5),))
        False
    """

    scales: tuple[Tensor, ...]
    axis: int | None = None
    low: float | None = None
    high: float | None = None
    rounding: str = "HalfEven"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Entering):
            return NotImplemented
        plain = ("axis", "low", "high", "rounding")
        alike = len(self.scales) == len(other.scales) and all(map(torch.equal, self.scales, other.scales))
        return alike and all(getattr(self, each) == getattr(other, each) for each in plain)

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True, eq=False)
class QuantizedTensor:
    """What one quantizer does: the grid, and the integers where the tensor is a parameter.

    Args:
        grid: where the integers stand.
        codes: the integers of a weight or bias, in the smallest type that holds them; None for activations, which are
            computed.
        entering: what an activation's quantizer takes; None where it takes floats.

    Example:
        >>> grid = IntegerGrid("fc.weight_quant", torch.tensor(0.5), torch.tensor(0), 4, signed=True)
        >>> print(QuantizedTensor(grid, torch.tensor([[1, -2]], dtype=torch.int8)))
        (1, 2) int4, scale 0.5
    """

    grid: IntegerGrid
    codes: Tensor | None = None
    entering: Entering | None = None

    @property
    def values(self) -> Tensor | None:
        """The values that the integers stand for, float32."""
        return None if self.codes is None else self.grid.values(self.codes)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, QuantizedTensor):
            return NotImplemented
        if self.codes is None or other.codes is None:
            return self.grid == other.grid and self.codes is other.codes and self.entering == other.entering
        alike = self.codes.dtype == other.codes.dtype and torch.equal(self.codes, other.codes)
        return alike and self.grid == other.grid

    __hash__ = None  # type: ignore[assignment]

    def __str__(self) -> str:
        return str(self.grid) if self.codes is None else f"{tuple(self.codes.shape)} {self.grid}"

"""The grid that quantized values lie on."""

import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .errors import QuantizerError
from .formats.integers import Integers
from .formats.number_format import NumberFormat
from .granularity import Granularity, PerTensor
from .rounding import HalfEven

__all__ = ["Grid", "along_axis", "bits_to_spare", "integers_of", "products_source", "shared"]


class Grid(NamedTuple):
    """Where quantized values lie: ``(level - zero_point) * scale``, the one record of it.

    Args:
        scale: float tensor, detached, of the granularity's compact shape: 0-d for one, ``(1, C, 1, 1)`` per channel,
            one number for each block else.
        zero_point: tensor of whole numbers shaped like the scale, or None for 0.
        number_format: the levels: which integers, or what else.
        granularity: which values share a scale.
        source: which stored scale the grid came from, hashable; equal for tensors on one shared grid. None for a scale
            that belongs to one tensor, such as a statistic of it: such a grid is shared with nothing.
        spare_bits: for float sums of products, how many bits of the float's mantissa the largest possible sum leaves
            free, see `bits_to_spare`: below 1, rounding may have moved a value by half a step.
        scale_format: what the scales are held in where they are quantized themselves, such as E4M3 in NVFP4, see
            `scales`; None for scales that are any floats.

    Example:
        >>> grid = Grid(torch.tensor(0.5), number_format=Integers(4))
        >>> grid.bounds, grid.axis, grid.bit_width
        ((-8, 7), None, 4)
    """

    scale: Tensor
    zero_point: Tensor | None = None
    number_format: NumberFormat = Integers()
    granularity: Granularity = PerTensor()
    source: Hashable = None
    spare_bits: int = 64
    scale_format: NumberFormat | None = None

    @property
    def scales(self) -> "Grid | None":
        """The grid of the scales, where they are quantized themselves; None where they are any floats.

        Its own scale is the one of the tensor. ``grid.scales.to_int(grid.scale)`` are the codes of the scales, and
        ``from_int`` of these gives the scales back, bit by bit.

        Raises:
            QuantizerError: the scales are no multiples of levels of ``scale_format``.

        Example:
            >>> from bitwright.qcore import E2M1, E4M3, PerGroup
            >>> grid = Grid(torch.tensor([[44.8, 1.5]]), None, E2M1, PerGroup(16), scale_format=E4M3)
            >>> grid.scales.scale, grid.scales.to_int(grid.scale)
            (tensor(0.1000), tensor([[126,  87]], dtype=torch.uint8))
        """
        return None if self.scale_format is None else _scales(self.scale, self.scale_format)

    @property
    def bit_width(self) -> int | Tensor:
        """Bits of a code; a 0-d tensor where it is learned."""
        return self.number_format.bit_width

    @property
    def signed(self) -> bool:
        """Whether levels may be negative."""
        return self.number_format.signed

    @property
    def narrow_range(self) -> bool:
        """Whether the range of integers leaves out one end."""
        return integers_of(self).narrow_range

    @property
    def axis(self) -> int | None:
        """The dimension that has a scale for each index; None for one scale, and for other granularities."""
        return self.granularity.axis

    @property
    def bounds(self) -> tuple[int, int]:
        """The smallest and the largest integer, as plain numbers.

        Raises:
            QuantizerError: the levels are no integers.
        """
        return integers_of(self).bounds

    def along(self, numbers: Tensor, shape: Sequence[int]) -> Tensor:
        """Scales or zero points, broadcastable to a tensor of some shape that lies on the grid."""
        return self.granularity.spread(numbers, shape)

    def to_int(self, values: Tensor) -> Tensor:
        """The integers, or codes, of values that lie on the grid, in the smallest integer type that holds them."""
        exact = torch.float64 if int(self.bit_width) > 22 else torch.promote_types(values.dtype, torch.float32)
        steps = values.to(exact) / self.along(self.scale, values.shape)
        if self.zero_point is not None:
            steps = steps + self.along(self.zero_point, values.shape)
        return self.number_format.encode(steps)

    def from_int(self, codes: Tensor) -> Tensor:
        """The values of integers, or codes."""
        levels = self.number_format.decode(codes, self.scale.dtype)
        if self.zero_point is not None:
            levels = levels - self.along(self.zero_point, codes.shape)
        return levels * self.along(self.scale, codes.shape)

    def replace(self, **changes: object) -> "Grid":
        """The same grid with some fields replaced; other scales are any floats, unless ``scale_format`` is given."""
        if "scale" in changes and "scale_format" not in changes:
            return self._replace(scale_format=None, **changes)
        return self._replace(**changes)


def _scales(scale: Tensor, scale_format: NumberFormat) -> Grid:
    """The grid of scales of which the largest is the highest level: that tells the scale of the tensor.

    The largest scale is that level times the scale of the tensor, rounded; so its quotient may be a last digit off.
    """
    if scale.numel() == 0:
        return Grid(scale.new_ones(()), None, scale_format)
    guess = scale.amax() / scale_format.high
    up, down = (torch.nextafter(guess, torch.full_like(guess, limit)) for limit in (math.inf, 0.0))
    for each in (guess, up, down):
        if torch.equal(scale_format.nearest(scale / each, HalfEven()) * each, scale):
            return Grid(each, None, scale_format)
    raise QuantizerError(
        f"These scales are no multiples of levels of {scale_format}, in which the grid says they are held. Leave "
        "scale_format out: grid.replace(scale_format=None)."
    )


def integers_of(grid: Grid) -> Integers:
    """The levels of a grid of integers.

    Raises:
        QuantizerError: they are none.

    Example:
        >>> integers_of(Grid(torch.tensor(0.5)))
        Integers(bit_width=8, signed=True, narrow_range=False)
    """
    number_format = grid.number_format
    if not isinstance(number_format, Integers):
        raise QuantizerError(
            f"The levels of this grid are {number_format}, and integers are needed: only they have bounds, a narrow "
            "range and zero points. Ask its number_format, which has low and high, levels, encode and decode."
        )
    return number_format


def shared(one: Grid | None, other: Grid | None) -> bool:
    """Whether two tensors lie on one grid: one stored scale made both, and the integers have one range.

    Numbers are not compared, so that the answer is the same in training and in evaluation.

    Example:
        >>> stored, dynamic = Grid(torch.tensor(0.5), source=7), Grid(torch.tensor(0.5))
        >>> shared(stored, stored), shared(stored, dynamic), shared(dynamic, dynamic)
        (True, False, False)
    """
    return one is not None and other is not None and is_stored(one.source) and one[2:5] == other[2:5]


def is_stored(source: Hashable) -> bool:
    """Whether a source names stored scales only: no part of it is None."""
    return all(map(is_stored, source)) if isinstance(source, tuple) else source is not None


def products_source(inputs: Hashable, weights: Hashable) -> Hashable:
    """The source of sums of products, from those of the input and the weight: None if either belongs to one tensor.

    Example:
        >>> products_source(3, 4), products_source(3, None)
        (('products', 3, 4), None)
    """
    source = ("products", inputs, weights)
    return source if is_stored(source) else None


def bits_to_spare(largest: int, dtype: torch.dtype) -> int:
    """How many bits of a float's mantissa are left by sums of integers as large as this; negative: how many it lacks.

    Example:
        >>> bits_to_spare(256 * 255 * 127, torch.float32), bits_to_spare(4608 * 255 * 127, torch.float32)
        (1, -4)
    """
    return round(1 - math.log2(torch.finfo(dtype).eps)) - largest.bit_length()


def along_axis(flat: Tensor, axis: int | None, ndim: int) -> Tensor:
    """Shape one number per index of ``axis`` so that it broadcasts against a tensor of ``ndim`` dimensions.

    Example:
        >>> along_axis(torch.ones(3), 1, 4).shape
        torch.Size([1, 3, 1, 1])
    """
    if axis is None or flat.ndim == 0:
        return flat
    shape = [1] * ndim
    shape[axis] = -1
    return flat.reshape(shape)

"""The grid that quantized values lie on."""

import math
from collections.abc import Hashable
from typing import NamedTuple

import torch
from torch import Tensor

from .formats.int_range import int_bounds

__all__ = ["Grid", "along_axis", "bits_to_spare", "products_source", "shared", "storage_dtype"]


class Grid(NamedTuple):
    """Where quantized values lie: ``(integer - zero_point) * scale``, integers of ``bit_width`` bits.

    Args:
        scale: float tensor, 0-d or broadcastable to the values; detached.
        zero_point: tensor of whole numbers shaped like the scale, or None for 0.
        bit_width: number of bits; a 0-d tensor where it is learned.
        signed: whether integers may be negative.
        narrow_range: whether the range leaves out one end, see `int_bounds`.
        axis: the dimension that has a scale for each index, or None for one scale.
        source: which stored scale the grid came from, hashable; equal for tensors on one shared grid. None for a scale
            that belongs to one tensor, such as a statistic of it: such a grid is shared with nothing.
        spare_bits: for float sums of products, how many bits of the float's mantissa the largest possible sum leaves
            free, see `bits_to_spare`: below 1, rounding may have moved a value by half a step.

    Example:
        >>> Grid(torch.tensor(0.5), bit_width=4, signed=True).bounds
        (-8, 7)
    """

    scale: Tensor
    zero_point: Tensor | None = None
    bit_width: int | Tensor = 8
    signed: bool = True
    narrow_range: bool = False
    axis: int | None = None
    source: Hashable = None
    spare_bits: int = 64

    @property
    def bounds(self) -> tuple[int, int]:
        """The smallest and the largest integer, as plain numbers."""
        return int_bounds(int(self.bit_width), self.signed, self.narrow_range)

    def to_int(self, values: Tensor) -> Tensor:
        """The integers of values that lie on the grid, in the smallest integer type that holds them."""
        exact = torch.float64 if int(self.bit_width) > 22 else torch.promote_types(values.dtype, torch.float32)
        codes = torch.round(values.to(exact) / self.scale)
        if self.zero_point is not None:
            codes = codes + self.zero_point
        return codes.clamp(*self.bounds).to(storage_dtype(*self.bounds))

    def from_int(self, codes: Tensor) -> Tensor:
        """The values of integers."""
        whole = codes.to(self.scale.dtype)
        return (whole if self.zero_point is None else whole - self.zero_point) * self.scale

    def replace(self, **changes: object) -> "Grid":
        """The same grid with some fields replaced."""
        return self._replace(**changes)


def shared(one: Grid | None, other: Grid | None) -> bool:
    """Whether two tensors lie on one grid: one stored scale made both, and the integers have one range.

    Numbers are not compared, so that the answer is the same in training and in evaluation.

    Example:
        >>> stored, dynamic = Grid(torch.tensor(0.5), source=7), Grid(torch.tensor(0.5))
        >>> shared(stored, stored), shared(stored, dynamic), shared(dynamic, dynamic)
        (True, False, False)
    """
    return one is not None and other is not None and is_stored(one.source) and one[2:7] == other[2:7]


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


def storage_dtype(low: int, high: int) -> torch.dtype:
    """The smallest torch integer type that holds every integer from ``low`` to ``high``.

    Example:
        >>> storage_dtype(-7, 7), storage_dtype(0, 255), storage_dtype(0, 65535)
        (torch.int8, torch.uint8, torch.int32)
    """
    for dtype in (torch.int8, torch.uint8, torch.int16, torch.int32):
        if torch.iinfo(dtype).min <= low and high <= torch.iinfo(dtype).max:
            return dtype
    return torch.int64

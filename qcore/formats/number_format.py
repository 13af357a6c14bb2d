"""Which levels a grid has, in units of its scale."""

from typing import NamedTuple

import torch
from torch import Tensor

from .int_range import int_bounds

__all__ = ["Integers", "NumberFormat", "storage_dtype"]


class NumberFormat:
    """Base of number formats: the levels that values are multiples of a scale of. They are values without state.

    Example:
        >>> isinstance(Integers(4), NumberFormat)
        True
    """

    __slots__ = ()


class _Integers(NamedTuple):
    bit_width: int | Tensor = 8
    signed: bool = True
    narrow_range: bool = False


class Integers(_Integers, NumberFormat):
    """Integers of so many bits.

    Args:
        bit_width: how many; a 0-d tensor where it is learned.
        signed: whether they may be negative.
        narrow_range: whether the range leaves out one end, see `int_bounds`.

    Example:
        >>> Integers(4).bounds, str(Integers(4, narrow_range=True)), Integers(4).dtype
        ((-8, 7), 'int4 narrow', torch.int8)
    """

    __slots__ = ()

    @property
    def bounds(self) -> tuple[int, int]:
        """The smallest and the largest, as plain numbers."""
        return int_bounds(int(self.bit_width), self.signed, self.narrow_range)

    @property
    def dtype(self) -> torch.dtype:
        """The smallest type of torch that holds them all."""
        return storage_dtype(*self.bounds)

    def __str__(self) -> str:
        kind = f"{'int' if self.signed else 'uint'}{int(self.bit_width)}"
        return f"{kind} narrow" if self.narrow_range else kind


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

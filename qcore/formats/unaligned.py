"""Integers that are counted from a zero point between two of them."""

from typing import NamedTuple

import torch
from torch import Tensor

from .number_format import NumberFormat, RoundingLike

__all__ = ["UnalignedIntegers"]


class _UnalignedIntegers(NamedTuple):
    bit_width: int


class UnalignedIntegers(_UnalignedIntegers, NumberFormat):  # type: ignore[misc]  # fields here, properties there
    """Integers from 0 on whose zero point is a float number, so that 0 need not be a level: ``(q - z) * scale``.

    What only whole numbers can do is refused for them: sums of products on one grid, and integer models.

    Args:
        bit_width: how many bits.

    Example:
        >>> UnalignedIntegers(2).levels, UnalignedIntegers(2).has_zero, str(UnalignedIntegers(2))
        ((0.0, 1.0, 2.0, 3.0), False, 'uint2 with a float zero point')
    """

    __slots__ = ()

    @property
    def levels(self) -> tuple[float, ...]:
        return tuple(map(float, range(2**self.bit_width)))

    @property
    def bits(self) -> int:
        return self.bit_width

    @property
    def low(self) -> float:
        return 0.0

    @property
    def high(self) -> float:
        return 2.0**self.bit_width - 1

    @property
    def has_zero(self) -> bool:
        return False

    def nearest(self, steps: Tensor, rounding: RoundingLike, relu: bool = False) -> Tensor:
        return torch.clamp(rounding(steps), 0, 2**self.bit_width - 1)

    def near(self, steps: Tensor, rounding: RoundingLike, zero_point: Tensor) -> Tensor:
        return self.nearest(steps + zero_point, rounding) - zero_point

    def within(self, steps: Tensor, rounding: RoundingLike, zero_point: Tensor) -> Tensor:
        return self.inside(steps + zero_point, rounding)

    def encode(self, steps: Tensor) -> Tensor:
        return torch.round(steps).clamp(0, 2**self.bit_width - 1).to(self.dtype)

    def decode(self, codes: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        return codes.to(dtype)

    def __str__(self) -> str:
        return f"uint{self.bit_width} with a float zero point"

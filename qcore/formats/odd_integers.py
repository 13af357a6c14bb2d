"""Odd integers, which lie evenly around 0 and leave it out: binary weights, and those of DoReFa."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .number_format import NumberFormat, RoundingLike, whole_number

__all__ = ["BINARY", "OddIntegers"]


class _OddIntegers(NamedTuple):
    bit_width: int


class OddIntegers(_OddIntegers, NumberFormat):  # type: ignore[misc]  # fields here, properties there
    """The odd integers from ``1 - 2**bits`` to ``2**bits - 1``: of 1 bit -1 and 1, of 2 bits -3, -1, 1 and 3.

    There is no level 0; to nearest, a number in the middle of two goes up, so that 0 becomes 1.

    Args:
        bit_width: 1 to 16.

    Raises:
        SettingError: another number.

    Example:
        >>> import torch
        >>> from bitwright.qcore import BINARY, HalfEven
        >>> BINARY.nearest(torch.tensor([-0.3, -0.0, 0.0, 7.0]), HalfEven())
        tensor([-1.,  1.,  1.,  1.])
        >>> OddIntegers(2).levels, str(BINARY), BINARY.has_zero
        ((-3.0, -1.0, 1.0, 3.0), 'binary', False)
    """

    __slots__ = ()
    sharp = True

    @property
    def levels(self) -> tuple[float, ...]:
        top = 2**self.bit_width - 1
        return tuple(map(float, range(-top, top + 1, 2)))

    @property
    def bits(self) -> int:
        return self.bit_width

    @property
    def mantissa_bits(self) -> int:
        return self.bit_width - 1

    @property
    def high(self) -> float:
        return 2.0**self.bit_width - 1

    @property
    def low(self) -> float:
        return 1 - 2.0**self.bit_width

    @property
    def symmetric(self) -> bool:
        return True

    @property
    def has_zero(self) -> bool:
        return False

    def edges(self, rounding: RoundingLike) -> tuple[float, float]:
        """Binary values pass their gradients from -1 to 1, after BinaryConnect; others half a gap farther."""
        edge = 1 + 2.0**-23 if self.bit_width == 1 else 2.0**self.bit_width
        return -edge, edge

    def inplace(self, steps: Tensor, rounding: Any, relu: bool = False) -> Tensor:
        if rounding.name not in _NEAREST:
            return self.nearest(steps, rounding, relu)
        half = 2.0 ** (self.bit_width - 1)
        if self.bit_width > 1:
            steps.mul_(0.5)
        steps.clamp_(0 if relu else -half, half - 0.5).floor_()
        return torch.add(1.0, steps, alpha=2, out=steps)

    def nearest(self, steps: Tensor, rounding: RoundingLike, relu: bool = False) -> Tensor:
        if getattr(rounding, "name", "") not in _NEAREST and self.bit_width <= _TABLE:  # which is exact beside levels
            return NumberFormat.nearest(self, steps, rounding, relu)
        half = 2.0 ** (self.bit_width - 1)
        if getattr(rounding, "name", "") in _NEAREST:
            halves = steps if self.bit_width == 1 else steps * 0.5
            places = torch.floor(torch.clamp(halves, 0 if relu else -half, half - 0.5))
        else:
            places = torch.clamp(rounding((steps - 1) * 0.5), 0 if relu else -half, half - 1)
        return 1 + places * 2

    def __str__(self) -> str:
        return "binary" if self.bit_width == 1 else f"odd integers of {self.bit_width} bits"


def _checked(cls: type[Any], bit_width: int) -> Any:
    return tuple.__new__(cls, (whole_number("bit_width", bit_width, 1, 16),))


_OddIntegers.__new__ = _checked  # not in the subclass, which torch.compile would take for no named tuple

_TABLE = 8  # bits up to which a table of levels is not too long
_NEAREST = ("half_even", "half_up")

BINARY = OddIntegers(1)

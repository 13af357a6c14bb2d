"""Which levels a grid has, in units of its scale: what every number format says."""

import math
from collections.abc import Callable
from functools import lru_cache
from operator import index
from typing import Any

import torch
from torch import Tensor

from ..errors import SettingError
from ..tracing import constant
from .table import looked_up, nearest_level

__all__ = ["NumberFormat", "RoundingLike", "whole_number"]

RoundingLike = Callable[[Tensor], Tensor]  # see `Rounding`


class NumberFormat:
    """Base of number formats, the shipped ones and a user's own: the levels that values are multiples of a scale of.

    They are values without state: equal, hashable, picklable. A subclass is a named tuple, which comes first among its
    bases, without a ``__new__`` of its own, so that it goes through ``torch.compile`` as part of a `QuantTensor`. It
    implements `levels`; all else has a default, and `nearest` and `inplace` may want a faster form. ``str`` of it is
    part of what a saved state says of its numbers.

    In all of its methods ``steps`` are numbers in units of the scale, ``x / scale``, float32 or float64.

    Example:
        >>> from typing import NamedTuple
        >>> class Thirds(NamedTuple("_Thirds", [("number", int)]), NumberFormat):
        ...     __slots__ = ()
        ...
        ...     @property
        ...     def levels(self):
        ...         return tuple(code / 3 for code in range(self.number))
        >>> from bitwright.qcore import HalfEven
        >>> Thirds(4).bits, Thirds(4).high, Thirds(4).nearest(torch.tensor([0.2, 9.0]), HalfEven())
        (2, 1.0, tensor([0.3333, 1.0000]))
    """

    __slots__ = ()
    whole = False  # whether the levels are all integers of a range: what zero points, and sums of products, rely on
    mantissa_bits = 0  # digits after the first one, in the binade of the largest level
    sharp = False  # whether values come to lie at the edges, so that the last digit of ``x / scale`` decides
    learned = False  # whether the levels change in training

    @property
    def levels(self) -> tuple[float, ...]:
        """The value of each code, from code 0 on; infinities and NaN where a code stands for them."""
        raise NotImplementedError

    def nearest(self, steps: Tensor, rounding: RoundingLike, relu: bool = False) -> Tensor:
        """The levels that numbers are moved to, in operations that compilers and exporters can trace.

        What lies beyond the ends goes to them, infinite numbers too; NaN stays. To nearest, a tie goes to the even
        code.

        Args:
            steps: the numbers.
            rounding: decides between the two levels around a number.
            relu: take numbers below 0 for 0.
        """
        levels, codes = _ordered(self)
        return nearest_level(levels, codes, torch.clamp_min(steps, 0) if relu else steps, rounding)

    def inplace(self, steps: Tensor, rounding: RoundingLike, relu: bool = False) -> Tensor:
        """The same outside graphs and without gradients; ``steps`` may be overwritten."""
        if type(self).nearest is not NumberFormat.nearest:
            return self.nearest(steps, rounding, relu)
        levels, codes = _ordered(self)
        return looked_up(levels, codes, steps.clamp_min_(0) if relu else steps, rounding)

    def covered(self, steps: Tensor, rounding: RoundingLike) -> Tensor:
        """The same where no number lies beyond the ends by more than the rounding of ``x / scale``."""
        return self.inplace(steps, rounding)

    # Levels that are counted from a zero point: integers' alone

    def shifted(self, steps: Tensor, rounding: Any, zero_point: Tensor) -> Tensor:
        """`inplace`, of integers that are counted from a zero point."""
        raise NotImplementedError

    def near(self, steps: Tensor, rounding: RoundingLike, zero_point: Tensor) -> Tensor:
        """`nearest`, of integers that are counted from a zero point."""
        raise NotImplementedError

    def within(self, steps: Tensor, rounding: RoundingLike, zero_point: Tensor) -> Tensor:
        """`inside`, of integers that are counted from a zero point."""
        raise NotImplementedError

    # The ends

    @property
    def low(self) -> float:
        """The lowest level."""
        return _ends(self)[0]

    @property
    def high(self) -> float:
        """The highest level."""
        return _ends(self)[1]

    @property
    def threshold(self) -> float:
        """The level that the largest magnitude is mapped to: scale = magnitude / threshold."""
        return max(-self.low, self.high)

    @property
    def power(self) -> float:
        """The largest power of two that is no larger than the highest level: 2**emax of a minifloat."""
        return 2.0 ** (math.frexp(self.high)[1] - 1)

    @property
    def power_of_two_threshold(self) -> float:
        """The threshold for scales that are powers of two: a power of two itself."""
        return self.power

    @property
    def signed(self) -> bool:
        """Whether there are levels below 0."""
        return self.low < 0

    @property
    def symmetric(self) -> bool:
        """Whether the ends are as far from 0 on both sides."""
        return self.low == -self.high

    @property
    def has_zero(self) -> bool:
        """Whether 0 is a level: what padding, ReLU and dropout write."""
        return 0.0 in self.levels

    def holds(self, other: "NumberFormat") -> bool:
        """Whether all levels of another format are levels of this one, too; what stands for NaN does not count.

        Example:
            >>> from bitwright.qcore import E2M1, E4M3, Integers
            >>> Integers(8).holds(Integers(4)), Integers(8).holds(E2M1), E4M3.holds(E2M1), E4M3.holds(Integers(4))
            (True, False, True, True)
        """
        if not (self.low <= other.low and other.high <= self.high):
            return False
        if self.whole:
            return other.whole or all(level.is_integer() for level in other.levels if not math.isnan(level))
        if other.whole and other.bits > self.bits:
            return False  # without making a list of them
        known = set(self.levels)
        return all(level in known or math.isnan(level) for level in other.levels)

    def edges(self, rounding: RoundingLike) -> tuple[float, float]:
        """Between these numbers, and not at them, nothing is clipped: there gradients pass straight through.

        Beyond an end lies half the gap before it, as with integers, where 127.4 still rounds to 127.
        """
        known, _ = _ordered(self)
        if len(known) == 1:
            return known[0] - 0.5, known[0] + 0.5
        return known[0] - (known[1] - known[0]) / 2, known[-1] + (known[-1] - known[-2]) / 2

    def inside(self, steps: Tensor, rounding: RoundingLike) -> Tensor:
        """Where nothing is clipped, as truth values; traceable."""
        low, high = self.edges(rounding)
        return (steps > low) & (steps < high)

    @property
    def few(self) -> bool:
        """Whether rounding moves values by much more than float32's last digits: kernels may then take short cuts."""
        return self.bits < 10

    # Codes

    @property
    def bits(self) -> int:
        """Bits of a code."""
        return max(1, (len(self.levels) - 1).bit_length())

    @property
    def bit_width(self) -> int:
        """The same, by the name that integers have for it."""
        return self.bits

    @property
    def dtype(self) -> torch.dtype:
        """The smallest type of torch that holds the codes."""
        return torch.uint8 if self.bits <= 8 else torch.int16 if self.bits <= 15 else torch.int32

    def encode(self, steps: Tensor) -> Tensor:
        """The codes of the levels next to some numbers, in `dtype`."""
        levels, codes = _ordered(self)
        values = torch.tensor(levels, dtype=torch.float64, device=steps.device)
        middles = (values[1:] + values[:-1]) / 2
        found = torch.bucketize(steps.double().contiguous(), middles, right=True)
        return torch.tensor(codes, device=steps.device)[found].to(self.dtype)

    def decode(self, codes: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """The levels of codes."""
        return torch.tensor(self.levels, dtype=dtype, device=codes.device)[codes.long()]

    def settled(self, shaped: Callable[[Tensor], Tensor] | None = None) -> "NumberFormat":
        """The format as it is now: itself, where nothing is learned."""
        return self

    def snapshot(self) -> "NumberFormat":
        """What grids say of it: itself, where nothing is learned."""
        return self

    def __str__(self) -> str:
        return repr(self)

    # A named tuple equals one of its own kind only, and is never false.

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        for name in ("__eq__", "__ne__", "__hash__", "__bool__"):
            if name not in vars(cls):
                setattr(cls, name, getattr(NumberFormat, name))

    def __eq__(self, other: object) -> bool:
        if not isinstance(self, tuple):
            return self is other
        return type(self) is type(other) and tuple.__eq__(self, other)

    def __ne__(self, other: object) -> bool:
        return not self == other  # a tuple has its own

    def __hash__(self) -> int:
        return hash((type(self), *self)) if isinstance(self, tuple) else object.__hash__(self)

    def __bool__(self) -> bool:
        return True


@constant  # in graphs
def _ordered(number_format: NumberFormat) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """The levels in ascending order, and their codes; of several for one level, such as 0 and -0, the first."""
    return _ordered_once(number_format)


def _ends(number_format: NumberFormat) -> tuple[float, float]:
    """The lowest and the highest level."""
    levels, _ = _ordered(number_format)
    return levels[0], levels[-1]


@lru_cache(maxsize=256)
def _ordered_once(number_format: NumberFormat) -> tuple[tuple[float, ...], tuple[int, ...]]:
    first: dict[float, int] = {}
    for code, level in enumerate(number_format.levels):
        if math.isfinite(level):
            first.setdefault(level + 0.0, code)
    pairs = sorted(first.items())
    return tuple(level for level, _ in pairs), tuple(code for _, code in pairs)


def whole_number(setting: str, found: object, least: int, most: int) -> int:
    """The number as an int, or a `SettingError` where it is none from ``least`` to ``most``.

    Example:
        >>> whole_number("exponent_bits", 4, 1, 8)
        4
    """
    try:
        number = least - 1 if isinstance(found, bool) else index(found)  # type: ignore[arg-type]
    except TypeError:
        number = least - 1
    if not least <= number <= most:
        raise SettingError(setting, found, f"a whole number from {least} to {most}")
    return number

"""Number formats by their definitions, in exact fractions, without torch and without this library's formats.

A `Levels` lists which number each code stands for; `Float` works them out from the fields of a float. `nearest` moves a
number to the code of the nearest level, a tie to the even code.
"""

import math
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

__all__ = ["BLOCK_RULES", "LEVELS", "Float", "Levels", "block_scale", "exponent_of"]


@dataclass(frozen=True)
class Levels:
    """What the codes of a format stand for.

    Attributes:
        name: of the format, and its file.
        values: the number of each code from 0 on; None where a code stands for none.
        ties: where a number in the middle of two goes: ``"even"`` to the even code, ``"up"``, or ``"away"`` to the
            larger magnitude, unless one of the two is 0.

    Example:
        >>> LEVELS["binary"].values, LEVELS["binary"].nearest(-0.25)
        ((Fraction(-1, 1), Fraction(1, 1)), 0)
    """

    name: str
    values: tuple[Fraction | None, ...]
    ties: str = "even"

    @cached_property
    def ordered(self) -> list[tuple[Fraction, int]]:
        """Levels with their codes, ascending; of 0 and -0 the first."""
        first: dict[Fraction, int] = {}
        for code, level in enumerate(self.values):
            if level is not None:
                first.setdefault(level, code)
        return sorted(first.items())

    @property
    def negative_zero(self) -> int | None:
        """The code of -0, if there is one."""
        return None

    def nearest(self, number: float, rounding: str = "half_even") -> int:
        """The code of the level that a number goes to; infinity goes to the ends.

        Example:
            >>> e2m1 = LEVELS["e2m1fn"]
            >>> [float(e2m1.values[e2m1.nearest(each)]) for each in (2.4, 2.5, 5.0, -9.0)]
            [2.0, 2.0, 4.0, -6.0]
        """
        known = self.ordered
        if math.isinf(number):
            return known[0 if number < 0 else -1][1]
        exact = Fraction(number)
        at = bisect_right(known, (exact, math.inf)) - 1  # the last level that is no larger
        if at < 0:
            return known[0][1]
        lower, low = known[at]
        if lower == exact or at == len(known) - 1:
            return self._signed(low, number)
        upper, high = known[at + 1]
        return self._signed(high if self._goes_up(rounding, exact, lower, upper, high) else low, number)

    def _goes_up(self, rounding: str, exact: Fraction, lower: Fraction, upper: Fraction, high: int) -> bool:
        middle = (lower + upper) / 2
        away = lower > 0 or upper == 0
        tie_up = {"half_even": {"even": high % 2 == 0, "up": True, "away": away}[self.ties], "half_up": True}
        toward_zero = exact < 0 if lower * upper >= 0 else exact > middle
        directed = {"floor": False, "ceil": True, "toward_zero": toward_zero}
        if rounding in directed:
            return directed[rounding]
        return exact > middle or (exact == middle and tie_up[rounding])

    def _signed(self, code: int, number: float) -> int:
        """The code of -0 for what is rounded to zero from below."""
        zero = self.negative_zero
        return zero if zero is not None and self.values[code] == 0 and math.copysign(1, number) < 0 else code


@dataclass(frozen=True)
class Float(Levels):
    """A float of few bits: sign, exponent, mantissa, with subnormal numbers.

    Example:
        >>> e4m3 = LEVELS["e4m3fn"]
        >>> float(e4m3.values[0x7E]), e4m3.values[0x7F], e4m3.values[1]
        (448.0, None, Fraction(1, 512))
    """

    exponent_bits: int = 0
    mantissa_bits: int = 0
    specials: str = "none"

    @property
    def negative_zero(self) -> int | None:
        return None if self.specials == "fnuz" else 1 << (self.exponent_bits + self.mantissa_bits)


def _float(name: str, exponent_bits: int, mantissa_bits: int, bias: int, specials: str) -> Float:
    """The float with these fields.

    Args:
        name: of the format.
        exponent_bits: of the exponent.
        mantissa_bits: of the mantissa.
        bias: of the exponent.
        specials: ``"none"``; ``"nan"``, the code of all ones is NaN; ``"ieee"``, the largest exponent is infinity and
            NaN; ``"fnuz"``, the code of -0 is NaN.
    """
    sign = 1 << (exponent_bits + mantissa_bits)
    values: list[Fraction | None] = []
    for code in range(2 * sign):
        exponent, mantissa = divmod(code % sign, 1 << mantissa_bits)
        fraction = Fraction(mantissa, 1 << mantissa_bits)
        power = Fraction(2) ** (max(exponent, 1) - bias)
        number = power * (fraction if exponent == 0 else 1 + fraction)
        special = {
            "none": False,
            "nan": code % sign == sign - 1,
            "ieee": exponent == (1 << exponent_bits) - 1,
            "fnuz": code == sign,
        }[specials]
        values.append(None if special else -number if code >= sign else number)
    ties = "even" if mantissa_bits else "away"  # in units of their distance, one of two powers of two is odd
    return Float(name, tuple(values), ties, exponent_bits, mantissa_bits, specials)


_NF4 = (
    *("-1", "-0.6961928009986877", "-0.5250730514526367", "-0.39491748809814453", "-0.28444138169288635"),
    *("-0.18477343022823334", "-0.09105003625154495", "0", "0.07958029955625534", "0.16093020141124725"),
    *("0.24611230194568634", "0.33791524171829224", "0.44070982933044434", "0.5626170039176941"),
    *("0.7229568362236023", "1"),
)  # QLoRA, appendix E; what float32 holds of these decimals

LEVELS: dict[str, Levels] = {
    each.name: each
    for each in (
        _float("e4m3fn", 4, 3, 7, "nan"),
        _float("e5m2", 5, 2, 15, "ieee"),
        _float("e4m3fnuz", 4, 3, 8, "fnuz"),
        _float("e5m2fnuz", 5, 2, 16, "fnuz"),
        _float("e3m2fn", 3, 2, 3, "none"),
        _float("e2m3fn", 2, 3, 1, "none"),
        _float("e2m1fn", 2, 1, 1, "none"),
        _float("e3m0b7fn", 3, 0, 7, "none"),  # powers of two
        Levels("nf4", tuple(Fraction(float(each)) for each in _NF4)),
        Levels("binary", (Fraction(-1), Fraction(1)), "up"),
        Levels("ternary", (Fraction(0), Fraction(1), None, Fraction(-1))),  # 2 bits, two's complement
    )
}


def exponent_of(number: Fraction) -> int:
    """The exponent of the power of two that is no larger: ``floor(log2(number))``, exactly.

    Example:
        >>> exponent_of(Fraction(7)), exponent_of(Fraction(8)), exponent_of(Fraction(1, 3))
        (2, 3, -2)
    """
    found = number.numerator.bit_length() - number.denominator.bit_length()
    return found - 1 if Fraction(2) ** found > number else found


def _ceil_exponent(number: Fraction) -> int:
    found = exponent_of(number)
    return found if Fraction(2) ** found == number else found + 1


BLOCK_RULES: dict[str, Callable[[Fraction, Fraction, int], int]] = {  # of the largest magnitude, the highest level and
    # the element's mantissa bits: the exponent of the scale, OCP Microscaling 1.0, 6.3, and the rules beside it
    "floor": lambda amax, high, mantissa: exponent_of(amax) - exponent_of(high),
    "ceil": lambda amax, high, mantissa: _ceil_exponent(amax) - exponent_of(high),
    "even": lambda amax, high, mantissa: (
        exponent_of(amax + Fraction(2) ** (exponent_of(amax) - mantissa - 1)) - exponent_of(high)
    ),
    "rceil": lambda amax, high, mantissa: _ceil_exponent(amax / high),
}


def block_scale(largest: float, element: Levels, rule: str) -> float:
    """The scale of a block by a rule of microscaling, a power of two that E8M0 holds.

    Example:
        >>> [block_scale(7.0, LEVELS["e2m1fn"], rule) for rule in BLOCK_RULES]
        [1.0, 2.0, 2.0, 2.0]
    """
    high = element.ordered[-1][0]
    mantissa = element.mantissa_bits if isinstance(element, Float) else 0
    return 2.0 ** min(max(BLOCK_RULES[rule](Fraction(largest), high, mantissa), -127), 127)

"""Floats of few bits: sign, exponent, mantissa."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import QuantTensorError, SettingError
from ..rounding.fixed import HalfEven
from ..tracing import exporting
from .number_format import NumberFormat, RoundingLike, whole_number

__all__ = ["E2M1", "E2M3", "E3M2", "E4M3", "E4M3FNUZ", "E5M2", "E5M2FNUZ", "Minifloat", "powers_of_two"]


class _Minifloat(NamedTuple):
    exponent_bits: int
    mantissa_bits: int
    exponent_bias: Any = None  # settled when one is made
    infinities: bool = False
    nan: bool = False
    negative_zero: bool = True
    saturating: bool = True


class Minifloat(_Minifloat, NumberFormat):
    """A float of few bits, with subnormal numbers: 1 bit for the sign, some for the exponent, some for the mantissa.

    To nearest, ties go to the even code. What lies beyond the ends goes to them. The ready ones are those of the OCP's
    standards (8-bit Floating Point 1.0, Microscaling 1.0) and their FNUZ variants: ``E4M3``, ``E5M2``, ``E4M3FNUZ``,
    ``E5M2FNUZ``, ``E3M2``, ``E2M3`` and ``E2M1``.

    Args:
        exponent_bits: 1 to 8.
        mantissa_bits: 0 to 10; without any, the levels are powers of two, and a number in the middle of two goes to
            the larger.
        exponent_bias: by default ``2**(exponent_bits - 1) - 1``; one more without a negative zero.
        infinities: the codes of the largest exponent are infinity and NaN, as IEEE 754 has it.
        nan: there is a NaN: without infinities the highest code of either sign, or the code of the negative zero.
        negative_zero: there is a code for -0.
        saturating: False turns what rounds past the ends into infinity, or NaN where there is none.

    Raises:
        SettingError: other numbers of bits, infinities without NaN or with no negative zero, levels beyond float32.

    Example:
        >>> import torch
        >>> from bitwright.qcore import E4M3, HalfEven
        >>> str(E4M3), E4M3.high, E4M3.bits, E4M3 == Minifloat(4, 3, nan=True)
        ('e4m3fn', 448.0, 8, True)
        >>> E4M3.nearest(torch.tensor([0.3, 17.0, 1000.0]), HalfEven())
        tensor([3.1250e-01, 1.6000e+01, 4.4800e+02])
    """

    __slots__ = ()

    @property
    def bits(self) -> int:
        return 1 + self.exponent_bits + self.mantissa_bits

    def _codes(self) -> int:
        """How many codes of one sign stand for numbers."""
        taken = 2**self.mantissa_bits if self.infinities else int(self.nan and self.negative_zero)
        return 2 ** (self.exponent_bits + self.mantissa_bits) - taken

    def _value(self, code: int) -> float:
        exponent, mantissa = divmod(code, 2**self.mantissa_bits)
        whole = mantissa + (2**self.mantissa_bits if exponent else 0)
        return math.ldexp(whole, max(exponent, 1) - self.exponent_bias - self.mantissa_bits)

    def _top(self) -> float:
        return self._value(self._codes() - 1)

    def _normal(self) -> float:
        """The smallest number with a full mantissa."""
        return 2.0 ** (1 - self.exponent_bias)

    @property
    def high(self) -> float:
        return self._top()

    @property
    def low(self) -> float:
        return -self._top()

    @property
    def symmetric(self) -> bool:
        return True

    @property
    def has_zero(self) -> bool:
        return True

    @property
    def levels(self) -> tuple[float, ...]:
        count = 2 ** (self.bits - 1)
        beyond = [math.nan] * (count - self._codes())
        if self.infinities:
            beyond[0] = math.inf
        above = [*map(self._value, range(self._codes())), *beyond]
        below = [-level for level in above]
        if not self.negative_zero:
            below[0] = math.nan if self.nan else 0.0
        return (*above, *below)

    def edges(self, rounding: RoundingLike) -> tuple[float, float]:
        high = self._top()
        edge = high + self._ulp_at(high) / 2
        return -edge, edge

    def _ulp_at(self, level: float) -> float:
        exponent = max(math.frexp(level)[1] - 1, 1 - self.exponent_bias)
        return 2.0 ** (exponent - self.mantissa_bits)

    # To the levels

    def inplace(self, steps: Tensor, rounding: Any, relu: bool = False) -> Tensor:
        if not self.saturating:
            return self.nearest(steps, rounding, relu)
        high = self._top()
        return self.covered(steps.clamp_(0 if relu else -high, high), rounding)  # an end is a level: the order is free

    def covered(self, steps: Tensor, rounding: Any) -> Tensor:
        if steps.numel() > _PIECE and steps.is_contiguous() and type(rounding) is HalfEven:  # others may know places
            work = steps.new_empty(_PIECE)
            for piece in steps.view(-1).split(_PIECE):
                self._round(piece, rounding, work[: piece.numel()])
        else:
            self._round(steps, rounding, torch.empty_like(steps))
        return steps if self.negative_zero else steps.add_(0.0)  # -0 + 0 is 0

    def _round(self, steps: Tensor, rounding: Any, power: Tensor) -> None:
        """Round numbers in place; ``power`` is memory to work in."""
        kind, mask = _EXPONENT[steps.dtype]
        torch.bitwise_and(steps.view(kind), mask, out=power.view(kind))
        power.clamp_min_(self._normal())
        digits = 2.0**self.mantissa_bits
        if 2**self.exponent_bits - self.exponent_bias > _FAR:
            power.mul_(1 / digits)
            digits = 1.0
        zero = steps.new_full((), -0.0)  # added, it changes no number, nor the sign of another zero
        rounding.inplace(torch.addcdiv(zero, steps, power, value=digits, out=steps))
        torch.addcmul(zero, steps, power, value=1 / digits, out=steps)

    def nearest(self, steps: Tensor, rounding: RoundingLike, relu: bool = False) -> Tensor:
        high = self._top()
        if relu:
            steps = torch.clamp_min(steps, 0)
        inside = torch.clamp(steps, -high, high) if self.saturating else steps
        gap = self._gap_by_comparison(inside) if exporting() else self._gap(inside.detach())
        reached = rounding(inside / gap) * gap
        if not self.saturating:
            beyond = torch.copysign(torch.full_like(reached, math.inf if self.infinities else math.nan), reached)
            reached = torch.where(reached.abs() > high, beyond, reached)
        return reached if self.negative_zero else reached + 0.0

    def _gap(self, steps: Tensor) -> Tensor:
        """The distance of the levels around numbers, from the bits of their exponents."""
        kind, mask = _EXPONENT[steps.dtype]
        power = steps.view(kind).bitwise_and(mask).view(steps.dtype)
        if not self.saturating:
            power = torch.where(power.isinf(), 1.0, power)
        return torch.clamp_min(power, self._normal()) * 2.0**-self.mantissa_bits

    def _gap_by_comparison(self, steps: Tensor) -> Tensor:
        """The same by comparisons and sums of powers of two, which are exact: every version of ONNX has them."""
        size, power = steps.abs(), self._normal() * 2
        gap = torch.full_like(steps, self._normal() * 2.0**-self.mantissa_bits)
        while power <= self._top():
            gap = gap + (size >= power).to(steps.dtype) * (power / 2 * 2.0**-self.mantissa_bits)
            power *= 2
        return gap

    # Codes

    def encode(self, steps: Tensor) -> Tensor:
        """The codes of the levels next to some numbers, in `dtype`; infinities and NaN where there are codes for them.

        Raises:
            QuantTensorError: a number is NaN, and the format has none.
        """
        steps = steps if steps.dtype in _EXPONENT else steps.float()
        missing = steps.isnan()
        if not self.nan and bool(missing.any()):
            raise QuantTensorError(f"NaN has no code in {self}: the values it came from are not finite.")
        size = self._replace(saturating=True).nearest(torch.where(missing, 0.0, steps), torch.round).abs()
        exponents = torch.frexp(size).exponent.to(torch.int64) - 1
        exponents = torch.where(size == 0, 1 - self.exponent_bias, exponents).clamp_min(1 - self.exponent_bias)
        counts = torch.ldexp(size.double(), self.mantissa_bits - exponents).to(torch.int64)
        codes = counts + (exponents + (self.exponent_bias - 1)) * 2**self.mantissa_bits
        sign = 2 ** (self.bits - 1)
        if self.infinities and not self.saturating:
            codes = torch.where(steps.isinf(), self._codes(), codes)
        negative = torch.signbit(steps) & ((codes != 0) | self.negative_zero)
        codes = codes + negative.to(torch.int64) * sign
        if self.nan:
            codes = torch.where(missing, self._quiet(), codes)
        return codes.to(self.dtype)

    def _quiet(self) -> int:
        """The code of NaN."""
        if not self.negative_zero:
            return 2 ** (self.bits - 1)
        return self._codes() + (2**self.mantissa_bits // 2 if self.infinities else 0)

    def _usual(self) -> bool:
        """Whether the bias is the one that its bits imply."""
        return self.exponent_bias == 2 ** (self.exponent_bits - 1) - int(self.negative_zero)

    def __repr__(self) -> str:
        said = [str(self.exponent_bits), str(self.mantissa_bits)]
        said += [] if self._usual() else [f"exponent_bias={self.exponent_bias}"]
        said += [f"{name}=True" for name in ("infinities", "nan") if getattr(self, name)]
        said += [f"{name}=False" for name in ("negative_zero", "saturating") if not getattr(self, name)]
        return f"Minifloat({', '.join(said)})"

    def __str__(self) -> str:
        """The name that ml_dtypes has for it: ``e4m3fn`` is finite, with NaN; ``uz`` says unsigned zero."""
        bias = "" if self._usual() else f"b{self.exponent_bias}"
        kind = "" if self.infinities else "fn" if self.negative_zero else "fnuz"
        if not self.infinities and self.nan != (self.bits >= 8):  # narrower ones have no NaN by the standards
            kind += " with NaN" if self.nan else " without NaN"
        limit = "" if self.saturating else ", not saturating"
        return f"e{self.exponent_bits}m{self.mantissa_bits}{bias}{kind}{limit}"


def _checked(
    cls: type[Any],
    exponent_bits: int,
    mantissa_bits: int,
    exponent_bias: int | None = None,
    infinities: bool = False,
    nan: bool = False,
    negative_zero: bool = True,
    saturating: bool = True,
) -> Any:
    exponent = whole_number("exponent_bits", exponent_bits, 1, 8)
    mantissa = whole_number("mantissa_bits", mantissa_bits, 0, 10)
    bias = 2 ** (exponent - 1) - int(negative_zero)
    if exponent_bias is not None:
        bias = whole_number("exponent_bias", exponent_bias, -100, 200)
    if infinities and not (nan and negative_zero):
        raise SettingError("infinities", True, "False where there is no NaN, or no -0", "Write nan=True.")
    if not saturating and not nan:
        raise SettingError("saturating", False, "True where there is neither infinity nor NaN", "Write nan=True.")
    given = (bool(infinities), bool(nan), bool(negative_zero), bool(saturating))
    made = tuple.__new__(cls, (exponent, mantissa, bias, *given))
    if made.high > _LARGEST or made._value(1) < _SMALLEST:
        expected = f"one with which float32 holds every level: these go from {made._value(1):.3g} to {made.high:.3g}"
        remedy = "Write infinities=True and nan=True, which take the largest ones away." if exponent == 8 else ""
        raise SettingError("exponent_bias", bias, expected, "" if infinities or bias != 127 else remedy)
    return made


_LARGEST, _SMALLEST = (2 - 2.0**-23) * 2.0**127, 2.0**-149  # of float32
_checked.__qualname__ = "Minifloat"  # what a TypeError says of wrong arguments
_Minifloat.__new__ = _checked  # not in the subclass, which torch.compile would take for no named tuple

_PIECE = 1 << 18  # numbers that are worked on at a time: fresh memory costs more than the arithmetic
_FAR = 100  # exponents from which on levels times all their digits might be too large for float32
_EXPONENT = {torch.float32: (torch.int32, 0x7F800000), torch.float64: (torch.int64, 0x7FF0000000000000)}


def powers_of_two(bit_width: int) -> Minifloat:
    """0 and the powers of two from 1 downward, of either sign: products with them are shifts.

    Example:
        >>> powers_of_two(3).levels
        (0.0, 0.25, 0.5, 1.0, -0.0, -0.25, -0.5, -1.0)
    """
    width = whole_number("bit_width", bit_width, 2, 7)
    return Minifloat(width - 1, 0, 2 ** (width - 1) - 1)


E4M3 = Minifloat(4, 3, nan=True)
E5M2 = Minifloat(5, 2, infinities=True, nan=True)
E4M3FNUZ = Minifloat(4, 3, nan=True, negative_zero=False)
E5M2FNUZ = Minifloat(5, 2, nan=True, negative_zero=False)
E3M2 = Minifloat(3, 2)
E2M3 = Minifloat(2, 3)
E2M1 = Minifloat(2, 1)

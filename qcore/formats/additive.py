"""Sums of powers of two: levels that hardware multiplies with by shifts and additions."""

from functools import lru_cache
from itertools import product
from typing import Any, NamedTuple

from ..tracing import constant
from .number_format import NumberFormat, whole_number

__all__ = ["AdditivePowersOfTwo"]


class _AdditivePowersOfTwo(NamedTuple):
    bit_width: int
    signed: bool = True


class AdditivePowersOfTwo(_AdditivePowersOfTwo, NumberFormat):  # type: ignore[misc]  # fields here, properties there
    """Sums of a few powers of two (APoT): dense around 0 as powers of two are, and denser than those at the ends.

    A magnitude of ``b`` bits is a sum of ``b // 2`` terms of 2 bits, each 0 or one of three powers of two, and of one
    term of 1 bit where ``b`` is odd; no two terms share a power. The largest power of all is 1. Li, Dong and Wang,
    "Additive Powers-of-Two Quantization", 2020.

    Args:
        bit_width: 2 to 8, one of them for the sign where there is one.
        signed: whether levels may be negative.

    Raises:
        SettingError: another number of bits.

    Example:
        >>> AdditivePowersOfTwo(4).levels[7:]
        (0.0, 0.125, 0.25, 0.375, 0.5, 0.75, 1.0, 1.25)
        >>> AdditivePowersOfTwo(2).levels, str(AdditivePowersOfTwo(4, signed=False))
        ((-1.0, 0.0, 1.0), 'unsigned additive powers of two, 4 bits')
    """

    __slots__ = ()

    @property
    def levels(self) -> tuple[float, ...]:
        return _levels(self.bit_width, self.signed)

    @property
    def bits(self) -> int:
        return self.bit_width

    def __str__(self) -> str:
        return f"{'' if self.signed else 'unsigned '}additive powers of two, {self.bit_width} bits"


@constant  # in graphs
def _levels(bit_width: int, signed: bool) -> tuple[float, ...]:
    return _sums(bit_width, signed)


@lru_cache(maxsize=16)
def _sums(bit_width: int, signed: bool) -> tuple[float, ...]:
    pairs, single = divmod(bit_width - signed, 2)
    terms = [
        [0.0, 2.0**-place, 2.0 ** -(pairs + place), 2.0 ** -(2 * pairs + single + place)] for place in range(pairs)
    ]
    terms += [[0.0, 2.0 ** (-2 * pairs)]] * single
    above = sorted({sum(each) for each in product(*terms)})
    return (*(-level for level in reversed(above[1:])), *above) if signed else tuple(above)


def _checked(cls: type[Any], bit_width: int, signed: bool = True) -> Any:
    return tuple.__new__(cls, (whole_number("bit_width", bit_width, 2, 8), bool(signed)))


_AdditivePowersOfTwo.__new__ = _checked  # not in the subclass, which torch.compile would take for no named tuple

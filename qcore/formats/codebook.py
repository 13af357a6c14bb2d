"""Levels of a table."""

import math
from collections.abc import Iterable
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import SettingError
from ..tracing import constant
from .number_format import NumberFormat, RoundingLike

__all__ = ["NF4", "Codebook"]

_CHAIN = 32  # levels up to which traced code compares with each border in turn


class _Codebook(NamedTuple):
    levels: Any  # numbers when it is made, a tuple of them from then on


class Codebook(_Codebook, NumberFormat):  # type: ignore[misc]  # fields here, properties there
    """Any levels: a number goes to the nearest, a tie to the one of even code; the code is the place in the table.

    The levels are kept as float32 holds them. Other roundings decide between the two levels around a number by how far
    it lies between them.

    Args:
        levels: 2 or more numbers in ascending order.

    Raises:
        SettingError: fewer, in another order, or not finite.

    Example:
        >>> import torch
        >>> from bitwright.qcore import HalfEven
        >>> steep = Codebook((-4, -1, 0, 1, 4))
        >>> steep.nearest(torch.tensor([0.5, 2.4, 2.6, -99.0]), HalfEven())
        tensor([ 0.,  1.,  4., -4.])
        >>> steep.bits, steep.encode(torch.tensor([4.0])), str(steep)
        (3, tensor([4], dtype=torch.uint8), 'codebook (-4, -1, 0, 1, 4)')
    """

    __slots__ = ()

    @property
    def low(self) -> float:
        return self.levels[0]

    @property
    def high(self) -> float:
        return self.levels[-1]

    def edges(self, rounding: RoundingLike) -> tuple[float, float]:
        first, second, *_ = self.levels
        *_, before, last = self.levels
        return first - (second - first) / 2, last + (last - before) / 2

    def inplace(self, steps: Tensor, rounding: Any, relu: bool = False) -> Tensor:
        return self._looked_up(steps.clamp_min_(0) if relu else steps, rounding)

    def nearest(self, steps: Tensor, rounding: RoundingLike, relu: bool = False) -> Tensor:
        if relu:
            steps = torch.clamp_min(steps, 0)
        name = getattr(rounding, "name", "")
        if name not in _BORDERS or len(self.levels) > _CHAIN:
            return self._looked_up(steps, rounding)
        reached = torch.full_like(steps, self.levels[0])
        for border, level in zip(_borders(self.levels, name, _wide(steps)), self.levels[1:], strict=True):
            reached = torch.where(steps >= border, level, reached)
        return torch.where(steps.isnan(), steps, reached)

    def _looked_up(self, steps: Tensor, rounding: RoundingLike) -> Tensor:
        table = torch.tensor(self.levels, dtype=steps.dtype, device=steps.device)
        name = getattr(rounding, "name", "")
        if name in _BORDERS:
            borders = torch.tensor(_borders(self.levels, name, _wide(steps)), dtype=steps.dtype, device=steps.device)
            reached = table[torch.bucketize(steps, borders, right=True)]
        else:
            below = torch.bucketize(steps.detach(), table[1:-1], right=True)
            low, high = table[below], table[below + 1]
            even = (below % 2).to(steps.dtype)  # so that ties go to the even code
            share = rounding(even + ((steps - low) / (high - low)).clamp(0, 1)) - even
            reached = low + share * (high - low) if share.requires_grad else torch.where(share > 0.5, high, low)
        return torch.where(steps.isnan(), steps, reached)

    def __str__(self) -> str:
        if self.levels == _NF4:
            return "nf4"
        return f"codebook ({', '.join(f'{level:.9g}' for level in self.levels)})"


def _checked(cls: type[Any], levels: Iterable[float]) -> Any:
    expected = "2 or more finite numbers in ascending order"
    try:
        known = torch.tensor([float(level) for level in levels], dtype=torch.float32).tolist()
    except (TypeError, ValueError, RuntimeError):
        raise SettingError("levels", levels, expected) from None
    ascending = all(one < other for one, other in pairwise(known))
    if len(known) < 2 or not all(map(math.isfinite, known)) or not ascending:
        raise SettingError("levels", levels, expected, "Two levels that float32 can't tell apart count as one.")
    return tuple.__new__(cls, (tuple(known),))


_Codebook.__new__ = _checked  # not in the subclass, which torch.compile would take for no named tuple


def _wide(steps: Tensor) -> bool:
    return steps.dtype == torch.float64


_BORDERS = {  # of two neighbouring levels: what divides them, and whether a number there goes up
    "half_even": lambda lower, upper, even: ((lower + upper) / 2, even),
    "half_up": lambda lower, upper, even: ((lower + upper) / 2, True),
    "floor": lambda lower, upper, even: (upper, True),
    "ceil": lambda lower, upper, even: (lower, False),
    "toward_zero": lambda lower, upper, even: (
        (upper, True) if lower >= 0 else (lower, False) if upper <= 0 else ((lower + upper) / 2, even)
    ),
}


@constant
def _borders(levels: tuple[float, ...], rounding: str, wide: bool) -> list[float]:
    """For each level but the first, the smallest number of a type that goes to it or beyond, exactly."""
    return _exact_borders(levels, rounding, wide)


@lru_cache(maxsize=256)
def _exact_borders(levels: tuple[float, ...], rounding: str, wide: bool) -> list[float]:
    found = []
    for code, (lower, upper) in enumerate(pairwise(levels), start=1):
        border, included = _BORDERS[rounding](Fraction(lower), Fraction(upper), code % 2 == 0)
        least = torch.tensor(float(border), dtype=torch.float64 if wide else torch.float32)
        if Fraction(least.item()) < border or (Fraction(least.item()) == border and not included):
            least = torch.nextafter(least, torch.full_like(least, math.inf))
        found.append(least.item())
    return found


_NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334),
    *(-0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
NF4 = Codebook(_NF4)

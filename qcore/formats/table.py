"""How numbers go to the levels of a table."""

import math
import struct
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor

from ..tracing import constant

__all__ = ["looked_up", "nearest_level"]

_CHAIN = 32  # levels up to which traced code compares with each border in turn
Levels = tuple[float, ...]
Codes = tuple[int, ...]


def nearest_level(levels: Levels, codes: Codes, steps: Tensor, rounding: Callable[[Tensor], Tensor]) -> Tensor:
    """The levels that numbers are moved to, in operations that compilers and exporters can trace.

    To nearest, a tie goes to the level of even code. A rounding of another kind decides between the two levels around a
    number by how far it lies between them.

    Args:
        levels: in ascending order.
        codes: the code of each.
        steps: the numbers; NaN stays.
        rounding: one of ours, or a callable.

    Example:
        >>> nearest_level((0.0, 1.0, 4.0), (0, 1, 2), torch.tensor([0.5, 2.4, 2.5, 9.0]), torch.round)
        tensor([0., 1., 4., 4.])
    """
    name = getattr(rounding, "name", "")
    if name not in _BORDERS or len(levels) > _CHAIN:
        return looked_up(levels, codes, steps, rounding)
    reached = torch.full_like(steps, levels[0])
    for border, level in zip(_borders(levels, codes, name, steps.dtype == torch.float64), levels[1:], strict=True):
        reached = torch.where(steps >= border, level, reached)
    return torch.where(steps.isnan(), steps, reached)


def looked_up(levels: Levels, codes: Codes, steps: Tensor, rounding: Callable[[Tensor], Tensor]) -> Tensor:
    """The same by a search in the table, which is faster outside graphs.

    Example:
        >>> looked_up((0.0, 1.0, 4.0), (0, 1, 2), torch.tensor([0.5, 2.4, 2.5, 9.0]), torch.round)
        tensor([0., 1., 4., 4.])
    """
    table = torch.tensor(levels, dtype=steps.dtype, device=steps.device)
    name = getattr(rounding, "name", "")
    if name in _BORDERS:
        found = _borders(levels, codes, name, steps.dtype == torch.float64)
        borders = torch.tensor(found, dtype=steps.dtype, device=steps.device)
        reached = table[torch.bucketize(steps, borders, right=True)]
    else:
        odd = torch.tensor([code % 2 for code in codes], dtype=steps.dtype, device=steps.device)
        below = torch.bucketize(steps.detach(), table[1:-1], right=True)
        low, high, offset = table[below], table[below + 1], odd[below]  # so that ties go to the even code
        share = rounding(offset + ((steps - low) / (high - low)).clamp(0, 1)) - offset
        reached = low + share * (high - low) if share.requires_grad else torch.where(share > 0.5, high, low)
    return torch.where(steps.isnan(), steps, reached)


_Border = tuple[Fraction, bool]


def _toward_zero(lower: Fraction, upper: Fraction, even: bool) -> _Border:
    if lower >= 0:
        return upper, True
    return (lower, False) if upper <= 0 else ((lower + upper) / 2, even)


_BORDERS: dict[str, Callable[[Fraction, Fraction, bool], _Border]] = {
    # of two neighbours, and whether the upper one's code is even: what divides them, and if a number there goes up
    "half_even": lambda lower, upper, even: ((lower + upper) / 2, even),
    "half_up": lambda lower, upper, even: ((lower + upper) / 2, True),
    "floor": lambda lower, upper, even: (upper, True),
    "ceil": lambda lower, upper, even: (lower, False),
    "toward_zero": _toward_zero,
}


@constant
def _borders(levels: Levels, codes: Codes, rounding: str, wide: bool) -> list[float]:
    """For each level but the first, the smallest number of a type that goes to it or beyond, exactly."""
    return _exact_borders(levels, codes, rounding, wide)


@lru_cache(maxsize=256)
def _exact_borders(levels: Levels, codes: Codes, rounding: str, wide: bool) -> list[float]:
    found = []
    for (lower, upper), code in zip(pairwise(levels), codes[1:], strict=True):
        border, included = _BORDERS[rounding](Fraction(lower), Fraction(upper), code % 2 == 0)
        least = float(border) if wide else struct.unpack("<f", struct.pack("<f", float(border)))[0]
        if Fraction(least) < border or (Fraction(least) == border and not included):
            least = math.nextafter(least, math.inf) if wide else _next_single(least)
        found.append(least)
    return found


def _next_single(number: float) -> float:
    """The float32 above another one; in plain numbers, as no tensor has a value while a model is exported."""
    (bits,) = struct.unpack("<i", struct.pack("<f", number))
    above = 1 if number == 0 else bits + (1 if number > 0 else -1)
    return struct.unpack("<f", struct.pack("<i", above))[0]

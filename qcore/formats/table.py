"""How numbers go to the levels of a table."""

import math
import struct
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..tracing import constant

__all__ = ["looked_up", "nearest_learned", "nearest_level"]

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
        return _searched(levels, codes, steps, rounding)
    reached = torch.full_like(steps, levels[0])
    for border, level in zip(_borders(levels, codes, name, steps.dtype == torch.float64), levels[1:], strict=True):
        reached = torch.where(steps >= border, level, reached)
    return torch.where(steps.isnan(), steps, reached)


def looked_up(levels: Levels, codes: Codes, steps: Tensor, rounding: Callable[[Tensor], Tensor]) -> Tensor:
    """The same outside graphs, where other ways are faster.

    Example:
        >>> looked_up((0.0, 1.0, 4.0), (0, 1, 2), torch.tensor([0.5, 2.4, 2.5, 9.0]), torch.round)
        tensor([0., 1., 4., 4.])
    """
    name = getattr(rounding, "name", "")
    if name in _BORDERS and steps.dtype == torch.float32 and steps.device.type == "cpu" and steps.numel() >= _LARGE:
        borders = _exact_borders(levels, codes, name, False)
        bits = _leading_bits(borders)
        if bits is not None and steps.numel() >> bits >= _LARGE // 2:
            reached = _by_leading_bits(levels, borders, steps.contiguous(), bits)
            return reached if steps.is_contiguous() else steps.copy_(reached)  # channels last stay last
    return _searched(levels, codes, steps, rounding)


def _searched(levels: Levels, codes: Codes, steps: Tensor, rounding: Callable[[Tensor], Tensor]) -> Tensor:
    """By a binary search in the table."""
    table = torch.tensor(levels, dtype=steps.dtype, device=steps.device)
    name = getattr(rounding, "name", "")
    if name in _BORDERS:
        found = _borders(levels, codes, name, steps.dtype == torch.float64)
        borders = torch.tensor(found, dtype=steps.dtype, device=steps.device)
        reached = table[torch.bucketize(steps.contiguous(), borders, right=True)]
    else:
        reached = _by_share(table, codes, steps, rounding)
    return torch.where(steps.isnan(), steps, reached)


def nearest_learned(table: Tensor, steps: Tensor, rounding: Callable[[Tensor], Tensor]) -> Tensor:
    """The same for levels in a tensor, which gets the gradients of the numbers that go to each; traceable.

    Example:
        >>> table = torch.tensor([0.0, 1.0, 4.0], requires_grad=True)
        >>> reached = nearest_learned(table, torch.tensor([0.5, 2.4, 2.5, 9.0]), torch.round)
        >>> torch.autograd.grad(reached.sum(), table)
        (tensor([1., 1., 2.]),)
    """
    known, table = table.detach(), table.to(steps.dtype)
    name = getattr(rounding, "name", "")
    if name in _BORDERS:
        borders = _borders_between(known.double(), name, steps.dtype)
        reached = table[torch.bucketize(steps.detach().contiguous(), borders, right=True)]
    else:
        reached = _by_share(table, range(len(table)), steps, rounding)
    return torch.where(steps.isnan(), steps, reached)


def _by_share(table: Tensor, codes: Sequence[int], steps: Tensor, rounding: Callable[[Tensor], Tensor]) -> Tensor:
    """Between the two levels around a number the rounding decides, by how far it lies between them."""
    odd = torch.tensor([code % 2 for code in codes], dtype=steps.dtype, device=steps.device)
    below = torch.bucketize(steps.detach().contiguous(), table.detach()[1:-1], right=True)
    low, high, offset = table[below], table[below + 1], odd[below]  # so that ties go to the even code
    gap = (high - low).detach()
    share = rounding(offset + ((steps - low.detach()) / torch.where(gap > 0, gap, 1.0)).clamp(0, 1)) - offset
    return low + share * (high - low) if share.requires_grad else torch.where(share > 0.5, high, low)


_LARGE = 1 << 13  # numbers, for each first digit, from which on the preparation of the search by leading bits pays
_PART = 1 << 16  # numbers that are looked up at once: what is worked out on the way stays in the cache


def _by_leading_bits(levels: Levels, borders: Levels, steps: Tensor, bits: int) -> Tensor:
    """The search by the first bits of a float32, which leave one border to compare with: two look-ups for all levels.

    A binary search, which no vector unit does, takes ten times as long.
    """
    shift = 23 - bits
    first, last = _cells(shift)
    known = torch.tensor((*borders, math.inf))
    below = torch.bucketize(first, known[:-1], right=True)
    table = torch.tensor((*levels, levels[-1]))
    pairs = torch.stack([table[below], table[below + 1]], 1)
    pairs = torch.where(last.isnan()[:, None], math.nan, pairs).reshape(-1)
    border = known[below]
    for part in steps.view(-1).split(_PART):
        part.clamp_(levels[0], levels[-1])  # infinities share their first bits with some NaN
        cell = part.view(torch.int32).bitwise_right_shift(shift).add_(1 << (8 + bits))
        above = border.index_select(0, cell)
        torch.ge(part, above, out=above)
        torch.index_select(pairs, 0, cell.mul_(2).add_(above.to(torch.int32)), out=part)
    return steps


def _cells(shift: int) -> tuple[Tensor, Tensor]:
    """The lowest and the highest of the numbers whose bits are alike but for the last ones, for all first bits."""
    places = torch.arange(-(1 << (31 - shift)), 1 << (31 - shift), dtype=torch.int32).bitwise_left_shift_(shift)
    one, other = places.view(torch.float32), (places | ((1 << shift) - 1)).view(torch.float32)
    below = places < 0  # a larger magnitude is a lower number
    return torch.where(below, other, one), torch.where(below, one, other)


@lru_cache(maxsize=256)
def _leading_bits(borders: tuple[float, ...]) -> int | None:
    """The fewest bits of the mantissa by which no two borders are alike; None where it takes too many."""
    known = torch.tensor(borders)
    for bits in range(1, 9):
        first, last = (torch.bucketize(ends, known, right=True) for ends in _cells(23 - bits))
        if int((last - first).amax()) <= 1:
            return bits
    return None


def _toward_zero(lower: Fraction, upper: Fraction, even: bool) -> tuple[Fraction, bool]:
    if lower >= 0:
        return upper, True
    return (lower, False) if upper <= 0 else ((lower + upper) / 2, even)


_BORDERS: dict[str, Callable[[Any, Any, bool], tuple[Any, bool]]] = {
    # of two neighbours, and whether the upper one's code is even: what divides them, and if a number there goes up
    "half_even": lambda lower, upper, even: ((lower + upper) / 2, even),
    "half_up": lambda lower, upper, even: ((lower + upper) / 2, True),
    "floor": lambda lower, upper, even: (upper, True),
    "ceil": lambda lower, upper, even: (lower, False),
    "toward_zero": _toward_zero,
}


@constant
def _borders(levels: Levels, codes: Codes, rounding: str, wide: bool) -> tuple[float, ...]:
    """For each level but the first, the smallest number of a type that goes to it or beyond, exactly."""
    return _exact_borders(levels, codes, rounding, wide)


@lru_cache(maxsize=256)
def _exact_borders(levels: Levels, codes: Codes, rounding: str, wide: bool) -> tuple[float, ...]:
    found = []
    for (lower, upper), code in zip(pairwise(levels), codes[1:], strict=True):
        border, included = _BORDERS[rounding](Fraction(lower), Fraction(upper), code % 2 == 0)
        least = float(border) if wide else struct.unpack("<f", struct.pack("<f", float(border)))[0]
        if Fraction(least) < border or (Fraction(least) == border and not included):
            least = math.nextafter(least, math.inf) if wide else _next_single(least)
        found.append(least)
    return tuple(found)


def _next_single(number: float) -> float:
    """The float32 above another one; in plain numbers, as no tensor has a value while a model is exported."""
    (bits,) = struct.unpack("<i", struct.pack("<f", number))
    above = 1 if number == 0 else bits + (1 if number > 0 else -1)
    return struct.unpack("<f", struct.pack("<i", above))[0]


def _borders_between(levels: Tensor, rounding: str, dtype: torch.dtype) -> Tensor:
    """The same for levels in a tensor, as float32 has them: float64 holds the middles unless one is 2**29 others."""
    lower, upper = levels[:-1], levels[1:]
    even = torch.arange(1, len(levels), device=levels.device) % 2 == 0
    always, never = torch.ones_like(even), torch.zeros_like(even)
    middle = ((lower + upper) / 2, always if rounding == "half_up" else even)
    border, included = {"floor": (upper, always), "ceil": (lower, never)}.get(rounding, middle)
    if rounding == "toward_zero":
        above, below = lower >= 0, upper <= 0
        border = torch.where(above, upper, torch.where(below, lower, border))
        included = above | (included & ~below)
    least = border.to(dtype)
    short = (least.double() < border) | ((least.double() == border) & ~included)
    return torch.where(short, torch.nextafter(least, torch.full_like(least, math.inf)), least)

"""The levels of a number format in order, counted: what the checks measure in, for integers and all others."""

import math
from functools import lru_cache

import torch
from torch import Tensor

from ..qcore import NumberFormat

__all__ = ["Places"]


class Places:
    """The levels of a number format as places: whole numbers, in order, that count up from the level 0.

    Integers are their own places. Without a level 0, place 0 is the smallest level above it. Between two levels, and
    beyond the ends, places are fractions: 2.5 lies half-way between two levels, which is a tie.

    Args:
        number_format: the levels.

    Attributes:
        low: the place of the lowest level.
        high: that of the highest.

    Example:
        >>> from bitwright.qcore import E2M1
        >>> places = Places(E2M1)
        >>> places.low, places.high
        (-7, 7)
        >>> places.steps(torch.tensor([1.0, 6.5, 8.0])), places.of(torch.tensor([0.5, 5.0, 8.0]))
        (tensor([0.5000, 5.0000, 8.0000], dtype=torch.float64), tensor([1.0000, 6.5000, 8.0000], dtype=torch.float64))
    """

    def __init__(self, number_format: NumberFormat) -> None:
        self.number_format = number_format
        self.whole = number_format.whole
        self.low, self.high = number_format.bounds if self.whole else _ends(number_format)  # type: ignore[attr-defined]

    def of(self, steps: Tensor) -> Tensor:
        """The places of numbers in units of the scale, float64."""
        steps = steps.double()
        if self.whole:
            return steps
        levels = self._levels(steps.device)
        below = torch.bucketize(steps.contiguous(), levels[1:-1], right=True)
        lower, upper = levels[below], levels[below + 1]
        return below + self.low + (steps - lower) / (upper - lower)

    def steps(self, places: Tensor) -> Tensor:
        """The numbers, in units of the scale, at some places, float64."""
        places = places.double()
        if self.whole:
            return places
        levels = self._levels(places.device)
        finite = torch.where(places.isfinite(), places, 0.0)
        below = (finite.floor().long() - self.low).clamp(0, len(levels) - 2)
        lower, upper = levels[below], levels[below + 1]
        return lower + (places - self.low - below) * (upper - lower)

    def nearest(self, steps: Tensor) -> Tensor:
        """The levels next to numbers, float64."""
        return self.steps(self.of(steps).round())

    def gap(self, steps: Tensor) -> Tensor:
        """The distance of the levels around numbers, float64; of the two beside a level, the larger."""
        if self.whole:
            return torch.ones_like(steps, dtype=torch.float64)
        levels = self._levels(steps.device)
        gaps = levels.diff()
        left, right = (
            torch.bucketize(steps.double().contiguous(), levels[1:-1] * margin, right=side)
            for margin, side in ((1 + 1e-6, False), (1 - 1e-6, True))
        )
        return torch.maximum(gaps[left], gaps[right])

    def _levels(self, device: torch.device) -> Tensor:
        return torch.tensor(_ordered(self.number_format), dtype=torch.float64, device=device)


@lru_cache(maxsize=256)
def _ordered(number_format: NumberFormat) -> tuple[float, ...]:
    return tuple(sorted({level + 0.0 for level in number_format.levels if math.isfinite(level)}))


def _ends(number_format: NumberFormat) -> tuple[int, int]:
    levels = _ordered(number_format)
    below = sum(level < 0 for level in levels)
    return -below, len(levels) - 1 - below

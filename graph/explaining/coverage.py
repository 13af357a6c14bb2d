"""How a quantizer uses its range: what is clipped, and which levels no value falls on."""

import math

import torch
from torch import Tensor

from ...qcore import Grid, HalfEven

__all__ = ["Coverage"]

MOST_LEVELS = 1 << 16  # of a grid whose levels are counted
_HALF_EVEN = HalfEven()


class Coverage:
    """Counts over everything that a quantizer saw.

    Example:
        >>> from bitwright.qcore import Integers
        >>> coverage = Coverage()
        >>> coverage.add(torch.tensor([0.0, 0.4, 9.0, -9.0]), Grid(torch.tensor(0.5), number_format=Integers(2)))
        >>> coverage.clipped, coverage.levels, coverage.dead
        (0.5, 4, 1)
    """

    def __init__(self) -> None:
        self._values = self._beyond = 0
        self._used: Tensor | None = None
        self._levels: int | None = None

    def add(self, x: Tensor, grid: Grid) -> None:
        """Count a tensor in, before it is moved to its grid."""
        if not grid.number_format.whole:
            self._add_levels(x, grid)
            return
        low, high = grid.bounds
        codes = torch.round(x.float() / grid.along(grid.scale, x.shape).float())
        if grid.zero_point is not None:
            codes += grid.along(grid.zero_point, x.shape)
        self._values += codes.numel()
        self._beyond += int(((codes < low) | (codes > high)).sum())
        self._levels = high - low + 1
        if self._levels <= MOST_LEVELS:
            places = codes.nan_to_num_(0.0).clamp_(low, high).sub_(low).reshape(-1).long()
            counts = torch.bincount(places, minlength=self._levels)
            self._used = counts if self._used is None or len(self._used) != len(counts) else self._used + counts

    def _add_levels(self, x: Tensor, grid: Grid) -> None:
        """The same where levels are no integers: equal ones count once, such as 0 and -0."""
        number_format = grid.number_format
        steps = x.float() / grid.along(grid.scale, x.shape).float()
        self._values += steps.numel()
        self._beyond += int((~number_format.inside(steps, _HALF_EVEN)).sum())
        known = sorted({level + 0.0 for level in number_format.levels if math.isfinite(level)})
        self._levels = len(known)
        reached = number_format.nearest(steps.nan_to_num(0.0), _HALF_EVEN).reshape(-1)
        places = torch.searchsorted(torch.tensor(known, dtype=reached.dtype, device=reached.device), reached)
        counts = torch.bincount(places, minlength=self._levels)
        self._used = counts if self._used is None or len(self._used) != len(counts) else self._used + counts

    @property
    def clipped(self) -> float | None:
        """The share of values beyond the range; None where there were none."""
        return self._beyond / self._values if self._values else None

    @property
    def levels(self) -> int | None:
        """How many levels there are; None where they were not counted."""
        return None if self._used is None else self._levels

    @property
    def dead(self) -> int | None:
        """How many of them no value fell on."""
        return None if self._used is None else int((self._used == 0).sum())

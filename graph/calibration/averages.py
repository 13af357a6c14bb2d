"""How the ranges of several batches become one."""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from ...qcore.scaling import CalibratedScaling, StoredScaling
from ...qcore.scaling.pooling import highest, lowest, summed
from ...qcore.scaling.stored import widest
from ...qcore.schedules.anneal import in_use

__all__ = ["AVERAGES", "Average", "Mean", "Moving", "Widest"]


class Average(Protocol):
    """What the ranges of batches are added to, in float64: a magnitude, or a width and its lower end."""

    def add(self, found: Sequence[Tensor], samples: int) -> None:
        """Count the range of a batch of so many samples."""
        ...

    def result(self, pooled: bool) -> list[Tensor]:
        """The range of all batches; ``pooled``: of all ranks, which have all started with as many ends and rows."""
        ...


class Mean:
    """The mean, in which a batch counts by its size.

    Args:
        start: zeros, of the shape of a range.

    Example:
        >>> mean = Mean([torch.zeros(1)])
        >>> mean.add([torch.tensor([1.0])], samples=3)
        >>> mean.add([torch.tensor([5.0])], samples=1)
        >>> mean.result(pooled=False)
        [tensor([2.], dtype=torch.float64)]
    """

    def __init__(self, start: Sequence[Tensor]) -> None:
        self.totals = [each.double() for each in start]
        self.samples = torch.zeros_like(self.totals[0])

    def add(self, found: Sequence[Tensor], samples: int) -> None:
        """Count the range of a batch."""
        self.totals = [total + samples * each.double() for total, each in zip(self.totals, found, strict=True)]
        self.samples = self.samples + samples

    def result(self, pooled: bool) -> list[Tensor]:
        """The mean of all that was added."""
        parts = [*self.totals, self.samples]
        *totals, samples = [summed(each) for each in parts] if pooled else parts
        return [total / samples.clamp(min=1) for total in totals]


class Widest:
    """The range that holds those of all batches.

    Args:
        start: zeros, of the shape of a range.

    Example:
        >>> largest = Widest([torch.zeros(1)])
        >>> largest.add([torch.tensor([1.0])], samples=3)
        >>> largest.add([torch.tensor([5.0])], samples=1)
        >>> largest.result(pooled=False)
        [tensor([5.], dtype=torch.float64)]
    """

    def __init__(self, start: Sequence[Tensor]) -> None:
        self.found = [each.double() for each in start]

    def add(self, found: Sequence[Tensor], samples: int) -> None:
        """Count the range of a batch."""
        self.found = widest(self.found, [each.double() for each in found])

    def result(self, pooled: bool) -> list[Tensor]:
        """The range that holds all that were added."""
        if not pooled:
            return self.found
        width, low = self.found[0], self.found[1] if len(self.found) > 1 else torch.zeros_like(self.found[0])
        high, low = highest(width + low), lowest(low)
        return [high - low, low][: len(self.found)]


class Moving:
    """The exponential moving average: the first batch, moved towards each of the others by a share.

    It depends on the order of the batches. Of several ranks the mean is taken, in which a rank counts by its samples.

    Args:
        start: zeros, of the shape of a range.
        momentum: the share, above 0 and up to 1.

    Example:
        >>> moving = Moving([torch.zeros(1)], momentum=0.25)
        >>> moving.add([torch.tensor([1.0])], samples=3)
        >>> moving.add([torch.tensor([5.0])], samples=1)
        >>> moving.result(pooled=False)
        [tensor([2.], dtype=torch.float64)]
    """

    def __init__(self, start: Sequence[Tensor], momentum: float = 0.1) -> None:
        self.found = [each.double() for each in start]
        self.momentum = momentum
        self.samples = 0

    def add(self, found: Sequence[Tensor], samples: int) -> None:
        """Move towards the range of a batch."""
        share = self.momentum if self.samples else 1.0
        self.found = [old + share * (new.double() - old) for old, new in zip(self.found, found, strict=True)]
        self.samples += samples

    def result(self, pooled: bool) -> list[Tensor]:
        """The average after the last batch."""
        if not pooled:
            return self.found
        mean = Mean([torch.zeros_like(each) for each in self.found])
        mean.add(self.found, self.samples)
        return mean.result(pooled=True)


def _moving(start: Sequence[Tensor], scaling: StoredScaling) -> Moving:
    momentum = in_use(scaling.momentum) if isinstance(scaling, CalibratedScaling) else None
    return Moving(start, 0.1 if momentum is None else float(momentum))


AVERAGES: dict[str, Callable[[Sequence[Tensor], StoredScaling], Average]] = {
    "mean": lambda start, scaling: Mean(start),
    "max": lambda start, scaling: Widest(start),
    "ema": _moving,
}

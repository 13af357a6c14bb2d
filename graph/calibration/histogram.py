"""Histograms of everything that a quantizer saw, whatever the order and sizes of the batches."""

import torch
from torch import Tensor

from ...qcore.scaling.pooling import highest, lowest, summed

__all__ = ["Histogram", "extremes", "quantile"]

_LOWEST = -100  # exponent of the range before there is data
_CHUNK = 1 << 18  # values that are counted at once: their indices stay in the cache


class Histogram:
    """Counts of values in bins of equal width, one histogram for each row of values that share a scale.

    The range of a row is ``-2**exponent`` to ``2**exponent``. It doubles by merging pairs of bins, and bins begin at
    multiples of a power of two, so that the counts are those of all values counted at once: the order of batches, and
    how data is split into batches, change nothing. Counts are int64, which stays exact where float32 stops at 2**24.

    Args:
        rows: how many histograms.
        bins: on each side of 0, a power of two; by default 2048 for one row, 512 for several.
        device: of the counts.

    Attributes:
        counts: int64, (rows, 2 * bins).
        zeros: int64, (rows,): how many of them are exactly 0.
        exponent: int64, (rows,).
        smallest: the smallest value of each row, float64.
        largest: the largest value of each row, float64.

    Example:
        >>> histogram = Histogram(1, bins=2)
        >>> histogram.add(torch.tensor([[0.5, -0.1, 0.7]]))
        >>> histogram.edges().tolist(), histogram.counts.tolist()
        ([[-1.0, -0.5, 0.0, 0.5, 1.0]], [[0, 1, 0, 2]])
        >>> histogram.add(torch.tensor([[3.0]]))
        >>> histogram.edges().tolist(), histogram.counts.tolist()
        ([[-4.0, -2.0, 0.0, 2.0, 4.0]], [[0, 1, 2, 1]])
    """

    def __init__(self, rows: int, bins: int | None = None, device: torch.device | None = None) -> None:
        self.bins = bins or (2048 if rows == 1 else 512)
        self.counts = torch.zeros(rows, 2 * self.bins, dtype=torch.int64, device=device)
        self.zeros = torch.zeros(rows, dtype=torch.int64, device=device)
        self.exponent = torch.full((rows,), _LOWEST, dtype=torch.int64, device=device)
        self.smallest = torch.full((rows,), torch.inf, dtype=torch.float64, device=device)
        self.largest = torch.full((rows,), -torch.inf, dtype=torch.float64, device=device)

    def add(self, rows: Tensor, ends: tuple[Tensor, Tensor] | None = None) -> None:
        """Count values.

        Args:
            rows: (rows, values), finite, float32 or float64.
            ends: the smallest and the largest of each row, where they are known, or those of more values.
        """
        smallest, largest = extremes(rows) if ends is None else ends
        self.smallest = torch.minimum(self.smallest, smallest.double())
        self.largest = torch.maximum(self.largest, largest.double())
        self.zeros += rows.shape[1] - torch.count_nonzero(rows, 1)
        self._widen(_exponent(torch.maximum(self.largest, -self.smallest)))
        factor = torch.ldexp(torch.full_like(smallest, float(self.bins)), -self.exponent)[:, None]
        first = torch.arange(len(rows), device=rows.device, dtype=torch.int32)[:, None] * 2 * self.bins + self.bins
        for part in rows.split(max(_CHUNK // len(rows), 1), 1):
            at = (part * factor).to(torch.int32).sub_((part < 0).to(torch.int32)).add_(first)  # a power of two: exact
            self.counts += torch.bincount(at.reshape(-1), minlength=self.counts.numel()).reshape(self.counts.shape)

    def _widen(self, exponent: Tensor) -> None:
        """Merge bins until each row's range is that wide."""
        wider = torch.maximum(self.exponent, exponent)
        merged = (wider - self.exponent).clamp(max=62)[:, None]
        if bool(merged.any()):
            to = (self._places(self.counts.shape[1]) >> merged) + self.bins  # the shift rounds down
            self.counts = torch.zeros_like(self.counts).scatter_add_(1, to, self.counts)
            self.exponent = wider

    def _places(self, count: int) -> Tensor:
        return torch.arange(count, device=self.counts.device)[None] - self.bins

    def pooled(self) -> "Histogram":
        """The histogram of what all ranks of a distributed run have counted."""
        found = Histogram(len(self.counts), self.bins, self.counts.device)
        self._widen(highest(self.exponent))
        found.exponent = self.exponent
        found.counts, found.zeros = summed(self.counts), summed(self.zeros)
        found.smallest, found.largest = lowest(self.smallest), highest(self.largest)
        return found

    @property
    def total(self) -> Tensor:
        """How many values each row has, int64."""
        return self.counts.sum(1)

    @property
    def reach(self) -> Tensor:
        """The largest magnitude of each row."""
        return torch.maximum(self.largest, -self.smallest)

    def width(self) -> Tensor:
        """The width of the bins of each row, float64."""
        return torch.ldexp(torch.full_like(self.largest, 1 / self.bins), self.exponent)

    def edges(self) -> Tensor:
        """The ends of the bins, float64, (rows, 2 * bins + 1)."""
        return self._places(self.counts.shape[1] + 1) * self.width()[:, None]

    def magnitudes(self, signed: bool) -> Tensor:
        """The counts of magnitudes, (rows, bins); unsigned: of values, where those below 0 count as 0."""
        below, above = self.counts[:, : self.bins].flip(1), self.counts[:, self.bins :].clone()
        if signed:
            return above + below
        above[:, 0] += below.sum(1)
        return above

    def below(self, ends: Tensor) -> Tensor:
        """How many values lie below an end, one end for each row; evenly spread within its bin."""
        place = (ends.double() / self.width() + self.bins).clamp(0, self.counts.shape[1])
        whole = place.floor().long().clamp(max=self.counts.shape[1] - 1)[:, None]
        up_to = self.counts.cumsum(1).gather(1, whole)
        return (up_to - self.counts.gather(1, whole) * (1 - (place[:, None] - whole))).squeeze(1)


def extremes(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The smallest and the largest value of each row.

    Example:
        >>> extremes(torch.tensor([[3.0, -1.0], [0.5, 0.0]]))
        (tensor([-1.,  0.]), tensor([3.0000, 0.5000]))
    """
    if len(rows) == 1:
        smallest, largest = rows.aminmax()
        return smallest.reshape(1), largest.reshape(1)
    return rows.amin(1), rows.amax(1)  # aminmax(dim=1) takes ten times as long


def quantile(counts: Tensor, rank: Tensor, width: Tensor) -> Tensor:
    """Where the value of a rank lies, in bins that start at 0.

    Args:
        counts: (rows, bins).
        rank: of each row, from 1 up to its total.
        width: of the bins of each row.

    Example:
        >>> counts = torch.tensor([[2, 0, 2]])
        >>> quantile(counts, torch.tensor([3.0]), torch.tensor([1.0])).item()
        2.5
    """
    up_to = counts.cumsum(1)
    at = torch.searchsorted(up_to, rank[:, None].ceil().to(up_to.dtype)).clamp(max=counts.shape[1] - 1)
    inside = counts.gather(1, at)
    part = (rank[:, None] - (up_to.gather(1, at) - inside)) / inside.clamp(min=1)
    return ((at + part) * width[:, None]).squeeze(1)


def _exponent(magnitude: Tensor) -> Tensor:
    """The smallest exponent whose power of two exceeds a magnitude."""
    found = torch.frexp(magnitude).exponent.long()
    return torch.where(magnitude > 0, found, _LOWEST).clamp(min=_LOWEST)

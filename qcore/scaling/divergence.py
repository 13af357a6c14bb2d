"""Ranges by the Kullback-Leibler divergence of the quantized distribution from that of the values."""

import torch
from torch import Tensor

from ..errors import SettingError
from ..formats.int_range import IntRange
from ..protocols import Levels
from .starts import require_integers

__all__ = ["BinSums", "KullbackLeibler", "without_zeros"]

_LOOKS = 1 << 20  # that are taken at once in search of the least divergence, for the memory


class KullbackLeibler:
    """The range whose quantized distribution is nearest to that of the values in Kullback-Leibler divergence.

    As TensorRT calibrates to 8 bits (Migacz, "8-bit inference with TensorRT", 2017), with as many cells as the integers
    have: what lies beyond the range is counted at its end in the distribution that is compared, but not in the
    quantized one. With few levels this measure clips far too much, so no range is tried that holds less than
    ``least_percentile`` percent of the values. Of several ranges it is the widest.

    Zeros, half of what a ReLU leaves, are not compared: every range has that level, and their weight would make a
    narrow first cell, and with it the narrowest range, look best.

    Args:
        number_format: the integers of the grid.
        least_percentile: from 0, up to 100.

    Raises:
        SettingError: another percentile, levels that are no integers, or a learned bit width.

    Example:
        >>> from bitwright.qcore import IntRange
        >>> rows = torch.cat([torch.linspace(-1, 1, 9999), torch.tensor([20.0])]).reshape(1, -1)
        >>> KullbackLeibler(IntRange(4, signed=True))(rows) < 2
        tensor([True])
    """

    def __init__(self, number_format: Levels, least_percentile: float = 99.0) -> None:
        require_integers("kl", number_format)
        if isinstance(number_format, IntRange) and number_format.learned:
            expected = "another statistic: 'kl' compares distributions over a fixed number of levels"
            raise SettingError("statistic", "kl", expected, "Write statistic='mse'.")
        number = not isinstance(least_percentile, bool) and isinstance(least_percentile, (int, float))
        if not number or not 0 <= least_percentile <= 100:
            raise SettingError("least_percentile", least_percentile, "a number from 0 to 100")
        levels = number_format.settled()
        self.number_format = number_format
        self.least_percentile = float(least_percentile)
        self.cells = int(levels.high - levels.low + 1) // (2 if levels.signed else 1)

    @torch.no_grad()
    def __call__(self, rows: Tensor) -> Tensor:
        """The best of the ranges, of each row. It has no gradient."""
        magnitudes = rows.abs() if self.number_format.signed else rows.clamp(min=0)
        largest = magnitudes.amax(1)
        known = torch.where((largest > 0) & largest.isfinite(), largest, 1.0)
        bins = 2048 if len(rows) == 1 else 512
        places = torch.nan_to_num(magnitudes / known[:, None] * bins, 0.0, 0.0, 0.0).long().clamp(max=bins - 1)
        ones = torch.ones((), dtype=torch.float64, device=rows.device).expand(places.shape)
        counts = torch.zeros(len(rows), bins, dtype=torch.float64, device=rows.device).scatter_add_(1, places, ones)
        stop = self.best_stop(counts, (magnitudes == 0).sum(1)).to(rows.dtype)
        return torch.where(largest.isfinite(), largest * (stop / bins), largest)

    def best_stop(self, counts: Tensor, zeros: Tensor | None = None) -> Tensor:
        """How many of the bins the best range has, of each row.

        Args:
            counts: of magnitudes, (rows, bins), from 0 on.
            zeros: how many of those in the first bin are 0, (rows,); None for none of them.
        """
        bins = counts.shape[1]
        if self.cells >= bins:  # no narrower range has a bin for each level
            return torch.full((len(counts),), bins, device=counts.device)
        sums = BinSums(counts if zeros is None else without_zeros(counts, 0, zeros))
        needed = counts.sum(1, keepdim=True) * (self.least_percentile / 100)
        least = (counts.cumsum(1) < needed).sum(1) + 1  # bins that hold so many values
        least = least.clamp(min=self.cells, max=bins)
        best = torch.full_like(least, bins)
        lowest = torch.full((len(counts),), torch.inf, dtype=torch.float64, device=counts.device)
        tried = torch.arange(bins, 0, -1, device=counts.device)
        for part in tried.split(max(_LOOKS // (len(counts) * self.cells), 1)):
            stops = part.expand(len(counts), -1)
            divergence = sums.divergence(torch.zeros_like(stops), stops, self.cells)
            divergence = torch.where(stops >= least[:, None], divergence, torch.inf)
            found, at = divergence.min(1)
            better = found < lowest
            best, lowest = torch.where(better, part[at], best), torch.where(better, found, lowest)
        return best

    def __repr__(self) -> str:
        return f"KullbackLeibler({self.least_percentile})"


class BinSums:
    """Running sums over the bins of histograms, from which a divergence costs one look for each level.

    Args:
        counts: (rows, bins).

    Example:
        >>> sums = BinSums(torch.tensor([[4.0, 2.0, 0.0, 0.0]]))
        >>> [found] = sums.divergence(torch.tensor([[0, 0]]), torch.tensor([[1, 4]]), 1)
        >>> [round(each, 4) for each in found.tolist()]  # from (6) to (6), and from (4, 2) to (3, 3)
        [0.0, 0.0566]
    """

    def __init__(self, counts: Tensor) -> None:
        self.counts = counts.double()
        self.total = self.counts.sum(1)
        self.below, self.filled, self.logs = (
            torch.nn.functional.pad(each.cumsum(1), (1, 0))
            for each in (self.counts, (counts > 0).double(), _xlogx(self.counts))
        )

    def divergence(self, start: Tensor, stop: Tensor, cells: int) -> Tensor:
        """From the data in the bins from ``start`` to ``stop``, the rest counted at the ends, to the quantized data.

        Args:
            start: the first bin of each candidate, (rows, candidates).
            stop: the one after its last.
            cells: how many levels the bins are merged into.
        """
        ends = start[..., None] + torch.arange(cells + 1, device=start.device) * (stop - start)[..., None] // cells
        below = _at(self.below, ends)
        inside, filled = below.diff(), _at(self.filled, ends).diff()
        kept, total = below[..., -1] - below[..., 0], self.total[:, None]
        log_q = torch.where(inside > 0, inside / filled.clamp(min=1) / kept[..., None], 1.0).log()
        data = _at(self.logs, stop) - _at(self.logs, start)
        quantized = (inside * log_q).sum(-1)
        for at, beyond in ((start, below[..., 0]), (stop - 1, total - below[..., -1])):
            own = _at(self.counts, at)
            cell = (torch.searchsorted(ends, at[..., None], right=True) - 1).clamp(max=cells - 1)
            end = torch.where((own == 0) & (beyond > 0), -torch.inf, log_q.gather(-1, cell).squeeze(-1))
            data = data + _xlogx(own + beyond) - _xlogx(own)
            quantized = quantized + torch.where(beyond > 0, beyond * end, 0.0)
        return (data - quantized) / total - total.log()


def without_zeros(counts: Tensor, at: int, zeros: Tensor) -> Tensor:
    """The counts of numbers other than 0; no row is left empty.

    Args:
        counts: (rows, bins).
        at: the bin that 0 lies in.
        zeros: how many there are, (rows,).

    Example:
        >>> without_zeros(torch.tensor([[9, 2, 1], [5, 0, 0]]), 0, torch.tensor([6, 5])).tolist()
        [[3, 2, 1], [5, 0, 0]]
    """
    zeros = torch.where(zeros < counts.sum(1), zeros, 0).to(counts.dtype)
    return torch.cat([counts[:, :at], counts[:, at : at + 1] - zeros[:, None], counts[:, at + 1 :]], 1)


def _at(rows: Tensor, index: Tensor) -> Tensor:
    """Entries of each row, in the shape of their indices."""
    return rows.gather(1, index.reshape(len(rows), -1)).reshape(index.shape)


def _xlogx(x: Tensor) -> Tensor:
    return torch.special.xlogy(x, x)

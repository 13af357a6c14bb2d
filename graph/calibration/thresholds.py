"""Ranges chosen from a histogram of everything that a quantizer saw."""

from collections.abc import Iterable

import torch
from torch import Tensor

from ...qcore.errors import SettingError
from ...qcore.scaling.divergence import BinSums, without_zeros
from ...qcore.scaling.statistics import AbsPercentile, PercentileInterval
from ...qcore.schedules.anneal import in_use
from .histogram import Histogram, quantile
from .levels import Levels

__all__ = ["DataStatistic", "Entropy", "Percentile", "SquaredError", "squared_error"]

_COARSE = (2.0 ** (-torch.arange(97) / 8)).tolist()  # factors of the full range, 9 % apart
_FINE = (2.0 ** torch.linspace(-1 / 8, 1 / 8, 33)).tolist()
_LOOKS = 1 << 20  # that are taken at once in search of the least divergence, for the memory
_ENDS = (2.0 ** torch.linspace(-2, 2, 33)).tolist()  # and of one end of an interval


class DataStatistic:
    """Base of what chooses a range from all data at once, not batch by batch.

    Subclasses implement ``__call__``. `calibrate` takes an instance as ``statistic``.

    Example:
        >>> class Half(DataStatistic):  # of the largest magnitude
        ...     def __call__(self, histogram, levels):
        ...         return [histogram.reach / 2]
        >>> histogram = Histogram(1)
        >>> histogram.add(torch.tensor([[-3.0, 1.0]]))
        >>> Half()(histogram, None)
        [tensor([1.5000], dtype=torch.float64)]
    """

    def __call__(self, histogram: Histogram, levels: Levels) -> list[Tensor]:
        """The range, as `Levels` describes it: float64, one number for each row of the histogram."""
        raise NotImplementedError

    def __repr__(self) -> str:
        given = ", ".join(f"{each}" for each in vars(self).values() if each is not None)
        return f"{type(self).__name__}({given})"


class Percentile(DataStatistic):
    """The magnitude below which ``percentile`` percent of all data lie: not the mean of each batch's percentile.

    With a zero point, the interval that leaves out as much at either end. Without negative integers, negative values
    count as 0. The range is that of the data to a bin of the histogram, a thousandth of the largest magnitude.

    Args:
        percentile: above 50, up to 100. By default that of the quantizer's own statistic, or 99.999.

    Raises:
        SettingError: another percentile.

    Example:
        >>> import bitwright.nn as qnn
        >>> histogram = Histogram(1)
        >>> histogram.add(torch.arange(1.0, 1001.0)[None])
        >>> [found] = Percentile(90)(histogram, Levels(qnn.QuantReLU().act_quant))
        >>> abs(found.item() - 900) < 1
        True
    """

    def __init__(self, percentile: float | None = None) -> None:
        self.percentile = None if percentile is None else _checked(percentile)

    def __call__(self, histogram: Histogram, levels: Levels) -> list[Tensor]:
        """The range between the percentiles."""
        own, share = levels.scaling.statistic, self.percentile
        if share is None and isinstance(own, PercentileInterval):
            return _between(histogram, levels, in_use(own.low_percentile), in_use(own.high_percentile))
        if share is None:
            share = float(in_use(own.percentile)) if isinstance(own, AbsPercentile) else 99.999
        return _between(histogram, levels, 100 - share, share)


class SquaredError(DataStatistic):
    """The range with the least mean squared error of quantization, for the levels that the quantizer has.

    The error is that of values spread evenly within each bin of the histogram, in closed form. It is minimized over
    factors of the full range, which is among them: the result is never worse than that. With a zero point both ends
    are searched.

    Example:
        >>> import bitwright.nn as qnn
        >>> histogram = Histogram(1)
        >>> histogram.add(torch.cat([torch.linspace(-1, 1, 9999), torch.tensor([20.0])])[None])
        >>> levels = Levels(qnn.QuantIdentity(bit_width=4, narrow_range=True).act_quant)
        >>> [found] = SquaredError()(histogram, levels)
        >>> 1 < found.item() < 2
        True
    """

    def __call__(self, histogram: Histogram, levels: Levels) -> list[Tensor]:
        """The best of the ranges that are tried."""
        full = _full(histogram, levels)
        best = _least(histogram, levels, ([each * factor for each in full] for factor in _COARSE))
        if not levels.interval:
            fine = ([(best[0] * factor).minimum(full[0])] for factor in _FINE)
            return _least(histogram, levels, fine, best)
        for factors in (_ENDS, _ENDS, _FINE, _FINE):
            high, low = best[0] + best[1], best[1]
            highs = ((high * factor).minimum(full[0] + full[1]) for factor in factors)
            best = _least(histogram, levels, ([each - low, low] for each in highs), best)
            high = best[0] + best[1]
            lows = ((low * factor).maximum(full[1]) for factor in factors)
            best = _least(histogram, levels, ([high - each, each] for each in lows), best)
        return best


class Entropy(DataStatistic):
    """The range whose quantized distribution is nearest to that of the data in Kullback-Leibler divergence.

    As TensorRT calibrates to 8 bits (Migacz, "8-bit inference with TensorRT", 2017): what lies beyond the range is
    counted at its ends in the distribution that is compared, but not in the quantized one. With few levels this
    measure clips far too much, so no range is tried that holds less than ``percentile`` percent of the data. Zeros are
    not compared, see `KullbackLeibler`.

    Args:
        percentile: above 50, up to 100.

    Raises:
        SettingError: another percentile.

    Example:
        >>> import bitwright.nn as qnn
        >>> histogram = Histogram(1)
        >>> histogram.add(torch.randn(1, 100000, generator=torch.Generator().manual_seed(0)))
        >>> levels = Levels(qnn.QuantIdentity(bit_width=4).act_quant)
        >>> Entropy()(histogram, levels)[0].item() >= Percentile(99)(histogram, levels)[0].item()
        True
    """

    def __init__(self, percentile: float = 99.0) -> None:
        self.percentile = _checked(percentile)

    def __call__(self, histogram: Histogram, levels: Levels) -> list[Tensor]:
        """The range with the least divergence; the widest of several."""
        counts = histogram.counts if levels.interval else histogram.magnitudes(levels.signed)
        cells = levels.count // 2 if levels.signed and not levels.interval else levels.count
        least = self._bins(histogram, levels, _between(histogram, levels, 100 - self.percentile, self.percentile))
        full = self._bins(histogram, levels, _full(histogram, levels))
        least = _of_at_least(cells, least, full)
        apart = torch.stack([(one - other).abs() for one, other in zip(full, least, strict=True)])
        steps = max(int(apart.max()), 1)
        zeros = histogram.zeros
        if not (levels.signed or levels.interval):
            zeros = zeros + histogram.counts[:, : histogram.bins].sum(1)  # what lies below becomes 0
        sums = BinSums(without_zeros(counts, histogram.bins if levels.interval else 0, zeros))
        best, lowest = full, torch.full_like(histogram.largest, torch.inf)
        for part in torch.arange(steps + 1, device=counts.device).split(max(_LOOKS // (len(counts) * cells), 1)):
            tried = [
                one[:, None] + torch.div((other - one)[:, None] * part, steps, rounding_mode="trunc")
                for one, other in zip(least, full, strict=True)
            ]
            divergence = sums.divergence(tried[0], tried[1], cells).flip(1)
            at = divergence.argmin(1, keepdim=True)  # the last of several
            found = divergence.gather(1, at).squeeze(1)
            better = found <= lowest
            lowest = torch.where(better, found, lowest)
            chosen = [each.flip(1).gather(1, at).squeeze(1) for each in tried]
            best = [torch.where(better, new, old) for new, old in zip(chosen, best, strict=True)]
        return self._range(histogram, levels, best)

    def _bins(self, histogram: Histogram, levels: Levels, found: list[Tensor]) -> list[Tensor]:
        """The first bin of a range, and the one after its last."""
        width = histogram.width()
        if not levels.interval:
            stop = (found[0] / width).ceil().long().clamp(1, histogram.bins)
            return [torch.zeros_like(stop), stop]
        start, stop = found[1] / width, (found[0] + found[1]) / width
        start = start.floor().long() + histogram.bins
        return [start, (stop.ceil().long() + histogram.bins).maximum(start + 1)]

    def _range(self, histogram: Histogram, levels: Levels, bins: list[Tensor]) -> list[Tensor]:
        full, width = _full(histogram, levels), histogram.width()
        if not levels.interval:
            return [(bins[1] * width).minimum(full[0])]
        low = ((bins[0] - histogram.bins) * width).maximum(full[1])
        high = ((bins[1] - histogram.bins) * width).minimum(full[0] + full[1])
        return [high - low, low]


def _of_at_least(cells: int, least: list[Tensor], full: list[Tensor]) -> list[Tensor]:
    """A range of no fewer bins than it has levels, where the full one has them."""
    stop = least[1] + (cells - (least[1] - least[0])).clamp(min=0)
    stop = stop.minimum(full[1])
    start = least[0] - (cells - (stop - least[0])).clamp(min=0)
    return [start.maximum(full[0]), stop]


def _full(histogram: Histogram, levels: Levels) -> list[Tensor]:
    """The range that holds all data, and 0."""
    high, low = histogram.largest.clamp(min=0), histogram.smallest.clamp(max=0)
    if levels.interval:
        return [high - low, low]
    return [torch.maximum(high, -low) if levels.signed else high]


def _between(histogram: Histogram, levels: Levels, low: float, high: float) -> list[Tensor]:
    """The range that leaves out what lies beyond percentiles."""
    total, width = histogram.total.double(), histogram.width()
    full = _full(histogram, levels)
    rank = (high / 100 * total + 0.5).floor().clamp(min=1).minimum(total)
    if not levels.interval:
        return [quantile(histogram.magnitudes(levels.signed), rank, width).minimum(full[0])]
    mirrored = total + 1 - (low / 100 * total).ceil().clamp(min=1)
    shift = histogram.bins * width
    top = (quantile(histogram.counts, rank, width) - shift).clamp(min=0).minimum(full[0] + full[1])
    bottom = (shift - quantile(histogram.counts.flip(1), mirrored, width)).clamp(max=0).maximum(full[1])
    return [top - bottom, bottom]


def squared_error(histogram: Histogram, levels: Levels, found: list[Tensor]) -> Tensor:
    """The sum of squared errors of quantization in a range, for each row; values lie evenly within their bins.

    Example:
        >>> import bitwright.nn as qnn
        >>> histogram = Histogram(1)
        >>> histogram.add(torch.linspace(0, 1, 100000)[None])
        >>> levels = Levels(qnn.QuantReLU(bit_width=4).act_quant)
        >>> error = squared_error(histogram, levels, [torch.tensor([1.0])]).item() / 100000
        >>> round(12 * 15**2 * error, 3)
        1.0
    """
    scale, smallest, largest = levels.grid(found)
    place = histogram.edges() / scale
    level = place.round().minimum(largest).maximum(smallest)
    integral = level / 12 + (place - level) ** 3 / 3  # of (x - q(x))**2 from 0 to each edge, in scales
    return (integral.diff() * histogram.counts / histogram.width()[:, None] * scale**3).sum(1)


def _least(
    histogram: Histogram, levels: Levels, candidates: Iterable[list[Tensor]], best: list[Tensor] | None = None
) -> list[Tensor]:
    """The range with the least error, for each row; the first of several."""
    least = None if best is None else squared_error(histogram, levels, best)
    for found in candidates:
        error = squared_error(histogram, levels, found)
        if best is None or least is None:
            best, least = found, error
            continue
        better = error < least
        least = torch.where(better, error, least)
        best = [torch.where(better, new, old) for new, old in zip(found, best, strict=True)]
    assert best is not None
    return best


def _checked(percentile: object) -> float:
    if isinstance(percentile, bool) or not isinstance(percentile, (int, float)) or not 50 < percentile <= 100:
        remedy = "Write percentile=99.9 for 99.9 percent."
        raise SettingError("percentile", percentile, "a number above 50, up to 100", remedy)
    return float(percentile)

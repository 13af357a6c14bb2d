"""Statistics of a tensor from which a scale (and a zero point) is derived.

A statistic is a callable ``rows -> Tensor``: rows are the values that share a scale, one row for each scale (2-d,
float32 or float64, never empty), and the result has one number for each. One of your own is a class with that call; one
that also has ``low`` serves quantizers with a zero point.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..aliases import Arguments, Context
from ..declare.inject import register_choices
from ..errors import QuantizerError, SettingError
from ..granularity import Granularity
from ..kernels.composed import composed
from ..kernels.derivatives import clamp_through
from ..protocols import Levels, Statistic
from ..schedules.anneal import Anneal, checked_ends, in_use
from ..tracing import is_tracing, transformed
from .divergence import KullbackLeibler
from .half_quadratic import HalfQuadraticRange
from .pooling import distributed, gathered_kth_largest, highest, lowest, summed
from .starts import LSQPlusStart, LSQStart, MinSquaredErrorInterval, StatisticsAwareBinning

__all__ = [
    "STATISTICS",
    "AbsMax",
    "AbsPercentile",
    "MeanSigma",
    "MinMax",
    "MinSquaredError",
    "PercentileInterval",
    "kth_largest",
    "lower_end",
    "measure",
    "measured",
]

_BLOCK = 4096  # columns of the block search; measured best between 256 and 16384 from 1e5 to 1e7 elements
_SEARCH = 65536  # elements from which the block search pays


class AbsMax:
    """The largest magnitude: nothing is clipped.

    Its gradient goes to the first element that has it.

    Example:
        >>> AbsMax()(torch.tensor([[1.0, -3.0], [0.5, 0.25]]))
        tensor([3.0000, 0.5000])
    """

    covers = True  # every value lies within the statistic

    def __call__(self, rows: Tensor) -> Tensor:
        """The largest magnitude of each row."""
        if torch.compiler.is_compiling():
            return rows.abs().amax(1)
        if transformed():
            return rows.gather(1, rows.detach().abs().argmax(1, keepdim=True)).abs().squeeze(1)
        return _AbsMax.apply(rows)

    def pooled(self, rows: Tensor) -> list[Tensor]:
        """The statistic over all ranks."""
        return [highest(_of_some(self, rows))]

    def __repr__(self) -> str:
        return "AbsMax()"


class _AbsMax(torch.autograd.Function):
    """abs().amax(1) without its dense backward: two vectorised reductions; one element of a row gets the gradient."""

    @staticmethod
    def forward(rows: Tensor) -> Tensor:
        return torch.maximum(rows.amax(1), -rows.amin(1))

    @staticmethod
    def setup_context(ctx: Context, inputs: Arguments, output: object) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Context, grad: Tensor) -> Tensor:  # type: ignore[override]
        (rows,) = ctx.saved_tensors
        at = rows.abs().argmax(1, keepdim=True)
        return torch.zeros_like(rows).scatter_(1, at, rows.gather(1, at).sign() * grad.reshape(-1, 1))


class MinMax:
    """The width of the smallest interval that holds every value and zero. Serves zero points.

    Example:
        >>> rows = torch.tensor([[-1.0, 3.0], [2.0, 6.0]])
        >>> MinMax()(rows), MinMax().low(rows)
        (tensor([4., 6.]), tensor([-1.,  0.]))
    """

    def __call__(self, rows: Tensor) -> Tensor:
        """Largest minus smallest value, zero included."""
        return clamp_through(rows.amax(1), 0.0) - self.low(rows)

    def low(self, rows: Tensor) -> Tensor:
        """The smallest value, or 0 if all are positive."""
        return clamp_through(rows.amin(1), None, 0.0)

    def pooled(self, rows: Tensor) -> list[Tensor]:
        """Width and lower end over all ranks."""
        low = _of_some(self.low, rows)
        high, low = highest(_of_some(self, rows) + low), lowest(low)
        return [high - low, low]

    def __repr__(self) -> str:
        return "MinMax()"


class AbsPercentile:
    """The magnitude below which ``percentile`` percent of the values lie, found without sorting them.

    Args:
        percentile: above 0, up to 100; of n values the element at rank ``floor(percentile / 100 * n + 0.5)`` is
            taken, at least the first.

    Raises:
        SettingError: a percentile that is none.

    Example:
        >>> AbsPercentile(percentile=90.0)(torch.arange(-10.0, 0.0).reshape(1, -1))
        tensor([9.])
    """

    anneals = ("percentile",)

    def __init__(self, percentile: float = 99.999) -> None:
        self.percentile = checked_ends("percentile", percentile, lambda p: _checked_percentile("percentile", p))

    def __call__(self, rows: Tensor) -> Tensor:
        """The percentile of the magnitudes, of each row."""
        percentile = in_use(self.percentile)
        if isinstance(percentile, Tensor):
            return _at_rank(rows.abs(), torch.floor(percentile / 100 * rows.shape[1] + 0.5))
        rank = min(max(math.floor(percentile / 100 * rows.shape[1] + 0.5), 1), rows.shape[1])
        return kth_largest(rows, rows.shape[1] - rank + 1, magnitudes=True)

    def pooled(self, rows: Tensor) -> list[Tensor]:
        """The percentile over all ranks."""
        percentile = float(in_use(self.percentile))
        return [_pooled_percentile(rows.abs(), lambda n: math.floor(percentile / 100 * n + 0.5))]

    def __repr__(self) -> str:
        return f"AbsPercentile({self.percentile})"


class PercentileInterval:
    """The width of the interval between two percentiles, zero included. Serves zero points.

    Args:
        low_percentile: from 0; of n values the one at rank ``ceil(low_percentile / 100 * n)`` is the lower end.
        high_percentile: up to 100, above the lower one.

    Raises:
        SettingError: percentiles that are none, or in the wrong order.

    Example:
        >>> PercentileInterval(low_percentile=10.0, high_percentile=90.0)(torch.arange(-5.0, 5.0).reshape(1, -1))
        tensor([8.])
    """

    anneals = ("low_percentile", "high_percentile")

    def __init__(self, low_percentile: float = 0.001, high_percentile: float = 99.999) -> None:
        self.low_percentile = checked_ends(
            "low_percentile", low_percentile, lambda p: _checked_percentile("low_percentile", p, 0)
        )
        self.high_percentile = checked_ends(
            "high_percentile", high_percentile, lambda p: _checked_percentile("high_percentile", p)
        )
        if _highest(low_percentile) >= _lowest(high_percentile):
            raise SettingError("low_percentile", low_percentile, f"less than high_percentile={high_percentile}")

    def __call__(self, rows: Tensor) -> Tensor:
        """Upper minus lower percentile, zero included."""
        percentile = in_use(self.high_percentile)
        if isinstance(percentile, Tensor):
            high = _at_rank(rows, torch.floor(percentile / 100 * rows.shape[1] + 0.5))
        else:
            rank = min(max(math.floor(percentile / 100 * rows.shape[1] + 0.5), 1), rows.shape[1])
            high = kth_largest(rows, rows.shape[1] - rank + 1)
        return clamp_through(high, 0.0) - self.low(rows)

    def low(self, rows: Tensor) -> Tensor:
        """The lower percentile, or 0 if it is positive."""
        percentile = in_use(self.low_percentile)
        if isinstance(percentile, Tensor):
            low = _at_rank(rows, torch.ceil(percentile / 100 * rows.shape[1]))
        else:
            rank = min(max(math.ceil(percentile / 100 * rows.shape[1]), 1), rows.shape[1])
            low = -kth_largest(-rows, rank)
        return -clamp_through(-low, 0.0)

    def pooled(self, rows: Tensor) -> list[Tensor]:
        """Width and lower end over all ranks."""
        lowest_one, highest_one = float(in_use(self.low_percentile)), float(in_use(self.high_percentile))
        high = _pooled_percentile(rows, lambda n: math.floor(highest_one / 100 * n + 0.5))
        mirrored = _pooled_percentile(-rows, lambda n: n + 1 - max(math.ceil(lowest_one / 100 * n), 1))
        low = -mirrored.clamp_min(0)
        return [high.clamp_min(0) - low, low]

    def __repr__(self) -> str:
        return f"PercentileInterval({self.low_percentile}, {self.high_percentile})"


class MeanSigma:
    """Mean magnitude plus ``sigma`` standard deviations of the magnitudes.

    Args:
        sigma: how many standard deviations, 0 or more.

    Raises:
        SettingError: a negative sigma, or one that is no number.

    Example:
        >>> MeanSigma(sigma=2.0)(torch.tensor([[1.0, -3.0]]))
        tensor([4.])
    """

    anneals = ("sigma",)

    def __init__(self, sigma: float = 3.0) -> None:
        self.sigma = checked_ends("sigma", sigma, _checked_sigma)

    def __call__(self, rows: Tensor) -> Tensor:
        """The statistic of each row; the deviation is that of the population."""
        rows = rows.abs()
        mean = rows.mean(1)
        spread = (rows - mean[:, None]).square().mean(1)
        deviation = torch.where(spread > 0, spread, 1.0).sqrt() * (spread > 0)  # no NaN gradient at zero spread
        return mean + in_use(self.sigma) * deviation

    def pooled(self, rows: Tensor) -> list[Tensor]:
        """The statistic over all ranks, from their sums."""
        dtype, rows = rows.dtype, rows.abs().double()
        count = torch.full((rows.shape[0],), float(rows.shape[1]), dtype=torch.float64, device=rows.device)
        total, squares, count = summed(torch.stack([rows.sum(1), rows.square().sum(1), count])).clone()
        mean = total / count.clamp_min(1)
        deviation = (squares / count.clamp_min(1) - mean.square()).clamp_min(0).sqrt()
        return [(mean + in_use(self.sigma) * deviation).to(dtype)]

    def __repr__(self) -> str:
        return f"MeanSigma({self.sigma})"


class MinSquaredError:
    """The range whose grid moves the values least: a search over fractions of the largest magnitude.

    Args:
        number_format: the levels of the grid.
        search_steps: how many evenly spaced candidates are tried, up to the full range.

    Raises:
        SettingError: fewer than 1 step.

    Example:
        >>> weight = torch.cat([torch.linspace(-1, 1, 999), torch.tensor([20.0])]).reshape(1, -1)
        >>> from bitwright.qcore import IntRange
        >>> MinSquaredError(IntRange(4, signed=True, narrow_range=True))(weight).item() < 20
        True
    """

    def __init__(self, number_format: Levels, search_steps: int = 64) -> None:
        if isinstance(search_steps, bool) or not isinstance(search_steps, int) or search_steps < 1:
            raise SettingError("search_steps", search_steps, "a whole number, 1 or more")
        self.number_format = number_format
        self.search_steps = search_steps

    @torch.no_grad()
    def __call__(self, rows: Tensor) -> Tensor:
        """The best of the candidates, of each row. It has no gradient."""
        largest = rows.abs().amax(1) if self.number_format.signed else rows.amax(1).clamp_min(0)
        levels = self.number_format.settled(lambda width: width.reshape(-1, 1))
        best, least = largest.clone(), torch.full_like(largest, float("inf"))
        for step in range(self.search_steps, 0, -1):
            candidate = largest * (step / self.search_steps)
            scale = (candidate / self.number_format.threshold).clamp_min(torch.finfo(rows.dtype).tiny)
            error = (composed(rows, scale[:, None], levels) - rows).square().sum(1)
            better = error < least
            best, least = torch.where(better, candidate, best), torch.where(better, error, least)
        return best

    def __repr__(self) -> str:
        return f"MinSquaredError({self.search_steps} steps)"


STATISTICS = register_choices(
    "statistic",
    {
        "abs_max": AbsMax,
        "min_max": MinMax,
        "percentile": AbsPercentile,
        "percentile_interval": PercentileInterval,
        "mean_sigma": MeanSigma,
        "mse": MinSquaredError,
        "mse_interval": MinSquaredErrorInterval,
        "lsq": LSQStart,
        "lsq_plus": LSQPlusStart,
        "kl": KullbackLeibler,
        "hqo": HalfQuadraticRange,
        "sawb": StatisticsAwareBinning,
    },
)


def measured(statistic: Statistic, x: Tensor, granularity: Granularity) -> Tensor:
    """The statistic of a tensor, one number for each scale: 0 where there is nothing to measure.

    Raises:
        QuantizerError: the statistic gives another count of numbers.

    Example:
        >>> from bitwright.qcore import PerTensor
        >>> measured(AbsMax(), torch.tensor([[1.0, -3.0], [0.5, 0.25]]), PerTensor())
        tensor([3.])
    """
    return _asked(statistic, statistic, x, granularity)


def lower_end(statistic: Any, x: Tensor, granularity: Granularity) -> Tensor:
    """The lower end of the range of a tensor, by a statistic that has one (`low`): 0 where there is nothing to measure.

    Example:
        >>> from bitwright.qcore import PerTensor
        >>> lower_end(MinMax(), torch.tensor([-1.0, 3.0]), PerTensor())
        tensor([-1.])
    """
    return _asked(statistic, statistic.low, x, granularity)


def _asked(statistic: object, call: Callable[[Tensor], Tensor], x: Tensor, granularity: Granularity) -> Tensor:
    wide = x if x.dtype in (torch.float32, torch.float64) else x.float()
    if not is_tracing() and x.numel() == 0:
        return torch.zeros(granularity.count(x.shape), dtype=wide.dtype, device=x.device)
    rows = granularity.rows(wide)
    found = call(rows)
    if found.numel() != rows.shape[0]:
        name = getattr(statistic, "__name__", type(statistic).__name__)
        raise QuantizerError(
            f"{name}: it gives {found.numel()} number{'s' * (found.numel() != 1)} for {rows.shape[0]} rows. A "
            "statistic takes rows (scales, values) and returns one number for each, such as rows.abs().amax(1)."
        )
    return found.reshape(-1)


def measure(statistic: Any, x: Tensor, granularity: Granularity) -> list[Tensor]:
    """A statistic, and the lower end where it has one; over all ranks where training is distributed.

    A statistic without a ``pooled`` of its own is averaged over ranks.

    Example:
        >>> from bitwright.qcore import PerTensor
        >>> measure(MinMax(), torch.tensor([-1.0, 3.0]), PerTensor())
        [tensor([4.]), tensor([-1.])]
    """
    if distributed() and hasattr(statistic, "pooled"):
        wide = x if x.dtype in (torch.float32, torch.float64) else x.float()
        return [each.reshape(-1) for each in statistic.pooled(granularity.rows(wide))]
    found = [measured(statistic, x, granularity)]
    if hasattr(statistic, "low"):
        found.append(lower_end(statistic, x, granularity))
    if not distributed():
        return found
    ranks = summed(torch.ones_like(found[0]))
    return [summed(each) / ranks for each in found]


def _of_some(call: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    """A statistic of what one rank has, which may be nothing."""
    return call(rows) if rows.shape[1] else rows.new_zeros(rows.shape[0])


def _pooled_percentile(rows: Tensor, rank: Callable[[int], int]) -> Tensor:
    total = int(summed(torch.tensor(rows.shape[1], device=rows.device)))
    if total == 0:
        return rows.new_zeros(rows.shape[0])
    at = min(max(rank(total), 1), total)
    return gathered_kth_largest(rows, total - at + 1)


def kth_largest(rows: Tensor, k: int, *, magnitudes: bool = False) -> Tensor:
    """The ``k``-th largest of each row (1 is the largest), exactly, without sorting where that is avoidable.

    Long rows: of the maxima of columns the k largest tell which columns can hold the answer.

    Args:
        rows: (rows, values).
        k: from 1 on.
        magnitudes: of the magnitudes, which are not worked out for all values of a long row: fresh memory for them
            would take longer than the search.

    Example:
        >>> rows = torch.tensor([[-3.0, 1.0, 2.0]])
        >>> kth_largest(rows, 2), kth_largest(rows, 2, magnitudes=True)
        (tensor([1.]), tensor([2.]))
    """
    length = rows.shape[1]
    if rows.shape[0] > 1 or length < _SEARCH or not 1 < k <= min(length // 64, _BLOCK // 2):
        rows = rows.abs() if magnitudes else rows
        if k == 1:
            return rows.amax(1)
        return rows.kthvalue(length - k + 1, 1).values if k > length // 64 else rows.topk(k, 1).values[:, -1]
    whole = length // _BLOCK * _BLOCK
    blocks = rows[0, :whole].view(-1, _BLOCK)
    known = blocks.detach()
    highest = torch.maximum(known.amax(0), -known.amin(0)) if magnitudes else known.amax(0)
    columns = highest.topk(k).indices
    candidates = torch.cat([blocks[:, columns].reshape(-1), rows[0, whole:]])
    candidates = candidates.abs() if magnitudes else candidates
    return candidates.topk(k).values[-1:]


def _at_rank(rows: Tensor, rank: Tensor) -> Tensor:
    """The value at a rank from below, in each row: what a graph does where the rank changes from step to step."""
    at = (rank.clamp(1, rows.shape[1]) - 1).long().reshape(1, 1).expand(rows.shape[0], 1)
    return rows.sort(1).values.gather(1, at).squeeze(1)


def _highest(percentile: Any) -> float:
    return max(percentile.start, percentile.end) if isinstance(percentile, Anneal) else percentile


def _lowest(percentile: Any) -> float:
    return min(percentile.start, percentile.end) if isinstance(percentile, Anneal) else percentile


def _checked_sigma(sigma: object) -> float:
    if isinstance(sigma, bool) or not isinstance(sigma, (int, float)) or not sigma >= 0:
        raise SettingError("sigma", sigma, "a number of standard deviations, 0 or more")
    return sigma


def _checked_percentile(setting: str, percentile: object, lowest: float = math.ulp(0)) -> float:
    if isinstance(percentile, bool) or not isinstance(percentile, (int, float)) or not lowest <= percentile <= 100:
        expected = "a number from 0 to 100" if lowest == 0 else "a number above 0, up to 100"
        remedy = f"Write {setting}=99.9 for 99.9 percent." if setting != "low_percentile" else ""
        raise SettingError(setting, percentile, expected, remedy)
    return float(percentile)

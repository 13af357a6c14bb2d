"""What is measured of one quantizer while batches go through the model."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ...qcore import GridQuant
from ...qcore.protocols import Statistic
from ...qcore.scaling import StoredScaling
from ...qcore.scaling.magnitude import entries
from ...qcore.scaling.pooling import distributed, highest, summed
from ...qcore.scaling.statistics import lower_end, measured
from ...qcore.scaling.stored import widest
from ..errors import GraphError
from .averages import Average
from .histogram import Histogram, extremes
from .levels import Levels
from .report import CalibratedRange
from .thresholds import DataStatistic

__all__ = ["Measurement"]

_WIDE = (torch.float32, torch.float64)
_SAMPLE = 1 << 14  # values of each tensor that are counted where no range depends on it, but the report's figures


class Measurement:
    """What one quantizer sees, batch by batch, and the range that follows from it.

    Args:
        path: of the quantizer.
        quant: the quantizer.
        statistic: what chooses the range: of each batch, or of all data.
        average: makes what the ranges of batches are added to.

    Example:
        >>> import bitwright.nn as qnn
        >>> from bitwright.qcore import AbsMax
        >>> from bitwright.graph.calibration.averages import AVERAGES
        >>> measurement = Measurement("act", qnn.QuantIdentity().act_quant, AbsMax(), AVERAGES["mean"])
        >>> for largest in (1.0, 3.0):
        ...     measurement.observe(torch.tensor([largest, 0.5]))
        ...     measurement.end_batch()
        >>> measurement.choose()
        [tensor([2.], dtype=torch.float64)]
    """

    def __init__(
        self,
        path: str,
        quant: GridQuant,
        statistic: Statistic | DataStatistic,
        average: Callable[[Sequence[Tensor], StoredScaling], Average],
    ) -> None:
        self.path = path
        self.quant = quant
        self.levels = Levels(quant)
        self.statistic = statistic
        self.batches = self.samples = self.not_finite = 0
        self.histogram: Histogram | None = None
        self._begin, self._average = average, None
        self._batch: list[Tensor] | None = None  # the range of the batch at hand
        self._size, self._strange, self._seen = 0, False, False

    @property
    def has_low(self) -> bool:
        """Whether the scaling stores a lower end, for a zero point or not."""
        return self.levels.scaling.has_low

    @torch.inference_mode(False)  # so that a user's inference mode leaves plain tensors
    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        """Measure one of the tensors of a batch; all of them count as one."""
        granularity = self.quant.granularity
        if not (granularity.single or granularity.fits(x.ndim)):
            self.quant._quantize(x)  # which refuses it, and says why
        if x.numel() == 0:
            return
        x = x.detach().clone() if x.is_inference() else x.detach()
        x = x if x.dtype in _WIDE else x.float()
        rows = granularity.rows(x)
        ends = extremes(rows)
        if not bool(torch.cat(ends).isfinite().all()):
            self._strange = True
            finite = rows.isfinite()
            if not bool(finite.any()):
                return
            x = torch.where(x.isfinite(), x, 0.0)
            rows = torch.where(finite, rows, 0.0)
            ends = extremes(rows)
        every = 1 if isinstance(self.statistic, DataStatistic) else max(rows.numel() // _SAMPLE, 1)
        self._start(len(rows), rows.device).add(rows[:, ::every], ends)
        self._size = max(self._size, x.shape[0] if x.ndim else 1)
        self._seen = True
        if isinstance(self.statistic, DataStatistic):
            return
        found = [measured(self.statistic, x, granularity)]
        if self.has_low:
            found.append(lower_end(self.statistic, x, granularity))
        self._batch = found if self._batch is None else widest(self._batch, found)

    def end_batch(self) -> None:
        """Count the batch, if any of its tensors came here."""
        self.not_finite += self._strange
        if self._seen:
            self.batches += 1
            self.samples += self._size
            if self._batch is not None and self._average is not None:
                self._average.add(self._batch, self._size)
        self._batch, self._size, self._strange, self._seen = None, 0, False, False

    def _start(self, rows: int, device: torch.device) -> Histogram:
        """The histogram, and the average, for so many scales."""
        if self.histogram is None:
            self.histogram = Histogram(rows, device=device)
            zeros = torch.zeros(rows, dtype=torch.float64, device=device)
            self._average = self._begin([zeros] * (1 + self.has_low), self.levels.scaling)
        known = len(self.histogram.counts)
        if known != rows:
            granularity = self.quant.granularity
            raise GraphError(
                f"calibrate: {self.path} has a scale for each of {entries(granularity, known)} of one input, and "
                f"{entries(granularity, rows)} of another. Give it inputs of one size, or one scale (axis=None)."
            )
        return self.histogram

    def pool(self) -> None:
        """Take in what all ranks of a distributed run have measured; each of them calls this."""
        if not distributed():
            return
        device = self.levels.scaling.magnitude_base.device
        own = 0 if self.histogram is None else len(self.histogram.counts)
        rows = int(highest(torch.tensor(own, device=device)))
        counts = summed(torch.tensor([self.batches, self.samples, self.not_finite], device=device))
        self.batches, self.samples, self.not_finite = map(int, counts)
        if rows > 0:
            self.histogram = self._start(rows, device).pooled()

    def choose(self) -> list[Tensor]:
        """The range, from all that was measured; `pool` comes first."""
        assert self.histogram is not None
        assert self._average is not None
        if not isinstance(self.statistic, DataStatistic):
            found = self._average.result(distributed())
        else:
            found = self.statistic(self.histogram, self.levels)
            self._check(found, 1 + self.levels.interval, len(self.histogram.counts))
        if not all(bool(each.isfinite().all()) for each in found):
            raise GraphError(
                f"calibrate: the range of {self.path} by {self.statistic!r} is not finite, so the ranges are as before."
            )
        return found

    def _check(self, found: list[Tensor], ends: int, rows: int) -> None:
        sizes = [each.numel() for each in found]
        if sizes == [rows] * ends:
            return
        given = " and ".join(dict.fromkeys(map(str, sizes)))
        numbers = f"{given} number{'s' * (given != '1')}"
        kind = "a width and its lower end" if ends > 1 else "a magnitude"
        raise GraphError(
            f"calibrate: {self.statistic!r} gives {_some(len(found), 'tensor')} of {numbers} "
            f"as the range of {self.path}: expected {_some(ends, 'tensor')} of {_some(rows, 'number')}, {kind}."
        )

    def empty(self) -> int:
        """How many scales saw nothing but 0, or, without negative integers, nothing above it."""
        assert self.histogram is not None
        above, below = self.histogram.largest > 0, self.histogram.smallest < 0
        signed = self.levels.signed or self.levels.interval
        return int((~(above | below) if signed else ~above).sum())

    def settle(self, found: list[Tensor]) -> None:
        """Store the range in the quantizer, whose calibration is over."""
        ends = [each.to(self.levels.scaling.magnitude_base) for each in found]
        if self.has_low and len(ends) == 1:  # which nothing asks for
            ends.append(torch.zeros_like(ends[0]))
        self.levels.scaling.set_range(ends, self.batches)
        if self.quant._kept:
            self.quant._kept.clear()  # the grid from before, in a frozen model

    def report(self) -> CalibratedRange:
        """What was measured, and the range that is stored."""
        assert self.histogram is not None
        scaling, histogram = self.levels.scaling, self.histogram
        with torch.no_grad():
            stored = [scaling.restriction.load(scaling.magnitude.reshape(-1)).double()]
            if scaling.low is not None:
                stored.append(scaling.low.reshape(-1).double())
            scale, lowest, highest_level = self.levels.grid(stored)
            ends = [((lowest - 0.5) * scale).squeeze(1), ((highest_level + 0.5) * scale).squeeze(1)]
            below = torch.where(histogram.smallest >= ends[0], 0.0, histogram.below(ends[0]))
            above = torch.where(histogram.largest <= ends[1], 0.0, histogram.total - histogram.below(ends[1]))
        return CalibratedRange(
            path=self.path,
            statistic=repr(self.statistic),
            batches=self.batches,
            samples=self.samples,
            smallest=histogram.smallest.min().item(),
            largest=histogram.largest.max().item(),
            low=(lowest * scale).min().item(),
            high=(highest_level * scale).max().item(),
            scales=len(histogram.counts),
            empty=self.empty(),
            clipped=((below + above).sum() / histogram.total.sum()).item(),
            not_finite=self.not_finite,
        )


def _some(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"

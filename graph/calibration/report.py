"""What calibration found, quantizer by quantizer."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

__all__ = ["CalibratedRange", "CalibrationReport"]


@dataclass(frozen=True)
class CalibratedRange:
    """What one quantizer saw, and the range that was chosen for it.

    Attributes:
        path: of the quantizer.
        statistic: what the range was chosen by.
        batches: how many were measured.
        samples: how many those had; of all ranks.
        smallest: the smallest value that was seen.
        largest: the largest one.
        low: the smallest value of the grid; of the widest, where there are several scales.
        high: the largest one.
        scales: how many scales the range has.
        empty: how many of them saw nothing but 0.
        clipped: the share of values that the grid clips, from 0 to 1; of large tensors a sample, unless the statistic
            counts all values.
        not_finite: how many batches held values that are not finite.

    Example:
        >>> CalibratedRange("act", "AbsMax()", 1, 8, 0.0, 2.0, 0.0, 2.0).clipped
        0.0
    """

    path: str
    statistic: str
    batches: int
    samples: int
    smallest: float
    largest: float
    low: float
    high: float
    scales: int = 1
    empty: int = 0
    clipped: float = 0.0
    not_finite: int = 0


@dataclass
class CalibrationReport:
    """What `calibrate` found: filled when its block ends, one `CalibratedRange` for each quantizer.

    ``report["0.act_quant"]`` is that of one quantizer, ``print(report)`` shows all.

    Attributes:
        ranges: by the paths of the quantizers.
        unreached: paths of the quantizers that no batch came to; their ranges are as before.
        batches: how many went through the model.

    Example:
        >>> report = CalibrationReport()
        >>> report.ranges["act"] = CalibratedRange("act", "AbsMax()", 1, 8, 0.0, 2.0, 0.0, 2.0)
        >>> print(report)
        quantizer  statistic  batches  samples  smallest  largest  low  high  clipped
        act        AbsMax()         1        8         0        2    0     2      0 %
    """

    ranges: dict[str, CalibratedRange] = field(default_factory=dict)
    unreached: list[str] = field(default_factory=list)
    batches: int = 0

    def __getitem__(self, path: str) -> CalibratedRange:
        return self.ranges[path]

    def __iter__(self) -> Iterator[CalibratedRange]:
        return iter(self.ranges.values())

    def __len__(self) -> int:
        return len(self.ranges)

    def to_dict(self) -> dict[str, object]:
        """Everything as plain numbers, strings, lists and dicts, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        if not self.ranges:
            return "nothing is calibrated"
        titles = ["quantizer", "statistic", "batches", "samples", "smallest", "largest", "low", "high", "clipped"]
        lines = [titles, *(_cells(each) for each in self)]
        widths = [max(len(line[column]) for line in lines) for column in range(len(titles))]
        left = 2  # columns of words; numbers stand to the right
        rows = [
            "  ".join(
                cell.ljust(width) if column < left else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        ]
        return "\n".join([*rows, *(f"{path}  not reached" for path in self.unreached)])


def _cells(found: CalibratedRange) -> list[str]:
    numbers = [f"{each:.4g}" for each in (found.smallest, found.largest, found.low, found.high)]
    counts = [str(found.batches), str(found.samples)]
    return [found.path, found.statistic, *counts, *numbers, f"{100 * found.clipped:.3g} %"]

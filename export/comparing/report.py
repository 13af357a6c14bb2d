"""What a verification found, as text, JSON and a picture."""

import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from ...qcore.reporting.json_files import write_json
from ...qcore.reporting.pictures import figure_class
from ..errors import ExportError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["VerificationReport", "VerificationRow"]


@dataclass
class VerificationRow:
    """One tensor compared between torch and onnxruntime.

    Attributes:
        name: path of the quantizer, or name of the model's output.
        kind: ``activation``, ``stored`` (integers in the file), or ``output`` (floats).
        optimizations: ``off`` or ``on``, of the runtime, at each tensor from the same codes before it; ``plain`` for
            the outputs of the file as it is, optimizations on, beside the model's.
        compared: how many numbers.
        differences: how many disagree.
        tie_flips: how many codes are off by one because the value lay on a rounding boundary, within 1e-3 of a step;
            of outputs, how many are off where such a value comes before them.
        largest: the largest difference: in codes, or for outputs as a share of their range.
        note: what else is wrong.
        absolute: the largest difference of outputs as it is, None for codes.
        mean: the mean difference of outputs as a share of their range.
        mean_absolute: the mean difference of outputs as it is, None for codes.
        samples: how many rows of an output may be scores of classes: floats of two dimensions, two columns or more.
        alike: in how many of these the highest score is that of the same class.

    Example:
        >>> row = VerificationRow("act", "activation", "on", compared=1000, tie_flips=1)
        >>> row.add(VerificationRow("act", "activation", "on", compared=500, differences=2, largest=3.0))
        >>> row.compared, row.differences, row.tie_flips
        (1500, 2, 1)
    """

    name: str
    kind: str
    optimizations: str
    compared: int = 0
    differences: int = 0
    tie_flips: int = 0
    largest: float = 0.0
    note: str = ""
    absolute: float | None = None
    mean: float = 0.0
    mean_absolute: float | None = None
    samples: int = 0
    alike: int = 0

    def add(self, other: "VerificationRow") -> None:
        """Count a further part of the same tensor in."""
        share = other.compared / max(self.compared + other.compared, 1)
        self.mean = _mean(self.mean, other.mean, share)
        if other.mean_absolute is not None:
            self.mean_absolute = _mean(self.mean_absolute or 0.0, other.mean_absolute, share)
        self.samples += other.samples
        self.alike += other.alike
        self.compared += other.compared
        self.differences += other.differences
        self.tie_flips += other.tie_flips
        self.largest = max(self.largest, other.largest)
        self.note = self.note or other.note
        if other.absolute is not None:
            self.absolute = max(self.absolute or 0.0, other.absolute)


def _mean(one: float, other: float, share: float) -> float:
    """The mean of two means, of which the second counts with a share."""
    return one if share == 0 else other if share == 1 else one * (1 - share) + other * share


@dataclass
class VerificationReport:
    """All tensors compared, with the runtime's optimizations off and on. ``print`` it, `save` it, `plot` it.

    That there are no differences is said of codes and of outputs that start from the same codes. How far the outputs of
    the file as it is are from the model's, from end to end, say `output_error`, `mean_output_error` and
    `top1_agreement`: a code that flips on a rounding boundary moves everything after it.

    Example:
        >>> act = VerificationRow("act", "activation", "off", 1000, 0, 1, 1.0)
        >>> report = VerificationReport([act, VerificationRow("y", "output", "plain", 10, 2)])
        >>> report.ok, report.differences, report.tie_flips
        (False, 2, 1)
        >>> print(report)
        1010 numbers compared: 2 differences, 1 tie flip
        optimizations  tensor           compared  differences  tie flips   largest
        plain          y                      10            2          0         0
    """

    rows: list[VerificationRow] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether something was compared and nothing differs."""
        return bool(self.rows) and self.differences == 0

    @property
    def compared(self) -> int:
        """How many numbers were compared."""
        return sum(row.compared for row in self.rows)

    @property
    def differences(self) -> int:
        """How many of them differ; tie flips don't count."""
        return sum(row.differences for row in self.rows)

    @property
    def tie_flips(self) -> int:
        """How many codes are off by one on a rounding boundary; outputs behind them don't count."""
        return sum(row.tie_flips for row in self.rows if row.kind != "output")

    @property
    def output_tie_flips(self) -> int:
        """How many numbers of the outputs are off by more than 1e-5 of their range, in samples with such a code.

        Those of the file as it is, in the rows ``plain``.
        """
        return sum(row.tie_flips for row in self._outputs())

    @property
    def output_error(self) -> float:
        """The most by which an output of the file, as it is, is off from the model's."""
        return max((row.absolute or 0.0 for row in self._outputs()), default=0.0)

    @property
    def relative_output_error(self) -> float:
        """The same as a share of the range of the output: its largest magnitude."""
        return max((row.largest for row in self._outputs()), default=0.0)

    @property
    def mean_output_error(self) -> float:
        """By how much the outputs of the file, as it is, are off on average; of several outputs, the largest mean."""
        return max((row.mean_absolute or 0.0 for row in self._outputs()), default=0.0)

    @property
    def relative_mean_output_error(self) -> float:
        """The same as a share of the range of the output."""
        return max((row.mean for row in self._outputs()), default=0.0)

    @property
    def top1_agreement(self) -> float | None:
        """In which share of the samples the file, as it is, has the same highest class as the model.

        None where no output may be a classifier's: floats of two dimensions, two columns or more.
        """
        samples = sum(row.samples for row in self._outputs())
        return sum(row.alike for row in self._outputs()) / samples if samples else None

    def _outputs(self) -> list[VerificationRow]:
        return [row for row in self.only("plain").rows if row.absolute is not None]

    def only(self, optimizations: str) -> "VerificationReport":
        """The part with the runtime's optimizations ``off``, ``on``, or of the ``plain`` file.

        Example:
            >>> rows = [VerificationRow("act", "activation", "off", 10), VerificationRow("act", "activation", "on", 20)]
            >>> VerificationReport(rows).only("on").compared
            20
        """
        return VerificationReport([row for row in self.rows if row.optimizations == optimizations])

    def add(self, rows: Iterable[VerificationRow]) -> None:
        """Count further parts in."""
        known = {(row.name, row.kind, row.optimizations): row for row in self.rows}
        for row in rows:
            former = known.get((row.name, row.kind, row.optimizations))
            if former is None:
                self.rows.append(row)
                known[row.name, row.kind, row.optimizations] = row
            else:
                former.add(row)

    def table(self) -> str:
        """Every row, as text."""
        return "\n".join([self._headline(), _HEADER, *(_line(row) for row in self.rows)])

    def __str__(self) -> str:
        wrong = [_line(row) for row in self.rows if row.differences]
        return "\n".join([self._headline(), _HEADER, *wrong] if wrong else [self._headline()])

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain dicts and lists: the figures of the whole, and the rows."""
        return {**{name: getattr(self, name) for name in _FIGURES}, "rows": [asdict(row) for row in self.rows]}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the report as JSON, in which a figure that isn't finite is null.

        Args:
            path: of the file, which is replaced if there is one.
        """
        write_json(path, self.as_dict())

    def plot(self) -> "Figure":
        """The share of codes that differ, and that are tie flips, tensor by tensor; a matplotlib figure.

        Raises:
            ExportError: matplotlib is not installed.
        """
        rows = [row for row in self.rows if row.kind != "output"]
        kind = figure_class("VerificationReport.plot", ExportError)
        figure = kind(figsize=(8, 1 + 0.25 * len(rows)), layout="constrained")
        axes = figure.add_subplot()
        places = range(len(rows))
        for name, color in (("tie_flips", "C0"), ("differences", "C3")):
            shares = [getattr(row, name) / max(row.compared, 1) for row in rows]
            axes.plot(shares, places, "o", color=color, label=name.replace("_", " "))
        axes.set_yticks(list(places), [f"{row.name} ({row.optimizations})" for row in rows])
        axes.invert_yaxis()
        axes.set_xscale("symlog", linthresh=1e-7)
        axes.set_xlim(left=0)
        axes.set_xlabel("share of the codes")
        axes.legend()
        return figure

    def _headline(self) -> str:
        counts = (_count(self.differences, "difference"), _count(self.tie_flips, "tie flip"))
        lines = [f"{self.compared} numbers compared: {', '.join(counts)}"]
        outputs = self._outputs()
        if outputs:
            most = f"{self.output_error:.3g}, {self.relative_output_error:.3g} of their range"
            mean = f"{self.mean_output_error:.3g}, {self.relative_mean_output_error:.3g}"
            lines.append(f"outputs off by at most {most}; on average {mean}")
        if self.output_tie_flips:
            lines[-1] += f"; {_count(self.output_tie_flips, 'number')} beyond 1e-05 of it after tie flips"
        samples = sum(row.samples for row in outputs)
        if samples:
            lines.append(f"same top class in {sum(row.alike for row in outputs)} of {_count(samples, 'sample')}")
        return "\n".join(lines)


_FIGURES = (
    *("ok", "compared", "differences", "tie_flips", "output_tie_flips", "output_error", "relative_output_error"),
    *("mean_output_error", "relative_mean_output_error", "top1_agreement"),
)


_HEADER = f"{'optimizations':13}  {'tensor':12} {'compared':>12} {'differences':>12} {'tie flips':>10} {'largest':>9}"


def _line(row: VerificationRow) -> str:
    note = f"  {row.note}" if row.note else ""
    return (
        f"{row.optimizations:13}  {row.name:12} {row.compared:12} {row.differences:12} {row.tie_flips:10} "
        f"{row.largest:9.3g}{note}"
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"

"""What a verification found."""

from collections.abc import Iterable
from dataclasses import dataclass, field

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
        absolute: the largest difference of outputs as it is, None for codes.
        note: what else is wrong.

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

    def add(self, other: "VerificationRow") -> None:
        """Count a further part of the same tensor in."""
        self.compared += other.compared
        self.differences += other.differences
        self.tie_flips += other.tie_flips
        self.largest = max(self.largest, other.largest)
        self.note = self.note or other.note
        if other.absolute is not None:
            self.absolute = max(self.absolute or 0.0, other.absolute)


@dataclass
class VerificationReport:
    """All tensors compared, with the runtime's optimizations off and on.

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
    def output_error(self) -> float:
        """The most by which an output of the file, as it is, is off from the model's."""
        return max((row.absolute or 0.0 for row in self._outputs()), default=0.0)

    @property
    def relative_output_error(self) -> float:
        """The same as a share of the range of the output: its largest magnitude."""
        return max((row.largest for row in self._outputs()), default=0.0)

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

    def _headline(self) -> str:
        counts = (_count(self.differences, "difference"), _count(self.tie_flips, "tie flip"))
        line = f"{self.compared} numbers compared: {', '.join(counts)}"
        if not self._outputs():
            return line
        off = f"{self.output_error:.3g}, {self.relative_output_error:.3g} of their range"
        return f"{line}\noutputs off by at most {off}"


_HEADER = f"{'optimizations':13}  {'tensor':12} {'compared':>12} {'differences':>12} {'tie flips':>10} {'largest':>9}"


def _line(row: VerificationRow) -> str:
    note = f"  {row.note}" if row.note else ""
    return (
        f"{row.optimizations:13}  {row.name:12} {row.compared:12} {row.differences:12} {row.tie_flips:10} "
        f"{row.largest:9.3g}{note}"
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"

"""What a target can't take of a model, as a report."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field

from ..errors import ExportError, with_causes

__all__ = ["SupportReport", "SupportRow"]


@dataclass(frozen=True)
class SupportRow:
    """One thing that keeps a model out of a target.

    Args:
        path: of the quantizer or layer.
        setting: the attribute that decides it; empty where it is the layer.
        what: what was found, and what the target has.
        set_by: where it was set: a keyword, or the class and line of a declaration.
        remedy: what to write instead.

    Example:
        >>> print(SupportRow("fc.weight_quant", "bit_width", "20 bits", "keyword weight_bit_width", "Write 16."))
        fc.weight_quant: 20 bits (bit_width: keyword weight_bit_width). Write 16.
    """

    path: str
    setting: str
    what: str
    set_by: str
    remedy: str

    def __str__(self) -> str:
        where = f" ({self.setting}: {self.set_by})" if self.set_by else ""
        return f"{self.path}: {self.what}{where}. {self.remedy}"


@dataclass(frozen=True)
class SupportReport:
    """What a target can't take of a model, or of rules.

    Args:
        target: the target's name.
        checked: how many quantizers were looked at.
        rows: what stands in the way; nothing where all can go out.

    Example:
        >>> row = SupportRow("fc.weight_quant", "bit_width", "20 bits", "", "Write weight_bit_width=16.")
        >>> report = SupportReport("QDQ", 2, (row,))
        >>> report.ok, report.blocked
        (False, ['fc.weight_quant'])
        >>> print(report)
        QDQ can't take 1 of 2 quantizers:
          fc.weight_quant: 20 bits. Write weight_bit_width=16.
        >>> print(SupportReport("QDQ", 2))
        QDQ takes all of 2 quantizers
    """

    target: str
    checked: int
    rows: tuple[SupportRow, ...] = field(default=())

    @property
    def ok(self) -> bool:
        """Whether everything can go out."""
        return not self.rows

    def __bool__(self) -> bool:
        return self.ok

    @property
    def blocked(self) -> list[str]:
        """The paths of what stands in the way, each once."""
        return list(dict.fromkeys(row.path for row in self.rows))

    def require(self) -> "SupportReport":
        """This report, if everything can go out.

        Raises:
            ExportError: something can't: the report.
        """
        if self.rows:
            raise ExportError(str(self))
        return self

    def to_dict(self) -> dict[str, object]:
        """The report as plain data, for JSON."""
        return {"target": self.target, "checked": self.checked, "rows": [asdict(row) for row in self.rows]}

    def __str__(self) -> str:
        count = f"{self.checked} quantizer{'' if self.checked == 1 else 's'}"
        if not self.rows:
            return f"{self.target} takes all of {count}"
        quantizers = _quantizers(self.rows)
        head = f"{self.target} can't take {quantizers} of {count}:" if quantizers else f"{self.target} can't take:"
        return with_causes(head, [str(row) for row in self.rows])


def _quantizers(rows: Iterable[SupportRow]) -> int:
    return len({row.path for row in rows if row.setting})

"""What a fast file gives up: how far it is from the model, and how far it may be."""

from ..report import VerificationReport, VerificationRow

__all__ = ["beyond", "waived"]

CODES = 2  # by which an integer may be off, from the same integers before it: one for each of two roundings
SHARE = (
    0.05  # of its range by which an output may be off, from the same integers before it: MatMulNBits, layer on layer
)


def waived(report: VerificationReport) -> str:
    """In one line, how far a file is from its model.

    Example:
        >>> act = VerificationRow("act", "activation", "on", 1000, 12, 1, 1.0)
        >>> print(waived(VerificationReport([act, VerificationRow("y", "output", "plain", 10, 2, 0, 0.003)])))
        12 of 1000 integers differ, by 1 at most; outputs are off by at most 0.003 of their range.
    """
    parts = []
    rows = [row for row in report.only("on").rows if row.kind == "activation"]
    compared, differing = sum(row.compared for row in rows), sum(row.differences for row in rows)
    if compared:
        largest = max(row.largest for row in rows)
        parts.append(
            f"{differing} of {compared} integers differ" + (f", by {largest:.0f} at most" if differing else "")
        )
    plain = [row for row in report.only("plain").rows if row.kind == "output"]
    if plain:
        parts.append(f"outputs are off by at most {max(row.largest for row in plain):.2g} of their range")
    return "; ".join(parts) + "."


def beyond(report: VerificationReport) -> list[VerificationRow]:
    """The rows that other roundings can't explain.

    An integer is off by more than two, from the same integers before it; a stored one differs; or an output is off by
    more than a twentieth of its range, from the same integers before it. The whole file, end to end, is reported alone:
    integers that differ by one may end anywhere.

    Example:
        >>> rows = [VerificationRow("act", "activation", "on", 1000, 12, 1, largest) for largest in (1.0, 3.0)]
        >>> [row.largest for row in beyond(VerificationReport(rows))]
        [3.0]
    """
    return [row for row in report.rows if row.differences and row.optimizations != "plain" and _is_beyond(row)]


def _is_beyond(row: VerificationRow) -> bool:
    if row.kind == "activation":
        return row.largest > CODES or bool(row.note)
    return row.kind == "stored" or row.largest > SHARE or bool(row.note)

"""An explanation as a page for a browser: one file, without scripts."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from html import escape
from string import Template
from typing import NamedTuple

__all__ = ["PageRow", "page"]

FULL = 60.0  # dB: a bar of full width
LOW = 15.0  # dB: below it a bar is red

_PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>$title</title>
<style>
body { font: 14px/1.4 system-ui, sans-serif; margin: 2em; color: #222; }
table { border-collapse: collapse; }
th, td { padding: .2em .8em .2em 0; text-align: left; vertical-align: top; }
th { border-bottom: 1px solid #777; font-weight: 600; }
tr.layer td { border-top: 1px solid #ddd; }
td.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
td.path { font-family: ui-monospace, monospace; }
.bar { background: #d9e4f2; width: 12em; height: .9em; margin-top: .2em; }
.bar div { background: #1f5fa8; height: 100%; }
.bar div.low { background: #c23b22; }
</style>
</head>
<body>
<h1>$title</h1>
<p>$headline</p>
<table>
<tr>$header</tr>
$rows
</table>
$floats
</body>
</html>
""")
_ROW = Template('<tr class="$kind">$cells</tr>')
_CELL = Template('<td class="$kind">$text</td>')
_BAR = Template('<td><div class="bar" title="$text dB"><div class="$kind" style="width: $width%"></div></div></td>')


class PageRow(NamedTuple):
    """A quantizer: one row of the table.

    Attributes:
        cells: text by column.
        ratio: of the layer, in dB; None where there is no bar.
        first: whether a layer begins here.
    """

    cells: Mapping[str, str]
    ratio: float | None = None
    first: bool = True


def page(
    title: str,
    headline: str,
    rows: Sequence[PageRow],
    floats: Sequence[Mapping[str, str]] = (),
    numbers: Collection[str] = (),
) -> str:
    """The text of the page.

    Args:
        title: the name of the model.
        headline: what is said of it all.
        rows: all with the same columns.
        floats: what stays float: rows of a second table.
        numbers: the columns that are aligned to the right.

    Example:
        >>> text = page("Net", "1 of 1 layers quantized", [PageRow({"layer": "fc", "SQNR": "30.0"}, 30.0)])
        >>> "<h1>Net</h1>" in text, 'style="width: 50%"' in text
        (True, True)
    """
    bars = any(row.ratio is not None for row in rows)
    lines = [_row(row, numbers, bars) for row in rows]
    texts = {"title": escape(title), "headline": escape(headline)}
    header = _header(rows[0].cells if rows else ()) + "<th></th>" * bars
    return _PAGE.substitute(texts, header=header, rows="\n".join(lines), floats=_float_table(floats))


def _header(columns: Iterable[str]) -> str:
    return "".join(f"<th>{escape(column)}</th>" for column in columns)


def _row(row: PageRow, numbers: Collection[str], bars: bool) -> str:
    kinds = {column: "number" if column in numbers else "path" if column == "layer" else "text" for column in row.cells}
    cells = [_CELL.substitute(kind=kinds[column], text=escape(text)) for column, text in row.cells.items()]
    return _ROW.substitute(kind="layer" * row.first, cells="".join(cells) + (_bar(row.ratio) if bars else ""))


def _bar(ratio: float | None) -> str:
    if ratio is None or math.isnan(ratio):
        return "<td></td>"
    width = round(100 * min(max(ratio, 0.0), FULL) / FULL)
    return _BAR.substitute(text=f"{ratio:.1f}", kind="low" if ratio < LOW else "", width=width)


def _float_table(floats: Sequence[Mapping[str, str]]) -> str:
    if not floats:
        return ""
    rows = [_row(PageRow(cells), (), False) for cells in floats]
    return "\n".join(["<h2>Float</h2>", "<table>", f"<tr>{_header(floats[0])}</tr>", *rows, "</table>"])

"""An explanation as a page for a browser: one file, without scripts."""

import math
from collections.abc import Collection, Mapping, Sequence
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
tr.float { color: #777; }
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
</body>
</html>
""")
_ROW = Template('<tr class="$kind">$cells</tr>')
_CELL = Template('<td class="$kind">$text</td>')
_BAR = Template('<td><div class="bar" title="$text dB"><div class="$kind" style="width: $width%"></div></div></td>')


class PageRow(NamedTuple):
    """One row of the table.

    Attributes:
        cells: text by column.
        ratio: of the layer that begins here, in dB; None where there is no bar.
        kind: ``"layer"``, ``"float"``, or nothing for a further quantizer of a layer.
    """

    cells: Mapping[str, str]
    ratio: float | None = None
    kind: str = ""


def page(headline: str, rows: Sequence[PageRow], numbers: Collection[str] = ()) -> str:
    """The text of the page.

    Args:
        headline: the first line; the name of the model is what comes before its colon.
        rows: all with the same columns.
        numbers: the columns that are aligned to the right.

    Example:
        >>> text = page("Net: 1 of 1 layers quantized", [PageRow({"layer": "fc", "SQNR": "30.0"}, 30.0, "layer")])
        >>> "<h1>Net</h1>" in text, 'style="width: 50%"' in text
        (True, True)
    """
    columns = list(rows[0].cells) if rows else []
    bars = any(row.ratio is not None for row in rows)
    header = "".join(f"<th>{escape(column)}</th>" for column in columns) + "<th></th>" * bars
    lines = [_row(row, numbers, bars) for row in rows]
    title = escape(headline.partition(":")[0])
    return _PAGE.substitute(title=title, headline=escape(headline), header=header, rows="\n".join(lines))


def _row(row: PageRow, numbers: Collection[str], bars: bool) -> str:
    kinds = {column: "number" if column in numbers else "path" if column == "layer" else "text" for column in row.cells}
    cells = [_CELL.substitute(kind=kinds[column], text=escape(text)) for column, text in row.cells.items()]
    return _ROW.substitute(kind=row.kind, cells="".join(cells) + (_bar(row.ratio) if bars else ""))


def _bar(ratio: float | None) -> str:
    if ratio is None or math.isnan(ratio):
        return "<td></td>"
    width = round(100 * min(max(ratio, 0.0), FULL) / FULL)
    return _BAR.substitute(text=f"{ratio:.1f}", kind="low" if ratio < LOW else "", width=width)

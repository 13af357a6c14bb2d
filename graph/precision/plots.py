"""Pictures of tables and curves. They need matplotlib: ``pip install bitwright[plot]``."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ...qcore.reporting.pictures import figure_class
from ..errors import GraphError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["curve", "heat_map"]


def heat_map(
    asked: str,
    title: str,
    rows: Sequence[str],
    columns: Sequence[str],
    damages: Sequence[Sequence[float]],
    texts: Sequence[Sequence[str]],
) -> "Figure":
    """A cell for each row and column, the darker the larger the damage, on a logarithmic scale.

    Raises:
        GraphError: matplotlib is not installed.

    Example:
        >>> figure = heat_map("plot", "damage", ["fc"], ["2", "4"], [[0.5, 0.0]], [["3.0", "exact"]])
        >>> [text.get_text() for text in figure.axes[0].texts]
        ['3.0', 'exact']
    """
    kind = figure_class(asked, GraphError)
    from matplotlib.colors import LogNorm

    positive = [each for row in damages for each in row if each > 0]
    low, high = (min(positive), max(positive)) if positive else (1.0, 1.0)
    norm = LogNorm(low, high if high > low else 10 * low)
    figure = kind(figsize=(2.5 + 0.9 * len(columns), 1.2 + 0.28 * len(rows)), layout="constrained")
    axes = figure.subplots()
    axes.imshow([[max(each, low) for each in row] for row in damages], norm=norm, cmap="Reds", aspect="auto")
    axes.set_title(title, fontsize=9)
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows, fontsize=8)
    for y, row in enumerate(texts):
        for x, text in enumerate(row):
            dark = norm(max(damages[y][x], low)) > 0.6
            axes.text(x, y, text, ha="center", va="center", fontsize=8, color="white" if dark else "black")
    return figure


def curve(
    asked: str, title: str, xs: Sequence[float], ys: Sequence[float], labels: tuple[str, str], logarithmic: bool
) -> "Figure":
    """Points and the line through them.

    Raises:
        GraphError: matplotlib is not installed.

    Example:
        >>> figure = curve("plot", "damage by bits", [1, 2], [0.5, 0.1], ("bits", "damage"), True)
        >>> figure.axes[0].get_xlabel(), figure.axes[0].get_yscale()
        ('bits', 'log')
    """
    figure = figure_class(asked, GraphError)(figsize=(5.5, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.plot(xs, ys, marker="o", drawstyle="steps-post")
    axes.set_title(title, fontsize=9)
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
    if logarithmic:
        axes.set_yscale("log")
    axes.grid(alpha=0.3)
    return figure

"""What a layer-wise algorithm did to every layer, as text, JSON and a picture."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import GraphError
from ..passes.reports import Report

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["LayerwiseReport"]


@dataclass(frozen=True)
class LayerwiseReport(Report):
    """What an algorithm did to each weight. ``print`` it, `save` it, `plot` it.

    The figures of an entry: ``before`` and ``after``, the mean squared error of the layer's output as a share of its
    power, with round-to-nearest and with what the algorithm chose; ``rows``, how many inputs that is over; ``seconds``;
    what the algorithm adds, such as ``damping``; and ``kept``, the share of outputs for which round-to-nearest was at
    least as good, and stayed.

    Example:
        >>> from bitwright.graph import Entry
        >>> report = LayerwiseReport("gptq", (Entry("fc", "gptq", "", {"before": 0.02, "after": 0.01, "rows": 512}),))
        >>> print(report)
        gptq: 1 changed, 0 left
          fc  gptq (before 0.02, after 0.01, rows 512)
    """

    def save(self, path: str | Path) -> None:
        """Write the report as JSON, in which a figure that isn't finite is null.

        Args:
            path: of the file, which is replaced if there is one.
        """
        entries = [replace(each, figures=_finite(each.figures)) for each in self.entries]
        found = replace(self, entries=tuple(entries)).as_dict()
        Path(path).write_text(json.dumps(found, indent=1, allow_nan=False) + "\n", encoding="utf-8")

    def plot(self) -> "Figure":
        """The error of each layer's output before and after, one below the other; a matplotlib figure.

        Raises:
            GraphError: matplotlib is not installed.
        """
        try:
            figure_class: Any = import_module("matplotlib.figure").Figure
        except ModuleNotFoundError:
            raise GraphError("LayerwiseReport.plot needs matplotlib: pip install bitwright[plot]") from None
        entries = [each for each in self.entries if "before" in each.figures]
        figure = figure_class(figsize=(8, 1 + 0.25 * len(entries)), layout="constrained")
        axes = figure.add_subplot()
        places = range(len(entries))
        before, after = ([each.figures[name] for each in entries] for name in ("before", "after"))
        axes.hlines(places, after, before, color="0.8")
        axes.plot(before, places, "o", color="0.5", label="round-to-nearest")
        axes.plot(after, places, "o", color="C0", label=self.call)
        axes.set_yticks(list(places), [each.path for each in entries])
        axes.invert_yaxis()
        if any(each > 0 for each in (*before, *after)):
            axes.set_xscale("log")
        axes.set_xlabel("error of the output / its power")
        axes.legend()
        return figure


def _finite(figures: Mapping[str, float]) -> dict[str, Any]:
    return {name: number if math.isfinite(number) else None for name, number in figures.items()}

"""What a layer-wise algorithm did to every layer, as text, JSON and a picture."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ...qcore.reporting.json_files import write_json
from ...qcore.reporting.pictures import figure_class
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
        write_json(path, self.as_dict())

    def plot(self) -> "Figure":
        """The error of each layer's output before and after, one below the other; a matplotlib figure.

        Raises:
            GraphError: matplotlib is not installed.
        """
        entries = [each for each in self.entries if "before" in each.figures]
        kind = figure_class("LayerwiseReport.plot", GraphError)
        figure = kind(figsize=(8, 1 + 0.25 * len(entries)), layout="constrained")
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

"""What is quantized in a model, by which rule, what stayed float and why, and what it costs."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from .page import PageRow, page

__all__ = ["ExplainedLayer", "ExplainedQuantizer", "Explanation"]


@dataclass(frozen=True)
class ExplainedQuantizer:
    """The quantizer of one slot of a layer.

    Attributes:
        slot: its name, such as ``"weight"``.
        quantizer: the declaration, such as ``Int8WeightPerChannel(bit_width=4)``.
        scheme: what the numbers mean, such as ``int4 narrow, axis 0``; and how far the calibration is.
        why: the rules that set it, and what `quantize` decided itself; empty in a model written by hand.
        shared_with: the path of the same module, where another slot before this one has it, too.
        clipped: the share of values beyond the range; None without data.
        levels: how many levels its grid has; None without data, and where they are too many to count.
        dead: how many of them no value fell on.

    Example:
        >>> quantizer = ExplainedQuantizer("input", "Int8Act", "int8, per tensor", clipped=0.0125, levels=256, dead=128)
        >>> quantizer.text
        'Int8Act: int8, per tensor'
    """

    slot: str
    quantizer: str
    scheme: str
    why: tuple[str, ...] = ()
    shared_with: str = ""
    clipped: float | None = None
    levels: int | None = None
    dead: int | None = None

    @property
    def text(self) -> str:
        """Declaration and scheme in one line."""
        shared = f", shared with {self.shared_with}" if self.shared_with else ""
        return f"{self.quantizer}: {self.scheme}{shared}"


@dataclass(frozen=True)
class ExplainedLayer:
    """A layer, or a place where a function is called.

    Attributes:
        path: where it is in the model.
        layer: the name of its class; of a function too, in parentheses.
        quantizers: one for each slot that has one.
        float_reason: why it stays float; empty where it has quantizers.
        sqnr: signal-to-quantization-noise ratio of its output in dB with only this layer quantized; None without data,
            and for layers that were not called.
        sqnr_so_far: the same with all layers quantized: the noise that came in is counted, too.

    Example:
        >>> ExplainedLayer("head", "Linear", (), 'the rule "head"').quantized
        False
    """

    path: str
    layer: str
    quantizers: tuple[ExplainedQuantizer, ...] = ()
    float_reason: str = ""
    sqnr: float | None = None
    sqnr_so_far: float | None = None

    @property
    def quantized(self) -> bool:
        """Whether it has a quantizer."""
        return bool(self.quantizers)


@dataclass(frozen=True)
class Explanation:
    """What `explain` found: print it, take it as data, or save it as a page for a browser.

    Attributes:
        model: the name of the model's class.
        layers: in the model's order.
        sqnr: of the model's outputs, in dB; None without data.

    Example:
        >>> weight = ExplainedQuantizer("weight", "Int8WeightPerTensor", "int8 narrow, per tensor")
        >>> explanation = Explanation("Net", (ExplainedLayer("fc", "QuantLinear", (weight,)),))
        >>> print(explanation)
        Net: 1 of 1 layers quantized
        layer  class        slot    quantizer
        fc     QuantLinear  weight  Int8WeightPerTensor: int8 narrow, per tensor
        >>> explanation["fc"].quantizers[0].slot
        'weight'
    """

    model: str
    layers: tuple[ExplainedLayer, ...]
    sqnr: float | None = None

    @property
    def worst(self) -> tuple[ExplainedLayer, ...]:
        """The layers that were measured, those that add most noise first."""
        measured = [each for each in self.layers if each.sqnr is not None]
        return tuple(sorted(measured, key=lambda each: each.sqnr or 0.0))

    def __getitem__(self, path: str) -> ExplainedLayer:
        """The layer of a path."""
        for each in self.layers:
            if each.path == path:
                return each
        raise KeyError(path)

    def __iter__(self) -> Iterator[ExplainedLayer]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain dicts and lists."""
        return asdict(self)

    def save(self, path: str | PathLike[str]) -> None:
        """Write a page for a browser: one file that needs nothing else."""
        rows = [PageRow(cells, layer.sqnr if first else None, first) for cells, layer, first in self._rows()]
        floats = [{"layer": kind, "why": why, "paths": ", ".join(paths)} for kind, why, paths in self.floats]
        text = page(self.model, self.headline, rows, floats, NUMBERS)
        Path(path).write_text(text, encoding="utf-8")

    @property
    def headline(self) -> str:
        """How many layers are quantized, how good the outputs are, and which layers add most noise."""
        count = sum(each.quantized for each in self.layers)
        line = f"{self.model}: {count} of {len(self.layers)} layers quantized"
        if self.sqnr is None:
            return line
        noisy = [f"{each.path or self.model} {decibels(each.sqnr)}" for each in self.worst[:3] if each.sqnr != math.inf]
        most = f"; most noise: {', '.join(noisy)}" if noisy else ""
        return f"{line}; SQNR of the outputs {decibels(self.sqnr)} dB{most}"

    @property
    def floats(self) -> list[tuple[str, str, list[str]]]:
        """What stays float: class, reason and paths, one entry for all layers that have class and reason in common."""
        found: dict[tuple[str, str], list[str]] = {}
        for each in self.layers:
            if not each.quantized:
                found.setdefault((each.layer, each.float_reason), []).append(each.path or "the model")
        return [(layer, reason, paths) for (layer, reason), paths in found.items()]

    def _rows(self) -> list[tuple[dict[str, str], ExplainedLayer, bool]]:
        """Text by column for each quantizer, its layer, and whether that begins here; no column that would be empty."""
        rows = [(row, layer, row is rows[0]) for layer in self.layers for rows in [_rows(layer)] for row in rows]
        used = [column for column in COLUMNS if any(row.get(column) for row, *_ in rows)]
        return [({column: row.get(column, "") for column in used}, layer, first) for row, layer, first in rows]

    def __str__(self) -> str:
        rows = [cells for cells, *_ in self._rows()]
        columns = list(rows[0]) if rows else []
        lines = [{column: column for column in columns}, *rows] if rows else []
        widths = {column: max(len(line[column]) for line in lines) for column in columns}
        return "\n".join([self.headline, *(_aligned(line, widths) for line in lines), *map(_float_line, self.floats)])


COLUMNS = ("layer", "class", "slot", "quantizer", "set by", "clipped", "dead", "SQNR", "so far")
NUMBERS = COLUMNS[5:]


def _rows(layer: ExplainedLayer) -> list[dict[str, str]]:
    rows = [
        {
            "slot": each.slot,
            "quantizer": each.text,
            "set by": "; ".join(each.why),
            "clipped": "" if each.clipped is None else _percent(each.clipped),
            "dead": "" if each.dead is None else f"{each.dead} of {each.levels}",
        }
        for each in layer.quantizers
    ]
    if rows:
        ratios = {"SQNR": decibels(layer.sqnr), "so far": decibels(layer.sqnr_so_far)}
        rows[0] = {"layer": layer.path or "the model", "class": layer.layer} | ratios | rows[0]
    return rows


def _percent(share: float) -> str:
    return "<0.01 %" if 0 < share < 1e-4 else f"{100 * share:.3g} %"


def _aligned(line: Mapping[str, str], widths: Mapping[str, int]) -> str:
    cells = [
        text.rjust(widths[column]) if column in NUMBERS else text.ljust(widths[column]) for column, text in line.items()
    ]
    return "  ".join(cells).rstrip()


def _float_line(group: tuple[str, str, list[str]]) -> str:
    layer, reason, paths = group
    more = f" and {len(paths) - 4} more" if len(paths) > 5 else ""
    return f"float: {layer}, {reason}: {', '.join(paths[:4] if more else paths)}{more}"


def decibels(ratio: float | None) -> str:
    """A ratio as text.

    Example:
        >>> decibels(12.345), decibels(float("inf")), decibels(None)
        ('12.3', 'exact', '')
    """
    if ratio is None or math.isnan(ratio):
        return ""
    return "exact" if ratio == math.inf else f"{ratio:.1f}"

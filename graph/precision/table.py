"""What sensitivity found: what each layer costs and how much it suffers, under each setting."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import GraphError
from ..explaining.explanation import decibels
from ..explaining.page import PageRow, page
from .plots import heat_map

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Candidate", "SensitivityTable"]

Rule = Mapping[str, object] | None


@dataclass(frozen=True)
class Candidate:
    """A layer under a setting.

    Attributes:
        path: of the layer.
        setting: its name.
        damage: what the layer does to the outputs then, by a measure that adds up over layers; see `sensitivity`.
        score: the same as it is shown: in dB for ``"sqnr"``.
        weights: how many the layer has; those that several layers have in common count for the first of them.
        weight_bits: the bits of all its weights.
        bytes: what its weights take, packed, with scales and zero points.
        products: how many products of weights and inputs there are for one sample.
        bops: these by the bit widths of both: bit operations.
        rule: what a rule of `quantize` says for the layer to be that; None: it stays float.
        gradient: the signal-to-noise ratio of the gradients that come through its quantizers, in dB; None if that was
            not asked for.

    Example:
        >>> Candidate("fc", "4", 0.01, 20.0, weights=8, weight_bits=32.0).bits
        4.0
    """

    path: str
    setting: str
    damage: float
    score: float
    weights: int = 0
    weight_bits: float = 0.0
    bytes: float = 0.0
    products: float = 0.0
    bops: float = 0.0
    rule: Rule = None
    gradient: float | None = None

    @property
    def bits(self) -> float:
        """Bits of a weight, on average."""
        return self.weight_bits / self.weights if self.weights else 0.0

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain numbers and strings, for JSON."""
        rule = None if self.rule is None else {key: _plain(value) for key, value in self.rule.items()}
        return {**vars(self), "rule": rule}


@dataclass(frozen=True)
class SensitivityTable:
    """What `sensitivity` found: print it, take it as data, plot it, or hand it to `allocate_bits` and `pareto`.

    ``table["fc", "4"]`` is the `Candidate` of a layer and a setting.

    Attributes:
        model: the name of the model's class.
        measure: what was scored: ``"sqnr"``, ``"kl"``, ``"fisher"``, ``"hessian"``, or the name of a measure.
        layers: paths, in the order of the model.
        settings: names, in the order given.
        candidates: all, layer by layer.
        groups: the layers that must agree unless `allocate_bits` is told otherwise.
        declared: for every quantized layer of the model, by path, the rule that makes it what it is there.

    Example:
        >>> four, two = Candidate("fc", "4", 0.01, 20.0, 8, 32.0), Candidate("fc", "2", 0.5, 3.0, 8, 16.0)
        >>> table = SensitivityTable("Net", "sqnr", ("fc",), ("2", "4"), (two, four))
        >>> print(table)
        Net: SQNR of the outputs in dB, with one layer quantized
        layer  weights    2     4
        fc           8  3.0  20.0
        >>> table["fc", "4"].damage
        0.01
    """

    model: str
    measure: str
    layers: tuple[str, ...]
    settings: tuple[str, ...]
    candidates: tuple[Candidate, ...]
    groups: tuple[tuple[str, ...], ...] = ()
    declared: Mapping[str, Rule] = field(default_factory=dict)

    def __getitem__(self, cell: tuple[str, object]) -> Candidate:
        path, setting = cell[0], str(cell[1])
        for each in self.candidates:
            if each.path == path and each.setting == setting:
                return each
        raise KeyError(cell)

    def __iter__(self) -> Iterator[Candidate]:
        return iter(self.candidates)

    def __len__(self) -> int:
        return len(self.candidates)

    def of(self, path: str) -> tuple[Candidate, ...]:
        """The candidates of a layer, in the order of the settings."""
        return tuple(each for each in self.candidates if each.path == path)

    @property
    def weights(self) -> int:
        """How many weights the layers have."""
        return sum(self.of(path)[0].weights for path in self.layers)

    @property
    def worst(self) -> tuple[str, ...]:
        """The layers, those that suffer most first, by their damage over all settings."""
        damage = {path: sum(each.damage for each in self.of(path)) for path in self.layers}
        return tuple(sorted(self.layers, key=lambda path: -damage[path]))

    def shown(self, candidate: Candidate) -> str:
        """The score of a candidate as text."""
        return decibels(candidate.score) if self.measure == "sqnr" else f"{candidate.score:.3g}"

    @property
    def headline(self) -> str:
        """What the numbers are."""
        return f"{self.model}: {TITLES.get(self.measure, self.measure)}, with one layer quantized"

    def as_dict(self) -> dict[str, Any]:
        """The table as plain dicts and lists, for JSON."""
        return {
            "model": self.model,
            "measure": self.measure,
            "layers": list(self.layers),
            "settings": list(self.settings),
            "candidates": [each.as_dict() for each in self.candidates],
            "groups": [list(each) for each in self.groups],
        }

    def save(self, path: str | PathLike[str]) -> None:
        """Write the table to a file: a page for a browser, ``.html``, or data, ``.json``.

        Raises:
            GraphError: the ending of the path is another one.
        """
        write = _FORMATS.get(Path(path).suffix.lower())
        if write is None:
            raise GraphError(
                f"SensitivityTable.save: {str(path)!r} must end in {' or '.join(_FORMATS)}, which says the format."
            )
        Path(path).write_text(write(self), encoding="utf-8")

    def _page(self) -> str:
        rows = [PageRow(cells) for cells in self._rows()]
        return page(self.model, self.headline, rows, (), self._columns[1:])

    def _json(self) -> str:
        return json.dumps(self.as_dict(), indent=1) + "\n"

    def plot(self) -> "Figure":
        """The damage of each layer under each setting, as a picture. Needs matplotlib.

        Raises:
            GraphError: matplotlib is not installed.
        """
        damages = [[each.damage for each in self.of(path)] for path in self.layers]
        texts = [[self.shown(each) for each in self.of(path)] for path in self.layers]
        names = [path or self.model for path in self.layers]
        return heat_map("SensitivityTable.plot", self.headline, names, self.settings, damages, texts)

    @property
    def _columns(self) -> list[str]:
        gradients = any(each.gradient is not None for each in self.candidates)
        return [
            "layer",
            "weights",
            *self.settings,
            *([f"gradient {name}" for name in self.settings] if gradients else []),
        ]

    def _rows(self) -> list[dict[str, str]]:
        found = []
        for path in self.layers:
            own = self.of(path)
            cells = [path or self.model, str(own[0].weights), *map(self.shown, own)]
            cells += [decibels(each.gradient) for each in own]
            found.append(dict(zip(self._columns, cells, strict=False)))
        return found

    def __str__(self) -> str:
        groups = [f"agree: {', '.join(group)}" for group in self.groups]
        return "\n".join([self.headline, *aligned(self._columns, self._rows()), *groups])


_FORMATS: dict[str, Callable[[SensitivityTable], str]] = {
    ".html": SensitivityTable._page,
    ".json": SensitivityTable._json,
}
TITLES = {
    "sqnr": "SQNR of the outputs in dB",
    "kl": "KL divergence of the outputs in nats",
    "fisher": "squared error of the outputs of layers by squared gradients",
    "hessian": "squared error of weights by the trace of the Hessian",
}


def aligned(columns: list[str], rows: list[dict[str, str]], left: int = 1) -> list[str]:
    """Rows as lines of text, with their titles; all but the first columns to the right.

    Example:
        >>> aligned(["layer", "bits"], [{"layer": "fc", "bits": "4"}])
        ['layer  bits', 'fc        4']
    """
    lines = [dict(zip(columns, columns, strict=True)), *rows]
    widths = {column: max(len(line[column]) for line in lines) for column in columns}
    return [
        "  ".join(
            line[column].ljust(widths[column]) if number < left else line[column].rjust(widths[column])
            for number, column in enumerate(columns)
        ).rstrip()
        for line in lines
    ]


def _plain(value: object) -> object:
    return value if value is None or isinstance(value, bool | int | float | str) else repr(value)

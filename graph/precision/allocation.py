"""Which setting each layer gets, so that a budget is kept and the predicted damage is the least."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ...qcore.models import shown
from ..errors import GraphError
from ..explaining.explanation import decibels
from .grouping import Groups, read_groups
from .program import best_choice, cheapest
from .table import Candidate, Rule, SensitivityTable, aligned

__all__ = ["COSTS", "Allocation", "Cost", "Units", "allocate_bits"]

Cost = str | Callable[[Candidate], float]

COSTS: dict[str, Callable[[Candidate, SensitivityTable], float]] = {
    "weight_bits": lambda candidate, table: candidate.weight_bits,
    "average_bits": lambda candidate, table: candidate.weight_bits / (table.weights or 1),
    "bytes": lambda candidate, table: candidate.bytes,
    "bops": lambda candidate, table: candidate.bops,
}


@dataclass(frozen=True)
class Allocation:
    """The setting of every layer of a table, and what comes of it.

    ``allocation["fc"]`` is the `Candidate` of a layer; ``quantize(float_model, allocation.rules)`` makes the model.

    Attributes:
        choices: what each layer gets, by path.
        cost: the name of what is paid with.
        budget: what may be spent.
        spent: what is.
        damage: the predicted damage: the sum of those of the layers.
        measure: what the damage is by.
        declared: the rules of the table, for the quantized layers that it leaves out.

    Example:
        >>> choice = Candidate("fc", "4", 0.01, 20.0, 8, 32.0, rule={"weight_quant": None})
        >>> print(Allocation({"fc": choice}, "weight_bits", 40, 32.0, 0.01, "sqnr"))
        32 of 40 weight_bits; predicted SQNR of the outputs 20.0 dB
        layer  setting  bits
        fc           4     4
    """

    choices: Mapping[str, Candidate]
    cost: str
    budget: float
    spent: float
    damage: float
    measure: str
    declared: Mapping[str, Rule] = field(default_factory=dict)

    @property
    def settings(self) -> dict[str, str]:
        """The name of each layer's setting, by path."""
        return {path: each.setting for path, each in self.choices.items()}

    @property
    def rules(self) -> dict[str, Rule]:
        """Rules for `quantize` and `save_rules`: the quantizers of every quantized layer of the model, by path."""
        return {**self.declared, **{path: each.rule for path, each in self.choices.items()}}

    @property
    def bits(self) -> float:
        """Bits of a weight, on average."""
        weights = sum(each.weights for each in self.choices.values())
        return sum(each.weight_bits for each in self.choices.values()) / weights if weights else 0.0

    def __getitem__(self, path: str) -> Candidate:
        return self.choices[path]

    def __iter__(self) -> Iterator[Candidate]:
        return iter(self.choices.values())

    def __len__(self) -> int:
        return len(self.choices)

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain dicts, numbers and strings, for JSON."""
        return {
            "cost": self.cost,
            "budget": self.budget,
            "spent": self.spent,
            "damage": self.damage,
            "measure": self.measure,
            "bits": self.bits,
            "choices": [each.as_dict() for each in self],
        }

    @property
    def predicted(self) -> str:
        """The predicted damage as text."""
        return predicted(self.measure, self.damage)

    def __str__(self) -> str:
        rows = [
            {"layer": path or "the model", "setting": each.setting, "bits": f"{each.bits:.4g}"}
            for path, each in self.choices.items()
        ]
        head = f"{number(self.spent)} of {number(self.budget)} {self.cost}; {self.predicted}"
        return "\n".join([head, *aligned(["layer", "setting", "bits"], rows)])


def predicted(measure: str, damage: float) -> str:
    """A damage as text.

    Example:
        >>> predicted("sqnr", 0.001), predicted("kl", 0.001)
        ('predicted SQNR of the outputs 30.0 dB', 'predicted damage 0.001')
    """
    if measure == "sqnr":
        ratio = decibels(-10 * math.log10(damage) if damage > 0 else math.inf)
        return f"predicted SQNR of the outputs {ratio}{' dB' if damage > 0 else ''}"
    return f"predicted damage {damage:.3g}"


def number(value: float) -> str:
    """A cost as text.

    Example:
        >>> number(32.0), number(4.25)
        ('32', '4.25')
    """
    return f"{value:.0f}" if float(value).is_integer() else f"{value:.6g}"


def allocate_bits(
    table: SensitivityTable, budget: float, cost: Cost = "weight_bits", *, groups: Groups | None = None
) -> Allocation:
    """Choose a setting for every layer: the least predicted damage that a budget buys.

    The predicted damage of a model is the sum of those of its layers; among all choices whose costs add up to no more
    than the budget, an integer program finds the best. It needs scipy: ``pip install bitwright[allocate]``.

    Args:
        table: what `sensitivity` returned.
        budget: what the layers of the table may cost together, in the unit of ``cost``.
        cost: ``"weight_bits"``, the bits of all weights; ``"average_bits"``, those of one weight, on average;
            ``"bytes"``, of the packed weights with their scales; ``"bops"``, bit operations: products for one sample by
            the bit widths of weight and input; or a function of a `Candidate`, such as a latency that you measured.
        groups: the layers that must agree on a setting: each group is a glob on paths, or a list of globs. None is
            what the table says: layers of a class that take the same tensor, such as q, k and v, and layers that
            share a weight. ``[]`` lets every layer have its own.

    Raises:
        GraphError: not a table, an impossible budget, cost or group, a budget below the least that is possible, or
            scipy is not installed.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> import bitwright.nn as qnn
        >>> from .analysis import sensitivity
        >>> model = nn.Sequential(qnn.QuantLinear(8, 8), nn.ReLU(), qnn.QuantLinear(8, 8))
        >>> table = sensitivity(model, torch.randn(16, 8), [2, 4, 8])
        >>> allocation = allocate_bits(table, 6, "average_bits")
        >>> sorted(allocation.settings.values()), allocation.spent
        (['4', '8'], 6.0)
    """
    return Units("allocate_bits", table, cost, groups).spend(budget)


class Units:
    """What chooses together: a group, or a layer by itself; with the damages and costs of its candidates.

    Args:
        asked: the call, for messages.
        table: the table.
        cost: as for `allocate_bits`.
        groups: as for `allocate_bits`.

    Attributes:
        units: the paths of each.
        damages: of each unit under each setting.
        costs: likewise.

    Example:
        >>> two = [Candidate("a", "4", 0.1, 10.0, 8, 32.0), Candidate("b", "4", 0.2, 7.0, 8, 32.0)]
        >>> table = SensitivityTable("Net", "sqnr", ("a", "b"), ("4",), two)
        >>> units = Units("allocate_bits", table, "bytes", [["a", "b"]])
        >>> units.units
        [('a', 'b')]
    """

    def __init__(self, asked: str, table: object, cost: object, groups: Groups | None) -> None:
        if not isinstance(table, SensitivityTable):
            raise GraphError(
                f"{asked}: table={shown(table)} is no table. Pass what sensitivity(model, data, ...) returned."
            )
        self.asked, self.table = asked, table
        self.cost = cost if isinstance(cost, str) else getattr(cost, "__name__", type(cost).__name__)
        price = self._price(cost)
        together = table.groups if groups is None else read_groups(asked, groups, table.layers)
        alone = {path: group for group in together for path in group}
        self.units = list(dict.fromkeys(alone.get(path, (path,)) for path in table.layers))
        self.damages = self._sums(lambda candidate: candidate.damage)
        self.costs = self._sums(price)

    def _price(self, cost: object) -> Callable[[Candidate], float]:
        if isinstance(cost, str) and cost in COSTS:
            return lambda candidate: COSTS[cost](candidate, self.table)
        if not callable(cost):
            raise GraphError(
                f"{self.asked}: cost={shown(cost)} is not possible: expected one of {', '.join(map(repr, COSTS))}, or "
                "a function of a Candidate."
            )

        def priced(candidate: Candidate) -> float:
            found: Any = cost(candidate)
            if isinstance(found, bool) or not isinstance(found, int | float) or not math.isfinite(found):
                raise GraphError(
                    f"{self.asked}: cost= returned {shown(found)} for {candidate.path or 'the model'} under "
                    f"{candidate.setting!r}. A cost takes a Candidate and returns a finite number."
                )
            return found

        return priced

    def _sums(self, of: Callable[[Candidate], float]) -> list[list[float]]:
        columns = range(len(self.table.settings))
        by_path = {path: [of(each) for each in self.table.of(path)] for path in self.table.layers}
        return [[math.fsum(by_path[path][column] for path in unit) for column in columns] for unit in self.units]

    @property
    def least(self) -> float:
        """What the cheapest settings cost together."""
        return cheapest(self.costs)

    @property
    def most(self) -> float:
        """What those of the least damage cost together; of several, the cheapest."""
        pairs = [
            list(zip(damages, costs, strict=True)) for damages, costs in zip(self.damages, self.costs, strict=True)
        ]
        return math.fsum(min(each)[1] for each in pairs)

    def spend(self, budget: float) -> Allocation:
        """The best that a budget buys.

        Raises:
            GraphError: it is no number, or buys nothing.
        """
        if isinstance(budget, bool) or not isinstance(budget, int | float) or math.isnan(budget):
            raise GraphError(f"{self.asked}: budget={shown(budget)} is not possible: expected a number of {self.cost}.")
        if budget < self.least:
            average = (
                " For bits of one weight on average, write cost='average_bits'." if self.cost == "weight_bits" else ""
            )
            raise GraphError(
                f"{self.asked}: budget={number(budget)} is too small: with every layer at its cheapest, the table's "
                f"settings need {number(self.least)} {self.cost}. Spend that, or try cheaper settings.{average}"
            )
        chosen = best_choice(self.damages, self.costs, budget)
        column = {path: index for unit, index in zip(self.units, chosen, strict=True) for path in unit}
        choices = {path: self.table.of(path)[column[path]] for path in self.table.layers}
        spent = math.fsum(each[index] for each, index in zip(self.costs, chosen, strict=True))
        damage = math.fsum(each.damage for each in choices.values())
        return Allocation(choices, self.cost, budget, spent, damage, self.table.measure, self.table.declared)

"""The curve of budget against predicted damage."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...qcore.models import shown
from ..errors import GraphError
from .allocation import Allocation, Cost, Units, number
from .grouping import Groups
from .plots import curve
from .table import SensitivityTable, aligned

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Pareto", "pareto"]


@dataclass(frozen=True)
class Pareto:
    """What budgets buy: print it, take it as data, or plot it.

    Attributes:
        cost: the name of what is paid with.
        measure: what the damage is by.
        points: from cheap to dear; each does less damage than the one before.

    Example:
        >>> point = Allocation({}, "bytes", 10, 8.0, 0.01, "sqnr")
        >>> print(Pareto("bytes", "sqnr", (point,)))
        bytes  bits  predicted
            8     0    20.0 dB
    """

    cost: str
    measure: str
    points: tuple[Allocation, ...]

    def __iter__(self) -> Iterator[Allocation]:
        return iter(self.points)

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, index: int) -> Allocation:
        return self.points[index]

    def as_dict(self) -> dict[str, Any]:
        """The curve as plain dicts and lists, for JSON."""
        return {"cost": self.cost, "measure": self.measure, "points": [each.as_dict() for each in self.points]}

    def plot(self) -> "Figure":
        """The curve as a picture: SQNR, or damage on a logarithmic scale, by cost. Needs matplotlib.

        Raises:
            GraphError: matplotlib is not installed.
        """
        known = [each for each in self.points if each.damage > 0]
        in_decibels = self.measure == "sqnr"
        values = [-10 * math.log10(each.damage) if in_decibels else each.damage for each in known]
        labels = (
            self.cost,
            "predicted SQNR of the outputs in dB" if in_decibels else f"predicted damage ({self.measure})",
        )
        title = f"{len(self.points)} allocations"
        return curve("Pareto.plot", title, [each.spent for each in known], values, labels, not in_decibels)

    def __str__(self) -> str:
        rows = [
            {
                self.cost: number(each.spent),
                "bits": f"{each.bits:.4g}",
                "predicted": each.predicted.split("outputs ")[-1],
            }
            for each in self.points
        ]
        rows = [{**row, "predicted": row["predicted"].removeprefix("predicted damage ")} for row in rows]
        columns = [self.cost, "bits", "predicted"] if self.cost != "bits" else ["bits", "predicted"]
        return "\n".join(aligned(columns, rows, left=0))


def pareto(
    table: SensitivityTable, cost: Cost = "weight_bits", *, groups: Groups | None = None, points: int = 20
) -> Pareto:
    """What budgets buy, from the least possible to what the least damage costs.

    Args:
        table: what `sensitivity` returned.
        cost: as for `allocate_bits`.
        groups: as for `allocate_bits`.
        points: how many budgets are tried, evenly from the least to the most; those that buy nothing new are left out.

    Raises:
        GraphError: not a table, an impossible cost, group or number of points, or scipy is not installed.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> import bitwright.nn as qnn
        >>> from .analysis import sensitivity
        >>> model = nn.Sequential(qnn.QuantLinear(8, 8), nn.ReLU(), qnn.QuantLinear(8, 8))
        >>> curve = pareto(sensitivity(model, torch.randn(16, 8), [2, 4, 8]), "average_bits")
        >>> [point.spent for point in curve]
        [2.0, 3.0, 4.0, 6.0, 8.0]
    """
    if isinstance(points, bool) or not isinstance(points, int) or points < 2:
        raise GraphError(f"pareto: points={shown(points)} is not possible: expected a whole number from 2.")
    units = Units("pareto", table, cost, groups)
    low, high = units.least, units.most
    found: list[Allocation] = []
    for step in range(points):
        allocation = units.spend(high if step == points - 1 else low + (high - low) * step / (points - 1))
        if not found or allocation.damage < found[-1].damage:
            found.append(allocation)
    return Pareto(units.cost, table.measure, tuple(found))

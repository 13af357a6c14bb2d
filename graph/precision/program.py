"""The integer program: one candidate for each unit, the least damage that a budget buys."""

import math
from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import Any

from ..errors import GraphError

__all__ = ["best_choice", "cheapest"]

SCALE = 1e4  # of the largest damage in the program: the solver's tolerances are absolute, 1e-6


def best_choice(damages: Sequence[Sequence[float]], costs: Sequence[Sequence[float]], budget: float) -> list[int]:
    """Which candidate each unit takes so that the damages add up to the least, and the costs to no more than a budget.

    Args:
        damages: for each unit those of its candidates.
        costs: like ``damages``.
        budget: at least what the cheapest candidates cost.

    Raises:
        GraphError: scipy, which solves integer programs, is not installed.

    Example:
        >>> best_choice([[9.0, 1.0], [5.0, 1.0]], [[2, 4], [2, 4]], 6)
        [1, 0]
    """
    optimize = _scipy()
    kept = [_undominated(*each) for each in zip(damages, costs, strict=True)]
    best = [min(each, key=lambda index, unit=unit: damages[unit][index]) for unit, each in enumerate(kept)]
    if total(costs, best) <= budget:
        return best
    least = sum(damages[unit][index] for unit, index in enumerate(best))
    bought = _greedy(damages, costs, kept, budget)
    room = total(damages, bought) - least  # a candidate that loses more than that is in no better solution
    kept = [
        [index for index in each if damages[unit][index] - damages[unit][best[unit]] <= room * (1 + 1e-9)]
        for unit, each in enumerate(kept)
    ]
    found = _solved(optimize, damages, costs, kept, best, budget, room)
    return found if found is not None and total(damages, found) < total(damages, bought) else bought


def cheapest(costs: Sequence[Sequence[float]]) -> float:
    """What the cheapest candidates cost together.

    Example:
        >>> cheapest([[2, 4], [3, 1]])
        3
    """
    return _sum(min(each) for each in costs)


def total(numbers: Sequence[Sequence[float]], chosen: Sequence[int]) -> float:
    """The sum over what was chosen.

    Example:
        >>> total([[2, 4], [3, 1]], [1, 0])
        7
    """
    return _sum(each[index] for each, index in zip(numbers, chosen, strict=True))


def _sum(numbers: Any) -> float:
    listed = list(numbers)
    return sum(listed) if all(isinstance(each, int) for each in listed) else math.fsum(listed)


def _undominated(damages: Sequence[float], costs: Sequence[float]) -> list[int]:
    """The candidates to which no other one is preferable, from cheap to dear."""
    found: list[int] = []
    for index in sorted(range(len(costs)), key=lambda each: (costs[each], damages[each])):
        if not found or damages[index] < damages[found[-1]]:
            found.append(index)
    return found


def _greedy(
    damages: Sequence[Sequence[float]], costs: Sequence[Sequence[float]], kept: Sequence[Sequence[int]], budget: float
) -> list[int]:
    """A good choice: from the cheapest on, the step that saves most damage for its cost, as long as one fits."""
    chosen = [each[0] for each in kept]
    while True:
        steps = sorted(_steps(damages, costs, kept, chosen), reverse=True)
        for _, unit, index in steps:
            tried = [*chosen[:unit], index, *chosen[unit + 1 :]]
            if total(costs, tried) <= budget:
                chosen = tried
                break
        else:
            return chosen


def _steps(
    damages: Sequence[Sequence[float]],
    costs: Sequence[Sequence[float]],
    kept: Sequence[Sequence[int]],
    chosen: list[int],
) -> Iterator[tuple[float, int, int]]:
    """The damage that each dearer candidate saves for its cost, its unit, and its index."""
    for unit, now in enumerate(chosen):
        for index in kept[unit]:
            more = costs[unit][index] - costs[unit][now]
            if more > 0:
                yield (damages[unit][now] - damages[unit][index]) / more, unit, index


def _solved(
    optimize: Any,
    damages: Sequence[Sequence[float]],
    costs: Sequence[Sequence[float]],
    kept: Sequence[Sequence[int]],
    best: Sequence[int],
    budget: float,
    room: float,
) -> list[int] | None:
    """The solver's choice; None where it finds none."""
    numpy = import_module("numpy")
    cells = [(unit, index) for unit, each in enumerate(kept) for index in each]
    lost = numpy.array([damages[unit][index] - damages[unit][best[unit]] for unit, index in cells])
    spent = numpy.array([costs[unit][index] for unit, index in cells], dtype=float)
    one_each = numpy.array([[float(unit == own) for own, _ in cells] for unit in range(len(kept))])
    cheap = sum(min(costs[unit][index] for index in each) for unit, each in enumerate(kept))
    if cheap > budget:
        return None
    limits = [optimize.LinearConstraint(one_each, 1, 1)]
    size = max(float(numpy.abs(spent).max()), abs(budget)) or 1.0
    limits.append(optimize.LinearConstraint(spent[None] / size, -numpy.inf, budget / size))
    objective = lost * (SCALE / room) if room > 0 else lost
    while True:
        found = optimize.milp(
            objective,
            integrality=numpy.ones(len(cells)),
            bounds=optimize.Bounds(0, 1),
            constraints=limits,
            # HiGHS 1.12 prints a line where it repairs a solution, less often without presolve
            options={"mip_rel_gap": 0, "presolve": False},
        )
        if found.x is None:
            return None
        taken = found.x > 0.5
        chosen = [index for (_, index), own in zip(cells, taken, strict=True) if own]
        if total(costs, chosen) <= budget:
            return chosen
        row = taken.astype(float)[None]  # beyond the budget by less than the solver's tolerance: all but this one
        limits.append(optimize.LinearConstraint(row, -numpy.inf, len(kept) - 1))


def _scipy() -> Any:
    try:
        return import_module("scipy.optimize")
    except ModuleNotFoundError:
        raise GraphError("allocate_bits needs the package scipy: pip install bitwright[allocate]") from None

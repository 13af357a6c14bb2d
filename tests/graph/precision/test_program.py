"""The integer program: as good as trying everything, and never beyond the budget."""

import random

import numpy as np
import pytest

from bitwright.graph.precision.program import best_choice, cheapest, total

pytest.importorskip("scipy")

BITS = (2, 4, 8)


def tried(damages, costs, budget):
    """The least damage of all choices that fit."""
    sums = [sum(np.ix_(*map(np.array, each))) for each in (damages, costs)]
    return sums[0][sums[1] <= budget].min()


@pytest.mark.parametrize("seed", range(20))
def test_it_equals_trying_all(seed):
    """Six layers, three widths; damages over twelve powers of ten, where a solver's absolute tolerances would show."""
    chance = random.Random(seed)
    damages = [[10 ** chance.uniform(-12, 0) for _ in range(3)] for _ in range(6)]
    costs = [[bits * size for bits in BITS] for size in [chance.randint(1, 10**6) for _ in range(6)]]
    budget = chance.randint(cheapest(costs), total(costs, [2] * 6))
    chosen = best_choice(damages, costs, budget)
    assert total(costs, chosen) <= budget
    assert total(damages, chosen) == pytest.approx(tried(damages, costs, budget), rel=1e-9, abs=0)


@pytest.mark.parametrize("seed", range(10))
def test_more_budget_is_never_worse(seed):
    chance = random.Random(seed)
    damages = [chance.uniform(1e-6, 1.0) for _ in range(4)]
    budgets = [chance.randint(8, 32) for _ in range(2)]
    table = [[each / 4**bits for bits in BITS] for each in damages]
    costs = [list(BITS)] * 4
    less, more = (total(table, best_choice(table, costs, budget)) for budget in sorted(budgets))
    assert more <= less


def test_equal_layers_get_equal_bits():
    assert best_choice([[1.0, 0.1, 0.001]] * 5, [[2, 4, 8]] * 5, 20) == [1] * 5


def test_one_layer_gets_the_best_that_fits():
    found = [best_choice([[3.0, 2.0, 1.0]], [[20, 40, 80]], budget) for budget in (20, 39, 40, 79, 80, 1e9)]
    assert found == [[0], [0], [1], [1], [2], [2]]


def test_a_budget_is_kept_to_the_last_bit():
    """The solver's own tolerance, a millionth of the budget, would let the second choice in."""
    costs = [[0, 10**9 + 1], [0, 10**9]]
    assert best_choice([[5.0, 0.0], [4.0, 0.0]], costs, 10**9) == [0, 1]
    assert best_choice([[5.0, 0.0], [4.0, 0.0]], costs, 2 * 10**9) == [1, 0]


def test_dear_settings_that_are_no_better_are_never_taken():
    assert best_choice([[1.0, 1.0], [2.0, 3.0]], [[2, 4], [2, 4]], 100) == [0, 0]
    assert best_choice([[0.0, 0.0]], [[4, 2]], 100) == [1]

import pytest
import torch
from hypothesis import given, settings

from bitwright.graph.layerwise.problem import Problem, WeightGrid
from bitwright.graph.layerwise.solvers.rows import Sets, computed, drift, never_worse, per_scale
from bitwright.qcore import Integers
from tests.graph.layerwise.solvers.problems import mismatched, per_row

SHARED = {
    "row": ([[[0], [1], [2]]], [0, 1, 2], [0, 1, 2]),
    "tensor": ([[[0]]], [0, 0, 0], [0]),
    "column": ([[[0, 1, 2]]], [0, 0, 0], [0, 0, 0]),
    "group of columns": ([[[0, 0, 1], [2, 2, 3], [4, 4, 5]]], [0, 1, 2], [0, 0, 1, 1, 2, 2]),
    "block": ([[[0, 0, 1], [0, 0, 1], [2, 2, 3]]], [0, 0, 1], [0, 0, 1, 1]),
    "a chain of rows": ([[[1, 2], [3, 0], [2, 3]]], [0, 0, 0], [0, 0, 0, 0]),
}


@pytest.mark.parametrize(("index", "rows", "scales"), SHARED.values(), ids=SHARED)
def test_rows_that_share_a_scale_are_in_one_set(index, rows, scales):
    sets = Sets.of(WeightGrid(torch.ones(len(scales)), torch.tensor(index), Integers(4)), 1, 3)
    assert (sets.of_row.tolist(), sets.of_scale.tolist(), sets.number) == ([rows], scales, max(rows) + 1)


def test_totals_of_sets():
    sets = Sets(torch.tensor([[0, 1], [1, 1]]), torch.tensor([0, 1]), 2)
    assert sets.total(torch.tensor([[1.0, 2.0], [3.0, 4.0]])).tolist() == [1.0, 9.0]
    assert sets.any(torch.tensor([[False, False], [True, False]])).tolist() == [False, True]


def test_sums_per_scale():
    x = torch.arange(6.0).view(1, 2, 3)
    for index in ([[[0], [1]]], [[[0]]], [[[0, 1, 1]]], [[[0, 0, 1], [2, 2, 3]]]):
        grid = WeightGrid(torch.ones(torch.tensor(index).max() + 1), torch.tensor(index), Integers(4))
        assert torch.equal(per_scale(grid, x), grid.gathered(x))


@pytest.mark.parametrize(("dtype", "expected"), [(torch.bfloat16, torch.float32), (torch.float64, torch.float64)])
def test_solvers_compute_in_float32_at_least(dtype, expected):
    weight = torch.ones(1, 1, 2, dtype=dtype)
    assert computed(Problem(weight, per_row(weight), torch.eye(2).unsqueeze(0))).dtype == expected


@settings(max_examples=15)
@given(mismatched)
def test_the_drift_is_the_gradient_where_nothing_is_rounded(problem):
    other = drift(problem)
    if problem.cross is None:
        assert other is None
    else:
        torch.testing.assert_close(other, problem.target - problem.weight @ problem.gram, rtol=0, atol=1e-12)


@settings(max_examples=15)
@given(mismatched)
def test_rows_take_the_better_of_two(problem):
    found = problem.weight * 0.9
    weight, better = never_worse(problem, found)
    nearest = problem.nearest()
    expected = torch.minimum(problem.loss(found), problem.loss(nearest))
    torch.testing.assert_close(problem.loss(weight), expected, rtol=0, atol=1e-9)
    assert torch.equal(weight, torch.where(better.unsqueeze(-1), found, nearest))


def test_rows_of_a_set_take_the_better_one_together():
    grid = WeightGrid(torch.ones(1), torch.zeros(1, 1, 1, dtype=torch.int64), Integers(4))
    problem = Problem(torch.tensor([[[0.25], [1.25]]]), grid, torch.ones(1, 1, 1))
    found = torch.tensor([[[0.25], [1.75]]])  # the first is better by 1/16, the second worse by 3/16
    weight, better = never_worse(problem, found)
    assert (weight[0, :, 0].tolist(), better.tolist()) == ([0.25, 1.0], [[True, False]])
    weight, better = never_worse(problem, found, Sets.of(grid, 1, 2))
    assert (weight[0, :, 0].tolist(), better.tolist()) == ([0.0, 1.0], [[False, False]])
    found[0, 1] = 1.53125  # worse by 1/64 or so
    assert never_worse(problem, found, Sets.of(grid, 1, 2))[1].tolist() == [[True, True]]

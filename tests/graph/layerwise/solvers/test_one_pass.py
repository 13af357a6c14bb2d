"""What holds for all solvers that go through the columns once."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitwright.graph.layerwise.problem import Problem
from bitwright.graph.layerwise.solvers import solve_gpfq, solve_gptq, solve_qronos
from bitwright.graph.layerwise.solvers.ordering import columns_of, in_order
from bitwright.qcore import Integers
from tests.graph.layerwise.solvers.problems import GRIDS, made, mismatched, per_row, per_tensor, problems

SOLVERS = {"gptq": solve_gptq, "gpfq": solve_gpfq, "qronos": solve_qronos}
ALL = SOLVERS.values()
solvers = pytest.mark.parametrize("solve", ALL, ids=SOLVERS)
ordered = st.booleans()


def same(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@solvers
@settings(max_examples=20)
@given(mismatched, ordered)
def test_weights_lie_on_the_grid_and_the_problem_stays(solve, problem, act_order):
    kept = [each.clone() for each in (problem.weight, problem.gram, problem.grid.scales)]
    found = solve(problem, act_order=act_order)
    same(problem.grid.nearest(found.weight), found.weight)
    assert (found.grid, found.on_grid, found.note) == (None, True, "")
    assert all(map(torch.equal, kept, (problem.weight, problem.gram, problem.grid.scales)))


@solvers
@settings(max_examples=10)
@given(problems, st.floats(0.01, 100))
def test_uncorrelated_inputs_of_any_power_are_rounded_to_nearest(solve, problem, power):
    alone = replace(problem, gram=torch.diag_embed(power * problem.diagonal))
    same(solve(alone).weight, problem.nearest())


@solvers
@settings(max_examples=10)
@given(mismatched, ordered)
def test_unit_of_inputs_does_not_matter(solve, problem, act_order):
    other = replace(problem, gram=16 * problem.gram, cross=None if problem.cross is None else 16 * problem.cross)
    same(solve(problem, act_order=act_order).weight, solve(other, act_order=act_order).weight)


@solvers
@settings(max_examples=10)
@given(mismatched, st.randoms(use_true_random=False))
def test_order_of_inputs_does_not_matter_with_act_order(solve, problem, random):
    groups, _, inputs = problem.weight.shape
    order = torch.tensor([random.sample(range(inputs), inputs) for _ in range(groups)])
    same(solve(in_order(problem, order)).weight, columns_of(solve(problem).weight, order))


@solvers
@settings(max_examples=10)
@given(st.integers(0, 1000), ordered)
def test_rows_and_groups_alone_are_what_they_are_together(solve, seed, act_order):
    problem = made(seed, groups=2, outputs=3, mismatch=0.5, grid=per_tensor)
    found = solve(problem, act_order=act_order).weight
    for group in range(2):
        for row in range(3):
            weight = problem.weight[group : group + 1, row : row + 1]
            one = Problem(weight, problem.grid, problem.gram[group : group + 1], problem.cross[group : group + 1])
            same(solve(one, act_order=act_order).weight, found[group : group + 1, row : row + 1])


@solvers
@settings(max_examples=10)
@given(mismatched, ordered, st.integers(1, 5))
def test_block_size_does_not_matter(solve, problem, act_order, block_size):
    found = solve(problem, act_order=act_order, block_size=block_size)
    same(found.weight, solve(problem, act_order=act_order).weight)


@solvers
@pytest.mark.parametrize("mismatch", [0.0, 0.5])
def test_dead_inputs_become_zero_and_change_nothing(solve, mismatch):
    problem = made(groups=2, inputs=6, mismatch=mismatch, dead=[0, 4], grid=per_tensor)
    alive = torch.tensor([1, 2, 3, 5])
    cross = None if problem.cross is None else problem.cross[:, alive][:, :, alive]
    without = Problem(problem.weight[:, :, alive], problem.grid, problem.gram[:, alive][:, :, alive], cross)
    damping = {} if solve is solve_gpfq else {"damping": 0.06}
    less = {} if solve is solve_gpfq else {"damping": 0.04}  # the mean is over all inputs
    for act_order in (False, True):
        found = solve(problem, act_order=act_order, **damping).weight
        assert found[:, :, [0, 4]].abs().max() == 0
        same(found[:, :, alive], solve(without, act_order=act_order, **less).weight)


@solvers
@pytest.mark.parametrize("grid", GRIDS)
def test_groups_with_nothing_but_dead_inputs(solve, grid):
    problem = made(groups=3, mismatch=0.5, grid=GRIDS[grid])
    problem.gram[1], problem.cross[1] = 0, 0
    found = solve(problem)
    same(found.weight[1], problem.grid.nearest(torch.zeros(3, 3, 6, dtype=torch.float64))[1])
    assert (grid == "float zero points") == bool(found.weight[1].any())
    assert bool(found.weight[[0, 2]].any(-1).all())
    assert found.note == ""


@solvers
def test_zero_weights_and_constant_inputs(solve):
    zero = made(mismatch=0.5)
    zero = replace(zero, weight=torch.zeros_like(zero.weight))
    assert solve(zero).weight.abs().max() == 0
    constant = replace(made(outputs=40), gram=torch.ones(1, 6, 6, dtype=torch.float64))
    found = solve(constant)
    assert found.weight.isfinite().all()
    assert constant.loss(found.weight).sum() < 0.5 * constant.loss(constant.nearest()).sum()


@solvers
@settings(max_examples=5)
@given(problems)
def test_one_input_is_rounded_to_nearest(solve, problem):
    one = replace(
        problem, weight=problem.weight[:, :, :1], grid=problem.grid.columns(0, 1), gram=problem.gram[:, :1, :1]
    )
    same(solve(one).weight, one.nearest())


@solvers
def test_many_bits_give_the_weights(solve):
    problem = made(groups=2, grid=lambda weight: per_row(weight, Integers(24)))
    torch.testing.assert_close(solve(problem).weight, problem.weight, rtol=0, atol=1e-5)


@solvers
def test_moments_that_are_not_finite_are_told(solve):
    problem = made(groups=3, mismatch=0.5)
    expected = solve(problem).weight
    problem.gram[1, 0, 3] = torch.nan
    if solve is not solve_gptq:
        problem.cross[2, 1, 1] = torch.inf
    found = solve(problem)
    failed = [1] if solve is solve_gptq else [1, 2]
    same(found.weight[failed], problem.nearest()[failed])
    same(found.weight[0], expected[0])
    where = f"for {len(failed)} of 3 groups"
    assert found.note == f"rounded to nearest {where}: the second moments of the inputs aren't finite"


@solvers
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_dtypes(solve, dtype):
    problem = made(outputs=30, inputs=20, rows=200, mismatch=0.3)
    weight = problem.weight.to(dtype)
    narrow = Problem(weight, per_row(weight), problem.gram.float(), problem.cross.float())
    found = solve(narrow).weight
    assert found.dtype == torch.float32
    reference = replace(narrow, weight=weight.double(), gram=narrow.gram.double(), cross=narrow.cross.double())
    exact = solve(reference).weight
    assert float((found != exact.float()).double().mean()) < 0.02  # a code here and there lies between two


@pytest.mark.parametrize(("mismatch", "most"), [(0.0, (0.6, 0.75, 0.6)), (0.3, (0.95, 0.9, 0.85))])
def test_losses_beside_round_to_nearest(mismatch, most):
    ratios = []
    for seed in range(12):
        problem = made(seed, outputs=8, inputs=12, rows=100, mismatch=mismatch)
        losses = [problem.loss(weight).sum() for weight in (problem.nearest(), *(each(problem).weight for each in ALL))]
        ratios.append(torch.stack(losses[1:]) / losses[0])
    mean = torch.stack(ratios).mean(0)
    assert (mean < torch.tensor(most)).all()

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitwright.graph import GraphError
from bitwright.graph.layerwise.problem import Problem, WeightGrid
from bitwright.graph.layerwise.solvers import solve_scales
from bitwright.graph.layerwise.solvers.rows import per_scale
from bitwright.qcore import Integers
from tests.graph.layerwise.solvers.problems import GRIDS, golden, made, mismatched, per_group, per_row, per_tensor


def same(scales):
    return scales


def powers_of_two(scales):
    return torch.exp2(torch.round(torch.log2(scales)))


def movable(problem, allowed=same):
    return problem.with_grid(problem.grid._replace(allowed=allowed))


def error(problem, grid, exponent=2.0, weighted=True):
    """The definition, for each scale."""
    raised = (grid.nearest(problem.weight) - problem.weight).abs() ** exponent
    return per_scale(grid, raised * problem.diagonal.unsqueeze(1) if weighted else raised)


@settings(max_examples=25)
@given(mismatched, st.sampled_from([same, powers_of_two]), st.sampled_from([1.0, 2.0, 2.4]), st.booleans())
def test_no_scale_is_worse_than_before(problem, allowed, exponent, weighted):
    problem = movable(problem, allowed)
    weighting = "diagonal" if weighted else "none"
    found = solve_scales(problem, candidates=8, exponent=exponent, weighting=weighting)
    before, after = (error(problem, grid, exponent, weighted) for grid in (problem.grid, found.grid))
    assert (after <= before).all()
    assert torch.equal(found.weight, found.grid.nearest(problem.weight))


@settings(max_examples=15)
@given(st.integers(0, 10**6), st.sampled_from([per_row, per_tensor]), st.sampled_from([0.0, 0.3]))
def test_the_full_weighting_is_the_loss_of_the_output(seed, grid, mismatch):
    problem = movable(made(seed, outputs=3, inputs=6, mismatch=mismatch, grid=grid))
    found = solve_scales(problem, candidates=8, weighting="full")
    before, after = problem.loss(problem.nearest()), problem.loss(found.weight)
    totals = [(each if grid is per_row else each.sum()) for each in (before, after)]
    assert (totals[1] - totals[0]).max() <= 1e-9


def test_with_groups_the_full_weighting_counts_each_by_itself():
    problem = movable(made(7, outputs=3, inputs=8, grid=lambda weight: per_group(weight, 4)))
    found = solve_scales(problem, weighting="full").grid
    for half in (slice(0, 4), slice(4, 8)):
        index = torch.arange(3).view(1, 3, 1)
        alone = Problem(
            problem.weight[:, :, half],
            problem.grid._replace(index=index, scales=problem.grid.scales[problem.grid.index[0, :, half][:, 0]]),
            problem.gram[:, half, half],
        )
        assert torch.equal(
            solve_scales(alone, weighting="full").grid.scales, found.scales[found.index[0, :, half][:, 0]]
        )


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_the_scales_found_are_nearly_the_best(grid):
    problem = movable(made(4, outputs=4, inputs=24, grid=grid))
    found = error(problem, solve_scales(problem).grid)
    tried = [error(problem, problem.grid.scaled(factor)) for factor in torch.linspace(0.2, 1, 400)]
    assert (found <= 1.02 * torch.stack(tried).amin(0)).all()


@pytest.mark.parametrize(
    ("bits", "narrow", "step"),
    [(2, True, 1.224), (3, True, 0.650), (4, True, 0.353), (2, False, 1.048), (3, False, 0.602), (4, False, 0.339)],
)
def test_the_steps_of_a_normal_distribution(bits, narrow, step):
    """The weights are points, and the power of their inputs is the density there."""
    points = torch.linspace(-4.5, 4.5, 601)
    density = torch.exp(-points.square() / 2)
    number_format = Integers(bits, narrow_range=narrow)
    start = torch.tensor([4.5 / number_format.threshold])
    grid = WeightGrid(start, torch.zeros(1, 1, 1, dtype=torch.int64), number_format, None, same)
    problem = Problem(points.view(1, 1, -1), grid, torch.diag(density).unsqueeze(0))
    assert solve_scales(problem).grid.scales.item() == pytest.approx(step, rel=0.01)


@pytest.mark.parametrize("bits", [4, 3, 2])
def test_golden(bits):
    """No scale that Brevitas 0.13.4 finds is better by more than 1 %."""
    known = golden("brevitas_thresholds")
    weight, number_format = known["W"].unsqueeze(0), Integers(bits, narrow_range=True)
    problem = movable(Problem(weight, per_row(weight, number_format), torch.eye(64, dtype=torch.float64).unsqueeze(0)))
    theirs = problem.grid._replace(scales=known[f"Int8WeightPerChannelFloatMSE_{bits}_s"].flatten())
    found = solve_scales(problem, weighting="none")
    assert (error(problem, found.grid) <= 1.01 * error(problem, theirs)).all()
    assert found.figures["factor"] == pytest.approx({4: 0.896, 3: 0.781, 2: 0.501}[bits], abs=0.001)


def test_scales_that_are_fixed_stay():
    problem = made()
    found = solve_scales(problem)
    assert found.grid is None
    assert torch.equal(found.weight, problem.nearest())
    assert found.note == "its quantizer can have no other scales"


def test_scales_of_zeros_stay():
    problem = movable(made(2, groups=2, outputs=3, inputs=6, dead=[1, 4]))
    problem.weight[0, 1] = 0
    for weighting in ("none", "diagonal", "full"):
        found = solve_scales(problem, weighting=weighting)
        assert found.grid.scales[1] == problem.grid.scales[1]
        assert torch.isfinite(found.weight).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"candidates": 1}, "search_scales: candidates=1 is not a whole number, 2 or more."),
        ({"lowest": 0.0}, "search_scales: lowest=0.0 is not a factor above 0 and below 1; 0.2 is usual."),
        ({"exponent": "2"}, "search_scales: exponent='2' is not a number above 0; 2 is usual."),
        ({"lowest": "0"}, "search_scales: lowest='0' is not a factor above 0 and below 1; 0.2 is usual."),
        ({"exponent": 0}, "search_scales: exponent=0 is not a number above 0; 2 is usual."),
        (
            {"weighting": "hessian"},
            "search_scales: weighting='hessian' is not one of 'diagonal', 'none', 'full'.",
        ),
        (
            {"weighting": "full", "exponent": 2.4},
            "search_scales: exponent=2.4, but weighting='full' measures squared errors of outputs. Write exponent=2, "
            "or weighting='diagonal'.",
        ),
    ],
)
def test_what_it_refuses(settings, message):
    with pytest.raises(GraphError, match=f"^{re.escape(message)}$"):
        solve_scales(made(), **settings)

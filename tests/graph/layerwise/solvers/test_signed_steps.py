import re
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitwright.graph import GraphError
from bitwright.graph.layerwise.problem import Problem, WeightGrid
from bitwright.graph.layerwise.solvers import solve_autoround
from bitwright.graph.layerwise.solvers.rows import Sets
from bitwright.graph.layerwise.solvers.signed_steps import Search
from bitwright.qcore import Integers
from tests.graph.layerwise.solvers.problems import GRIDS, golden, made, mismatched, per_tensor


def same(scales):
    return scales


def powers_of_two(scales):
    return torch.exp2(torch.round(torch.log2(scales)))


def tunable(problem, allowed=same):
    return problem.with_grid(problem.grid._replace(allowed=allowed))


@settings(max_examples=15)
@given(mismatched, st.booleans())
def test_without_steps_it_rounds_to_nearest(problem, tuned):
    found = solve_autoround(tunable(problem) if tuned else problem, iterations=0)
    assert torch.equal(found.weight, problem.nearest())
    assert found.figures["kept"] == 1


@settings(max_examples=25)
@given(mismatched, st.sampled_from([None, same, powers_of_two]))
def test_no_set_of_rows_is_worse_than_rounded_to_nearest(problem, allowed):
    problem = tunable(problem, allowed)
    found = solve_autoround(problem, iterations=12)
    sets = Sets.of(problem.grid, *problem.weight.shape[:2])
    worse = sets.total(problem.loss(found.weight) - problem.loss(problem.nearest()))
    assert worse.max() <= 1e-9


@settings(max_examples=25)
@given(mismatched, st.sampled_from([None, same, powers_of_two]))
def test_the_weights_lie_on_the_grid(problem, allowed):
    found = solve_autoround(tunable(problem, allowed), iterations=12)
    grid = problem.grid if allowed is None else found.grid
    assert torch.equal(grid.nearest(found.weight), found.weight)
    if allowed is None:
        assert found.grid is None


@settings(max_examples=25)
@given(mismatched)
def test_each_weight_goes_to_one_of_the_two_levels_around_it(problem):
    found = solve_autoround(problem, iterations=12).weight
    spread = problem.grid.spread(problem.grid.scales)
    steps = problem.weight / spread
    lower, upper = (problem.grid.rounded(steps, way) * spread for way in (torch.floor, torch.ceil))
    assert ((found == lower) | (found == upper)).all()


def test_offsets_and_factors_stay_in_their_ranges():
    problem = tunable(made(outputs=4, inputs=8, mismatch=0.5))
    search = Search(problem, Sets.of(problem.grid, 1, 4))
    for _ in range(9):
        search.step(0.3)
        assert search.offset.abs().max() <= 0.5
        assert 0.5 <= search.factor.min() <= search.factor.max() <= 1
    assert search.offset.abs().max() == 0.5


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_it_finds_much_of_what_there_is_to_find(grid):
    problem = made(3, groups=2, outputs=8, inputs=24, rows=200, grid=grid)
    before = problem.loss(problem.nearest()).sum()
    for each in (problem, tunable(problem)):
        found = solve_autoround(each)
        assert problem.loss(found.weight).sum() < 0.9 * before
        assert found.figures["kept"] < 0.6


def test_rows_that_share_a_scale_keep_one_iterate():
    problem = tunable(made(1, outputs=4, inputs=12, mismatch=0.3, grid=per_tensor))
    found = solve_autoround(problem)
    assert found.grid.scales.shape == (1,)
    assert 0.5 < found.figures["factor"] < 1
    assert found.figures["factor"] == (found.grid.scales / problem.grid.scales).item()
    assert found.figures["kept"] == 0


def test_scales_stay_where_asked():
    problem = tunable(made(1, outputs=4, inputs=12, mismatch=0.3))
    found = solve_autoround(problem, tune_scales=False)
    assert found.grid is None
    assert found.figures.keys() == {"kept"}
    assert torch.equal(found.weight, solve_autoround(problem.with_grid(problem.grid._replace(allowed=None))).weight)


def test_a_smaller_first_step_reaches_less_far():
    problem = made(1, outputs=4, inputs=12, mismatch=0.3)
    assert torch.equal(solve_autoround(problem, learning_rate=1e-6).weight, problem.nearest())


def test_it_gives_the_same_twice():
    problem = tunable(made(2, outputs=4, inputs=12, mismatch=0.3))
    one, other = solve_autoround(problem), solve_autoround(problem)
    assert torch.equal(one.weight, other.weight)
    assert torch.equal(one.grid.scales, other.grid.scales)


@pytest.mark.parametrize("allowed", [None, same])
def test_zeros_stay_finite(allowed):
    problem = tunable(made(2, groups=2, outputs=3, inputs=6, mismatch=0.3, dead=[1, 4]), allowed)
    problem.weight[0, 1] = 0
    nothing = replace(problem, gram=torch.zeros_like(problem.gram), cross=None)
    assert torch.isfinite(solve_autoround(problem).weight).all()
    assert torch.equal(solve_autoround(nothing).weight, nothing.nearest())


def test_golden():
    """auto-round b9f3d00, symmetric integers over the full range with signed scales, 16 groups of 8."""
    known = golden("autoround_int")
    index = torch.arange(16).view(1, 4, 4).repeat_interleave(8, 2)
    weight, scales = known["W"].view(1, 4, 32), known["sym_s"].flatten()
    by_smallest = known["sym_gmin"] != 0  # the extreme value of the group is its smallest
    factor = torch.where(by_smallest, known["min_scale"], known["max_scale"])
    grid = WeightGrid(scales / factor, index, Integers(4), None, same)
    problem = Problem(weight, grid, torch.eye(32).unsqueeze(0))
    search = Search(problem, Sets.of(grid, 1, 4))
    search.offset.copy_(known["V"].view(1, 4, 32))
    search.factor.copy_(factor)
    search.round(grid._replace(scales=scales))
    assert torch.equal(search.levels * search.spread(), known["sym_q"].unsqueeze(0))
    search.gradient.copy_(torch.linspace(-1, 1, 128).view(1, 4, 32))
    expected = torch.where(by_smallest, known["sym_gmin"], known["sym_gmax"])
    # There a weight is clipped, too, where only its offset takes it beyond an end.
    steps = weight / search.spread()
    other = (grid.inside(steps) != grid.inside(steps + search.offset)).view(16, 8).any(1)
    assert other.nonzero().flatten().tolist() == [0, 4, 12]
    torch.testing.assert_close(search.slope()[~other], expected[~other], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"iterations": 1.5}, "autoround: iterations=1.5 is not a whole number, 0 or more."),
        (
            {"learning_rate": -0.1, "iterations": 50},
            "autoround: learning_rate=-0.1 is not a number, 0 or more; 0.02 is usual.",
        ),
    ],
)
def test_what_it_refuses(settings, message):
    with pytest.raises(GraphError, match=f"^{re.escape(message)}$"):
        solve_autoround(made(), **settings)

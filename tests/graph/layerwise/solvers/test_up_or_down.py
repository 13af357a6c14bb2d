import re
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitwright.graph import GraphError
from bitwright.graph.layerwise.problem import Problem, WeightGrid
from bitwright.graph.layerwise.solvers import solve_adaround
from bitwright.graph.layerwise.solvers.up_or_down import Shares
from bitwright.qcore.rounding.learned import stretched_sigmoid
from tests.graph.layerwise.solvers.problems import GRIDS, NARROW, golden, made, mismatched


@settings(max_examples=15)
@given(mismatched)
def test_without_steps_it_rounds_to_nearest(problem):
    assert torch.equal(solve_adaround(problem, iterations=0).weight, problem.nearest())


@settings(max_examples=20)
@given(mismatched, st.sampled_from([1.0, 30.0]))
def test_no_row_is_worse_than_rounded_to_nearest(problem, penalty):
    found = solve_adaround(problem, iterations=12, learning_rate=0.5, penalty=penalty).weight
    assert (problem.loss(found) - problem.loss(problem.nearest())).max() <= 1e-9


@settings(max_examples=20)
@given(mismatched)
def test_each_weight_goes_to_one_of_the_two_levels_around_it(problem):
    found = solve_adaround(problem, iterations=12, learning_rate=0.5).weight
    spread = problem.grid.spread(problem.grid.scales)
    steps = problem.weight / spread
    lower, upper = (problem.grid.rounded(steps, way) * spread for way in (torch.floor, torch.ceil))
    assert ((found == lower) | (found == upper)).all()
    assert torch.equal(problem.grid.nearest(found), found)


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_without_penalty_and_correlations_it_rounds_to_nearest(grid):
    problem = made(5, groups=2, outputs=4, inputs=8, grid=grid)
    problem = replace(problem, gram=torch.diag_embed(problem.diagonal))
    assert torch.equal(solve_adaround(problem, penalty=0).weight, problem.nearest())


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_it_finds_much_of_what_there_is_to_find(grid):
    problem = made(3, groups=2, outputs=8, inputs=24, rows=200, grid=grid)
    found = solve_adaround(problem)
    assert problem.loss(found.weight).sum() < 0.8 * problem.loss(problem.nearest()).sum()
    assert found.figures["undecided"] < 0.05
    assert found.figures["kept"] < 0.5


def test_the_unit_of_the_inputs_does_not_matter():
    problem = made(3, outputs=8, inputs=24, mismatch=0.3)
    large = replace(problem, gram=problem.gram * 2**20, cross=problem.cross * 2**20)
    assert torch.equal(solve_adaround(large).weight, solve_adaround(problem).weight)


def test_it_says_how_many_were_undecided():
    problem = made(3, outputs=8, inputs=24)
    found = solve_adaround(problem, penalty=0)
    assert 0.3 < found.figures["undecided"] < 1
    share = f"{found.figures['undecided']:.1%}"
    assert found.note == f"{share} of the weights were undecided between up and down at the end"
    assert not solve_adaround(problem, penalty=1000, iterations=400).note


def test_it_gives_the_same_twice():
    problem = made(2, outputs=4, inputs=12, mismatch=0.3)
    assert torch.equal(solve_adaround(problem).weight, solve_adaround(problem).weight)


def test_zeros_stay_finite():
    problem = made(2, groups=2, outputs=3, inputs=6, mismatch=0.3, dead=[1, 4])
    problem.weight[0, 1] = 0
    nothing = replace(problem, gram=torch.zeros_like(problem.gram), cross=None)
    assert torch.isfinite(solve_adaround(problem).weight).all()
    assert torch.equal(solve_adaround(nothing).weight, nothing.nearest())


@pytest.mark.parametrize("beta", [20.0, 8.0, 2.0])
def test_the_gradient(beta):
    """Golden: numpy, 4 bit, penalty 0.01 times the loss; there weights on a level may rise, too."""
    known = golden("adaround")
    grid = WeightGrid(known["s"].flatten(), torch.arange(3).view(1, 3, 1), NARROW)
    problem = Problem(known["W"].unsqueeze(0), grid, known["H"].unsqueeze(0))
    shares = Shares(problem)
    torch.testing.assert_close(shares.start[0], known["V0"], rtol=1e-12, atol=1e-12)
    assert (shares.upper == shares.lower).sum() == 3  # the largest weight of each row
    gap = known["s"] * (shares.lower < 7)
    shares.gap.copy_(gap)
    shares.slope.copy_(2 * gap)
    share = stretched_sigmoid(known["V"])
    torch.testing.assert_close(share, known["h"], rtol=0, atol=1e-15)
    assert float((1 - (2 * share - 1).abs() ** beta).sum()) == pytest.approx(float(known[f"freg_{beta}"]))
    found = shares.gradient(share.unsqueeze(0), 0.01, beta)[0]
    torch.testing.assert_close(found, known[f"grad_{beta}"], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"iterations": -1}, "adaround: iterations=-1 is not a whole number, 0 or more."),
        ({"learning_rate": "a"}, "adaround: learning_rate='a' is not a number, 0 or more; 0.1 is usual."),
        ({"penalty": -1.0}, "adaround: penalty=-1.0 is not a number, 0 or more; 30 is usual."),
        ({"warm_up": 1.5}, "adaround: warm_up=1.5 is not a number, from 0 to 1; 0.2 is usual."),
        ({"beta": 20}, "adaround: beta=20 is not two exponents, 1 or more; (20, 2) is usual."),
        ({"beta": (20.0, 0.5)}, "adaround: beta=(20.0, 0.5) is not two exponents, 1 or more; (20, 2) is usual."),
    ],
)
def test_what_it_refuses(settings, message):
    with pytest.raises(GraphError, match=f"^{re.escape(message)}$"):
        solve_adaround(made(), **settings)

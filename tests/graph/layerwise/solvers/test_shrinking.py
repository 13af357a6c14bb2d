import re
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitwright.graph import GraphError
from bitwright.graph.layerwise.problem import Problem
from bitwright.graph.layerwise.solvers import solve_magr
from tests.graph.layerwise.solvers.problems import golden, made, per_group, per_row, problems


def on_ball(rows):
    """The projection of rows on the l1 ball of radius 1, by sorting."""
    sizes = rows.abs().sort(-1, descending=True).values
    excess = (sizes.cumsum(-1) - 1) / torch.arange(1, rows.shape[-1] + 1)
    level = torch.where(sizes > excess, excess, -torch.inf).amax(-1, keepdim=True).clamp_min(0)
    return rows.sign() * (rows.abs() - level).clamp_min(0)


def descended(problem, alpha, steps, cut=lambda rows: rows, join=lambda rows: rows):
    """The algorithm as it is published."""
    normed, found = problem.gram / torch.linalg.eigvalsh(problem.gram)[:, -1:, None], problem.weight
    for _ in range(steps):
        moved = cut(found - (found - problem.weight) @ normed)
        found = join(moved - alpha * on_ball(moved / alpha))
    return found


@settings(max_examples=15)
@given(st.integers(0, 10**6), st.integers(1, 9), st.sampled_from([1e-3, 0.3, 20.0]))
def test_equals_the_algorithm_as_published(seed, inputs, alpha):
    problem = made(seed, groups=2, outputs=4, inputs=inputs)
    found = solve_magr(problem, alpha=alpha, steps=10)
    torch.testing.assert_close(found.weight, descended(problem, alpha, 10), rtol=0, atol=1e-12)
    assert (found.on_grid, found.grid, found.note) == (False, None, "")


def test_weights_that_share_a_scale_shrink_by_themselves():
    problem = made(groups=2, inputs=8, grid=lambda weight: per_group(weight, 4))
    expected = descended(problem, 0.05, 20, lambda rows: rows.unflatten(-1, (2, 4)), lambda rows: rows.flatten(-2))
    torch.testing.assert_close(solve_magr(problem, alpha=0.05, steps=20).weight, expected, rtol=0, atol=1e-12)


def test_groups_of_different_size():
    """The last of 3, 3 and 2; made a multiple of 3 by an input that is dead and whose weight is 0, it is the same."""
    problem = made(groups=2, inputs=9, grid=lambda weight: per_group(weight, 3), dead=[8])
    problem.weight[:, :, 8] = 0
    shorter = Problem(problem.weight[:, :, :8], problem.grid.columns(0, 8), problem.gram[:, :8, :8])
    expected = solve_magr(problem, alpha=0.05, steps=20)
    found = solve_magr(shorter, alpha=0.05, steps=20)
    torch.testing.assert_close(found.weight, expected.weight[:, :, :8], rtol=0, atol=1e-12)


@pytest.mark.parametrize(("alpha", "steps"), [(0.1, 10), (0.01, 200)])
def test_golden(alpha, steps):
    """Brevitas 0.13.4, whose alpha is relative to another norm of H."""
    known = golden("brevitas_magr")
    gram = known["X"] @ known["X"].T / 96
    problem = Problem(known["W"].unsqueeze(0), per_row(known["W"].unsqueeze(0)), gram.unsqueeze(0))
    relative = float(torch.linalg.eigvalsh(gram)[-1] / torch.linalg.matrix_norm(gram, 1))
    found = solve_magr(problem, alpha=alpha * relative, steps=steps).weight[0]
    torch.testing.assert_close(found, known[f"magr_a{alpha}_s{steps}"], rtol=0, atol=2e-12)


@settings(max_examples=15)
@given(problems, st.sampled_from([0.0, 1e-3, 0.1]))
def test_maxima_never_grow(problem, alpha):
    problem = problem.with_grid(per_row(problem.weight))
    found = solve_magr(problem, alpha=alpha, steps=5)
    before, after = (each.abs().amax(-1) for each in (problem.weight, found.weight))
    assert bool((after <= before + 1e-12).all())
    assert found.figures["shrunk"] == pytest.approx(float((1 - after / before).mean()))
    if alpha == 0:
        torch.testing.assert_close(found.weight, problem.weight, rtol=0, atol=0)


def test_small_alpha_moves_what_costs_nothing():
    """Only differences of weights of equal inputs; their sum is what the output is made of."""
    problem = replace(made(inputs=2), gram=torch.ones(1, 2, 2, dtype=torch.float64))
    problem.weight[:] = torch.tensor([3.0, 1.0])
    found = solve_magr(problem, alpha=3e-3, steps=1000).weight
    torch.testing.assert_close(found, torch.full_like(found, 2.0), rtol=0, atol=4e-3)


def test_what_has_no_input_stays():
    problem = made(groups=3)
    problem.gram[1], problem.gram[2, 0, 0] = 0, torch.nan
    found = solve_magr(problem)
    torch.testing.assert_close(found.weight[1:], problem.weight[1:], rtol=0, atol=0)
    assert bool((found.weight[0].abs().amax(-1) < problem.weight[0].abs().amax(-1)).all())
    assert found.note == "left as it was for 1 of 3 groups: the second moments of the inputs aren't finite"
    zero = solve_magr(replace(problem, weight=torch.zeros_like(problem.weight)))
    assert (zero.weight.abs().max(), zero.figures) == (0, {"shrunk": 0.0})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"alpha": -1}, "magr: alpha=-1 is not a finite number, 0 or more; 0.001 is usual."),
        ({"alpha": float("nan")}, "magr: alpha=nan is not a finite number, 0 or more; 0.001 is usual."),
        ({"alpha": None}, "magr: alpha=None is not a finite number, 0 or more; 0.001 is usual."),
        ({"steps": 2.0}, "magr: steps=2.0 is not a whole number, 0 or more; 200 is usual."),
        ({"steps": -1}, "magr: steps=-1 is not a whole number, 0 or more; 200 is usual."),
    ],
    ids=str,
)
def test_settings_are_checked(wrong, message):
    with pytest.raises(GraphError, match=f"^{re.escape(message)}$"):
        solve_magr(made(), **wrong)

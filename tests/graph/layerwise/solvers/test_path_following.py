import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitwright.graph import GraphError
from bitwright.graph.layerwise.problem import Problem, WeightGrid
from bitwright.graph.layerwise.solvers import solve_gpfq
from tests.graph.layerwise.solvers.problems import NARROW, golden, made, per_row


def followed(weight, x, quantized, grid):
    """The definition, on the inputs themselves: (n, rows)."""
    found, missing = torch.zeros_like(weight), torch.zeros(len(weight), x.shape[1], dtype=weight.dtype)
    for column in range(weight.shape[1]):
        target = missing + weight[:, column : column + 1] * x[column]
        best = target @ quantized[column] / quantized[column].square().sum()
        found[:, column] = grid.nearest(best.view(1, -1, 1)).flatten()
        missing = target - found[:, column : column + 1] * quantized[column]
    return found


@settings(max_examples=15)
@given(st.integers(0, 10**6), st.integers(1, 9), st.sampled_from([0.0, 0.5]))
def test_equals_the_definition(seed, inputs, mismatch):
    generator = torch.Generator().manual_seed(seed)
    x, noise = torch.randn(2, inputs, 30, generator=generator, dtype=torch.float64)
    quantized = x + mismatch * noise
    weight = torch.randn(1, 4, inputs, generator=generator, dtype=torch.float64)
    gram, cross = (quantized @ quantized.T / 30).unsqueeze(0), (x @ quantized.T / 30).unsqueeze(0)
    problem = Problem(weight, per_row(weight), gram, cross if mismatch else None)
    expected = followed(weight[0], x, quantized, problem.grid)
    torch.testing.assert_close(solve_gpfq(problem, act_order=False).weight[0], expected, rtol=0, atol=1e-12)


def test_golden():
    """Brevitas 0.13.4, whose two batches of 32 and 64 count alike; input 5 is dead."""
    known = golden("brevitas_gpfq_qronos")
    gram, cross = torch.zeros(2, 1, 16, 16, dtype=torch.float64)
    for rows in (slice(32), slice(32, 96)):
        x, quantized = known["X"][:, rows], known["Xq"][:, rows]
        gram, cross = gram + quantized @ quantized.T / x.shape[1], cross + x @ quantized.T / x.shape[1]
    grid = WeightGrid(known["scale"].flatten(), torch.arange(6).view(1, 6, 1), NARROW)
    problem = Problem(known["W"].unsqueeze(0), grid, gram, cross)
    found = solve_gpfq(problem, act_order=False).weight[0]
    torch.testing.assert_close(found, known["gpfq_act0_q"], rtol=0, atol=1e-12)


def test_errors_of_the_inputs_are_made_up_for():
    problem = made(outputs=20)
    signal = ((problem.weight @ problem.gram) * problem.weight).sum(-1)
    halved = Problem(problem.weight, problem.grid, problem.gram / 4, problem.gram / 2, signal)  # xq = xf / 2
    assert halved.loss(2 * problem.weight).abs().max() < 1e-12  # the float model's outputs
    assert halved.loss(solve_gpfq(halved).weight).sum() < 0.5 * halved.loss(halved.nearest()).sum()


def test_settings_are_checked():
    with pytest.raises(GraphError, match=r"^gpfq: block_size=0 is not a whole number of columns"):
        solve_gpfq(made(), block_size=0)

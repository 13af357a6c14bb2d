from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitwright.graph import GraphError
from bitwright.graph.layerwise.problem import Problem, WeightGrid
from bitwright.graph.layerwise.solvers import solve_gptq, solve_qronos
from tests.graph.layerwise.solvers.problems import NARROW, golden, made, per_row, problems


def refitted(problem, damping):
    """The definition: after each column that is rounded, all later ones are fitted anew; one group, no dead inputs."""
    weight, gram, cross = problem.weight[0], problem.gram[0], problem.cross[0]
    eye = damping * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    found, left = torch.zeros_like(weight), weight.clone()
    for column in range(weight.shape[1]):
        target = left[:, column]
        if column == 0:
            target = (weight @ cross[:, 0] - weight[:, 1:] @ gram[1:, 0]) / gram[0, 0]
        found[:, column] = problem.grid.nearest(target.view(1, -1, 1)).flatten()
        rest = slice(column + 1, None)
        wanted = weight @ (cross + eye)[:, rest] - found[:, : column + 1] @ gram[: column + 1, rest]
        left[:, rest] = torch.linalg.solve((gram + eye)[rest, rest], wanted.T).T
    return found


@settings(max_examples=15)
@given(st.integers(0, 10**6), st.integers(1, 9), st.sampled_from([0.001, 0.05]))
def test_equals_the_definition(seed, inputs, damping):
    problem = made(seed, outputs=4, inputs=inputs, mismatch=0.5)
    found = solve_qronos(problem, act_order=False, damping=damping).weight[0]
    torch.testing.assert_close(found, refitted(problem, damping), rtol=0, atol=1e-12)


@settings(max_examples=15)
@given(problems, st.booleans())
def test_with_the_inputs_of_the_float_model_it_is_gptq(problem, act_order):
    expected = solve_gptq(problem, act_order=act_order).weight
    torch.testing.assert_close(solve_qronos(problem, act_order=act_order).weight, expected, rtol=0, atol=1e-12)
    same = replace(problem, cross=problem.gram)
    torch.testing.assert_close(solve_qronos(same, act_order=act_order).weight, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("act_order", [False, True])
def test_golden(act_order):
    """Brevitas 0.13.4, whose damping is 1e-6 of the largest eigenvalue; it rounds the dead input 5 to nearest."""
    known = golden("brevitas_gpfq_qronos")
    gram, cross = known["Xq"] @ known["Xq"].T / 96, known["X"] @ known["Xq"].T / 96
    grid = WeightGrid(known["scale"].flatten(), torch.arange(6).view(1, 6, 1), NARROW)
    problem = Problem(known["W"].unsqueeze(0), grid, gram.unsqueeze(0), cross.unsqueeze(0))
    damping = float(1e-6 * torch.linalg.eigvalsh(gram)[-1] / gram.diagonal().mean())
    found = solve_qronos(problem, act_order=act_order, damping=damping).weight[0]
    alive, expected = gram.diagonal() != 0, known[f"qronos_act{int(act_order)}_q"]
    assert alive.logical_not().nonzero().tolist() == [[5]]
    torch.testing.assert_close(found[:, alive], expected[:, alive], rtol=0, atol=1e-12)
    assert found[:, 5].tolist() == [0.0] * 6


def test_damping_is_reported():
    gram = torch.tensor([[[1.0, 1.05], [1.05, 1.0]]], dtype=torch.float64)
    problem = replace(made(inputs=2), gram=gram, cross=1.1 * gram)
    found = solve_qronos(problem)
    assert (found.figures, found.note) == ({"damping": 0.1}, "damping raised from 0.01, up to 0.1")


def test_float_inputs_count_where_quantized_ones_are_dead():
    """Input 0 is lost in the quantized model: what it did falls to input 1, which it goes along with."""
    gram = torch.tensor([[[0.0, 0.0], [0.0, 1.0]]], dtype=torch.float64)
    cross = torch.tensor([[[0.0, 1.0], [0.0, 1.0]]], dtype=torch.float64)
    weight = torch.tensor([[[2.0, 3.0]]], dtype=torch.float64)
    problem = Problem(weight, per_row(7 * torch.ones_like(weight)), gram, cross, signal=torch.tensor([[25.0]]))
    found = solve_qronos(problem).weight
    assert found.tolist() == [[[0.0, 5.0]]]
    assert problem.loss(found).tolist() == [[0.0]]


@pytest.mark.parametrize("wrong", [{"damping": -1}, {"block_size": 0}], ids=str)
def test_settings_are_checked(wrong):
    name, value = next(iter(wrong.items()))
    with pytest.raises(GraphError, match=f"^qronos: {name}={value} is not a "):
        solve_qronos(made(), **wrong)

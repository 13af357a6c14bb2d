import re
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from bitwright.graph import GraphError
from bitwright.graph.layerwise.problem import Problem, WeightGrid
from bitwright.graph.layerwise.solvers import solve_gptq
from bitwright.graph.layerwise.solvers.factors import factorize
from bitwright.graph.layerwise.solvers.ordering import by_power, columns_of, in_order
from bitwright.qcore import Integers
from tests.graph.layerwise.solvers.problems import NARROW, golden, made, per_group, per_row, problems


def damped(problem, damping=0.01):
    """H with its damping, for the references below; no input may be dead."""
    mean = problem.diagonal.mean(-1).view(-1, 1, 1)
    return problem.gram + damping * mean * torch.eye(problem.gram.shape[-1])


def eliminated(problem):
    """Optimal brain quantization in the order of the columns: an explicit inverse, and a column taken out at a time."""
    weight, inverse = problem.weight.clone(), torch.linalg.inv(damped(problem))
    found = torch.zeros_like(weight)
    for column in range(weight.shape[2]):
        found[:, :, column] = problem.grid.columns(column, column + 1).nearest(weight[:, :, column : column + 1])[
            ..., 0
        ]
        pivot = inverse[:, column : column + 1, column : column + 1]
        error = (weight[:, :, column] - found[:, :, column]).unsqueeze(2)
        weight = weight - error / pivot * inverse[:, column : column + 1]
        inverse = inverse - inverse[:, :, column : column + 1] * inverse[:, column : column + 1] / pivot
    return found


def diffused(problem, rescale=lambda values, first: None, widths=()):
    """GPTQ as it is published: the upper Cholesky factor of the inverse, and weights moved column by column."""
    weight, grid = problem.weight.clone(), problem.grid
    upper = torch.linalg.cholesky(torch.linalg.inv(damped(problem)), upper=True)
    found, starts = torch.zeros_like(weight), [sum(widths[:number]) for number in range(len(widths))]
    for column in range(weight.shape[2]):
        if column in starts:
            stop = column + widths[starts.index(column)]
            scales = grid.scales.clone()
            scales[grid.index[:, :, column]] = rescale(weight[:, :, column:stop], column)
            grid = grid._replace(scales=scales)
        found[:, :, column] = grid.columns(column, column + 1).nearest(weight[:, :, column : column + 1])[..., 0]
        error = (weight[:, :, column] - found[:, :, column]) / upper[:, column, column].unsqueeze(1)
        weight[:, :, column:] -= error.unsqueeze(2) * upper[:, column : column + 1, column:]
    return found, grid


@settings(max_examples=20)
@given(problems)
def test_equals_elimination_and_diffusion(problem):
    found = solve_gptq(problem, act_order=False).weight
    torch.testing.assert_close(found, eliminated(problem), rtol=0, atol=1e-12)
    torch.testing.assert_close(found, diffused(problem)[0], rtol=0, atol=1e-12)


@settings(max_examples=20)
@given(problems)
def test_errors_before_rounding_add_up_to_the_damped_loss(problem):
    order = by_power(problem)
    ordered, found = in_order(problem, order), columns_of(solve_gptq(problem).weight, order)
    factor = factorize(ordered.gram, 0.01)
    targets = ordered.weight + (ordered.weight - found) @ factor.feedback(torch.float64).tril(-1).mT
    torch.testing.assert_close(ordered.grid.nearest(targets), found, rtol=0, atol=1e-12)
    errors = (targets - found) * factor.upper.diagonal(dim1=1, dim2=2).unsqueeze(1)
    loss = replace(ordered, gram=damped(ordered)).loss(found)
    torch.testing.assert_close(errors.square().sum(-1), loss, rtol=1e-10, atol=1e-20)


# Scales of groups that follow the weights


def largest(values, first):
    return values.abs().amax(-1).clamp_min(1e-6) / NARROW.high


@settings(max_examples=15)
@given(
    st.builds(
        made,
        seed=st.integers(0, 10**6),
        groups=st.integers(1, 2),
        inputs=st.sampled_from([6, 8]),
        grid=st.just(lambda weight: per_group(weight, 3)),
    ),
    st.sampled_from([1, 2, 128]),
)
def test_dynamic_groups_equal_columns_one_by_one(problem, block_size):
    widths = [3] * (problem.weight.shape[2] // 3) + ([2] if problem.weight.shape[2] == 8 else [])
    expected, grid = diffused(problem, largest, widths)
    found = solve_gptq(problem, act_order=False, block_size=block_size, rescale=largest)
    torch.testing.assert_close(found.weight, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.grid.scales, grid.scales)
    assert (found.grid.index is problem.grid.index, found.grid.number_format) == (True, NARROW)
    assert not torch.equal(found.grid.scales, problem.grid.scales)


@pytest.mark.parametrize("act_order", [False, True])
def test_dynamic_groups_of_columns_that_are_no_neighbours(act_order):
    """As in a convolution with groups of channels: a scale for each place in the kernel."""
    problem = made(groups=2, inputs=8)
    index = torch.arange(6).view(2, 3, 1) * 2 + torch.tensor([0, 1, 0, 1, 0, 1, 0, 1])
    problem = problem.with_grid(WeightGrid(torch.ones(12).double(), index, NARROW))
    calls = []

    def recorded(values, first):
        calls.append((first, values))
        return largest(values, first)

    found = solve_gptq(problem, act_order=act_order, rescale=recorded)
    assert sorted(first for first, _ in calls) == [0, 1]
    first, values = calls[0]  # nothing was rounded before: the weights as they were, in their order
    torch.testing.assert_close(values, problem.weight[:, :, first::2], rtol=0, atol=0)
    torch.testing.assert_close(found.grid.nearest(found.weight), found.weight, rtol=0, atol=1e-12)
    for first, values in calls:
        torch.testing.assert_close(found.grid.scales[index[:, :, first]], largest(values, first))


def test_dynamic_groups_with_zero_points():
    problem = made(outputs=2, inputs=4)
    index = torch.tensor([[[0, 0, 1, 1], [2, 2, 3, 3]]])
    asymmetric = WeightGrid(torch.ones(4).double(), index, Integers(4, signed=False), torch.full((4,), 8.0))
    new = {0: ([[[0.25], [0.5]]], [[[3.0], [4.0]]]), 2: ([[[2.0], [0.125]]], [[[5.0], [6.0]]])}  # scales, zero points
    found = solve_gptq(problem.with_grid(asymmetric), rescale=lambda _, first: tuple(map(torch.tensor, new[first])))
    assert found.grid.scales.tolist() == [0.25, 2.0, 0.5, 0.125]
    assert found.grid.zero_points.tolist() == [3.0, 5.0, 4.0, 6.0]
    torch.testing.assert_close(found.grid.nearest(found.weight), found.weight, rtol=0, atol=1e-12)


def test_dynamic_groups_are_better_on_average():
    ratios = []
    for seed in range(10):
        problem = made(seed, outputs=8, inputs=16, rows=100, grid=lambda weight: per_group(weight, 4))
        losses = [problem.loss(solve_gptq(problem, rescale=each).weight).sum() for each in (largest, None)]
        ratios.append(losses[0] / losses[1])
    assert torch.stack(ratios).mean() < 1


def test_rows_with_different_groups_are_refused():
    problem = made(outputs=2, inputs=3)
    index = torch.tensor([[[0, 0, 1], [2, 3, 3]]])
    message = (
        "The scales of a layer's weights are shared by other columns in one row than in another; an algorithm that "
        "takes columns in groups wants PerTensor, PerAxis, PerGroup or PerBlock."
    )
    with pytest.raises(GraphError, match=f"^{re.escape(message)}$"):
        solve_gptq(problem.with_grid(WeightGrid(torch.ones(4), index, NARROW)), rescale=largest)


# What is said of damping


def test_damping_is_reported():
    assert solve_gptq(made(), damping=0.05).figures == {"damping": 0.05}
    problem = replace(made(inputs=2), gram=torch.tensor([[[1.0, 1.05], [1.05, 1.0]]]))
    found = solve_gptq(problem)
    assert (found.figures, found.note) == ({"damping": 0.1}, "damping raised from 0.01, up to 0.1")


def test_without_a_factor_rounded_to_nearest():
    problem = replace(made(inputs=2), gram=torch.tensor([[[1.0, 3.0], [3.0, 1.0]]]))
    found = solve_gptq(problem)
    torch.testing.assert_close(found.weight, problem.nearest(), rtol=0, atol=0)
    assert found.figures == {"damping": 1.0}
    assert found.note == (
        "rounded to nearest: the second moments of the inputs have no Cholesky factor, even with damping 1"
    )


@pytest.mark.parametrize("wrong", [{"damping": -1}, {"block_size": 0}], ids=str)
def test_settings_are_checked(wrong):
    name, value = next(iter(wrong.items()))
    with pytest.raises(GraphError, match=f"^gptq: {name}={value} is not a "):
        solve_gptq(made(), **wrong)


# Golden vectors


@pytest.mark.parametrize("act_order", [False, True])
def test_golden_linear(act_order):
    """Brevitas 0.13.4, its scale fixed; input 5 is dead."""
    known = golden("brevitas_gptq_linear")
    grid = WeightGrid(known["scale_fixed"].flatten(), torch.arange(6).view(1, 6, 1), NARROW)
    problem = Problem(known["W"].unsqueeze(0), grid, (known["X"] @ known["X"].T / 96).unsqueeze(0))
    expected = known[f"gptq_fixed_act{int(act_order)}_blocks1_q"]
    torch.testing.assert_close(solve_gptq(problem, act_order=act_order).weight[0], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("kind", "groups"), [("dense", 1), ("groups2", 2), ("depthwise", 4)])
def test_golden_convolution(kind, groups):
    """Brevitas 0.13.4: 3x3, stride 2, padding 1."""
    known = golden("brevitas_gptq_conv")
    weight, scales = known[f"{kind}_W"], known[f"{kind}_scale"].flatten()
    x = F.unfold(known[f"{kind}_x"], 3, padding=1, stride=2).transpose(0, 1).reshape(groups, weight[0].numel(), -1)
    matrices = weight.reshape(groups, -1, weight[0].numel())
    grid = WeightGrid(scales, torch.arange(len(scales)).view(groups, -1, 1), NARROW)
    found = solve_gptq(Problem(matrices, grid, x @ x.mT / x.shape[-1]), act_order=False).weight
    torch.testing.assert_close(found.view_as(weight), known[f"{kind}_q"], rtol=0, atol=1e-12)


# Its dynamic groups, "g8_plain", take scales from weights that lack the updates of their block: static ones, in fact.
CASES = ["g-1_plain", "g-1_act", "g8_plain", "g8_plain_static", "g8_act_static"]


@pytest.mark.parametrize("bits", [4, 3])
@pytest.mark.parametrize("symmetric", [True, False], ids=["sym", "asym"])
@pytest.mark.parametrize("case", CASES)
def test_golden_of_the_original(bits, symmetric, case):
    """IST-DASLab/gptq, in float32; input 9 is dead, and its weights don't count for scales."""
    known = golden("gptq_original_groups")
    weight, x, high = known["W"].unsqueeze(0), known["X"], 2**bits - 1
    width = 8 if case.startswith("g8") else 32
    cut = weight.masked_fill((x == 0).all(1), 0).unflatten(2, (-1, width))
    low, top = cut.amin(-1).clamp_max(0), cut.amax(-1).clamp_min(0)
    reach = 2 * torch.maximum(-low, top) if symmetric else top - low
    zero_points = torch.full_like(low, (high + 1) / 2) if symmetric else torch.round(-low / (reach / high))
    index = torch.arange(5).view(1, 5, 1) * (32 // width) + torch.arange(32) // width
    grid = WeightGrid((reach / high).flatten(), index, Integers(bits, signed=False), zero_points.flatten())
    problem = Problem(weight, grid, (x.double() @ x.double().T / 128).unsqueeze(0))
    found = solve_gptq(problem, act_order="act" in case).weight[0]
    expected = known[f"b{bits}_{'sym' if symmetric else 'asym'}_{case}"]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_whole_rows_are_one_group():
    problem = made()
    found = solve_gptq(problem, rescale=largest)
    torch.testing.assert_close(found.weight, solve_gptq(problem).weight, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.grid.scales, per_row(problem.weight).scales)

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitwright.graph import GraphError
from bitwright.graph.layerwise.problem import Problem, Solution, WeightGrid
from bitwright.qcore import E2M1, NF4, Floor, Integers, UnalignedIntegers
from tests.graph.layerwise.solvers.problems import GRIDS, made

DIFFERENT = (
    "The scales of a layer's weights are shared by other columns in one row than in another; an algorithm that takes "
    "columns in groups wants PerTensor, PerAxis, PerGroup or PerBlock."
)


def per_column(zero_points=None, number_format=None):
    """Two rows; columns 0 and 2 share scales."""
    index = torch.tensor([[[0, 1, 0], [2, 3, 2]]])
    return WeightGrid(torch.tensor([1.0, 2.0, 0.5, 4.0]), index, number_format or Integers(4), zero_points)


WEIGHT = torch.tensor([[[1.4, 5.2, 9.0], [0.9, -6.1, -9.0]]])


@pytest.mark.parametrize(
    ("zero_points", "number_format", "levels", "inside"),
    [
        (None, Integers(4), [[1, 3, 7], [2, -2, -8]], [[True, True, False], [True, True, False]]),
        (
            torch.tensor([0.0, 8.0, 15.0, 1.0]),
            Integers(4, signed=False),
            [[1, 3, 9], [0, -1, -15]],
            [[True, True, True], [False, False, False]],
        ),
        (
            torch.tensor([0.5, 0.5, 15.5, 1.25]),
            UnalignedIntegers(4),
            [[1.5, 2.5, 9.5], [-0.5, -1.25, -15.5]],
            [[True, True, True], [False, True, False]],
        ),
        (None, E2M1, [[1.5, 3, 6], [2, -1.5, -6]], [[True, True, False], [True, True, False]]),
    ],
    ids=["integers", "zero points", "float zero points", "e2m1"],
)
def test_nearest(zero_points, number_format, levels, inside):
    grid = per_column(zero_points, number_format)
    steps = WEIGHT / grid.spread(grid.scales)
    assert grid.levels(WEIGHT).tolist() == [levels]
    assert grid.rounded(steps).tolist() == [levels]
    assert grid.inside(steps).tolist() == [inside]
    scales = torch.tensor([[1.0, 2.0, 1.0], [0.5, 4.0, 0.5]])
    assert grid.nearest(WEIGHT).tolist() == [(torch.tensor(levels) * scales).tolist()]


def test_other_roundings():
    assert per_column().rounded(torch.tensor([[[1.9, -1.1, 9.0]] * 2]), Floor()).tolist() == [[[1.0, -2.0, 7.0]] * 2]
    grid = per_column(torch.tensor([1.0, 1.0, 1.0, 1.0]), Integers(4, signed=False))
    assert grid.rounded(torch.tensor([[[1.9, -0.5, -3.0]] * 2]), Floor()).tolist() == [[[1.0, -1.0, -1.0]] * 2]


def test_columns_and_order():
    grid = per_column()
    assert grid.columns(1, 3).index.tolist() == [[[1, 0], [3, 2]]]
    assert grid.permuted(torch.tensor([[1, 0, 2]])).index.tolist() == [[[1, 0, 0], [3, 2, 2]]]
    both = grid.permuted(torch.tensor([[1, 0, 2], [2, 1, 0]]))
    assert both.index.tolist() == [[[1, 0, 0], [3, 2, 2]], [[0, 1, 0], [2, 3, 2]]]
    rows = WeightGrid(torch.ones(2), torch.tensor([[[0], [1]]]), NF4)
    assert rows.columns(1, 3) is rows.permuted(torch.tensor([[1, 0, 2]])) is rows


def test_sums_over_what_shares_a_scale():
    assert per_column().gathered(torch.arange(6.0).view(1, 2, 3)).tolist() == [2.0, 1.0, 8.0, 4.0]
    rows = WeightGrid(torch.ones(2), torch.tensor([[[0], [1]]]), NF4)
    assert rows.gathered(torch.ones(2, 2, 3, dtype=torch.float64)).tolist() == [6.0, 6.0]


def test_scaled_scales_are_allowed_ones():
    grid = per_column()._replace(allowed=lambda scales: torch.exp2(torch.round(torch.log2(scales))))
    assert grid.scaled(torch.tensor(1.3)).scales.tolist() == [1.0, 2.0, 0.5, 4.0]
    assert grid.scaled(torch.tensor([1.0, 1.9, 4.0, 0.4])).scales.tolist() == [1.0, 4.0, 2.0, 2.0]


def test_columns_that_share_scales():
    assert per_column().sharing(3).tolist() == [0, 1, 0]
    by_appearance = WeightGrid(torch.ones(4), torch.tensor([[[3, 1, 3, 0]]]), NF4)
    assert by_appearance.sharing(4).tolist() == [0, 1, 0, 2]
    assert WeightGrid(torch.ones(2), torch.tensor([[[0], [1]]]), NF4).sharing(3).tolist() == [0, 0, 0]


@pytest.mark.parametrize("index", [[[0, 0, 1], [2, 3, 3]], [[0, 1, 1], [2, 2, 2]], [[0, 0, 0], [1, 1, 2]]])
def test_rows_that_share_scales_in_different_ways(index):
    with pytest.raises(GraphError, match=f"^{re.escape(DIFFERENT)}$"):
        WeightGrid(torch.ones(4), torch.tensor([index]), NF4).sharing(3)


@settings(max_examples=15)
@given(st.integers(0, 1000), st.sampled_from([*GRIDS.values()]), st.sampled_from([torch.float32, torch.float64]))
def test_column_by_column_is_the_same(seed, grid, dtype):
    problem = made(seed, groups=2, grid=grid)
    weight = 1.2 * problem.weight.to(dtype)
    columns = problem.grid.by_column(dtype)
    found = torch.stack([columns.nearest(weight[:, :, each], each) for each in range(weight.shape[2])], 2)
    torch.testing.assert_close(found, problem.grid.nearest(weight), rtol=0, atol=0)


# Problems


def sampled(mismatch):
    """A problem and the inputs it is about, (G, rows, n)."""
    generator = torch.Generator().manual_seed(0)
    x, noise = torch.randn(2, 2, 50, 4, generator=generator, dtype=torch.float64)
    quantized = x + mismatch * noise
    weight = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64)
    cross = x.mT @ quantized / 50 if mismatch else None
    signal = (x @ weight.mT).square().mean(1)
    return Problem(weight, GRIDS["per row"](weight), quantized.mT @ quantized / 50, cross, signal, 50), x, quantized


@pytest.mark.parametrize("mismatch", [0.0, 0.3])
def test_loss_is_the_error_of_the_output(mismatch):
    problem, x, quantized = sampled(mismatch)
    found = problem.nearest()
    expected = (x @ problem.weight.mT - quantized @ found.mT).square().mean(1)
    torch.testing.assert_close(problem.loss(found), expected)
    torch.testing.assert_close(problem.diagonal, quantized.square().mean(1))
    torch.testing.assert_close(problem.target, (x @ problem.weight.mT).mT @ quantized / 50)


def test_loss_is_in_float64():
    problem, _, _ = sampled(0.0)
    narrow = Problem(problem.weight.float(), problem.grid, problem.gram.float())
    assert narrow.loss(problem.nearest().float()).dtype == torch.float64


def test_signal_of_the_quantized_inputs_where_none_is_given():
    problem, _, quantized = sampled(0.3)
    without = Problem(problem.weight, problem.grid, problem.gram, problem.cross)
    expected = (quantized @ problem.weight.mT).square().mean(1) - problem.signal
    torch.testing.assert_close(without.loss(problem.weight) - problem.loss(problem.weight), expected)


def test_another_grid():
    problem, _, _ = sampled(0.0)
    finer = problem.grid._replace(scales=problem.grid.scales / 2**20, number_format=Integers(24, narrow_range=True))
    assert (
        problem.with_grid(finer).loss(problem.with_grid(finer).nearest()).max()
        < 1e-9
        < problem.loss(problem.nearest()).min()
    )


def test_solution_by_default():
    found = Solution(torch.zeros(1, 2, 3))
    assert (found.grid, found.on_grid, found.figures, found.note) == (None, True, {}, "")

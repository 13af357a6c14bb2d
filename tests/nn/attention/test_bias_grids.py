"""Scales of products where several inputs and matrices meet one bias."""

import torch

from bitwright.nn.attention.bias_grids import floor_of, joined, products
from bitwright.qcore import BiasQuant, Grid, IntRange, PerAxis, PerTensor

HALF, QUARTER = Grid(torch.tensor(0.5), source=1), Grid(torch.tensor(0.25), source=2)
ROWS = Grid(torch.tensor([1.0, 2.0, 3.0, 4.0]).reshape(4, 1), granularity=PerAxis(0))


def test_inputs_are_joined_row_by_row():
    grid = joined([HALF, QUARTER], 2)
    assert grid.scale.tolist() == [0.5, 0.5, 0.25, 0.25]
    assert (grid.granularity, grid.source) == (PerAxis(0), None)
    assert joined([HALF, None], 2) is None
    several = Grid(torch.ones(3), granularity=PerAxis(0))
    assert joined([HALF, several], 2) is several


def test_products_of_one_input_keep_its_grid():
    assert products(HALF, [ROWS], 2) == (HALF, ROWS)
    assert products(None, [ROWS], 2) == (None, None)
    assert products(HALF, [None], 2) == (HALF, None)


def test_products_of_several_inputs_have_a_scale_for_each_row():
    inputs = joined([HALF, QUARTER], 2)
    for weights, expected in (
        ([Grid(torch.tensor(2.0))], [1.0, 1.0, 0.5, 0.5]),
        ([ROWS], [0.5, 1.0, 0.75, 1.0]),
        ([Grid(torch.tensor(2.0)), Grid(torch.tensor(4.0))], [1.0, 1.0, 1.0, 1.0]),
    ):
        ones, scales = products(inputs, weights, 2)
        assert ones.scale == 1.0
        assert ones.granularity == PerTensor()
        assert scales.scale.tolist() == expected
        assert scales.granularity == PerAxis(0)


def test_a_floor_is_for_biases_on_the_scale_of_the_products():
    follower, bias = BiasQuant(IntRange(32, signed=True)), torch.ones(2)
    assert floor_of(follower, follower, bias, HALF) == ()  # not a weight's quantizer
    assert floor_of(follower, None, bias, HALF) == ()
    assert floor_of(follower, follower, None, HALF) == ()
    assert floor_of(follower, follower, bias, None) == ()

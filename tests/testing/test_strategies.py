"""The strategies draw what they promise."""

import torch
from hypothesis import find, given
from hypothesis import strategies as st

from bitwright.qcore import E4M3, Codebook, Grid, Integers, Minifloat, OddIntegers
from bitwright.testing import quantizer_strategies as strategies


@given(strategies.grids())
def test_grids_are_sound(grid):
    low, high = grid.bounds
    assert grid.scale > 0
    assert grid.zero_point is None or low <= grid.zero_point <= high


@given(st.data())
def test_tensors_have_the_shape_and_type_asked_for(data):
    dtype, shape = data.draw(strategies.dtypes()), data.draw(strategies.shapes(empty=True))
    x = data.draw(strategies.tensors(shape=shape, dtype=dtype))
    assert (x.dtype, tuple(x.shape)) == (dtype, shape)


def test_ties_their_neighbours_and_what_is_beyond_are_found():
    grid, shape = Grid(torch.tensor(0.5), number_format=Integers(4)), (1,)
    tie = torch.tensor([1.25])
    for wanted in (tie, torch.nextafter(tie, tie * 2), torch.nextafter(tie, tie * 0), torch.tensor([4.5])):
        assert torch.equal(
            find(strategies.tensors(grid, shape), lambda x, wanted=wanted: torch.equal(x, wanted)), wanted
        )


def test_smallest_tensor_is_zero():
    assert find(strategies.tensors(shape=(2,)), lambda x: True).tolist() == [0.0, 0.0]


@given(strategies.scales())
def test_scales_are_exact_in_float32(scale):
    assert scale > 0
    assert torch.tensor(scale).item() == scale


def test_number_formats_of_every_kind():
    for kind in (Integers, Codebook, Minifloat, OddIntegers):
        assert type(find(strategies.number_formats(), lambda levels, kind=kind: type(levels) is kind)) is kind


@given(st.data())
def test_number_formats_have_the_bits_asked_for(data):
    levels = data.draw(strategies.number_formats(4))
    assert levels.bits <= 4
    assert len(set(levels.levels)) >= 2


def test_ties_of_other_levels_are_found():
    grid = Grid(torch.tensor(0.5), number_format=E4M3)
    tie = 1.5 * 2.0**-9 * 0.5  # between the two smallest levels
    assert find(strategies.tensors(grid, (1,)), lambda x: bool(x == tie)).tolist() == [tie]


def test_zero_point_moves_places():
    grid = Grid(torch.tensor(0.5), torch.tensor(3.0), number_format=Integers(4, signed=False))
    place = strategies.Placement(torch.tensor([5.5]), torch.tensor([0]))
    assert strategies.place(place, grid).tolist() == [1.25]

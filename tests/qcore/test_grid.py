import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitwright.qcore import (
    E2M1,
    E4M3,
    Grid,
    Integers,
    PerAxis,
    PerBlock,
    PerGroup,
    PerTensor,
    PerToken,
    QuantizerError,
    int_bounds,
)
from bitwright.qcore.formats.integers import storage_dtype
from bitwright.qcore.grid import along_axis, bits_to_spare, products_source, shared

HALF = torch.tensor(0.5)


def test_defaults():
    grid = Grid(HALF)
    assert (grid.scale, grid.zero_point, grid.bit_width, grid.signed) == (HALF, None, 8, True)
    assert (grid.narrow_range, grid.axis, grid.source, grid.spare_bits) == (False, None, None, 64)
    assert (grid.number_format, grid.granularity) == (Integers(8), PerTensor())


def test_what_it_says_is_its_formats_and_its_granularitys():
    grid = Grid(HALF, number_format=Integers(3, signed=False, narrow_range=True), granularity=PerAxis(1))
    assert (grid.bit_width, grid.signed, grid.narrow_range, grid.bounds, grid.axis) == (3, False, True, (0, 6), 1)
    for granularity in (PerTensor(), PerGroup(2), PerToken(), PerBlock((2, 2))):
        assert grid.replace(granularity=granularity).axis is None


def test_bounds():
    assert Grid(HALF, number_format=Integers(4)).bounds == (-8, 7)
    assert Grid(HALF, number_format=Integers(4, narrow_range=True)).bounds == (-7, 7)
    assert Grid(HALF, number_format=Integers(torch.tensor(4.0), signed=False)).bounds == (0, 15)


def test_to_int():
    codes = Grid(HALF, number_format=Integers(4)).to_int(torch.tensor([-4.0, 0.0, 1.5, 3.5]))
    assert codes.tolist() == [-8, 0, 3, 7]
    assert codes.dtype == torch.int8


def test_to_int_with_zero_point():
    grid = Grid(HALF, torch.tensor(2.0), number_format=Integers(4, signed=False))
    codes = grid.to_int(torch.tensor([-1.0, 0.0, 6.5]))
    assert codes.tolist() == [0, 2, 15]
    assert codes.dtype == torch.int8
    assert grid.from_int(codes).tolist() == [-1.0, 0.0, 6.5]


def test_to_int_per_channel():
    grid = Grid(
        torch.tensor([[0.5], [0.25]]),
        torch.tensor([[0.0], [8.0]]),
        number_format=Integers(8, signed=False),
        granularity=PerAxis(0),
    )
    values = torch.tensor([[1.0, 2.0], [1.0, -2.0]])
    assert grid.to_int(values).tolist() == [[2, 4], [12, 0]]
    assert grid.from_int(grid.to_int(values)).tolist() == values.tolist()


@pytest.mark.parametrize(
    ("granularity", "scale", "codes"),
    [
        (PerGroup(2), [[0.5, 0.25], [1.0, 2.0]], [[2, 4, 4], [3, 4, 1]]),
        (PerGroup(2, 0), [[0.5, 0.25, 1.0]], [[2, 8, 1], [6, 16, 2]]),
        (PerGroup(-1), [[0.5], [0.25]], [[2, 4, 2], [12, 16, 8]]),
        (PerToken(), [[0.5], [0.25]], [[2, 4, 2], [12, 16, 8]]),
        (PerBlock((2, 2)), [[0.5, 0.25]], [[2, 4, 4], [6, 8, 8]]),
        (PerAxis(1), [[0.5, 0.25, 1.0]], [[2, 8, 1], [6, 16, 2]]),
        (PerTensor(), 0.5, [[2, 4, 2], [6, 8, 4]]),
    ],
)
def test_to_int_of_every_granularity(granularity, scale, codes):
    values = torch.tensor([[1.0, 2.0, 1.0], [3.0, 4.0, 2.0]])
    scale = torch.tensor(scale)
    grid = Grid(scale, number_format=Integers(8, signed=False), granularity=granularity)
    assert grid.to_int(values).tolist() == codes
    assert grid.from_int(grid.to_int(values)).tolist() == values.tolist()
    shifted = grid.replace(zero_point=torch.full_like(scale, 3))
    assert shifted.to_int(values).tolist() == [[code + 3 for code in row] for row in codes]
    assert shifted.from_int(shifted.to_int(values)).tolist() == values.tolist()
    assert grid.along(scale, values.shape).expand(values.shape).tolist() == (values / torch.tensor(codes)).tolist()


def test_to_int_keeps_range():
    assert Grid(HALF, number_format=Integers(2)).to_int(torch.tensor([-9.0, 9.0])).tolist() == [-2, 1]


@given(
    st.integers(2, 24),
    st.booleans(),
    st.floats(2**-20, 2**20, width=32),
    st.lists(st.floats(0, 1), min_size=1, max_size=20),
)
def test_integers_of_values_are_exact(bit_width, signed, scale, places):
    """In float32, whose 24 bits hold them; from there on two integers may have one value."""
    low, high = int_bounds(bit_width, signed, narrow_range=False)
    if bit_width == 24 and not signed:
        high = 2**23
    codes = torch.tensor([low + round(place * (high - low)) for place in places], dtype=torch.float64)
    grid = Grid(torch.tensor(scale), number_format=Integers(bit_width, signed=signed))
    values = grid.from_int(codes.long())
    assert values.dtype == torch.float32
    assert grid.to_int(values).tolist() == codes.tolist()


def test_every_integer_of_24_bits_is_exact():
    """In float32 the quotient of value and scale may be off by one."""
    grid, codes = Grid(torch.tensor(0.1), number_format=Integers(24)), torch.arange(-(2**23), 2**23, 97)
    values = grid.from_int(codes)
    assert not torch.equal(torch.round(values / grid.scale), codes.float())
    assert torch.equal(grid.to_int(values).long(), codes)


@pytest.mark.parametrize("bit_width", [24, 31, 32])
@pytest.mark.parametrize("signed", [True, False])
def test_the_ends_of_wide_ranges_are_exact(bit_width, signed):
    grid = Grid(torch.tensor(0.1, dtype=torch.float64), number_format=Integers(bit_width, signed=signed))
    low, high = grid.bounds
    codes = torch.tensor([low, low + 1, high - 1, high])
    assert grid.to_int(grid.from_int(codes)).tolist() == codes.tolist()
    assert grid.to_int(torch.tensor([-1e12, 1e12])).tolist() == [low, high]
    assert grid.to_int(torch.tensor([-1e12, 1e12])).dtype == storage_dtype(low, high)


@pytest.mark.parametrize("source", [7, "a name", ("products", 1, 2), ("sum", ("products", 1, 2), 2)])
def test_one_stored_scale_is_one_grid(source):
    grid = Grid(HALF, source=source)
    assert shared(grid, Grid(torch.tensor(0.5), source=source))
    assert not shared(grid, None)
    assert not shared(None, None)
    assert not shared(grid, Grid(HALF, source="another"))
    for number_format in (Integers(4), Integers(8, signed=False), Integers(8, narrow_range=True)):
        assert not shared(grid, grid.replace(number_format=number_format))
    for granularity in (PerAxis(0), PerGroup(32), PerToken(), PerBlock((2, 2))):
        assert not shared(grid, grid.replace(granularity=granularity))
    assert shared(grid, grid.replace(scale=torch.tensor(2.0), zero_point=HALF, spare_bits=3))  # numbers don't tell


@pytest.mark.parametrize("source", [None, ("products", 1, None), ("products", ("sum", None, 2), 1)])
def test_the_scale_of_one_tensor_is_shared_with_nothing(source):
    assert not shared(Grid(HALF, source=source), Grid(HALF, source=source))


@pytest.mark.parametrize(
    ("largest", "dtype", "bits"),
    [
        (2**23 - 1, torch.float32, 1),
        (2**23, torch.float32, 0),
        (2**31, torch.float64, 21),
        (127, torch.bfloat16, 1),
        (1024, torch.float16, 0),
    ],
)
def test_bits_to_spare(largest, dtype, bits):
    assert bits_to_spare(largest, dtype) == bits


def test_products_source():
    assert products_source(1, ("products", 2, 3)) == ("products", 1, ("products", 2, 3))
    assert products_source(1, None) is products_source(None, 1) is products_source(None, None) is None
    assert products_source(1, 0) == ("products", 1, 0)  # the first quantizer of a process may be number 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_to_int_of_other_dtypes(dtype):
    assert Grid(HALF, number_format=Integers(4)).to_int(torch.tensor([-4.0, 3.5], dtype=dtype)).tolist() == [-8, 7]


def test_replace():
    grid = Grid(HALF, granularity=PerAxis(1)).replace(granularity=PerAxis(0), number_format=Integers(3))
    assert (grid.axis, grid.bit_width, grid.scale) == (0, 3, HALF)


@pytest.mark.parametrize("name", ["axis", "bit_width", "signed", "narrow_range", "bounds"])
def test_what_follows_is_no_field(name):
    with pytest.raises((TypeError, ValueError), match=name):  # a named tuple of Python 3.13 raises the former
        Grid(HALF).replace(**{name: 4})


def test_immutable():
    with pytest.raises(AttributeError):
        Grid(HALF).bit_width = 4


def test_along_axis():
    three = torch.arange(3.0)
    assert along_axis(three, 0, 1).shape == (3,)
    assert along_axis(three, 1, 4).shape == (1, 3, 1, 1)
    assert along_axis(three, -1, 3).shape == (1, 1, 3)
    assert along_axis(HALF, 1, 4).shape == ()
    assert along_axis(three, None, 4) is three


def two_level(block_scales, tensor_scale):
    """A grid of E2M1 whose scales are levels of E4M3 times one scale."""
    scale = torch.tensor(block_scales) * torch.tensor(tensor_scale)
    return Grid(scale, None, E2M1, PerGroup(16), scale_format=E4M3)


def test_scales_lie_on_a_grid_of_their_own():
    grid = two_level([[448.0, 0.015625], [13.0, 256.0]], 0.3)
    assert Grid(HALF).scales is None
    scales = grid.scales
    assert (scales.scale, scales.number_format, scales.granularity) == (torch.tensor(0.3), E4M3, PerTensor())
    codes = scales.to_int(grid.scale)
    assert codes.tolist() == [[126, 8], [85, 120]]
    assert torch.equal(scales.from_int(codes), grid.scale)


@given(st.floats(2.0**-60, 2.0**60, width=32), st.lists(st.sampled_from([x for x in E4M3.levels if 0 < x < 449])))
def test_scales_come_back_bit_by_bit(tensor_scale, levels):
    grid = two_level([*levels, 448.0], tensor_scale)
    scales = grid.scales
    assert torch.equal(scales.from_int(scales.to_int(grid.scale)), grid.scale)
    assert scales.number_format.decode(scales.to_int(grid.scale)).tolist() == [*levels, 448.0]


def test_other_scales_are_any_floats():
    grid = two_level([448.0, 13.0], 0.3)
    assert grid.replace(scale=grid.scale / 3).scales is None
    assert grid.replace(scale=grid.scale.flip(0), scale_format=E4M3).scales.scale == torch.tensor(0.3)
    assert two_level([], 0.3).scales.scale == 1


def test_scales_off_their_grid():
    message = (
        "These scales are no multiples of levels of e4m3fn, in which the grid says they are held. Leave scale_format "
        "out: grid.replace(scale_format=None)."
    )
    with pytest.raises(QuantizerError, match=re.escape(message)):
        _ = Grid(torch.tensor([0.3, 0.7001]), scale_format=E4M3).scales

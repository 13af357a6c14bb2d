import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitwright.qcore import (
    ConstantScaling,
    IntQuant,
    IntRange,
    LearnedBitWidth,
    PerAxis,
    PerBlock,
    PerGroup,
    QuantizerError,
    SettingError,
    StatisticScaling,
    int_bounds,
)
from bitwright.qcore.formats.int_range import check_bit_width, check_flag, representable_bounds

WIDTHS = st.integers(2, 32)


@pytest.mark.parametrize(
    ("bit_width", "signed", "narrow_range", "bounds"),
    [
        (2, True, False, (-2, 1)),
        (2, True, True, (-1, 1)),
        (2, False, False, (0, 3)),
        (2, False, True, (0, 2)),
        (4, True, True, (-7, 7)),
        (8, True, False, (-128, 127)),
        (8, True, True, (-127, 127)),
        (8, False, False, (0, 255)),
        (8, False, True, (0, 254)),
        (16, False, False, (0, 65535)),
        (32, True, False, (-2147483648, 2147483647)),
        (32, False, False, (0, 4294967295)),
    ],
)
def test_int_bounds(bit_width, signed, narrow_range, bounds):
    assert int_bounds(bit_width, signed, narrow_range) == bounds
    found = IntRange(bit_width, signed, narrow_range)
    assert (found.min_int, found.max_int) == found.bounds() == bounds


@given(WIDTHS, st.booleans(), st.booleans())
def test_number_of_integers(bit_width, signed, narrow_range):
    low, high = int_bounds(bit_width, signed, narrow_range)
    assert high - low + 1 == 2**bit_width - narrow_range
    assert low <= 0 < high


@pytest.mark.parametrize(
    ("bit_width", "signed", "narrow_range", "threshold", "power_of_two_threshold"),
    [
        (8, True, True, 127, 128),
        (8, True, False, 128, 128),
        (8, False, False, 255, 256),
        (8, False, True, 254, 256),
        (2, True, True, 1, 2),
        (4, False, False, 15, 16),
        (32, True, False, 2147483648, 2147483648),
    ],
)
def test_threshold(bit_width, signed, narrow_range, threshold, power_of_two_threshold):
    found = IntRange(bit_width, signed, narrow_range)
    assert found.threshold == threshold
    assert found.power_of_two_threshold == power_of_two_threshold


def test_int_range_is_printed_as_its_type():
    assert str(IntRange(8, signed=True)) == "int8"
    assert str(IntRange(4, signed=False, narrow_range=True)) == "uint4 narrow"
    assert str(IntRange(LearnedBitWidth(), signed=True, narrow_range=True)) == "learned int narrow"


def test_narrow_range_is_off_by_default():
    assert IntRange(3, True).bounds() == (-4, 3)


def test_learned_bounds_are_tensors():
    width = LearnedBitWidth(initial_bit_width=4)
    found = IntRange(width, signed=True, narrow_range=True)
    assert found.learned
    assert found.width is width
    assert found.bit_width.item() == 4
    assert [bound.item() for bound in found.bounds()] == [-7, 7]
    assert (found.threshold.item(), found.power_of_two_threshold.item()) == (7, 8)
    (slope,) = torch.autograd.grad(found.max_int, width.offset)
    assert slope.item() == pytest.approx(8 * math.log(2))  # of 2**(bits - 1)
    assert not IntRange(4, True).learned


def test_learned_unsigned_bounds():
    found = IntRange(LearnedBitWidth(initial_bit_width=3), signed=False, narrow_range=True)
    assert found.bounds()[0] == 0
    assert (found.max_int.item(), found.threshold.item(), found.power_of_two_threshold.item()) == (6, 6, 8)


@pytest.mark.parametrize(
    ("bounds", "bits", "pulled"),
    [
        ((-128, 127), 24, (-128, 127)),
        ((-(2**23), 2**23 - 1), 24, (-8388608, 8388607)),
        ((-(2**31), 2**31 - 1), 24, (-2147483648, 2147483520)),
        ((0, 2**32 - 1), 24, (0, 4294967040)),
        ((0, 2**32 - 1), 53, (0, 4294967295)),
        ((-(2**24) + 1, 2**25 - 1), 24, (-16777215, 33554430)),
    ],
)
def test_representable_bounds(bounds, bits, pulled):
    assert representable_bounds(*bounds, bits) == pulled


@given(WIDTHS, st.booleans(), st.booleans())
def test_representable_bounds_are_exact_floats_within(bit_width, signed, narrow_range):
    low, high = int_bounds(bit_width, signed, narrow_range)
    inner = representable_bounds(low, high, 24)
    assert low <= inner[0]
    assert inner[1] <= high
    assert [int(np.float32(bound)) for bound in inner] == list(inner)
    if inner[1] < high:
        assert int(np.nextafter(np.float32(inner[1]), np.float32(np.inf))) > high


class Widths(torch.nn.Module):
    """One bit width for each channel."""

    def __init__(self, shape):
        super().__init__()
        self.shape = shape
        self.bits = torch.nn.Parameter(torch.tensor([8.0, 4.0, 2.0]))

    def forward(self):
        return self.bits.reshape(self.shape)


@pytest.mark.parametrize("shape", [(3,), (3, 1), (1, 3, 1)])
def test_bit_widths_of_channels(shape):
    found = IntRange(Widths(shape), signed=True, narrow_range=True)
    assert found.bit_width.tolist() == [8, 4, 2]
    assert found.threshold.tolist() == [127, 7, 1]
    assert found.power_of_two_threshold.tolist() == [128, 8, 2]
    assert found.widest.item() == 8
    low, high = found.bounds(lambda width: width.reshape(1, 3, 1))
    assert low.tolist() == [[[-127], [-7], [-1]]]
    assert high.tolist() == [[[127], [7], [1]]]
    assert found.bounds(lambda width: width.reshape(-1, 1))[1].shape == (3, 1)
    assert found.bounds()[1].shape == (3,)
    (slope,) = torch.autograd.grad(found.max_int[2], found.width.bits)
    assert slope.tolist() == pytest.approx([0, 0, 2 * math.log(2)])


def test_bit_widths_of_channels_for_one_scale():
    int_range = IntRange(Widths((3,)), signed=True, narrow_range=True)
    quant = IntQuant(int_range, ConstantScaling(int_range, scale=0.5))
    with pytest.raises(QuantizerError) as error:
        quant(torch.ones(3, 2))
    assert str(error.value) == (
        "Widths gives 3 bit widths, and the quantizer has one scale. Give it one for each channel, too: "
        "weight_quant=Int8WeightPerChannel, or axis=0."
    )


def test_bit_widths_of_channels_for_scales_of_something_else():
    int_range = IntRange(Widths((3,)), signed=True, narrow_range=True)
    for granularity, count in ((PerGroup(2), 6), (PerAxis(1), 4), (PerBlock((2, 4)), 2)):
        quant = IntQuant(int_range, StatisticScaling(int_range, granularity=granularity), granularity=granularity)
        with pytest.raises(QuantizerError) as error:
            quant(torch.ones(3, 4))
        assert str(error.value) == (
            f"Widths gives 3 bit widths, and the quantizer has {count} scales ({granularity}). Give one bit width, or "
            "one for each scale."
        )


def test_bit_widths_of_groups():
    int_range = IntRange(Widths((3,)), signed=True, narrow_range=True)
    granularity = PerGroup(2)
    quant = IntQuant(int_range, StatisticScaling(int_range, granularity=granularity), granularity=granularity)
    x = torch.tensor([[127.0, 100.4, 7.0, 4.6, 1.0]])
    values, grid = quant.quantize(x)
    assert values.tolist() == [[127, 100, 7, 5, 1]]
    assert (grid.scale.tolist(), grid.bounds) == ([[1, 1, 1]], (-127, 127))
    quant(torch.tensor([[12.7, 10.44, 7.0, 4.6, 0.3]])).sum().backward()
    assert int_range.width.bits.grad is not None


def unasked(width):
    raise AssertionError("there is nothing to shape")


def test_one_bit_width_has_any_shape():
    class One(torch.nn.Module):
        def forward(self):
            return torch.tensor([[4.0]])

    found = IntRange(One(), signed=False)
    assert found.bit_width.shape == found.widest.shape == ()
    assert found.bounds(unasked) == found.bounds() == (0, 15)
    assert IntRange(4, signed=False).bounds(unasked) == (0, 15)
    assert IntRange(4, signed=False).widest == 4


# Mistakes


def test_module_that_computes_no_bit_width():
    with pytest.raises(SettingError) as error:
        IntRange(torch.nn.ReLU(), signed=True)
    assert str(error.value) == (
        "bit_width=ReLU() is not possible: expected a whole number from 2 to 32, or a module whose forward takes no "
        "arguments and returns it. Write bit_width=LearnedBitWidth for one that is learned."
    )


@pytest.mark.parametrize(
    ("bit_width", "message"),
    [
        (0, "bit_width=0 is not possible: expected a whole number from 2 to 32. Write bit_width=2."),
        (-3, "bit_width=-3 is not possible: expected a whole number from 2 to 32. Write bit_width=2."),
        (33, "bit_width=33 is not possible: expected a whole number from 2 to 32. Write bit_width=32."),
        (4.5, "bit_width=4.5 is not possible: expected a whole number from 2 to 32. Write bit_width=4."),
        (4.0, "bit_width=4.0 is not possible: expected a whole number from 2 to 32. Write bit_width=4."),
        (99.0, "bit_width=99.0 is not possible: expected a whole number from 2 to 32."),
        ("four", "bit_width='four' is not possible: expected a whole number from 2 to 32."),
        (None, "bit_width=None is not possible: expected a whole number from 2 to 32."),
        (True, "bit_width=True is not possible: expected a whole number from 2 to 32."),
        (
            1,
            "bit_width=1 is not possible: expected a whole number from 2 to 32. A narrow signed range of 1 bit has no "
            "levels but 0: one bit is binary quantization (signs times a scale), which is not an integer grid. Write "
            "bit_width=2 for the levels -1, 0, 1.",
        ),
    ],
)
def test_impossible_bit_width(bit_width, message):
    with pytest.raises(SettingError) as error:
        IntRange(bit_width, signed=True, narrow_range=True)
    assert str(error.value) == message


@pytest.mark.parametrize("flag", [0, 1, None, "yes", np.int64(1), np.array([True]), torch.tensor(True)])
@pytest.mark.parametrize("name", ["signed", "narrow_range"])
def test_impossible_flag(name, flag):
    with pytest.raises(SettingError) as error:
        IntRange(8, **{"signed": True, "narrow_range": False, name: flag})
    assert str(error.value) == f"{name}={flag!r} is not possible: expected True or False."


def test_checks_return_what_they_take():
    assert check_bit_width("bits", np.int64(4)) == 4
    assert type(check_bit_width("bits", np.int64(4))) is int
    assert check_bit_width("bits", 2, minimum=2) == 2
    assert check_flag("signed", False) is False
    assert check_flag("signed", np.True_) is True
    assert check_flag("signed", np.bool_(False)) is False
    assert IntRange(np.int64(4), np.True_, np.False_).bounds() == (-8, 7)


@pytest.mark.parametrize("bit_width", [np.True_, np.float64(4), "4", [4], np.array([4, 8])])
def test_bit_width_of_the_wrong_kind(bit_width):
    with pytest.raises(SettingError, match="expected a whole number from 2 to 32"):
        check_bit_width("bits", bit_width)

import math
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitwright.qcore import (
    RESTRICTIONS,
    FloatScale,
    IntRange,
    LogScale,
    MXScale,
    PowerOfTwoScale,
    SettingError,
    TwoLevel,
)
from bitwright.qcore.scaling.restriction import next_power_of_two

MAGNITUDES = st.floats(2**-100, 2**100, width=32)
EIGHT = IntRange(8, signed=True, narrow_range=True)


def test_float_scale_changes_nothing():
    x = torch.tensor([0.3, 5.0])
    assert FloatScale().restrict(x) is x
    assert FloatScale().store(x) is x
    assert FloatScale().load(torch.tensor([0.3, -5.0])).tolist() == torch.tensor([0.3, 5.0]).tolist()
    assert FloatScale().int_threshold(EIGHT) == 127


def test_log_scale_stores_logarithms():
    assert LogScale().store(torch.tensor([0.25, 8.0])).tolist() == [-2, 3]
    assert LogScale().load(torch.tensor([-2.0, 3.0])).tolist() == [0.25, 8]
    assert LogScale().restrict(torch.tensor(0.3)).item() == torch.tensor(0.3).item()
    assert LogScale().int_threshold(EIGHT) == 127


def test_log_scale_steps_are_relative():
    stored = torch.tensor(3.0, requires_grad=True)
    LogScale().load(stored).backward()
    assert stored.grad.item() == pytest.approx(8 * math.log(2))


@given(MAGNITUDES)
def test_load_undoes_store(magnitude):
    x = torch.tensor(magnitude)
    for restriction in (FloatScale(), PowerOfTwoScale()):
        assert restriction.load(restriction.store(x)) == x
    torch.testing.assert_close(LogScale().load(LogScale().store(x)), x, rtol=2e-5, atol=0)


@given(st.integers(-120, 120))
def test_log_scale_is_exact_for_powers_of_two(exponent):
    x = torch.tensor(2.0**exponent)
    assert LogScale().load(LogScale().store(x)) == x


@pytest.mark.parametrize(
    ("rounding", "expected"),
    [
        ("ceil", [0.5, 0.5, 4, 8, 16, 8, 8]),
        ("floor", [0.25, 0.5, 2, 8, 8, 4, 4]),
        ("round", [0.25, 0.5, 4, 8, 8, 4, 8]),
    ],
)
def test_power_of_two(rounding, expected):
    x = torch.tensor([0.3, 0.5, 3.0, 8.0, 8.1, 5.6, 5.7])  # the logarithm's middle of 4 and 8 is 5.657
    assert PowerOfTwoScale(rounding).restrict(x).tolist() == expected
    assert next_power_of_two(x, rounding).tolist() == expected


def test_power_of_two_takes_the_next_one_above_by_default():
    assert PowerOfTwoScale().restrict(torch.tensor(0.3)).item() == 0.5
    assert next_power_of_two(torch.tensor(0.3)).item() == 0.5


@given(MAGNITUDES)
def test_power_of_two_is_the_nearest_that_qualifies(magnitude):
    x = torch.tensor(magnitude)
    up, down, near = (next_power_of_two(x, rounding).item() for rounding in ("ceil", "floor", "round"))
    for power in (up, down, near):
        assert math.frexp(power)[0] == 0.5
    assert up / 2 < magnitude <= up
    assert down <= magnitude < down * 2
    assert near in (up, down)
    assert max(near, magnitude) / min(near, magnitude) <= math.sqrt(2) * (1 + 1e-6)


@given(st.floats(2.0**-149, 2.0**127, width=32, exclude_min=False), st.sampled_from(["ceil", "floor", "round"]))
def test_power_of_two_is_the_same_under_a_transform(magnitude, rounding):
    x = torch.tensor([magnitude, 0.70710677, 1.4142134, 1.4142135, 1.4142137])
    mapped = torch.func.vmap(lambda x: next_power_of_two(x, rounding))(x)  # by other operations
    assert next_power_of_two(x, rounding).tolist() == mapped.tolist()


@given(st.integers(-126, 127), st.sampled_from(["ceil", "floor", "round"]))
def test_powers_of_two_stay(exponent, rounding):
    x = torch.tensor(2.0**exponent)
    assert next_power_of_two(x, rounding) == x
    assert next_power_of_two(x.double(), rounding).item() == x.item()


@pytest.mark.parametrize(("rounding", "slope"), [("ceil", 4 / 3), ("floor", 2 / 3)])
def test_power_of_two_gradient_is_that_of_the_ratio(rounding, slope):
    x = torch.tensor(3.0, requires_grad=True)
    PowerOfTwoScale(rounding).restrict(x).backward()
    assert x.grad.item() == pytest.approx(slope)


@pytest.mark.parametrize(
    ("int_range", "threshold"),
    [(EIGHT, 128), (IntRange(8, signed=True), 128), (IntRange(8, signed=False), 256), (IntRange(2, True, True), 2)],
)
def test_power_of_two_threshold_is_one_too(int_range, threshold):
    assert PowerOfTwoScale().int_threshold(int_range) == threshold


@pytest.mark.parametrize(
    ("restriction", "int_range", "scale"),
    [
        (FloatScale(), EIGHT, 12.7 / 127),
        (FloatScale(), IntRange(8, signed=True), 12.7 / 128),
        (FloatScale(), IntRange(4, signed=False), 12.7 / 15),
        (LogScale(), EIGHT, 12.7 / 127),
        (PowerOfTwoScale(), EIGHT, 16 / 128),
        (PowerOfTwoScale(), IntRange(4, signed=False), 16 / 16),
        (PowerOfTwoScale("floor"), EIGHT, 8 / 128),
        (PowerOfTwoScale("round"), EIGHT, 16 / 128),
    ],
)
def test_scale(restriction, int_range, scale):
    """The magnitude is first restricted, then divided by the integer that it is mapped to."""
    magnitudes = torch.tensor([12.7, 25.4])
    found = restriction.scale(magnitudes, int_range)
    assert found.tolist() == pytest.approx([scale, 2 * scale], rel=1e-6)
    assert restriction.scale(magnitudes.double(), int_range).dtype == torch.float64


def test_gradient_of_the_scale():
    for restriction, slope in ((FloatScale(), 1 / 127), (LogScale(), 1 / 127), (PowerOfTwoScale(), 4 / 3 / 128)):
        x = torch.tensor(3.0, requires_grad=True)
        restriction.scale(x, EIGHT).backward()
        assert x.grad.item() == pytest.approx(slope)


def test_choices():
    assert RESTRICTIONS == {
        "float": FloatScale,
        "log": LogScale,
        "power_of_two": PowerOfTwoScale,
        "mx": MXScale,
        "two_level": TwoLevel,
    }


def test_printed_and_pickled():
    assert repr(FloatScale()) == "FloatScale()"
    assert repr(LogScale()) == "LogScale()"
    assert repr(PowerOfTwoScale()) == "PowerOfTwoScale('ceil')"
    assert repr(pickle.loads(pickle.dumps(PowerOfTwoScale("floor")))) == "PowerOfTwoScale('floor')"


def test_impossible_rounding():
    with pytest.raises(SettingError) as error:
        PowerOfTwoScale("up")
    assert str(error.value) == "power_of_two_rounding='up' is not possible: expected 'ceil', 'floor' or 'round'."

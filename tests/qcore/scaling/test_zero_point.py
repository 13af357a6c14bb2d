import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitwright.qcore import (
    ZERO_POINTS,
    AbsMax,
    CalibratedScaling,
    ConstantScaling,
    HalfQuadraticZeroPoint,
    IntRange,
    LearnedScaling,
    LearnedZeroPoint,
    MinMax,
    PercentileInterval,
    RangeZeroPoint,
    SettingError,
    StatisticScaling,
    fake_quant,
)

UNSIGNED = IntRange(8, signed=False)


@pytest.mark.parametrize(
    ("int_range", "numbers", "zero_point"),
    [
        (UNSIGNED, [-1.0, 1.55], 100),
        (UNSIGNED, [0.0, 2.55], 0),
        (UNSIGNED, [1.0, 2.55], 0),
        (UNSIGNED, [-2.55, 0.0], 255),
        (UNSIGNED, [-2.55, -1.0], 255),
        (UNSIGNED, [0.0, 0.0], 0),
        (IntRange(4, signed=False), [-0.5, 1.0], 5),
    ],
)
def test_smallest_integer_stands_for_the_lower_end(int_range, numbers, zero_point):
    x = torch.tensor(numbers)
    scaling = StatisticScaling(int_range, MinMax())
    found = RangeZeroPoint(scaling, int_range)(x, scaling(x))
    assert found.item() == zero_point
    assert found.shape == ()


def test_zero_point_for_each_index():
    x = torch.tensor([[-1.0, 1.55], [0.0, 2.55], [-2.55, 0.0]])
    scaling = StatisticScaling(UNSIGNED, MinMax(), axis=0)
    assert RangeZeroPoint(scaling, UNSIGNED, axis=0)(x, scaling(x)).tolist() == [[100], [0], [255]]


@given(
    st.lists(st.floats(-(2.0**20), 2.0**20, width=32), min_size=1),
    st.integers(2, 16),
    st.booleans(),
    st.sampled_from([MinMax(), PercentileInterval(10.0, 90.0)]),
)
def test_in_range_whole_and_zero_is_on_the_grid(numbers, bit_width, signed, statistic):
    int_range, x = IntRange(bit_width, signed), torch.tensor(numbers)
    scaling = StatisticScaling(int_range, statistic)
    scale = scaling(x)
    zero_point = RangeZeroPoint(scaling, int_range)(x, scale)
    low, high = int_range.bounds()
    assert low <= zero_point <= high
    assert zero_point == zero_point.round()
    assert fake_quant(torch.zeros(1), scale, low, high, zero_point).item() == 0


@given(st.lists(st.floats(-1000, 1000, width=32), min_size=2), st.integers(2, 12))
def test_nothing_is_clipped_by_more_than_half_a_step(numbers, bit_width):
    int_range, x = IntRange(bit_width, signed=False), torch.tensor(numbers)
    scaling = StatisticScaling(int_range, MinMax())
    scale = scaling(x)
    values = fake_quant(x, scale, *int_range.bounds(), RangeZeroPoint(scaling, int_range)(x, scale))
    assert ((values - x).abs() <= scale * 1.001).all()


def test_lower_end_comes_from_the_scaling():
    """Collected with the scale, and used as it stands."""
    scaling = CalibratedScaling(UNSIGNED, MinMax(), momentum=0.5)
    zero_point = RangeZeroPoint(scaling, UNSIGNED)
    x = torch.tensor([-1.0, 1.55])
    assert zero_point(x, scaling(x)).item() == 100
    x = torch.tensor([-3.0, 1.55])  # now -2 to 1.55
    assert zero_point(x, scaling(x)).item() == round(2 / (3.55 / 255))
    scaling.eval()
    assert zero_point(x * 9, scaling(x * 9)).item() == round(2 / (3.55 / 255))


def test_gradient_of_a_learned_lower_end():
    """Through the rounding, to the scale too."""
    scaling = LearnedScaling(UNSIGNED, MinMax())
    x = torch.tensor([-1.0, 1.55])
    scale = scaling(x)
    zero_point = RangeZeroPoint(scaling, UNSIGNED)(x, scale)
    of_low, of_scale = torch.autograd.grad(zero_point, (scaling.low_offset, scale))
    assert of_low.tolist() == [pytest.approx(-100, rel=1e-6)]  # -1 / scale
    assert of_scale.item() == pytest.approx(-1 / 0.01**2, rel=1e-6)  # low / scale**2


@pytest.mark.parametrize(
    ("low", "smallest", "slope"), [(0.0, 0, -100), (-2.55, 255, -100), (0.5, 0, 0), (-3.0, 255, 0)]
)
def test_gradient_at_the_ends_of_the_range(low, smallest, slope):
    """At either end the lower end of the range may still move; outside it may not."""
    end = torch.tensor(low, requires_grad=True)

    class Fixed(torch.nn.Module):
        def low_of(self, x):
            return end

    zero_point = RangeZeroPoint(Fixed(), UNSIGNED)(torch.zeros(3), torch.tensor(0.01))
    assert zero_point.item() == smallest
    assert torch.autograd.grad(zero_point, end)[0].item() == pytest.approx(slope)


def test_learned_lower_end_above_zero_is_no_range_without_zero():
    scaling = LearnedScaling(UNSIGNED, MinMax())
    x = torch.tensor([-1.0, 1.55])
    scaling(x)
    with torch.no_grad():
        scaling.low_base.fill_(0.5)
    assert RangeZeroPoint(scaling, UNSIGNED)(x, scaling(x)).item() == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dtypes(dtype):
    x = torch.tensor([-1.0, 1.5], dtype=dtype)
    scaling = StatisticScaling(UNSIGNED, MinMax())
    found = RangeZeroPoint(scaling, UNSIGNED)(x, scaling(x))
    assert found.item() == 102
    assert found.dtype == scaling(x).dtype


@pytest.mark.parametrize("strange", [float("nan"), float("inf"), -float("inf")])
def test_finite_for_every_input(strange):
    x = torch.tensor([-1.0, strange])
    scaling = StatisticScaling(UNSIGNED, MinMax())
    assert 0 <= RangeZeroPoint(scaling, UNSIGNED)(x, scaling(x)).item() <= 255


def test_scaling_of_the_users_own():
    class Fixed(torch.nn.Module):
        def forward(self, x):
            return torch.tensor(0.5)

        def low_of(self, x):
            return torch.tensor(-2.0)

    assert RangeZeroPoint(Fixed(), UNSIGNED)(torch.zeros(3), torch.tensor(0.5)).item() == 4


def test_choices_and_repr():
    assert ZERO_POINTS == {"range": RangeZeroPoint, "learned": LearnedZeroPoint, "hqo": HalfQuadraticZeroPoint}
    zero_point = RangeZeroPoint(StatisticScaling(UNSIGNED, MinMax()), UNSIGNED)
    assert repr(zero_point) == repr(pickle.loads(pickle.dumps(zero_point))) == "RangeZeroPoint()"


def test_scaling_without_a_lower_end():
    with pytest.raises(SettingError) as error:
        RangeZeroPoint(ConstantScaling(UNSIGNED, scale=0.5), UNSIGNED)
    assert str(error.value) == (
        "scaling='ConstantScaling' is not possible: expected a scaling that knows the lower end of the range "
        "(`low_of`), for the zero point. Write scaling='statistic', 'learned', 'calibrated' or 'running', or "
        "zero_point=None."
    )


def test_statistic_without_a_lower_end():
    with pytest.raises(SettingError) as error:
        RangeZeroPoint(StatisticScaling(UNSIGNED, AbsMax()), UNSIGNED)
    assert str(error.value) == (
        "statistic=AbsMax() is not possible: expected a statistic with a lower end (`low`), for the zero point. Write "
        "statistic='min_max' or statistic='percentile_interval', or zero_point=None."
    )

"""Statistics against their definitions on sorted values."""

import math
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from bitwright.qcore import (
    STATISTICS,
    AbsMax,
    AbsPercentile,
    IntRange,
    MeanSigma,
    MinMax,
    MinSquaredError,
    PercentileInterval,
    SettingError,
    composed_fake_quant,
)
from bitwright.qcore.scaling.statistics import kth_largest, measure

FOUR = IntRange(4, signed=True, narrow_range=True)
EVERY = [
    AbsMax(),
    MinMax(),
    AbsPercentile(),
    AbsPercentile(90.0),
    PercentileInterval(),
    PercentileInterval(10.0, 90.0),
    MeanSigma(),
    MinSquaredError(FOUR),
    MinSquaredError(IntRange(3, signed=False)),
]
NAMES = [repr(each) for each in EVERY]
WITH_LOW = [each for each in EVERY if hasattr(each, "low")]

NUMBERS = st.floats(-(2.0**20), 2.0**20, width=32)
TENSORS = arrays.arrays(np.float32, arrays.array_shapes(max_dims=3, max_side=6), elements=NUMBERS).map(torch.from_numpy)
PERCENTILES = st.floats(1e-3, 100)


def nearest_rank(numbers, percentile, rounding):
    """The element at a rank of the sorted numbers, which starts at 1."""
    rank = rounding(percentile / 100 * len(numbers))
    return sorted(numbers)[min(max(rank, 1), len(numbers)) - 1]


def half_up(x):
    return math.floor(x + 0.5)


# Numbers


def test_abs_max():
    x = torch.tensor([[1.0, -3.0], [0.5, 0.25]])
    assert AbsMax()(x).item() == 3
    assert AbsMax()(x, 0).tolist() == [3, 0.5]
    assert AbsMax()(x, 1).tolist() == [1, 3]
    assert AbsMax()(x, -1).tolist() == [1, 3]


def test_min_max():
    x = torch.tensor([[1.0, -3.0], [0.5, 0.25], [-1.0, -2.0]])
    assert MinMax()(x).item() == 4
    assert MinMax().low(x).item() == -3
    assert MinMax()(x, 0).tolist() == [4, 0.5, 2]
    assert MinMax().low(x, 0).tolist() == [-3, 0, -2]
    assert MinMax()(x, 1).tolist() == [2, 3.25]


def test_percentile():
    x = torch.arange(-10.0, 0.0)  # magnitudes 1 to 10
    assert AbsPercentile(90.0)(x).item() == 9
    assert AbsPercentile(94.9)(x).item() == 9
    assert AbsPercentile(95.0)(x).item() == 10
    assert AbsPercentile(100)(x).item() == 10
    assert AbsPercentile(0.1)(x).item() == 1
    assert AbsPercentile()(x).item() == 10
    assert AbsPercentile(50.0)(x.reshape(2, 5), 0).tolist() == [8, 3]


def test_percentile_interval():
    x = torch.arange(-5.0, 5.0)
    assert PercentileInterval(10.0, 90.0)(x).item() == 8
    assert PercentileInterval(10.0, 90.0).low(x).item() == -5
    assert PercentileInterval(11.0, 90.0).low(x).item() == -4
    assert PercentileInterval()(x).item() == 9
    assert PercentileInterval(0, 100)(x + 10).item() == 14  # zero included
    assert PercentileInterval(0, 100).low(x + 10).item() == 0
    assert PercentileInterval(0, 100)(x - 10).item() == 15
    assert PercentileInterval(20.0, 80.0)(x.reshape(2, 5), 0).tolist() == [5, 3]


def test_mean_sigma():
    assert MeanSigma(2.0)(torch.tensor([1.0, -3.0])).item() == 4
    assert MeanSigma(0)(torch.tensor([1.0, -3.0])).item() == 2
    assert MeanSigma()(torch.tensor([2.0, -2.0])).item() == 2
    assert MeanSigma(1.0)(torch.tensor([[1.0, -3.0], [2.0, 2.0]]), 0).tolist() == [3, 2]


def test_mean_squared_error():
    outlier = torch.cat([torch.linspace(-1, 1, 9999), torch.tensor([4.0])])
    assert MinSquaredError(FOUR)(outlier).item() == 0.9375  # 15 / 64 of the outlier
    assert MinSquaredError(FOUR, search_steps=2)(outlier).item() == 2
    assert MinSquaredError(FOUR, search_steps=1)(outlier).item() == 4
    assert MinSquaredError(FOUR)(torch.tensor([7.0, -3.0, 1.0])).item() == 7  # all on the grid as it is
    unsigned = MinSquaredError(IntRange(4, signed=False))
    assert unsigned(torch.tensor([-100.0, 1.0, 15.0])).item() == 15


# Definitions


@given(TENSORS)
def test_extremes_by_definition(x):
    numbers = x.reshape(-1).tolist()
    assert AbsMax()(x).item() == max(map(abs, numbers))
    assert MinMax().low(x).item() == min(0, *numbers)
    assert MinMax()(x).item() == np.float32(max(0, *numbers)) - np.float32(min(0, *numbers))


@given(TENSORS, PERCENTILES)
def test_percentile_by_definition(x, percentile):
    numbers = [abs(each) for each in x.reshape(-1).tolist()]
    assert AbsPercentile(percentile)(x).item() == nearest_rank(numbers, percentile, half_up)


@given(TENSORS, st.floats(0, 49), st.floats(51, 100))
def test_percentile_interval_by_definition(x, low, high):
    numbers = x.reshape(-1).tolist()
    interval = PercentileInterval(low, high)
    lower = min(0, nearest_rank(numbers, low, math.ceil))
    upper = max(0, nearest_rank(numbers, high, half_up))
    assert interval.low(x).item() == lower
    assert interval(x).item() == np.float32(upper) - np.float32(lower)


@given(TENSORS, st.floats(0, 10))
def test_mean_sigma_by_definition(x, sigma):
    magnitudes = x.double().abs().numpy()
    expected = magnitudes.mean() + sigma * magnitudes.std()
    assert MeanSigma(sigma)(x).item() == pytest.approx(expected, rel=1e-4, abs=1e-30)


@pytest.mark.parametrize("method", ["inverted_cdf", "closest_observation"])
def test_percentile_is_within_numpys(method):
    """Ranks differ by one at most."""
    torch.manual_seed(0)
    x = torch.randn(1000)
    ordered = x.abs().sort().values.tolist()
    for percentile in (0.1, 37.3, 50, 99, 99.9, 100):
        found = ordered.index(AbsPercentile(percentile)(x).item())
        assert abs(found - ordered.index(np.percentile(x.abs().numpy(), percentile, method=method))) <= 1


@pytest.mark.parametrize("statistic", EVERY, ids=NAMES)
@given(arrays.arrays(np.float32, (3, 2, 4), elements=NUMBERS), st.sampled_from([0, 1, 2, -1]))
def test_axis_is_one_statistic_for_each_index(statistic, x, axis):
    x = torch.from_numpy(x)
    found = statistic(x, axis)
    assert found.shape == (x.shape[axis],)
    slices = x.unbind(axis)
    torch.testing.assert_close(found, torch.stack([statistic(each) for each in slices]), rtol=1e-6, atol=0)
    if hasattr(statistic, "low"):
        assert statistic.low(x, axis).tolist() == [statistic.low(each).item() for each in slices]


@given(TENSORS, st.integers(1, 70), st.sampled_from([(2, True), (4, True), (8, True), (4, False)]))
def test_search_is_never_worse_than_the_largest_magnitude(x, steps, given_range):
    int_range = IntRange(*given_range)

    def error(reach):
        scale = (reach / int_range.threshold).clamp_min(1e-30)
        return (composed_fake_quant(x, scale, *int_range.bounds()) - x).double().square().sum().item()

    largest = x.abs().amax() if int_range.signed else x.amax().clamp_min(0)
    found = MinSquaredError(int_range, search_steps=steps)(x)
    assert 0 <= found <= largest
    assert error(found) <= error(largest) * (1 + 1e-5)


@pytest.mark.parametrize("bit_width", [2, 4, 8])
def test_search_finds_the_best_candidate(bit_width):
    torch.manual_seed(0)
    x, int_range = torch.randn(300), IntRange(bit_width, signed=True, narrow_range=True)
    candidates = [x.abs().amax() * step / 32 for step in range(1, 33)]
    errors = [
        (composed_fake_quant(x, each / int_range.threshold, *int_range.bounds()) - x).square().sum().item()
        for each in candidates
    ]
    assert MinSquaredError(int_range, search_steps=32)(x).item() == pytest.approx(
        candidates[int(np.argmin(errors))].item()
    )


# The block search


@given(st.lists(st.sampled_from([0.0, 1.0, 2.0, 3.0]), min_size=1, max_size=300), st.data())
def test_kth_largest_of_few(numbers, data):
    k = data.draw(st.integers(1, len(numbers)))
    assert kth_largest(torch.tensor([numbers, numbers]), k).tolist() == [sorted(numbers)[-k]] * 2


@pytest.mark.parametrize("length", [65535, 65536, 65537, 70_003])
def test_kth_largest_of_many(length):
    torch.manual_seed(length)
    kinds = {
        "normal": torch.randn(length),
        "ties": torch.randint(0, 5, (length,)).float(),
        "sorted": torch.arange(length).float(),
        "reversed": -torch.arange(length).float(),
        "outliers in one block": torch.cat([torch.arange(5000).float(), torch.zeros(length - 5000)]),
        "outliers at the end": torch.cat([torch.zeros(length - 3000), torch.arange(3000).float()]),
    }
    for name, x in kinds.items():
        ordered = x.sort(descending=True).values
        for k in (1, 2, 3, 100, 1000, length // 64, length // 64 + 1, 2048, 2049, length // 2, length):
            assert kth_largest(x[None], k).item() == ordered[k - 1].item(), (name, k)


def test_percentiles_of_many():
    torch.manual_seed(0)
    x = torch.randn(300_000)
    ordered, magnitudes = x.sort().values, x.abs().sort().values
    for percentile in (99.999, 99.99, 99.9, 99.0, 50.0):
        rank = half_up(percentile / 100 * 300_000)
        assert AbsPercentile(percentile)(x).item() == magnitudes[rank - 1].item()
        interval = PercentileInterval(100 - percentile, percentile) if percentile > 50 else None
        if interval is not None:
            lower = math.ceil((100 - percentile) / 100 * 300_000)
            assert interval.low(x).item() == ordered[lower - 1].item()
            assert interval(x).item() == (ordered[rank - 1] - ordered[lower - 1]).item()


# Gradients


def test_gradient_of_abs_max():
    """All of it goes to the first element that has the largest magnitude."""
    x = torch.tensor([[1.0, -3.0], [3.0, 0.25]], requires_grad=True)
    assert torch.autograd.grad(AbsMax()(x), x)[0].tolist() == [[0, -1], [0, 0]]
    assert torch.autograd.grad(AbsMax()(x, 0), x, torch.tensor([2.0, 5.0]))[0].tolist() == [[0, -2], [5, 0]]
    assert torch.autograd.grad(AbsMax()(x, 1), x, torch.tensor([2.0, 5.0]))[0].tolist() == [[0, -5], [2, 0]]


@given(st.permutations(range(1, 25)), st.lists(st.sampled_from([-1, 1]), min_size=24, max_size=24))
def test_gradient_of_abs_max_by_definition(magnitudes, signs):
    """Eager and traced, where no two elements tie."""
    x = (torch.tensor(magnitudes) * torch.tensor(signs)).float().reshape(3, 2, 4)
    for axis in (None, 0, 1, 2, -1):
        leaf = x.clone().requires_grad_()
        rows = leaf[None] if axis is None else leaf.movedim(axis, 0)
        expected = torch.autograd.grad(sum(each.abs().max() for each in rows), leaf)[0]
        for traced in (False, True):
            with mock.patch("torch.compiler.is_compiling", lambda traced=traced: traced):
                found = AbsMax()(leaf, axis)
            assert torch.equal(torch.autograd.grad(found.sum(), leaf)[0], expected)


def test_gradient_of_the_others():
    x = torch.tensor([-2.0, 1.0, 3.0], requires_grad=True)
    assert torch.autograd.grad(MinMax()(x), x)[0].tolist() == [-1, 0, 1]
    assert torch.autograd.grad(AbsPercentile(50.0)(x), x)[0].tolist() == [-1, 0, 0]
    assert torch.autograd.grad(PercentileInterval(0, 100)(x), x)[0].tolist() == [-1, 0, 1]
    assert torch.autograd.grad(MeanSigma(0)(x), x)[0].tolist() == pytest.approx([-1 / 3, 1 / 3, 1 / 3])
    assert not MinSquaredError(FOUR)(x).requires_grad


def test_gradient_of_no_spread_is_a_number():
    x = torch.full((4,), 2.0, requires_grad=True)
    assert torch.autograd.grad(MeanSigma()(x), x)[0].tolist() == [0.25] * 4


# Inputs of every kind


@pytest.mark.parametrize("statistic", EVERY, ids=NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_half_precision_is_measured_in_float32(statistic, dtype):
    x = torch.tensor([[-2.0, 0.5, 1.0], [0.25, 0.0, -0.125]], dtype=dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    for axis in (None, 0, 1):
        assert statistic(x, axis).dtype == wide
        assert statistic(x, axis).tolist() == pytest.approx(statistic(x.float(), axis).tolist(), rel=1e-6)
        assert statistic(x[:0], axis).dtype == wide


@pytest.mark.parametrize("statistic", EVERY, ids=NAMES)
def test_empty_has_no_range(statistic):
    assert statistic(torch.zeros(0)).tolist() == 0
    assert statistic(torch.zeros(2, 0), 0).tolist() == [0, 0]
    assert statistic(torch.zeros(0, 3), 1).tolist() == [0, 0, 0]
    assert statistic(torch.zeros(0, 3), 0).tolist() == []


@pytest.mark.parametrize("statistic", WITH_LOW, ids=repr)
def test_empty_has_no_lower_end(statistic):
    assert statistic.low(torch.zeros(0)).tolist() == 0
    assert statistic.low(torch.zeros(2, 0), 0).tolist() == [0, 0]


@pytest.mark.parametrize("statistic", EVERY, ids=NAMES)
def test_zeros_have_no_range(statistic):
    assert statistic(torch.zeros(5)).item() == 0
    assert statistic(torch.zeros(2, 5), 0).tolist() == [0, 0]


@pytest.mark.parametrize("statistic", EVERY, ids=NAMES)
@pytest.mark.parametrize("number", [3.0, -3.0])
def test_one_number(statistic, number):
    unsigned = isinstance(statistic, MinSquaredError) and not statistic.int_range.signed
    expected = 0 if unsigned and number < 0 else 3
    assert statistic(torch.tensor(number)).item() == pytest.approx(expected)
    assert statistic(torch.tensor([number])).item() == pytest.approx(expected)
    assert statistic(torch.full((4,), number)).item() == pytest.approx(expected)
    assert statistic(torch.full((2, 4), number), 0).tolist() == pytest.approx([expected] * 2)


@pytest.mark.parametrize("statistic", EVERY, ids=NAMES)
def test_layouts(statistic):
    torch.manual_seed(0)
    x = torch.randn(2, 4, 6, 6)
    last = x.clone(memory_format=torch.channels_last)
    for each in (last, x.transpose(2, 3), x[:, :, ::2]):
        for axis in (None, 0, 1, -1):
            plain = statistic(each.contiguous(), axis)
            torch.testing.assert_close(statistic(each, axis), plain, rtol=1e-6, atol=0)


def test_nothing_is_hidden():
    """What is not finite shows: the scaling decides what to do about it."""
    for statistic in (AbsMax(), MinMax(), AbsPercentile(), PercentileInterval(), MeanSigma()):
        assert not statistic(torch.tensor([1.0, float("nan")])).isfinite()
        assert not statistic(torch.tensor([1.0, float("inf")])).isfinite()


# The rest


def test_choices():
    assert STATISTICS == {
        "abs_max": AbsMax,
        "min_max": MinMax,
        "percentile": AbsPercentile,
        "percentile_interval": PercentileInterval,
        "mean_sigma": MeanSigma,
        "mse": MinSquaredError,
    }
    assert {type(each) for each in EVERY} == set(STATISTICS.values())


def test_measure():
    x = torch.tensor([-1.0, 3.0])
    assert [each.item() for each in measure(AbsMax(), x, None)] == [3]
    assert [each.item() for each in measure(MinMax(), x, None)] == [4, -1]


def test_printed():
    assert [repr(each) for each in EVERY] == [
        "AbsMax()",
        "MinMax()",
        "AbsPercentile(99.999)",
        "AbsPercentile(90.0)",
        "PercentileInterval(0.001, 99.999)",
        "PercentileInterval(10.0, 90.0)",
        "MeanSigma(3.0)",
        "MinSquaredError(64 steps)",
        "MinSquaredError(64 steps)",
    ]


@pytest.mark.parametrize("percentile", [0, -1.0, 100.1, float("nan"), True, "99", None])
def test_impossible_percentile(percentile):
    tail = "is not possible: expected a number above 0, up to 100. Write"
    with pytest.raises(SettingError) as error:
        AbsPercentile(percentile)
    assert str(error.value) == f"percentile={percentile!r} {tail} percentile=99.9 for 99.9 percent."
    with pytest.raises(SettingError) as error:
        PercentileInterval(high_percentile=percentile)
    assert str(error.value) == f"high_percentile={percentile!r} {tail} high_percentile=99.9 for 99.9 percent."


@pytest.mark.parametrize("percentile", [-1.0, 100.1, float("nan"), True, "1", None])
def test_impossible_low_percentile(percentile):
    with pytest.raises(SettingError) as error:
        PercentileInterval(low_percentile=percentile)
    assert str(error.value) == f"low_percentile={percentile!r} is not possible: expected a number from 0 to 100."


def test_percentiles_in_the_wrong_order():
    for low in (60.0, 50.0):
        with pytest.raises(SettingError) as error:
            PercentileInterval(low, 50.0)
        assert str(error.value) == f"low_percentile={low} is not possible: expected less than high_percentile=50.0."


@pytest.mark.parametrize("sigma", [-0.5, float("nan"), True, "3", None])
def test_impossible_sigma(sigma):
    with pytest.raises(SettingError) as error:
        MeanSigma(sigma)
    assert str(error.value) == (
        f"sigma={sigma!r} is not possible: expected a number of standard deviations, 0 or more."
    )


@pytest.mark.parametrize("steps", [0, -1, 1.5, True, None])
def test_impossible_search_steps(steps):
    with pytest.raises(SettingError) as error:
        MinSquaredError(FOUR, search_steps=steps)
    assert str(error.value) == f"search_steps={steps!r} is not possible: expected a whole number, 1 or more."

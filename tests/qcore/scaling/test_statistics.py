"""Statistics against their definitions on sorted values."""

import itertools
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
    HalfQuadraticRange,
    IntRange,
    KullbackLeibler,
    LSQPlusStart,
    LSQStart,
    MeanSigma,
    MinMax,
    MinSquaredError,
    MinSquaredErrorInterval,
    PerAxis,
    PerBlock,
    PercentileInterval,
    PerGroup,
    PerTensor,
    PerToken,
    QuantizerError,
    SettingError,
    StatisticsAwareBinning,
    composed_fake_quant,
)
from bitwright.qcore.scaling.statistics import kth_largest, lower_end, measure, measured

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
ALL = PerTensor()
GRANULARITIES = [
    ALL,
    PerAxis(0),
    PerAxis(1),
    PerAxis(2),
    PerAxis(-1),
    PerGroup(2),
    PerGroup(3),  # the last of one value
    PerGroup(2, 0),
    PerGroup(-1, 1),
    PerToken(),
    PerBlock((2, 3)),
    PerBlock((-1, 1)),
]


def nearest_rank(numbers, percentile, rounding):
    """The element at a rank of the sorted numbers, which starts at 1."""
    rank = rounding(percentile / 100 * len(numbers))
    return sorted(numbers)[min(max(rank, 1), len(numbers)) - 1]


def half_up(x):
    return math.floor(x + 0.5)


def row(*numbers):
    return torch.tensor([numbers])


def parts(x, granularity):
    """The values that share a scale, cut out one by one."""
    steps = granularity.block(x.shape)
    for starts in itertools.product(*(range(0, size, step) for size, step in zip(x.shape, steps, strict=True))):
        yield x[tuple(slice(start, start + step) for start, step in zip(starts, steps, strict=True))]


# Numbers


def test_abs_max():
    x = torch.tensor([[1.0, -3.0], [0.5, 0.25]])
    assert AbsMax()(x).tolist() == [3, 0.5]
    assert AbsMax()(x.t()).tolist() == [1, 3]
    assert AbsMax()(x.reshape(1, -1)).tolist() == [3]


def test_min_max():
    x = torch.tensor([[1.0, -3.0], [0.5, 0.25], [-1.0, -2.0]])
    assert MinMax()(x.reshape(1, -1)).tolist() == [4]
    assert MinMax().low(x.reshape(1, -1)).tolist() == [-3]
    assert MinMax()(x).tolist() == [4, 0.5, 2]
    assert MinMax().low(x).tolist() == [-3, 0, -2]
    assert MinMax()(x.t()).tolist() == [2, 3.25]


def test_percentile():
    x = torch.arange(-10.0, 0.0).reshape(1, -1)  # magnitudes 1 to 10
    assert AbsPercentile(90.0)(x).tolist() == [9]
    assert AbsPercentile(94.9)(x).tolist() == [9]
    assert AbsPercentile(95.0)(x).tolist() == [10]
    assert AbsPercentile(100)(x).tolist() == [10]
    assert AbsPercentile(0.1)(x).tolist() == [1]
    assert AbsPercentile()(x).tolist() == [10]
    assert AbsPercentile(50.0)(x.reshape(2, 5)).tolist() == [8, 3]


def test_percentile_interval():
    x = torch.arange(-5.0, 5.0).reshape(1, -1)
    assert PercentileInterval(10.0, 90.0)(x).tolist() == [8]
    assert PercentileInterval(10.0, 90.0).low(x).tolist() == [-5]
    assert PercentileInterval(11.0, 90.0).low(x).tolist() == [-4]
    assert PercentileInterval()(x).tolist() == [9]
    assert PercentileInterval(0, 100)(x + 10).tolist() == [14]  # zero included
    assert PercentileInterval(0, 100).low(x + 10).tolist() == [0]
    assert PercentileInterval(0, 100)(x - 10).tolist() == [15]
    assert PercentileInterval(20.0, 80.0)(x.reshape(2, 5)).tolist() == [5, 3]


def test_mean_sigma():
    assert MeanSigma(2.0)(row(1.0, -3.0)).tolist() == [4]
    assert MeanSigma(0)(row(1.0, -3.0)).tolist() == [2]
    assert MeanSigma()(row(2.0, -2.0)).tolist() == [2]
    assert MeanSigma(1.0)(torch.tensor([[1.0, -3.0], [2.0, 2.0]])).tolist() == [3, 2]


def test_mean_squared_error():
    outlier = torch.cat([torch.linspace(-1, 1, 9999), torch.tensor([4.0])]).reshape(1, -1)
    assert MinSquaredError(FOUR)(outlier).tolist() == [0.9375]  # 15 / 64 of the outlier
    assert MinSquaredError(FOUR, search_steps=2)(outlier).tolist() == [2]
    assert MinSquaredError(FOUR, search_steps=1)(outlier).tolist() == [4]
    assert MinSquaredError(FOUR)(row(7.0, -3.0, 1.0)).tolist() == [7]  # all on the grid as it is
    unsigned = MinSquaredError(IntRange(4, signed=False))
    assert unsigned(row(-100.0, 1.0, 15.0)).tolist() == [15]


class Bits(torch.nn.Module):
    """Three bits for the first row, two for the second."""

    def forward(self):
        return torch.tensor([3.0, 2.0])


def test_mean_squared_error_for_several_bit_widths():
    search = MinSquaredError(IntRange(Bits(), signed=True, narrow_range=True), search_steps=4)
    x = torch.tensor([[3.0, 2.0, 1.0, 0.0, 0.0], [2.0, 1.0, 1.0, 1.0, 1.0]])
    assert search(x).tolist() == [3, 1]
    assert MinSquaredError(IntRange(3, signed=True, narrow_range=True), search_steps=4)(x).tolist() == [3, 1.5]


def test_measured():
    x = torch.tensor([[1.0, -3.0, 0.5, 2.0, -0.25], [0.5, 0.25, -4.0, 0.0, 8.0]])
    expected = {
        ALL: [8],
        PerAxis(0): [3, 8],
        PerAxis(1): [1, 3, 4, 2, 8],
        PerAxis(-1): [1, 3, 4, 2, 8],
        PerGroup(2): [3, 2, 0.25, 0.5, 4, 8],
        PerGroup(4): [3, 0.25, 4, 8],
        PerGroup(-1): [3, 8],
        PerGroup(32): [3, 8],
        PerGroup(2, 0): [1, 3, 4, 2, 8],
        PerGroup(1): x.abs().reshape(-1).tolist(),
        PerToken(): [3, 8],
        PerBlock((2, 2)): [3, 4, 8],
        PerBlock((1, -1)): [3, 8],
        PerBlock((-1, -1)): [8],
    }
    for granularity, largest in expected.items():
        assert measured(AbsMax(), x, granularity).tolist() == largest, granularity


def test_lower_end():
    x = torch.tensor([[1.0, -3.0, 0.5, 2.0, -0.25], [0.5, 0.25, -4.0, 0.0, 8.0]])
    expected = {
        ALL: [-4],
        PerAxis(0): [-3, -4],
        PerAxis(1): [0, -3, -4, 0, -0.25],
        PerGroup(2): [-3, 0, -0.25, 0, -4, 0],
        PerToken(): [-3, -4],
        PerBlock((2, 2)): [-3, -4, -0.25],
    }
    for granularity, low in expected.items():
        assert lower_end(MinMax(), x, granularity).tolist() == low, granularity


def test_the_shorter_last_group_is_filled_up_with_its_own_values():
    """So that no value of another group, and no zero, is measured."""
    x = row(9.0, 9.0, 9.0, 9.0, 5.0, 3.0, 4.0)
    assert measured(AbsMax(), x, PerGroup(4)).tolist() == [9, 5]
    assert measured(MinMax(), -x, PerGroup(4)).tolist() == [9, 5]
    assert measured(AbsPercentile(1), x, PerGroup(4)).tolist() == [9, 3]
    assert measured(MeanSigma(0), x, PerGroup(4)).tolist() == [9, 4.25]  # 5, 3, 4 and 5 again
    assert measured(MeanSigma(0), x[:, :6], PerGroup(4)).tolist() == [9, 4]  # 5, 3, 5, 3


# Definitions


@given(TENSORS)
def test_extremes_by_definition(x):
    numbers = x.reshape(-1).tolist()
    assert measured(AbsMax(), x, ALL).item() == max(map(abs, numbers))
    assert lower_end(MinMax(), x, ALL).item() == min(0, *numbers)
    assert measured(MinMax(), x, ALL).item() == np.float32(max(0, *numbers)) - np.float32(min(0, *numbers))


@given(TENSORS, PERCENTILES)
def test_percentile_by_definition(x, percentile):
    numbers = [abs(each) for each in x.reshape(-1).tolist()]
    found = measured(AbsPercentile(percentile), x, ALL)
    assert found.item() == nearest_rank(numbers, percentile, half_up)


@given(TENSORS, st.floats(0, 49), st.floats(51, 100))
def test_percentile_interval_by_definition(x, low, high):
    numbers = x.reshape(-1).tolist()
    interval = PercentileInterval(low, high)
    lower = min(0, nearest_rank(numbers, low, math.ceil))
    upper = max(0, nearest_rank(numbers, high, half_up))
    assert lower_end(interval, x, ALL).item() == lower
    assert measured(interval, x, ALL).item() == np.float32(upper) - np.float32(lower)


@given(TENSORS, st.floats(0, 10))
def test_mean_sigma_by_definition(x, sigma):
    magnitudes = x.double().abs().numpy()
    expected = magnitudes.mean() + sigma * magnitudes.std()
    assert measured(MeanSigma(sigma), x, ALL).item() == pytest.approx(expected, rel=1e-4, abs=1e-30)


@pytest.mark.parametrize("method", ["inverted_cdf", "closest_observation"])
def test_percentile_is_within_numpys(method):
    """Ranks differ by one at most."""
    torch.manual_seed(0)
    x = torch.randn(1000)
    ordered = x.abs().sort().values.tolist()
    for percentile in (0.1, 37.3, 50, 99, 99.9, 100):
        found = ordered.index(measured(AbsPercentile(percentile), x, ALL).item())
        assert abs(found - ordered.index(np.percentile(x.abs().numpy(), percentile, method=method))) <= 1


@pytest.mark.parametrize("statistic", EVERY, ids=NAMES)
@given(arrays.arrays(np.float32, (3, 2, 4), elements=NUMBERS), st.sampled_from(GRANULARITIES))
def test_one_statistic_for_each_scale(statistic, x, granularity):
    x = torch.from_numpy(x)
    found, cut = measured(statistic, x, granularity), list(parts(x, granularity))
    assert found.shape == (len(cut),) == (granularity.count(x.shape),)
    alone = torch.cat([measured(statistic, each, ALL) for each in cut])
    torch.testing.assert_close(found, alone, rtol=1e-6, atol=0)
    if hasattr(statistic, "low"):
        low = lower_end(statistic, x, granularity)
        assert low.tolist() == [lower_end(statistic, each, ALL).item() for each in cut]


@given(TENSORS, st.integers(1, 70), st.sampled_from([(2, True), (4, True), (8, True), (4, False)]))
def test_search_is_never_worse_than_the_largest_magnitude(x, steps, given_range):
    int_range = IntRange(*given_range)

    def error(reach):
        scale = (reach / int_range.threshold).clamp_min(1e-30)
        return (composed_fake_quant(x, scale, *int_range.bounds()) - x).double().square().sum().item()

    largest = x.abs().amax() if int_range.signed else x.amax().clamp_min(0)
    found = measured(MinSquaredError(int_range, search_steps=steps), x, ALL).reshape(())
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
    found = measured(MinSquaredError(int_range, search_steps=32), x, ALL)
    assert found.item() == pytest.approx(candidates[int(np.argmin(errors))].item())


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
        assert AbsPercentile(percentile)(x[None]).tolist() == [magnitudes[rank - 1].item()]
        interval = PercentileInterval(100 - percentile, percentile) if percentile > 50 else None
        if interval is not None:
            lower = math.ceil((100 - percentile) / 100 * 300_000)
            assert interval.low(x[None]).tolist() == [ordered[lower - 1].item()]
            assert interval(x[None]).tolist() == [(ordered[rank - 1] - ordered[lower - 1]).item()]


# Gradients


def test_gradient_of_abs_max():
    """All of it goes to the first element that has the largest magnitude."""
    x = torch.tensor([[1.0, -3.0], [3.0, 0.25]], requires_grad=True)
    pull = torch.tensor([2.0, 5.0])
    assert torch.autograd.grad(AbsMax()(x.reshape(1, -1)), x, pull[1:])[0].tolist() == [[0, -5], [0, 0]]
    assert torch.autograd.grad(AbsMax()(x), x, pull)[0].tolist() == [[0, -2], [5, 0]]
    assert torch.autograd.grad(AbsMax()(x.t()), x, pull)[0].tolist() == [[0, -5], [2, 0]]


@given(st.permutations(range(1, 25)), st.lists(st.sampled_from([-1, 1]), min_size=24, max_size=24))
def test_gradient_of_abs_max_by_definition(magnitudes, signs):
    """Eager and traced, where no two elements tie."""
    x = (torch.tensor(magnitudes) * torch.tensor(signs)).float().reshape(3, 2, 4)
    even = [each for each in GRANULARITIES if each not in (PerGroup(3), PerBlock((2, 3)))]  # the others repeat values
    for granularity in even:
        leaf = x.clone().requires_grad_()
        expected = torch.autograd.grad(sum(each.abs().max() for each in parts(leaf, granularity)), leaf)[0]
        for traced in (False, True):
            with mock.patch("torch.compiler.is_compiling", lambda traced=traced: traced):
                found = measured(AbsMax(), leaf, granularity)
            assert torch.equal(torch.autograd.grad(found.sum(), leaf)[0], expected)


@pytest.mark.parametrize("traced", [False, True])
def test_gradient_of_abs_max_in_a_shorter_last_group(traced):
    """Values that are repeated get the gradient once, whichever of the copies the statistic picks."""
    x = torch.tensor([[1.0, -2.0, 3.0, 1.0, 4.0, -6.0]], requires_grad=True)
    for size, gradient in ((5, [0, 0, 0, 0, 1, -1]), (4, [0, 0, 1, 0, 0, -1]), (1, [1, -1, 1, 1, 1, -1])):
        with mock.patch("torch.compiler.is_compiling", return_value=traced):
            found = measured(AbsMax(), x, PerGroup(size))
        assert torch.autograd.grad(found.sum(), x)[0].tolist() == [pytest.approx(gradient)]


def test_gradient_of_the_others():
    x = torch.tensor([[-2.0, 1.0, 3.0]], requires_grad=True)
    assert torch.autograd.grad(MinMax()(x), x)[0].tolist() == [[-1, 0, 1]]
    assert torch.autograd.grad(AbsPercentile(50.0)(x), x)[0].tolist() == [[-1, 0, 0]]
    assert torch.autograd.grad(PercentileInterval(0, 100)(x), x)[0].tolist() == [[-1, 0, 1]]
    (grad,) = torch.autograd.grad(MeanSigma(0)(x), x)
    assert grad.tolist() == [pytest.approx([-1 / 3, 1 / 3, 1 / 3])]
    assert not MinSquaredError(FOUR)(x).requires_grad


def test_gradient_of_no_spread_is_a_number():
    x = torch.full((1, 4), 2.0, requires_grad=True)
    assert torch.autograd.grad(MeanSigma()(x), x)[0].tolist() == [[0.25] * 4]


# Inputs of every kind


@pytest.mark.parametrize("statistic", EVERY, ids=NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_half_precision_is_measured_in_float32(statistic, dtype):
    x = torch.tensor([[-2.0, 0.5, 1.0], [0.25, 0.0, -0.125]], dtype=dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    for granularity in (ALL, PerAxis(0), PerAxis(1), PerGroup(2), PerToken(), PerBlock((2, 2))):
        found = measured(statistic, x, granularity)
        assert found.dtype == wide
        assert found.tolist() == pytest.approx(measured(statistic, x.float(), granularity).tolist(), rel=1e-6)
        assert measured(statistic, x[:0], granularity).dtype == wide
        if hasattr(statistic, "low"):
            assert lower_end(statistic, x, granularity).dtype == wide
            assert lower_end(statistic, x[:0], granularity).dtype == wide


@pytest.mark.parametrize("statistic", EVERY, ids=NAMES)
def test_empty_has_no_range(statistic):
    assert measured(statistic, torch.zeros(0), ALL).tolist() == [0]
    assert measured(statistic, torch.zeros(2, 0), PerAxis(0)).tolist() == [0, 0]
    assert measured(statistic, torch.zeros(0, 3), PerAxis(1)).tolist() == [0, 0, 0]
    assert measured(statistic, torch.zeros(0, 3), PerAxis(0)).tolist() == []
    assert measured(statistic, torch.zeros(2, 0), PerToken()).tolist() == [0, 0]
    assert measured(statistic, torch.zeros(2, 0), PerGroup(2)).tolist() == []
    assert measured(statistic, torch.zeros(0, 3), PerBlock((2, 2))).tolist() == []


@pytest.mark.parametrize("statistic", WITH_LOW, ids=repr)
def test_empty_has_no_lower_end(statistic):
    assert lower_end(statistic, torch.zeros(0), ALL).tolist() == [0]
    assert lower_end(statistic, torch.zeros(2, 0), PerAxis(0)).tolist() == [0, 0]
    assert lower_end(statistic, torch.zeros(2, 0), PerToken()).tolist() == [0, 0]


@pytest.mark.parametrize("statistic", EVERY, ids=NAMES)
def test_zeros_have_no_range(statistic):
    assert statistic(torch.zeros(1, 5)).tolist() == [0]
    assert statistic(torch.zeros(2, 5)).tolist() == [0, 0]


@pytest.mark.parametrize("statistic", EVERY, ids=NAMES)
@pytest.mark.parametrize("number", [3.0, -3.0])
def test_one_number(statistic, number):
    unsigned = isinstance(statistic, MinSquaredError) and not statistic.number_format.signed
    expected = 0 if unsigned and number < 0 else 3
    assert statistic(torch.tensor([[number]])).tolist() == pytest.approx([expected])
    assert statistic(torch.full((1, 4), number)).tolist() == pytest.approx([expected])
    assert statistic(torch.full((2, 4), number)).tolist() == pytest.approx([expected] * 2)
    for granularity in (ALL, PerToken()):
        assert measured(statistic, torch.tensor(number), granularity).tolist() == pytest.approx([expected])


@pytest.mark.parametrize("statistic", EVERY, ids=NAMES)
def test_layouts(statistic):
    torch.manual_seed(0)
    x = torch.randn(2, 4, 6, 6)
    last = x.clone(memory_format=torch.channels_last)
    several = [PerAxis(0), PerAxis(1), PerAxis(-1), PerGroup(3, 1), PerGroup(2), PerToken(), PerBlock((3, 2))]
    for each in (last, x.transpose(2, 3), x[:, :, ::2], x.expand(3, 2, 4, 6, 6)[0]):
        for granularity in (ALL, *several):
            plain = measured(statistic, each.contiguous(), granularity)
            torch.testing.assert_close(measured(statistic, each, granularity), plain, rtol=1e-6, atol=0)


def test_nothing_is_hidden():
    """What is not finite shows: the scaling decides what to do about it."""
    for statistic in (AbsMax(), MinMax(), AbsPercentile(), PercentileInterval(), MeanSigma()):
        assert not statistic(row(1.0, float("nan"))).isfinite()
        assert not statistic(row(1.0, float("inf"))).isfinite()


# The rest


def test_choices():
    assert STATISTICS == {
        "abs_max": AbsMax,
        "min_max": MinMax,
        "percentile": AbsPercentile,
        "percentile_interval": PercentileInterval,
        "mean_sigma": MeanSigma,
        "mse": MinSquaredError,
        "mse_interval": MinSquaredErrorInterval,
        "lsq": LSQStart,
        "lsq_plus": LSQPlusStart,
        "kl": KullbackLeibler,
        "hqo": HalfQuadraticRange,
        "sawb": StatisticsAwareBinning,
    }
    literature = {MinSquaredErrorInterval, LSQStart, LSQPlusStart, KullbackLeibler, HalfQuadraticRange}
    literature |= {StatisticsAwareBinning}  # tests of their own: test_starts, test_divergence, test_half_quadratic
    assert {type(each) for each in EVERY} == set(STATISTICS.values()) - literature


def test_measure():
    x = torch.tensor([[-1.0, 3.0], [0.5, 2.0]])
    assert [each.tolist() for each in measure(AbsMax(), x, ALL)] == [[3]]
    assert [each.tolist() for each in measure(MinMax(), x, ALL)] == [[4], [-1]]
    assert [each.tolist() for each in measure(MinMax(), x, PerAxis(0))] == [[4, 2], [-1, 0]]
    assert [each.tolist() for each in measure(MinMax(), x, PerGroup(1))] == [[1, 3, 0.5, 2], [-1, 0, 0, 0]]


def test_what_returns_another_number_of_numbers():
    def everything(rows):
        return rows.abs().amax()

    class Each:
        def __call__(self, rows):
            return rows.abs()

    x = torch.ones(2, 3)
    assert measured(everything, x, ALL).tolist() == [1]
    with pytest.raises(QuantizerError) as error:
        measured(everything, x, PerAxis(0))
    assert str(error.value) == (
        "everything: it gives 1 number for 2 rows. A statistic takes rows (scales, values) and returns one number for "
        "each, such as rows.abs().amax(1)."
    )
    with pytest.raises(QuantizerError) as error:
        measured(Each(), x, PerGroup(2))
    assert str(error.value) == (
        "Each: it gives 8 numbers for 4 rows. A statistic takes rows (scales, values) and returns one number for each, "
        "such as rows.abs().amax(1)."
    )


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

"""Ranges of all data: beside published constants, vectors, and searches by brute force."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import bitwright.nn as qnn
from bitwright.graph.calibration import DataStatistic, Entropy, Histogram, Levels, Percentile, SquaredError
from bitwright.graph.calibration.thresholds import squared_error
from bitwright.qcore import LearnedBitWidth, SettingError
from bitwright.quantizers import Int8Act, ShiftedUint8Act, Uint8Act

ALL = [Percentile(99.9), SquaredError(), Entropy()]
KINDS = [Int8Act, Int8Act(narrow_range=True), Uint8Act, ShiftedUint8Act]


def levels_of(kind=Int8Act, **overrides):
    return Levels(qnn.QuantIdentity(act_quant=kind, **overrides).act_quant)


def histogram_of(*parts, bins=None):
    histogram = Histogram(len(parts[0]), bins)
    for part in parts:
        histogram.add(part)
    return histogram


def drawn(law, count=200_000, seed=0):
    """Values of a law of unit variance, evenly spread over its quantiles: no chance, no outliers of chance."""
    share = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    if law == "normal":
        return torch.special.ndtri(share)[None]
    return torch.where(share < 0.5, (2 * share).log(), -(2 - 2 * share).log())[None] / math.sqrt(2)


# Divergence


@pytest.mark.parametrize("kind", [Uint8Act, Int8Act, ShiftedUint8Act])
@pytest.mark.parametrize("bits", [4, 8])
def test_zeros_are_a_level_of_every_range(kind, bits):
    values = drawn("normal")
    few, many = (histogram_of(each) for each in (values[values > 0][None], values.relu()))
    levels = levels_of(kind, bit_width=bits)
    for one, other in zip(Entropy()(many, levels), Entropy()(few, levels), strict=True):
        torch.testing.assert_close(one, other, rtol=0.03, atol=0)


# MSE


@pytest.mark.parametrize(
    ("law", "bits", "narrow", "step"),
    [
        ("normal", 2, True, 1.224),
        ("normal", 3, True, 0.650),
        ("normal", 4, True, 0.353),
        ("normal", 8, True, 0.0309),
        ("normal", 2, False, 1.048),
        ("normal", 3, False, 0.602),
        ("normal", 4, False, 0.339),
        ("normal", 8, False, 0.0310),
        ("laplace", 2, True, 1.414),
        ("laplace", 3, True, 0.820),
        ("laplace", 4, True, 0.487),
        ("laplace", 8, True, 0.055),
    ],
)
def test_steps_of_least_squared_error(law, bits, narrow, step):
    levels = levels_of(bit_width=bits, narrow_range=narrow)
    [found] = SquaredError()(histogram_of(drawn(law)), levels)
    assert found.item() / (2 ** (bits - 1) - narrow) == pytest.approx(step, rel=0.02 if bits == 8 else 0.01)


def test_a_zero_point_finds_the_steps_of_a_symmetric_law_and_the_place_of_any_other():
    histogram = histogram_of(drawn("normal"), bins=4096)
    width, low = SquaredError()(histogram, levels_of(ShiftedUint8Act, bit_width=4))
    assert width.item() / 15 == pytest.approx(0.339, rel=0.01)
    half, levels = histogram_of(drawn("normal").abs() - 0.25, bins=4096), levels_of(ShiftedUint8Act, bit_width=4)
    found = SquaredError()(half, levels)
    error = squared_error(half, levels, found).item()
    for width in range(20, 50):
        for low in range(6):
            other = [torch.tensor([width / 10]), torch.tensor([-low / 10])]
            assert error <= 1.002 * squared_error(half, levels, other).item()
    assert -0.4 < found[1].item() < 0


def test_the_error_is_that_of_quantization():
    x = torch.empty(1, 300_000).normal_(generator=torch.Generator().manual_seed(0)) * 3
    for kind in KINDS:
        for bits in (2, 4, 8):
            quant = qnn.QuantIdentity(act_quant=kind, bit_width=bits).act_quant
            levels = Levels(quant)
            found = [torch.tensor([7.0]), torch.tensor([-2.0])][: 1 + levels.interval]
            quant.scaling.set_range(found)
            expected = (quant.eval()(x) - x).square().mean().item()
            error = squared_error(histogram_of(x), levels, found).item() / x.numel()
            assert error == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_no_error_is_larger_than_that_of_the_full_range_or_of_any_fraction_of_it(kind, bits):
    levels = levels_of(kind, bit_width=bits)
    x = torch.empty(1, 20_000).exponential_(generator=torch.Generator().manual_seed(1)) - 0.5
    histogram = histogram_of(x)
    best = squared_error(histogram, levels, SquaredError()(histogram, levels)).item()
    high, low = x.max().item(), x.min().item()
    full = [high - low, low] if levels.interval else [high]
    for hundredth in range(1, 101):
        found = [torch.tensor([end * hundredth / 100]) for end in full]
        assert best <= 1.01 * squared_error(histogram, levels, found).item()


def test_powers_of_two_are_searched_as_such():
    levels = levels_of(Int8Act(restriction="power_of_two"), bit_width=4)
    histogram = histogram_of(drawn("normal"))
    scale, _, _ = levels.grid(SquaredError()(histogram, levels))
    assert scale.item() == 0.25 if _better(histogram, levels, 0.25, 0.5) else 0.5


def _better(histogram, levels, one, other):
    errors = [squared_error(histogram, levels, [torch.tensor([scale * 8.0])]).item() for scale in (one, other)]
    return errors[0] < errors[1]


def test_learned_bit_widths():
    levels = levels_of(Int8Act(bit_width=LearnedBitWidth, initial_bit_width=4))
    [found] = SquaredError()(histogram_of(drawn("normal")), levels)
    assert found.item() / 8 == pytest.approx(0.339, rel=0.01)
    assert levels.count == 16


# Percentile


@pytest.mark.parametrize(("percentile", "expected"), [(99.0, 2.576), (90.0, 1.645), (68.2689, 1.0)])
def test_percentiles_of_magnitudes(percentile, expected):
    [found] = Percentile(percentile)(histogram_of(drawn("normal")), levels_of())
    assert found.item() == pytest.approx(expected, rel=1e-3)


def test_it_is_the_percentile_of_the_data_and_not_the_mean_of_those_of_batches():
    quiet, loud = torch.linspace(0, 1, 9900)[None], torch.linspace(90, 100, 100)[None]
    for parts in ((quiet, loud), (loud, quiet), (torch.cat([quiet, loud], 1),)):
        [found] = Percentile(99.0)(histogram_of(*parts), levels_of(Uint8Act))
        assert found.item() == pytest.approx(1.0, abs=0.1)


def test_all_of_it_is_the_largest_value():
    x = torch.tensor([[-3.3, 2.7, 0.1]])
    assert Percentile(100)(histogram_of(x), levels_of())[0].item() == pytest.approx(3.3)
    assert Percentile(100)(histogram_of(x), levels_of(Uint8Act))[0].item() == pytest.approx(2.7)
    width, low = Percentile(100)(histogram_of(x), levels_of(ShiftedUint8Act))
    assert (width.item(), low.item()) == (pytest.approx(6.0), pytest.approx(-3.3))


def test_two_sided_percentiles_leave_out_as_much_at_either_end():
    width, low = Percentile(90.0)(histogram_of(torch.arange(-500.0, 500.0)[None]), levels_of(ShiftedUint8Act))
    assert (low.item(), (width + low).item()) == (pytest.approx(-401, abs=1), pytest.approx(399, abs=1))


def test_without_a_number_it_is_that_of_the_quantizer():
    histogram = histogram_of(drawn("normal"))
    own = levels_of(Int8Act(percentile=90.0))
    assert Percentile()(histogram, own)[0].item() == pytest.approx(1.645, rel=1e-3)
    assert Percentile(99.0)(histogram, own)[0].item() == pytest.approx(2.576, rel=1e-3)
    interval = levels_of(ShiftedUint8Act(low_percentile=10.0, high_percentile=50.0))
    width, low = Percentile()(histogram, interval)
    assert (low.item(), (width + low).item()) == (pytest.approx(-1.2816, rel=1e-2), pytest.approx(0, abs=1e-2))
    extremes = levels_of(Int8Act(statistic="abs_max"))
    assert torch.equal(Percentile()(histogram, extremes)[0], Percentile(99.999)(histogram, extremes)[0])


@pytest.mark.parametrize("make", [Percentile, Entropy])
def test_percentiles_that_are_none(make):
    for wrong in (0.999, 50, 100.5, True, "99"):
        with pytest.raises(SettingError) as error:
            make(wrong)
        assert str(error.value) == (
            f"percentile={wrong!r} is not possible: expected a number above 50, up to 100. Write percentile=99.9 for "
            "99.9 percent."
        )


# Entropy


def divergences(counts, cells):
    """TensorRT's search, as its description has it, number by number."""
    total, found = sum(counts), {}
    for stop in range(cells, len(counts) + 1):
        kept = counts[:stop]
        p = [*kept[:-1], kept[-1] + sum(counts[stop:])]
        q = [0.0] * stop
        for cell in range(cells):
            start, end = cell * stop // cells, (cell + 1) * stop // cells
            filled = [at for at in range(start, end) if kept[at]]
            for at in filled:
                q[at] = sum(kept[start:end]) / len(filled)
        if any(one and not other for one, other in zip(p, q, strict=True)):
            continue
        found[stop] = sum(
            one / total * math.log((one / total) / (other / sum(kept))) for one, other in zip(p, q, strict=True) if one
        )
    return found


@pytest.mark.parametrize("bits", [4, 5])
@pytest.mark.parametrize("seed", range(3))
def test_the_least_divergence_by_brute_force(bits, seed):
    x = torch.empty(1, 2000).exponential_(generator=torch.Generator().manual_seed(seed))
    histogram, levels = histogram_of(x, bins=128), levels_of(Uint8Act, bit_width=bits)
    counts = histogram.counts[0, 128:].tolist()
    while not counts[-1]:
        counts.pop()
    found = divergences(counts, 2**bits)
    least = max(stop for stop in found if found[stop] <= min(found.values()) + 1e-12)
    width = histogram.width().item()
    assert Entropy(50.1)(histogram, levels)[0].item() == pytest.approx(min(least * width, x.max().item()))


@pytest.mark.parametrize("law", ["normal", "laplace"])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("kind", [Int8Act, ShiftedUint8Act])
def test_few_bits_clip_no_more_than_the_percentile_allows(law, bits, kind):
    histogram, levels = histogram_of(drawn(law)), levels_of(kind, bit_width=bits)
    found, least = (each(histogram, levels)[0].item() for each in (Entropy(99.0), Percentile(99.0)))
    assert 0.999 * least <= found <= 2 * histogram.reach.item()


def test_what_lies_far_out_is_clipped_at_8_bits():
    x = torch.cat([drawn("normal", 50_000), torch.full((1, 3), 60.0)], 1)
    [found] = Entropy()(histogram_of(x), levels_of())
    assert 3 < found.item() < 12


# Beside other searches

# fmt: off
ROW = [
    0.379, 3.593, -1.088, 0.823, 1.28, -1.68, 0.333, 0.288, -0.828, 1.0, 1.813, 1.992, -0.338, 0.335, 4.143, -1.945,
    0.391, 1.568, 0.265, 1.156, 0.304, 1.328, 2.26, -0.39, 0.348, -0.097, -0.711, -0.035, -1.994, 1.312, 3.0, 3.004,
    2.248, -1.699, 2.678, -1.261, -0.094, 3.254, -1.889, 1.483, 0.496, -0.268, -1.544, 0.745, -0.817, 1.842, 2.158,
    -2.431, -0.89, -0.562, -2.083, -1.97, 0.156, -0.367, -2.911, -0.948, 0.914, -2.126, -1.628, 2.798, 2.321,
    -2.857, -2.381, 0.665,
]
# fmt: on


@pytest.mark.parametrize(("bits", "brevitas"), [(4, 0.5030), (3, 1.0357), (2, 2.0713)])
def test_no_worse_than_the_scales_of_brevitas(bits, brevitas):
    """Int8WeightPerChannelFloatMSE of Brevitas 0.13.4 on the same values."""
    row, largest = torch.tensor([ROW], dtype=torch.float64), 2 ** (bits - 1) - 1
    [found] = SquaredError()(histogram_of(row), levels_of(bit_width=bits, narrow_range=True))

    def error(scale):
        return ((row / scale).round().clamp(-largest, largest) * scale - row).square().sum().item()

    assert error(found.item() / largest) <= error(brevitas)


def test_what_brevitas_clips_away_at_few_bits():
    """Of Laplace's law up to 4, its search for the least divergence keeps 3.04 at 8 bits, .028 at 4 and .012 at 3."""
    histogram = histogram_of(drawn("laplace", 4000).clamp(-4, 4))
    found = [Entropy()(histogram, levels_of(bit_width=bits))[0].item() for bits in (8, 4, 3)]
    assert all(2.7 < each <= 4 for each in found)


def test_numbers_of_a_law_with_outliers():
    """Its vector, of 20000 values up to 24.8, has 4.54, 5.02 and 22.2 here, and 9.3 for the divergence."""
    outliers = torch.tensor([[24.801, 13.592, -12.0]])
    histogram = histogram_of(torch.cat([drawn("laplace", 20_000) * math.sqrt(2), outliers], 1))
    narrow = [levels_of(bit_width=bits, narrow_range=True) for bits in (4, 8)]
    assert Percentile(99.0)(histogram, levels_of())[0].item() == pytest.approx(4.61, rel=0.01)
    assert SquaredError()(histogram, narrow[0])[0].item() == pytest.approx(5.02, rel=0.05)
    assert SquaredError()(histogram, narrow[1])[0].item() > 12
    assert 4.6 < Entropy()(histogram, narrow[1])[0].item() < 12.5


# What holds for all


@pytest.mark.parametrize("statistic", ALL, ids=str)
@pytest.mark.parametrize("kind", KINDS, ids=str)
@settings(max_examples=8)
@given(power=st.integers(-30, 30))
def test_a_power_of_two_times_the_data_gives_as_much_times_the_range(statistic, kind, power):
    x, levels = drawn("laplace", 500) + 0.3, levels_of(kind, bit_width=4, min_scale=1e-30)
    one, other = (statistic(histogram_of(each), levels) for each in (x, x * 2.0**power))
    assert [each.item() for each in other] == pytest.approx([each.item() * 2.0**power for each in one])


@pytest.mark.parametrize("statistic", [Percentile(99.9), SquaredError()], ids=str)
@settings(max_examples=20)
@given(factor=st.floats(0.01, 100))
def test_any_factor_to_the_width_of_a_bin(statistic, factor):
    x = drawn("normal", 5000)
    one, other = (statistic(histogram_of(each), levels_of(bit_width=4))[0].item() for each in (x, x * factor))
    assert other == pytest.approx(one * factor, rel=0.01)


@pytest.mark.parametrize("statistic", ALL, ids=str)
@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("values", [[0.0] * 9, [2.5] * 9, [-2.5] * 9, [0.0, 0.0, 1e-40], [3e38, -3e38], [1.0]])
def test_constant_zero_and_extreme_data_give_finite_ranges(statistic, kind, values):
    found = statistic(histogram_of(torch.tensor([values])), levels_of(kind))
    assert all(bool(each.isfinite().all()) for each in found)
    assert found[0].item() >= 0
    if values[0] == 2.5:
        assert found[0].item() == pytest.approx(2.5, rel=0.02)


@pytest.mark.parametrize("statistic", ALL, ids=str)
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_each_row_by_itself(statistic, kind):
    rows = torch.cat([drawn("normal", 4000), drawn("laplace", 4000) * 7 + 1, torch.zeros(1, 4000)])
    levels = levels_of(kind, bit_width=4)
    together = statistic(histogram_of(rows, bins=512), levels)
    for at in range(3):
        alone = statistic(histogram_of(rows[at : at + 1], bins=512), levels)
        assert [each[at].item() for each in together] == pytest.approx([each.item() for each in alone])


def test_how_they_print():
    assert [repr(each) for each in (Percentile(), Percentile(99), SquaredError(), Entropy())] == [
        "Percentile()",
        "Percentile(99.0)",
        "SquaredError()",
        "Entropy(99.0)",
    ]


def test_the_base_chooses_nothing():
    with pytest.raises(NotImplementedError):
        DataStatistic()(Histogram(1), levels_of())

"""Statistics of the literature, by their formulas."""

import math
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import bitwright.nn as qnn
from bitwright.qcore import (
    BINARY,
    E4M3,
    IntRange,
    LearnedBitWidth,
    LSQPlusStart,
    LSQStart,
    MinMax,
    MinSquaredErrorInterval,
    OddIntegers,
    SettingError,
    StatisticsAwareBinning,
    composed_fake_quant,
)
from bitwright.qcore.scaling.starts import require_integers
from bitwright.quantizers import Int4WeightPerTensorSAWB

ROWS = torch.tensor([[3.0, -1.0, 1.0, 1.0], [0.5, 0.5, -0.5, 0.5], [0.0, 0.0, 0.0, 0.0]])
NORMAL = torch.special.ndtri((torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000).float()[None]


def narrow(bits):
    return IntRange(bits, signed=True, narrow_range=True)


def test_lsq_start():
    """A step of 2 * mean|v| / sqrt(Qp): the magnitude is T steps."""
    expected = [8 * 3 / math.sqrt(7), 8 / math.sqrt(7), 0]
    assert LSQStart(IntRange(4, signed=True))(ROWS).tolist() == pytest.approx(expected)
    assert LSQStart(narrow(4))(ROWS)[0].item() == pytest.approx(7 * 3 / math.sqrt(7))
    assert LSQStart(IntRange(2, signed=False))(ROWS)[0].item() == pytest.approx(3 * 3 / math.sqrt(3))
    assert LSQStart(E4M3)(ROWS)[0].item() == pytest.approx(3 * math.sqrt(448))
    assert repr(LSQStart(narrow(4))) == "LSQStart()"


def test_lsq_plus_start():
    """|mean| + 3 standard deviations: of the first row 1 + 3 * sqrt(2)."""
    assert LSQPlusStart()(ROWS).tolist() == pytest.approx([1 + 3 * math.sqrt(2), 0.25 + 3 * math.sqrt(0.1875), 0])
    assert LSQPlusStart(sigma=0)(ROWS)[0].item() == 1
    assert repr(LSQPlusStart()) == "LSQPlusStart(3.0)"
    expected = "sigma=-1 is not possible: expected a number of standard deviations, 0 or more."
    with pytest.raises(SettingError, match=f"^{re.escape(expected)}$"):
        LSQPlusStart(sigma=-1)


@pytest.mark.parametrize(
    ("levels", "first", "second"),
    [
        (narrow(2), 2.6, 1.71),
        (narrow(4), 12.035, 12.03),
        (narrow(7), 28.24, 30.81),
        (narrow(8), 31.76, 35.04),
        (OddIntegers(2), 3.12, 2.064),
        (OddIntegers(3), 7.509, 6.892),
        (OddIntegers(4), 12.68, 12.80),
    ],
    ids=str,
)
def test_sawb(levels, first, second):
    """Of the first row: mean square 3, mean magnitude 1.5."""
    found = StatisticsAwareBinning(levels)
    assert found(ROWS)[0].item() == pytest.approx(first * math.sqrt(3) - second * 1.5, rel=1e-5)
    assert found(ROWS)[2].item() == 0
    assert repr(found) == f"StatisticsAwareBinning({first}, {second})"


@pytest.mark.parametrize(("bits", "step"), [(2, 1.224), (4, 0.353), (8, 0.0309)])
def test_sawb_is_near_the_best_of_a_normal_distribution(bits, step):
    best = step * (2 ** (bits - 1) - 1)
    assert StatisticsAwareBinning(narrow(bits))(NORMAL).item() == pytest.approx(best, rel=0.04)


def test_sawb_of_shapes_that_it_does_not_fit():
    """Where the formula gives nothing above 0, or more than there is: the largest magnitude."""
    assert StatisticsAwareBinning(OddIntegers(4))(ROWS)[1].item() == 0.5  # 0.5 * (12.68 - 12.80)
    assert StatisticsAwareBinning(narrow(4))(torch.tensor([[1.0, 0.0, 0.0, 0.0]])).item() == 1  # 6.0175 - 3.0075


@pytest.mark.parametrize(
    "levels", [narrow(3), narrow(6), IntRange(4, signed=True), IntRange(4, signed=False), BINARY, E4M3], ids=str
)
def test_sawb_knows_no_other_levels(levels):
    expected = (
        "statistic='sawb' is not possible: expected another statistic than SAWB's: it has no coefficients for "
        f"{levels}. It knows signed integers of a narrow range with 2, 4, 7 or 8 bits, and OddIntegers of 2 to 5."
    )
    with pytest.raises(SettingError, match=f"^{re.escape(expected)}$"):
        StatisticsAwareBinning(levels)


def test_sawb_of_a_learned_bit_width():
    with pytest.raises(SettingError, match="it has no coefficients for learned int narrow"):
        qnn.QuantLinear(4, 2, weight_quant=Int4WeightPerTensorSAWB, weight_bit_width=LearnedBitWidth)


def test_interval_that_fits_exactly():
    statistic = MinSquaredErrorInterval(IntRange(2, signed=False))
    rows = torch.tensor([[-1.0, 0.0, 1.0, 2.0], [0.0, 1.0, 2.0, 3.0], [0.0, 0.0, 0.0, 0.0]])
    assert statistic(rows).tolist() == [3, 3, 0]
    assert statistic.low(rows).tolist() == [-1, 0, 0]
    assert repr(statistic) == "MinSquaredErrorInterval(8 steps)"


def squared_error(rows, width, low, bits):
    scale = (width / (2**bits - 1)).clamp_min(1e-30)[:, None]
    zero_point = (-low[:, None] / scale).round().clamp(0, 2**bits - 1)
    return (composed_fake_quant(rows, scale, 0, 2**bits - 1, zero_point) - rows).square().sum(1)


@given(seed=st.integers(0, 99), bits=st.integers(2, 5), shift=st.floats(-2, 2))
def test_interval_is_no_worse_than_the_full_one(seed, bits, shift):
    rows = torch.randn(3, 50, generator=torch.Generator().manual_seed(seed)) ** 3 + shift
    found, full = MinSquaredErrorInterval(IntRange(bits, signed=False)), MinMax()
    best = squared_error(rows, found(rows), found.low(rows), bits)
    assert (best <= squared_error(rows, full(rows), full.low(rows), bits) * 1.0001).all()


def test_interval_cuts_outliers_off():
    rows = torch.cat([torch.linspace(-1, 2, 999), torch.tensor([20.0])])[None]
    statistic = MinSquaredErrorInterval(IntRange(4, signed=False))
    assert 2 < statistic(rows).item() < 15


@pytest.mark.parametrize("steps", [0, True, 2.0])
def test_interval_steps(steps):
    expected = f"search_steps={steps!r} is not possible: expected a whole number, 1 or more."
    with pytest.raises(SettingError, match=f"^{re.escape(expected)}$"):
        MinSquaredErrorInterval(IntRange(4, signed=False), search_steps=steps)


def test_intervals_are_integers():
    expected = (
        "statistic='mse_interval' is not possible: expected another statistic: 'mse_interval' is for integers, and the "
        "levels are e4m3fn. Write statistic='mse'."
    )
    with pytest.raises(SettingError, match=f"^{re.escape(expected)}$"):
        MinSquaredErrorInterval(E4M3)
    require_integers("mse_interval", narrow(4))

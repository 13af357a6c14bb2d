"""The range of least divergence, against a search by brute force over the definition."""

import math
import re
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitwright.qcore import E4M3, IntRange, KullbackLeibler, LearnedBitWidth, SettingError
from bitwright.qcore.scaling.divergence import BinSums


def divergence(counts, stop, cells):
    """KL of the counts up to ``stop``, the rest added to the last, from their own in cells, spread evenly."""
    known = counts[:stop]
    clipped = [*known[:-1], known[-1] + sum(counts[stop:])]
    ends = [cell * stop // cells for cell in range(cells + 1)]
    spread = []
    for start, end in pairwise(ends):
        part = known[start:end]
        filled = sum(each > 0 for each in part)
        spread += [sum(part) / filled if each > 0 else 0.0 for each in part]
    total, kept = sum(clipped), sum(spread)
    found = 0.0
    for one, other in zip(clipped, spread, strict=True):
        if one > 0:
            found += math.inf if other == 0 else one / total * math.log(one / total / (other / kept))
    return found


@given(
    counts=st.lists(st.integers(0, 9), min_size=40, max_size=40).filter(any),
    bits=st.integers(2, 5),
    signed=st.booleans(),
)
def test_brute_force(counts, bits, signed):
    statistic = KullbackLeibler(IntRange(bits, signed=signed), least_percentile=0)
    cells = 2 ** (bits - signed)
    assert statistic.cells == cells
    by_hand = {stop: divergence(counts, stop, cells) for stop in range(cells, 41)}
    found = int(statistic.best_stop(torch.tensor([counts], dtype=torch.float64)))
    least = min(by_hand.values())
    assert by_hand[found] <= least + 1e-12
    if math.isfinite(least):
        sums = BinSums(torch.tensor([counts])).divergence(torch.zeros(1, 1).long(), torch.tensor([[found]]), cells)
        assert sums.item() == pytest.approx(by_hand[found], abs=1e-12)


def test_of_several_it_is_the_widest():
    counts = torch.zeros(1, 40, dtype=torch.float64)
    counts[0, 0] = 5
    assert KullbackLeibler(IntRange(3, signed=True), least_percentile=0).best_stop(counts).tolist() == [40]


def test_by_hand():
    """From (4, 2) to one level: to (3, 3). KL = 2/3 ln(4/3) + 1/3 ln(2/3)."""
    sums = BinSums(torch.tensor([[4.0, 2.0, 0.0, 0.0]]))
    found = sums.divergence(torch.tensor([[0, 0]]), torch.tensor([[1, 2]]), 1)
    assert found.tolist()[0] == pytest.approx([0, 2 / 3 * math.log(4 / 3) + 1 / 3 * math.log(2 / 3)])


@pytest.mark.parametrize(("signed", "narrow", "cells"), [(True, False, 8), (True, True, 7), (False, False, 16)])
def test_cells_are_the_levels(signed, narrow, cells):
    assert KullbackLeibler(IntRange(4, signed=signed, narrow_range=narrow)).cells == cells


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
def test_holds_99_percent(bits):
    """Brevitas' has 0.028 of 4 at 4 bits."""
    share = (torch.arange(50_000) + 0.5) / 50_000
    magnitudes = -torch.log(1 - share)
    rows = torch.cat([magnitudes, -magnitudes])[None]
    found = KullbackLeibler(IntRange(bits, signed=True))(rows).item()
    assert -math.log(0.01) * 0.999 <= found <= magnitudes.max().item()
    assert KullbackLeibler(IntRange(bits, signed=True))(rows * 8).item() == 8 * found


def test_rows_are_apart():
    rows = torch.randn(3, 500, generator=torch.Generator().manual_seed(0)) * torch.tensor([[1.0], [4.0], [0.0]])
    statistic = KullbackLeibler(IntRange(4, signed=True))
    found = statistic(rows)
    assert found[2] == 0
    assert (found[:2] <= rows[:2].abs().amax(1)).all()
    assert statistic(rows[:2] * 2).tolist() == (found[:2] * 2).tolist()


@pytest.mark.parametrize("bits", [4, 8])
def test_zeros_are_a_level_of_every_range(bits):
    values = torch.randn(1, 100_000, generator=torch.Generator().manual_seed(0)).relu()
    for signed in (False, True):
        statistic = KullbackLeibler(IntRange(bits, signed=signed))
        assert statistic(values).item() == pytest.approx(statistic(values[values > 0][None]).item(), rel=0.02)
    assert KullbackLeibler(IntRange(8, signed=False))(values).item() > 3.9  # not the 2.3 that 99 percent lie below


def test_negative_values_count_as_0_without_a_sign():
    statistic = KullbackLeibler(IntRange(2, signed=False), least_percentile=100)
    assert statistic(torch.tensor([[-9.0, 1.0, 2.0, 4.0]])).item() == 4


def test_more_levels_than_bins():
    assert KullbackLeibler(IntRange(16, signed=True))(torch.tensor([[1.0, -3.0]])).item() == 3


def test_what_is_not_finite_is_told():
    found = KullbackLeibler(IntRange(4, signed=True))(torch.tensor([[1.0, math.nan], [1.0, math.inf], [1.0, 1.0]]))
    assert found.isfinite().tolist() == [False, False, True]


@pytest.mark.parametrize("percentile", [-1, 101, True, "99"])
def test_percentile(percentile):
    expected = f"least_percentile={percentile!r} is not possible: expected a number from 0 to 100."
    with pytest.raises(SettingError, match=f"^{re.escape(expected)}$"):
        KullbackLeibler(IntRange(4, signed=True), least_percentile=percentile)


def test_learned_bit_width():
    expected = (
        "statistic='kl' is not possible: expected another statistic: 'kl' compares distributions over a fixed number "
        "of levels. Write statistic='mse'."
    )
    with pytest.raises(SettingError, match=f"^{re.escape(expected)}$"):
        KullbackLeibler(IntRange(LearnedBitWidth(4), signed=True))


def test_other_levels():
    expected = (
        "statistic='kl' is not possible: expected another statistic: 'kl' is for integers, and the levels are e4m3fn. "
        "Write statistic='mse'."
    )
    with pytest.raises(SettingError, match=f"^{re.escape(expected)}$"):
        KullbackLeibler(E4M3)
    assert repr(KullbackLeibler(IntRange(4, signed=True))) == "KullbackLeibler(99.0)"

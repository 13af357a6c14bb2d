"""Histograms: the counts of all values at once, however they come."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitwright.graph.calibration import Histogram
from bitwright.graph.calibration.histogram import quantile


def counted(*parts, rows=1, bins=64):
    histogram = Histogram(rows, bins=bins)
    for part in parts:
        histogram.add(part)
    return histogram


def state(histogram):
    return histogram.counts, histogram.exponent, histogram.smallest, histogram.largest


def same(one, other):
    return all(torch.equal(*each) for each in zip(state(one), state(other), strict=True))


VALUES = st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=30)


@given(st.lists(VALUES, min_size=1, max_size=5), st.randoms())
def test_any_split_and_any_order_are_one_batch(parts, chance):
    whole = counted(torch.tensor([[value for part in parts for value in part]]))
    assert same(counted(*(torch.tensor([part]) for part in parts)), whole)
    chance.shuffle(parts)
    assert same(counted(*(torch.tensor([part]) for part in parts)), whole)
    assert whole.counts.sum() == sum(map(len, parts))


@given(VALUES, st.integers(-20, 20))
def test_a_power_of_two_moves_the_exponent_alone(values, power):
    values = [value if abs(value) > 1e-6 else 0.0 for value in values]
    one, other = counted(torch.tensor([values])), counted(torch.tensor([values]) * 2.0**power)
    assert torch.equal(one.counts, other.counts)
    if any(values):
        assert (other.exponent - one.exponent).item() == power


def test_bins_and_doubling():
    histogram = counted(torch.tensor([[0.9, 0.24, -0.1, 0.0]]), bins=4)
    assert histogram.edges().tolist() == [[-1, -0.75, -0.5, -0.25, 0, 0.25, 0.5, 0.75, 1]]
    assert histogram.counts.tolist() == [[0, 0, 0, 1, 2, 0, 0, 1]]
    histogram.add(torch.tensor([[-3.5]]))
    assert histogram.exponent.item() == 2
    assert histogram.counts.tolist() == [[1, 0, 0, 1, 3, 0, 0, 0]]
    assert (histogram.smallest.item(), histogram.largest.item()) == (-3.5, pytest.approx(0.9))
    assert histogram.magnitudes(signed=True).tolist() == [[4, 0, 0, 1]]
    assert histogram.magnitudes(signed=False).tolist() == [[5, 0, 0, 0]]


def test_each_row_has_a_range_of_its_own():
    histogram = counted(torch.tensor([[1.5, 0.1], [100.0, 0.0]]), torch.tensor([[7.0], [0.0]]), rows=2, bins=4)
    assert histogram.exponent.tolist() == [3, 7]
    assert histogram.counts[:, 4:].tolist() == [[2, 0, 0, 1], [2, 0, 0, 1]]
    assert (Histogram(1).bins, Histogram(2).bins) == (2048, 512)


def test_counts_go_on_beyond_what_float32_counts():
    histogram = Histogram(1)
    ones = torch.ones(1, 1 << 22)
    for _ in range(5):
        histogram.add(ones)
    histogram.add(torch.full((1, 1), 3.0))
    assert histogram.total.item() == 5 * 2**22 + 1 > 2**24
    assert histogram.counts.max().item() == 5 * 2**22


def test_values_of_zero_and_very_large_and_small_ones():
    zeros = counted(torch.zeros(1, 3))
    assert (zeros.counts.sum().item(), zeros.reach.item()) == (3, 0)
    zeros.add(torch.tensor([[3e38, -1e-38, 1e-30]]))
    assert (zeros.exponent.item(), zeros.counts.max().item(), zeros.total.item()) == (128, 4, 6)


def test_how_many_lie_below():
    histogram = counted(torch.tensor([[-1.0, 0.5, 0.5, 1.5]]), bins=4)
    assert [histogram.below(torch.tensor([end])).item() for end in (-9, -1.25, 0.5, 0.75, 1.5, 9)] == [
        0,
        0.5,
        1,
        2,
        3,
        4,
    ]


def test_quantiles():
    counts = torch.tensor([[4, 0, 2], [0, 0, 1]])
    assert quantile(counts, torch.tensor([1.0, 1.0]), torch.tensor([1.0, 2.0])).tolist() == [0.25, 6]
    assert quantile(counts, torch.tensor([5.0, 1.0]), torch.tensor([1.0, 2.0])).tolist() == [2.5, 6]

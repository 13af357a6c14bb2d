"""Places count the levels of every format in order."""

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from bitwright.qcore import BINARY, E2M1, NF4, Codebook, Integers
from bitwright.testing import quantizer_strategies as strategies
from bitwright.testing.places import Places


def test_integers_are_their_own_places():
    places = Places(Integers(4))
    x = torch.tensor([-9.5, 0.25, 3.0])
    assert (places.low, places.high) == (-8, 7)
    assert places.of(x).tolist() == places.steps(x).tolist() == x.tolist()
    assert places.gap(x).tolist() == [1, 1, 1]


def test_levels_are_counted_from_zero():
    places = Places(E2M1)
    assert (places.low, places.high) == (-7, 7)
    assert places.of(torch.tensor([-6.0, -0.5, -0.0, 0.25, 1.25, 6.0, 8.0])).tolist() == [-7, -1, 0, 0.5, 2.5, 7, 8]
    assert places.gap(torch.tensor([0.2, 2.0, 5.0, -2.0])).tolist() == [0.5, 1, 2, 1]
    assert places.nearest(torch.tensor([0.7, -4.4])).tolist() == [0.5, -4]


def test_without_zero_they_are_counted_from_the_smallest_above_it():
    assert (Places(BINARY).low, Places(BINARY).high) == (-1, 0)
    assert Places(BINARY).steps(torch.tensor([-1, 0])).tolist() == [-1, 1]
    assert (Places(Codebook((-3, -1))).low, Places(Codebook((-3, -1))).high) == (-2, -1)
    assert Places(NF4).low == -7


@given(strategies.number_formats(6), st.floats(-3, 3))
def test_there_and_back(levels, share):
    places = Places(levels)
    place = torch.tensor([share * places.high], dtype=torch.float64)
    torch.testing.assert_close(places.of(places.steps(place)), place, rtol=1e-9, atol=1e-9)
    known = sorted({level + 0.0 for level in levels.levels if math.isfinite(level)})
    assert places.steps(torch.arange(places.low, places.high + 1)).tolist() == known

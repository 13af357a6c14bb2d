"""Signal to noise."""

import math

import pytest
import torch

from bitwright.graph.measuring.signal import SignalToNoise


@pytest.mark.parametrize(
    ("floats", "quantized", "decibels"),
    [([1.0, 0.0], [0.9, 0.0], 20.0), ([1.0], [1.0], math.inf), ([1.0], [2.0], 0.0), ([0.0], [1.0], -math.inf)],
)
def test_decibels(floats, quantized, decibels):
    ratio = SignalToNoise()
    ratio.add([torch.tensor(floats)], [torch.tensor(quantized)])
    assert ratio.decibels == pytest.approx(decibels, abs=1e-5)


def test_nothing_and_what_is_not_finite():
    ratio = SignalToNoise()
    assert math.isnan(ratio.decibels)
    ratio.add([torch.ones(1)], [torch.tensor([math.nan])])
    assert ratio.decibels == -math.inf

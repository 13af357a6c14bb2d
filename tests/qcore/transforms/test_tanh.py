"""DoReFa-Net's transform."""

import math

import pytest
import torch

from bitwright.qcore import resolve
from bitwright.qcore.transforms import TRANSFORMS, Tanh
from bitwright.quantizers import Int4WeightPerTensorDoReFa

WEIGHT = torch.tensor([0.5, -2.0, 0.1])


def test_by_hand():
    expected = [math.tanh(0.5) / math.tanh(2), -1, math.tanh(0.1) / math.tanh(2)]
    assert Tanh()(WEIGHT).tolist() == pytest.approx(expected)
    assert Tanh().scheme() == "tanh"
    assert TRANSFORMS["tanh"] is Tanh


def test_nothing_and_zeros():
    assert Tanh()(torch.zeros(3)).tolist() == [0, 0, 0]
    assert Tanh()(torch.zeros(0, 3)).shape == (0, 3)


def test_levels_are_those_of_the_paper():
    """2 * round(3 * (tanh(w) / (2 * max) + 1/2)) / 3 - 1: of 2 bits -1, -1/3, 1/3 and 1."""
    weight = torch.randn(200, generator=torch.Generator().manual_seed(0))
    found = resolve(Int4WeightPerTensorDoReFa(bit_width=2), {"channel_axis": 0})(weight)
    squashed = torch.tanh(weight) / torch.tanh(weight).abs().max()
    expected = 2 * torch.round(3 * (squashed / 2 + 0.5)) / 3 - 1
    assert torch.allclose(found, expected, atol=1e-6)


def test_gradient_of_the_definition():
    weight = torch.randn(50, generator=torch.Generator().manual_seed(1), requires_grad=True)
    upstream = torch.randn(50, generator=torch.Generator().manual_seed(2))
    quant = resolve(Int4WeightPerTensorDoReFa, {"channel_axis": 0})
    (found,) = torch.autograd.grad((quant(weight) * upstream).sum(), weight)
    squashed = torch.tanh(weight)
    places = 15 * (squashed / (2 * squashed.abs().max()) + 0.5)
    levels = 2 * (places + (places.round() - places).detach()) / 15 - 1
    (expected,) = torch.autograd.grad((levels * upstream).sum(), weight)
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5)

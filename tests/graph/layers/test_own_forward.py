"""Subclasses of torch's layers that compute in their own way."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import bitwright.nn as qnn
from bitwright.graph.conversion.conversion import quantize
from bitwright.graph.layers.own_forward import quantized_subclass


class Scaled(nn.Linear):
    def forward(self, x, factor=1.0):  # type: ignore[override]
        for _ in range(50):  # so that threads meet
            weight = self.weight
        return nn.functional.linear(x, weight, self.bias) * factor  # type: ignore[misc]


def test_threads_have_their_own_weights():
    layer = quantize(Scaled(16, 16), {"weight_bit_width": 2}).eval()
    x = torch.randn(4, 16)
    with torch.no_grad(), ThreadPoolExecutor(4) as pool:
        expected = layer(x)
        found = list(pool.map(lambda _: layer(x), range(40)))
    assert all(torch.equal(each, expected) for each in found)
    assert not layer._by_thread
    assert not type(layer)._by_thread


def test_a_failing_forward_leaves_nothing_behind():
    class Failing(nn.Linear):
        def forward(self, x):  # type: ignore[override]
            assert self.weight.abs().max() > 0
            raise ValueError("no")

    layer = quantize(Failing(4, 4), {"weight_bit_width": 2})
    before = layer.weight
    for _ in range(2):
        with pytest.raises(ValueError, match=r"^no$"):
            layer(torch.ones(4))
    assert layer.weight is before


def test_weights_may_be_replaced():
    layer = quantize(Scaled(4, 4), {"weight_bit_width": 8})
    layer.weight = nn.Parameter(torch.eye(4))
    assert torch.equal(layer(torch.ones(4)), torch.ones(4) + layer.bias)
    prune.l1_unstructured(layer, "weight", amount=4)
    assert "weight" in vars(layer)
    assert layer(torch.ones(4)).shape == (4,)
    prune.remove(layer, "weight")
    assert isinstance(layer.weight, nn.Parameter)


def test_one_class_for_each_subclass():
    assert quantized_subclass(Scaled, nn.Linear, qnn.QuantLinear) is quantized_subclass(
        Scaled, nn.Linear, qnn.QuantLinear
    )

    class More(Scaled):
        pass

    assert quantized_subclass(More, nn.Linear, qnn.QuantLinear).__name__ == "QuantMore"
    layer = quantize(More(4, 4), {"weight_bit_width": 4})
    assert torch.allclose(layer(torch.ones(4), 2.0), 2 * layer(torch.ones(4)))

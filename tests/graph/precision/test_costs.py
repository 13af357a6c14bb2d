"""What layers cost: weights, bytes, bit operations."""

import pytest
import torch
from torch import nn

import bitwright.nn as qnn
from bitwright.graph import W8A8, quantize, sensitivity
from bitwright.quantizers import Int8Act, Int8WeightPerChannel, Int8WeightPerTensor, MXFloat4e2m1Weight, NVFloat4Weight


def test_a_convolution_for_one_sample():
    conv = qnn.QuantConv2d(4, 6, 3, groups=2, padding=1, input_quant=Int8Act, weight_quant=Int8WeightPerChannel)
    table = sensitivity(
        nn.Sequential(conv), torch.randn(5, 4, 8, 8), {"w4a6": {"weight_bit_width": 4, "input_bit_width": 6}}
    )
    (found,) = table
    products = 6 * 8 * 8 * 2 * 9
    assert (found.weights, found.weight_bits, found.bytes) == (108, 432.0, 54 + 6 * 4)
    assert (found.products, found.bops) == (products, products * 4 * 6)


@pytest.mark.parametrize(
    ("quantizer", "bits", "size"),
    [
        (Int8WeightPerTensor, 8, 256 + 4),
        (Int8WeightPerTensor(bit_width=3), 3, 96 + 4),
        (MXFloat4e2m1Weight, 4, 128 + 8),  # a byte of exponent for 32
        (NVFloat4Weight, 4, 128 + 16 + 4),  # a byte of E4M3 for 16, and one scale of those
        (Int8WeightPerChannel, 8, 256 + 16),
    ],
)
def test_bytes(quantizer, bits, size):
    model = nn.Sequential(qnn.QuantLinear(64, 4, bias=False))
    (found,) = sensitivity(model, torch.randn(2, 64), {"a": {"weight_quant": quantizer}})
    assert (found.bits, found.bytes) == (bits, size)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(10, 4), nn.Linear(4, 10, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens):
        return self.head(self.embedding(tokens))


def test_a_tied_weight_is_stored_once_and_agrees():
    q = quantize(
        Tied(), {nn.Embedding: {"weight_quant": Int8WeightPerTensor}, "head": {"weight_quant": Int8WeightPerTensor}}
    )
    table = sensitivity(q, torch.randint(10, (2, 3)), [4])
    assert [(each.path, each.weights, each.weight_bits) for each in table] == [
        ("embedding", 40, 160.0),
        ("head", 0, 0.0),
    ]
    assert [each.products for each in table] == [0.0, 3 * 40.0]
    assert table.groups == (("embedding", "head"),)


def test_inputs_that_the_layer_before_quantizes():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Flatten(), nn.Linear(4, 2)).eval()
    x = torch.randn(3, 4)
    q = quantize(model, {**W8A8, "input_bit_width": 6}, examples=x, placement="outputs")
    assert q[3].input_quant is None
    assert [each.bops for each in sensitivity(q, x, [4])] == [16 * 4 * 6, 8 * 4 * 6]

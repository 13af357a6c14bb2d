"""Two levels and three, in layers."""

import re

import pytest
import torch
from torch import nn

import bitwright.nn as qnn
from bitwright.qcore import BINARY, Integers, QuantizerError
from bitwright.quantizers import (
    BinaryAct,
    BinaryConnectWeight,
    BinaryWeightPerChannel,
    BinaryWeightPerTensor,
    Int8Act,
    Int32Bias,
    TernaryAct,
    TernaryWeightPerChannel,
    TernaryWeightPerTensor,
)

WEIGHT = torch.tensor([[1.0, -0.5, 0.25, 0.0], [8.0, 2.0, -2.0, -4.0]])


def layer(quantizer, **settings):
    made = qnn.QuantLinear(4, 2, bias=False, weight_quant=quantizer, **settings)
    with torch.no_grad():
        made.weight.copy_(WEIGHT)
    return made


LEVELS = {
    BinaryWeightPerTensor: [[2.21875, -2.21875, 2.21875, 2.21875], [2.21875, 2.21875, -2.21875, -2.21875]],
    BinaryWeightPerChannel: [[0.4375, -0.4375, 0.4375, 0.4375], [4, 4, -4, -4]],
    BinaryConnectWeight: [[1, -1, 1, 1], [1, 1, -1, -1]],
    TernaryWeightPerTensor: [[0, 0, 0, 0], [4, 4, -4, -4]],
    TernaryWeightPerChannel: [[0.75, -0.75, 0, 0], [6, 0, 0, -6]],
}
GRADIENTS = {  # of the sum of the outputs for ones; XNOR's is its scale up to a magnitude of 1, and the scale's own
    BinaryWeightPerTensor: [[2.46875, 1.96875, 2.46875, 2.46875], [0.25, 0.25, -0.25, -0.25]],
    BinaryWeightPerChannel: [[0.9375, -0.0625, 0.9375, 0.9375], [0, 0, 0, 0]],
    BinaryConnectWeight: [[1, 1, 1, 1], [0, 0, 0, 0]],
    TernaryWeightPerTensor: [[1] * 4] * 2,
    TernaryWeightPerChannel: [[1] * 4] * 2,
}


@pytest.mark.parametrize("quantizer", LEVELS, ids=repr)
def test_levels_and_gradients(quantizer):
    module = layer(quantizer)
    assert module.quant_weight().value.tolist() == LEVELS[quantizer]
    module(torch.ones(1, 4)).sum().backward()
    assert module.weight.grad.tolist() == GRADIENTS[quantizer]


def test_codes():
    assert layer(BinaryWeightPerTensor).quant_weight().int().tolist() == [[1, 0, 1, 1], [1, 1, 0, 0]]
    assert layer(BinaryWeightPerTensor).quant_weight().grid.number_format == BINARY
    ternary = layer(TernaryWeightPerChannel)
    assert ternary.int_weight().tolist() == [[1, -1, 0, 0], [1, 0, 0, -1]]
    assert ternary.quant_weight().grid.number_format == Integers(2, narrow_range=True)
    expected = "int2 narrow, axis 0, float scale, ternary above 0.7 of the mean"
    assert ternary.weight_quant.scheme() == expected


def test_another_threshold():
    assert layer(TernaryWeightPerTensor, weight_ternary_threshold=0.05).int_weight().tolist() == [
        [1, -1, 1, 0],
        [1, 1, -1, -1],
    ]


def test_ternary_weights_are_integers_for_biases():
    module = qnn.QuantLinear(
        4, 2, weight_quant=TernaryWeightPerChannel, bias_quant=Int32Bias, input_quant=Int8Act, input_scale=0.5
    )
    module(torch.ones(1, 4))
    assert torch.equal(module.quant_bias().scale, 0.5 * module.quant_weight().scale.reshape(-1))


def test_stochastic_binary_connect_is_a_hard_sigmoid():
    weight = torch.tensor([-1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5])
    module = qnn.QuantLinear(7, 4000, weight_quant=BinaryConnectWeight, weight_rounding="stochastic", weight_seed=0)
    with torch.no_grad():
        module.weight.copy_(weight.expand(4000, 7))
    assert module.weight_quant is not None
    ups = (module.weight_quant(module.weight) > 0).double().mean(0)
    torch.testing.assert_close(ups, ((weight.double() + 1) / 2).clamp(0, 1), rtol=0, atol=0.04)


@pytest.mark.parametrize(
    ("quantizer", "values", "gradient"),
    [
        (BinaryAct, [-1, -1, 1, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1, 0]),
        (TernaryAct, [-1, -1, 0, 0, 1, 1, 1], [0, 1, 1, 1, 1, 1, 1]),
    ],
)
def test_activations(quantizer, values, gradient):
    x = torch.tensor([-2.0, -1.0, -0.0, 0.0, 0.75, 1.0, 1.25], requires_grad=True)
    y = qnn.QuantIdentity(act_quant=quantizer, return_quant_tensor=True)(x)
    y.value.sum().backward()
    assert y.is_valid
    assert y.value.tolist() == values
    assert x.grad.tolist() == gradient


@pytest.mark.parametrize("quantizer", [BinaryAct, TernaryAct], ids=repr)
def test_activations_train(quantizer):
    torch.manual_seed(0)
    x = torch.randn(256, 8)
    labels = (x[:, 0] * x[:, 1] > 0).long()
    model = nn.Sequential(
        *(nn.Linear(8, 64), nn.BatchNorm1d(64), qnn.QuantIdentity(act_quant=quantizer)),
        *(qnn.QuantLinear(64, 64, weight_quant=BinaryWeightPerTensor), nn.BatchNorm1d(64)),
        *(qnn.QuantIdentity(act_quant=quantizer), nn.Linear(64, 2)),
    )
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), labels).backward()
        optimizer.step()
    assert (model(x).argmax(1) == labels).double().mean() > 0.9


@pytest.mark.parametrize("kind", [qnn.QuantReLU, qnn.QuantReLU6])
def test_no_signs_after_a_relu(kind):
    message = (
        f"{kind.__name__}(): the levels of act_quant are binary, and after a ReLU all values go to one of them, 1. "
        "Write QuantIdentity(act_quant=BinaryAct), behind a batch norm."
    )
    with pytest.raises(QuantizerError, match=f"^{re.escape(message)}$"):
        kind(act_quant=BinaryAct)
    assert kind(act_quant=TernaryAct)(torch.tensor([-3.0, 3.0])).tolist() == [0, 1]

from typing import Any

import pytest
import torch
from torch import nn

import bitwright.nn as qnn
from bitwright.qcore import WeightNorm
from bitwright.quantizers import Int8WeightPerChannelLearned, Int8WeightPerChannelNorm

LAYERS = {
    "linear": lambda quant: qnn.QuantLinear(12, 4, weight_quant=quant),
    "conv": lambda quant: qnn.QuantConv2d(4, 6, 3, groups=2, weight_quant=quant),
    "transposed": lambda quant: qnn.QuantConvTranspose2d(4, 6, 3, weight_quant=quant),
    "transposed groups": lambda quant: qnn.QuantConvTranspose2d(4, 6, 3, groups=2, weight_quant=quant),
}
INPUTS = {"linear": (3, 12)}


def test_direction_and_length() -> None:
    norm = WeightNorm(channel_axis=0, channels=1)
    assert norm(torch.tensor([[3.0, -4.0]]), None).tolist() == [[3.0, -4.0]]
    assert norm(torch.tensor([[0.0, 2.0]]), None).tolist() == [[0.0, 5.0]]
    assert norm.norm.magnitude_offset is not None
    with torch.no_grad():
        norm.norm.magnitude_offset.fill_(1.0)
    assert norm(torch.tensor([[0.0, 2.0]]), None).tolist() == [[0.0, 10.0]]
    assert norm.scheme() == "L2 norm"


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("layer", LAYERS)
def test_at_the_start_it_is_the_plain_quantizer(layer: str, order: int) -> None:
    found = LAYERS[layer](Int8WeightPerChannelNorm(norm_order=order))
    plain = LAYERS[layer](Int8WeightPerChannelLearned)
    plain.load_state_dict({"weight": found.weight, "bias": found.bias}, strict=False)
    x = torch.randn(INPUTS.get(layer, (2, 4, 5, 5)))
    for training in (False, True, True):  # before there is training, and in its first steps
        assert torch.equal(found.train(training)(x), plain.train(training)(x))
    assert torch.equal(found.eval().int_weight(), plain.eval().int_weight())


def test_gradient_is_that_of_the_normalized_weight() -> None:
    layer = qnn.QuantLinear(6, 2, weight_quant=Int8WeightPerChannelNorm)
    layer(torch.randn(4, 6)).square().sum().backward()
    quant: Any = layer.weight_quant
    assert layer.weight.grad is not None
    along = (layer.weight.grad * layer.weight).sum(1)  # a length of the weight itself changes nothing
    assert torch.allclose(along, torch.zeros(2), atol=1e-4)
    assert (quant.transform.norm.magnitude_offset.grad != 0).all()
    assert (quant.scaling.magnitude_offset.grad != 0).all()


def test_zeros_and_second_derivatives() -> None:
    layer = qnn.QuantLinear(6, 2, weight_quant=Int8WeightPerChannelNorm)
    nn.init.zeros_(layer.weight)
    layer(torch.randn(4, 6)).square().sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.isfinite().all()
    assert (layer.quant_weight() == 0).all()
    norm = WeightNorm(channel_axis=0, channels=1).double()
    weight = torch.tensor([[1.0, -2.0, 0.5]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda w: norm(w, None).square(), weight)

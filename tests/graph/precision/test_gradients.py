"""gradient_noise: how far straight-through gradients are from the float ones."""

import re

import pytest
import torch
from torch import nn

import bitwright.nn as qnn
from bitwright.graph import GraphError, gradient_noise
from bitwright.quantizers import Int8WeightPerTensor


def model():
    """Two layers of one weight each."""
    layers = [qnn.QuantLinear(1, 1, bias=False, weight_quant=Int8WeightPerTensor, weight_scale=1.0) for _ in range(2)]
    layers[0].weight.data.fill_(3.0)
    layers[1].weight.data.fill_(1.6)
    return nn.Sequential(*layers)


def squared(out, batch):
    return out.square().sum() / 2


def test_by_hand():
    """For half the square of u v x, the derivative by u is u v v x x; v is 1.6 and becomes 2, u stays 3."""
    found = gradient_noise(model(), torch.ones(1, 1), loss=squared)
    assert found["0.weight_quant"] == float("inf")
    # by v it is u u v: 14.4 and 18
    assert found["1.weight_quant"] == pytest.approx(20 * torch.tensor(14.4 / 3.6).log10().item(), abs=1e-3)
    assert found.worst == ("1.weight_quant", "0.weight_quant")
    assert str(found).splitlines() == [
        "quantizer       gradient",
        "0.weight_quant     exact",
        "1.weight_quant      12.0",
    ]
    assert list(found.as_dict()) == list(found) == ["0.weight_quant", "1.weight_quant"]


def test_clipped_values_have_no_gradient():
    layer = nn.Sequential(qnn.QuantIdentity(scale=0.5, bit_width=2))
    found = gradient_noise(layer, torch.tensor([[0.5, 9.0]]))
    assert found["0.act_quant"] == pytest.approx(10 * torch.tensor(2.0).log10().item(), abs=1e-4)


def test_a_loss_is_a_function():
    said = (
        "gradient_noise: loss='mse' is not possible: expected a function of what the model returned and the batch, "
        "such as lambda output, batch: F.cross_entropy(output, batch[1])."
    )
    with pytest.raises(GraphError, match=f"^{re.escape(said)}$"):
        gradient_noise(nn.Sequential(qnn.QuantLinear(1, 1)), torch.ones(1, 1), loss="mse")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (5, "gradient_noise: 5 is not a model. Pass a torch.nn.Module, such as qnn.QuantLinear(8, 4)."),
        (
            nn.Sequential(nn.Linear(1, 1)),
            "gradient_noise: this Sequential has no quantizers. Pass a quantized model: quantize(model, W8A8).",
        ),
    ],
)
def test_what_is_refused(given, message):
    with pytest.raises(GraphError, match=f"^{re.escape(message)}$"):
        gradient_noise(given, torch.ones(1, 1))

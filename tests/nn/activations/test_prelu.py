"""The activation function with slopes."""

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import bitwright.nn as qnn
from bitwright.graph import GraphError, quantize
from bitwright.qcore import QuantizerError
from bitwright.quantizers import Int8Act, Int8WeightPerChannel, Int8WeightPerTensorLearned


@given(
    st.integers(1, 4),
    st.floats(-2, 2),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    st.integers(1, 3),
)
def test_without_quantizers_it_is_torchs(parameters, init, dtype, dims):
    made = (parameters, init, None, dtype)
    ours, torchs = qnn.QuantPReLU(*made, act_quant=None, weight_quant=None), nn.PReLU(*made)
    ours.load_state_dict(torchs.state_dict(), strict=True)
    x = torch.randn(2, parameters, *[3] * (dims - 1)).to(dtype)
    assert torch.equal(ours(x), torchs(x))


def test_slopes_are_quantized():
    layer = qnn.QuantPReLU(3, weight_bit_width=4, act_quant=None)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([0.7, 0.32, 0.0]))
    out = layer(torch.full((1, 3), -2.0))
    torch.testing.assert_close(out, torch.tensor([[-1.4, -0.6, 0.0]]))
    layer = qnn.QuantPReLU(2, 0.3, weight_quant=Int8WeightPerChannel)
    assert layer.weight_quant.grid(layer.weight).scale.shape == (2,)


def test_settings_reach_their_quantizers():
    layer = qnn.QuantPReLU(bit_width=4, input_quant=Int8Act, input_bit_width=5, weight_bit_width=6)
    assert (layer.act_quant.bit_width, layer.input_quant.bit_width, layer.weight_quant.bit_width) == (4, 5, 6)
    layer.weight_quant = Int8WeightPerTensorLearned
    layer.load_state_dict(nn.PReLU(init=0.5).state_dict(), strict=True)
    assert layer.take("weight")[0].item() == 0.5


@pytest.mark.parametrize(
    ("keywords", "text"),
    [
        (
            {"weight_quant": None, "weight_bit_width": 4},
            "QuantPReLU(num_parameters=1): weight_bit_width=4 is given, but weight_quant is None. Write "
            "weight_quant=Int8WeightPerTensor too, or leave weight_bit_width out.",
        ),
        (
            {"output_bit_width": 4},
            "QuantPReLU(num_parameters=1): output_bit_width=4 is for no quantizer of this layer. An activation layer "
            "has one set of keywords: settings take no prefix. Did you mean bit_width=4?",
        ),
        (
            {"act_quant": None, "input_quant": Int8Act, "return_quant_tensor": True},
            "QuantPReLU(num_parameters=1): return_quant_tensor=True needs act_quant, which is None. Write "
            "act_quant=Int8Act.",
        ),
    ],
)
def test_what_is_refused(keywords, text):
    with pytest.raises(QuantizerError, match=f"^{re.escape(text)}$"):
        qnn.QuantPReLU(**keywords)


class Own(nn.PReLU):
    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return super().forward(input) + 1


def test_rules():
    model = quantize(nn.Sequential(nn.PReLU(2)), {nn.PReLU: {"weight_bit_width": 4, "act_quant": Int8Act}})
    assert type(model[0]) is qnn.QuantPReLU
    assert model[0].weight_quant.bit_width == 4
    with pytest.raises(GraphError, match=re.escape("Own computes in its own way, which QuantPReLU can't run.")):
        quantize(nn.Sequential(Own()), {nn.PReLU: {}})

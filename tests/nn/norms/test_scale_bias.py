"""Factor and offset of each channel, out of a batch norm or by themselves."""

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import bitwright.nn as qnn
from bitwright.nn.norms.scale_bias import scale_and_bias
from bitwright.qcore import QuantizerError, QuantTensor
from bitwright.quantizers import Int8Act, Int8ActPerChannel, Int8BiasOwnScale, Int8WeightPerChannel, Int32Bias


def message(text):
    return f"^{re.escape(text)}$"


def trained(**made):
    norm = nn.BatchNorm2d(3, **made)
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.copy_(torch.tensor([1.5, -0.5, 2.0]))
        if norm.running_var is not None:
            norm.running_mean.copy_(torch.tensor([0.5, -1.0, 2.0]))
            norm.running_var.copy_(torch.tensor([4.0, 0.25, 1.0]))
    return norm.eval()


def test_factor_and_offset():
    mean, var = torch.tensor([2.0, -1.0]), torch.tensor([0.25, 4.0])
    factor, offset = scale_and_bias(mean, var, 0.0, None, None)
    assert (factor.tolist(), offset.tolist()) == ([2.0, 0.5], [-4.0, 0.5])
    factor, offset = scale_and_bias(mean, var, 0.0, torch.tensor([3.0, 1.0]), torch.tensor([1.0, 0.0]))
    assert (factor.tolist(), offset.tolist()) == ([6.0, 0.5], [-11.0, 0.5])


@given(st.floats(1e-6, 1.0), st.booleans())
def test_it_becomes_the_batch_norm_whose_state_it_loads(eps, affine):
    norm = trained(eps=eps, affine=affine)
    layer = qnn.QuantScaleBias(3, eps=eps, weight_quant=None)
    keys = list(layer.state_dict())
    file = norm.state_dict()
    layer.load_state_dict(file, strict=True)
    x = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(layer(x), norm(x))
    assert "running_mean" in file  # the caller's dict is left as it was
    assert list(layer.state_dict()) == keys


def test_in_a_model_and_as_a_layer():
    norm = trained(eps=1e-3)
    layer = qnn.QuantScaleBias.from_batch_norm(norm, weight_quant=Int8WeightPerChannel)
    x = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(layer(x), norm(x))
    model = nn.Sequential(nn.Conv2d(3, 3, 1), qnn.QuantScaleBias(3, eps=1e-3))
    file = nn.Sequential(nn.Conv2d(3, 3, 1), norm).state_dict()
    model.load_state_dict(file, strict=True)
    assert torch.equal(model[1].weight, layer.weight)
    again = qnn.QuantScaleBias(3, weight_quant=Int8WeightPerChannel)
    again.load_state_dict(layer.state_dict(), strict=True)  # its own file is taken as it is
    assert torch.equal(again.weight, layer.weight)
    quantized = qnn.QuantBatchNorm2d(3, eps=1e-3)
    quantized.load_state_dict(norm.state_dict())
    assert torch.equal(qnn.QuantScaleBias.from_batch_norm(quantized).weight, layer.weight)


def test_it_learns_its_scale_from_the_loaded_state():
    layer = qnn.QuantScaleBias(3, weight_scaling="learned")
    layer(torch.ones(1, 3))
    layer.load_state_dict(trained(eps=0.0).state_dict(), strict=True)
    assert layer.int_weight().tolist() == [48, -63, 127]


def test_the_grid_of_the_products():
    layer = qnn.QuantScaleBias(
        2, weight_scale=0.5, bias_quant=Int32Bias, input_quant=Int8Act(scale=0.25), return_quant_tensor=True
    )
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([1.5, -1.0]))
        layer.bias.copy_(torch.tensor([0.5, 0.25]))
    out = layer(torch.tensor([[1.0, 2.0]]))
    assert isinstance(out, QuantTensor)
    assert out.scale.item() == 0.125
    assert out.int().tolist() == [[16, -14]]
    assert layer.output_bit_width == 33


def test_channels_of_their_own_scale():
    layer = qnn.QuantScaleBias(3, weight_quant=Int8WeightPerChannel, bias_quant=Int32Bias, return_quant_tensor=True)
    layer.load_state_dict(trained().state_dict(), strict=True)
    x = qnn.QuantIdentity(act_quant=Int8ActPerChannel, return_quant_tensor=True)(torch.randn(2, 3, 4))
    out = layer(x)
    assert out.is_valid
    assert out.scale.shape == (1, 3, 1)


def test_a_layer_scale_along_the_last_dimension():
    layer = qnn.QuantScaleBias(4, bias=False, dim=-1, weight_bit_width=4, input_quant=Int8Act, return_quant_tensor=True)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([0.7, -0.32, 0.1, 0.0]))
    x = torch.randn(2, 3, 4)
    out = layer(x)
    assert out.is_valid
    assert layer.input_quant is not None
    torch.testing.assert_close(out.value, layer.input_quant(x) * torch.tensor([0.7, -0.3, 0.1, 0.0]))
    assert str(layer).startswith("QuantScaleBias(\n  4, bias=False, dim=-1, return_quant_tensor=True")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions(dtype):
    layer = qnn.QuantScaleBias(3, dtype=dtype)
    assert layer(torch.ones(1, 3, dtype=dtype)).dtype == dtype


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (
            lambda: qnn.QuantScaleBias(3, bias=False, bias_quant=Int8BiasOwnScale),
            "QuantScaleBias(3, bias=False): bias_quant=Int8BiasOwnScale is given, but there is no bias. Write "
            "bias=True, or leave bias_quant out.",
        ),
        (
            lambda: qnn.QuantScaleBias(3, return_quant_tensor=True, bias=False)(torch.ones(1, 3)),
            "QuantScaleBias: return_quant_tensor=True needs a quantized input, and the input is a plain tensor. Set "
            "return_quant_tensor=True on the layer before. If it is set, an operation in between has left the grid, "
            "such as average pooling or an activation function of torch's: put QuantIdentity(return_quant_tensor=True) "
            "behind it. Or give this layer input_quant=Int8Act, or output_quant=Int8Act.",
        ),
        (
            lambda: qnn.QuantScaleBias(3)(torch.ones(1, 4)),
            "QuantScaleBias: the input has the shape (1, 4), and dimension 1 should count 3 channels.",
        ),
        (
            lambda: qnn.QuantScaleBias(3, dim=2)(torch.ones(1, 3)),
            "QuantScaleBias: the input has the shape (1, 3), and dimension 2 should count 3 channels.",
        ),
        (
            lambda: qnn.QuantScaleBias.from_batch_norm(nn.BatchNorm1d(2, track_running_stats=False)),
            f"QuantScaleBias.from_batch_norm: {nn.BatchNorm1d(2, track_running_stats=False)} keeps no running "
            "statistics, so that its factors are those of each batch. Write nn.BatchNorm1d(..., "
            "track_running_stats=True).",
        ),
    ],
)
def test_what_is_refused(make, text):
    with pytest.raises(QuantizerError, match=message(text)):
        make()


def test_an_offset_needs_a_bias():
    with pytest.raises(RuntimeError, match=re.escape('Unexpected key(s) in state_dict: "bias"')):
        qnn.QuantScaleBias(3, bias=False).load_state_dict(trained().state_dict(), strict=True)

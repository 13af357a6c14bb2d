"""Norms over the features of a sample: torch's over its argument space, quantized parameters, what is refused."""

import re

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import bitwright.nn as qnn
from bitwright.graph import quantize
from bitwright.qcore import QuantizerError, QuantTensor
from bitwright.quantizers import (
    Int4WeightPerGroup,
    Int4WeightPerTensor,
    Int8Act,
    Int8BiasOwnScale,
    Int8WeightPerTensor,
    Int32Bias,
)

DTYPES = st.sampled_from([torch.float32, torch.float64, torch.bfloat16])


def message(text):
    return f"^{re.escape(text)}$"


def alike(ours, torchs, x):
    """The same outputs and gradients, with the parameters of one in the other."""
    with torch.no_grad():
        for parameter in torchs.parameters():
            parameter.add_(torch.linspace(-1, 1, parameter.numel()).reshape(parameter.shape))
    ours.load_state_dict(torchs.state_dict(), strict=True)
    outs, grads = [], []
    for module in (ours, torchs):
        y = x.clone().requires_grad_()
        out = module(y)
        out.float().square().sum().backward()
        outs.append(out)
        grads.append([y.grad, *(each.grad for each in module.parameters())])
    assert torch.equal(*outs)
    assert all(torch.equal(one, other) for one, other in zip(*grads, strict=True))


SHAPES = st.lists(st.integers(1, 4), min_size=1, max_size=3)


@given(SHAPES, st.floats(1e-6, 1.0), st.booleans(), st.booleans(), DTYPES)
def test_layer_norm_without_quantizers_is_torchs(shape, eps, affine, bias, dtype):
    made = (shape, eps, affine, bias, None, dtype)
    alike(qnn.QuantLayerNorm(*made, weight_quant=None), nn.LayerNorm(*made), torch.randn(2, 3, *shape, dtype=dtype))


@given(SHAPES, st.none() | st.floats(1e-6, 1.0), st.booleans(), DTYPES)
def test_rms_norm_without_quantizers_is_torchs(shape, eps, affine, dtype):
    made = (shape, eps, affine, None, dtype)
    alike(qnn.QuantRMSNorm(*made, weight_quant=None), nn.RMSNorm(*made), torch.randn(2, 3, *shape, dtype=dtype))


@given(st.integers(1, 3), st.integers(1, 3), st.floats(1e-6, 1.0), st.booleans(), SHAPES, DTYPES)
def test_group_norm_without_quantizers_is_torchs(groups, size, eps, affine, shape, dtype):
    made = (groups, groups * size, eps, affine, None, dtype)
    x = torch.randn(2, groups * size, *shape, 2, dtype=dtype)
    alike(qnn.QuantGroupNorm(*made, weight_quant=None), nn.GroupNorm(*made), x)


def test_parameters_are_quantized():
    norm = qnn.QuantLayerNorm(4, weight_bit_width=4, bias_quant=Int8BiasOwnScale)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.7, -0.32, 0.1, 0.0]))
        norm.bias.copy_(torch.tensor([1.27, -0.004, 0.016, 0.0]))
    assert norm.int_weight().tolist() == [7, -3, 1, 0]
    assert norm.int_bias().tolist() == [127, 0, 2, 0]
    x = torch.randn(3, 4)
    expected = F.layer_norm(x, (4,), norm.quant_weight().value, norm.quant_bias().value)
    assert torch.equal(norm(x), expected)
    assert torch.equal(norm.eval()(x), expected)


@pytest.mark.parametrize(
    ("norm", "arguments", "function"),
    [
        (qnn.QuantLayerNorm, (8,), lambda x, weight: F.layer_norm(x, (8,), weight)),
        (qnn.QuantRMSNorm, (8,), lambda x, weight: F.rms_norm(x, (8,), weight)),
        (qnn.QuantGroupNorm, (2, 8), lambda x, weight: F.group_norm(x, 2, weight)),
    ],
)
def test_every_slot(norm, arguments, function):
    layer = norm(
        *arguments,
        weight_bit_width=3,
        input_quant=Int8Act,
        input_scale=0.25,
        output_quant=Int8Act,
        output_scale=0.125,
        return_quant_tensor=True,
    )
    with torch.no_grad():
        layer.weight.copy_(torch.linspace(-1, 2, 8))
    x = torch.randn(3, 8)
    out = layer(x)
    assert isinstance(out, QuantTensor)
    on = function((x / 0.25).round().clamp(-128, 127) * 0.25, layer.quant_weight().value)
    assert torch.equal(out.int().float(), (on / 0.125).round().clamp(-128, 127))
    assert torch.equal(layer(layer.input_quant(x)).value, out.value)  # an input on the grid stays there


def test_groups_run_along_the_last_dimension():
    norm = qnn.QuantLayerNorm(8, weight_quant=Int4WeightPerGroup, weight_group_size=4)
    assert norm.quant_weight().scale.shape == (2,)
    matrix = qnn.QuantLayerNorm((2, 8), weight_quant=Int4WeightPerGroup, weight_group_size=4)
    assert matrix.quant_weight().scale.shape == (2, 2)


@pytest.mark.parametrize(
    ("norm", "arguments", "flag"),
    [
        (qnn.QuantLayerNorm, (8,), "elementwise_affine"),
        (qnn.QuantRMSNorm, (8,), "elementwise_affine"),
        (qnn.QuantGroupNorm, (2, 8), "affine"),
    ],
)
def test_without_parameters(norm, arguments, flag):
    layer = norm(*arguments, **{flag: False}, input_quant=Int8Act)
    assert layer.weight is None
    assert layer.weight_quant is None
    described = str(layer).split("\n")[1].strip()
    layer(torch.randn(2, 8))
    for keyword, given_ in (("weight_quant", Int4WeightPerTensor), ("weight_bit_width", 4)):
        text = (
            f"{norm.__name__}({described}): {keyword}={given_!r} is given, but there is no weight. Write {flag}=True, "
            f"or leave {keyword} out."
        )
        with pytest.raises(QuantizerError, match=message(text)):
            norm(*arguments, **{flag: False}, **{keyword: given_})
    with pytest.raises(QuantizerError, match=re.escape("but there is no weight")):
        layer.weight_quant = Int8WeightPerTensor
    assert layer.weight_quant is None


NORM = f"Quant{nn.LayerNorm(8)}: "


@pytest.mark.parametrize(
    ("keywords", "text"),
    [
        (
            {"bias_quant": Int32Bias},
            NORM + "Int32Bias lies on the scale of products, input scale x weight scale, and this layer multiplies "
            "floats. Write bias_quant=Int8BiasOwnScale.",
        ),
        (
            {"return_quant_tensor": True},
            NORM + "return_quant_tensor=True needs outputs that lie on a grid, and this layer computes in floats. Set "
            "output_quant=Int8Act to quantize the output.",
        ),
        (
            {"weight_axis": 3},
            NORM + "weight_axis=3 is not a dimension of the weight, which has 1. Write weight_axis=0 for one scale for "
            "each output channel, or weight_axis=None for one scale.",
        ),
        (
            {"weight_quant": Int4WeightPerGroup, "weight_group_axis": 2},
            NORM + "weight_group_axis=2 is not a dimension of the weight, which has 1. Write weight_group_axis=0.",
        ),
        (
            {"bias": False, "bias_quant": Int8BiasOwnScale},
            f"Quant{nn.LayerNorm(8, bias=False)}: bias_quant=Int8BiasOwnScale is given, but there is no bias. Write "
            "bias=True, or leave bias_quant out.",
        ),
        (
            {"elementwise_affine": False, "bias_quant": Int8BiasOwnScale},
            f"Quant{nn.LayerNorm(8, elementwise_affine=False)}: bias_quant=Int8BiasOwnScale is given, but there is no "
            "bias. Write elementwise_affine=True, or leave bias_quant out.",
        ),
        ({"elementwise_affine": 1}, "QuantLayerNorm: elementwise_affine=1 is not possible: expected True or False."),
    ],
)
def test_what_is_refused(keywords, text):
    with pytest.raises(QuantizerError, match=message(text)):
        qnn.QuantLayerNorm(8, **keywords)


def test_there_is_no_bias_in_an_rms_norm():
    norm = qnn.QuantRMSNorm(4)
    assert norm.quant_bias() is None
    assert norm.int_bias() is None
    with pytest.raises(QuantizerError, match=re.escape("keywords start with one of weight_, input_, output_, grad_.")):
        qnn.QuantRMSNorm(4, bias_quant=Int8BiasOwnScale)


def test_nested_tensors_are_refused():
    x = torch.nested.nested_tensor([torch.ones(2, 4), torch.ones(3, 4)], layout=torch.jagged)
    text = (
        "QuantLayerNorm: the input is a nested tensor, which can't be quantized. Pad it, x.to_padded_tensor(0.0); if "
        "nn.TransformerEncoder made it, write enable_nested_tensor=False there."
    )
    with pytest.raises(QuantizerError, match=message(text)):
        qnn.QuantLayerNorm(4)(x)


class ChannelsFirst(nn.LayerNorm):
    """A subclass with a forward of its own, as ConvNeXt has."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return super().forward(input.movedim(1, -1)).movedim(-1, 1)


class Doubled(nn.RMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def test_subclasses_with_their_own_forward():
    norm = ChannelsFirst(4)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.7, -0.32, 0.1, 0.0]))
    model = quantize(nn.Sequential(norm), {nn.LayerNorm: {"weight_bit_width": 4}})
    x = torch.randn(2, 4, 3)
    expected = F.layer_norm(x.movedim(1, -1), (4,), torch.tensor([0.7, -0.3, 0.1, 0.0]), norm.bias).movedim(-1, 1)
    torch.testing.assert_close(model(x), expected)
    model = quantize(nn.Sequential(Doubled(4)), {nn.RMSNorm: {}})
    torch.testing.assert_close(model(x[..., :1].mT), 2 * F.rms_norm(x[..., :1].mT, (4,)))


def test_rules():
    model = nn.Sequential(nn.LayerNorm(4), nn.RMSNorm(4), nn.LayerNorm(4, elementwise_affine=False))
    x = torch.randn(3, 4)
    quantized = quantize(model, {nn.LayerNorm: {"output_quant": Int8Act, "output_scale": 0.5}, nn.RMSNorm: {}})
    assert [type(each).__name__ for each in quantized] == ["QuantLayerNorm", "QuantRMSNorm", "QuantLayerNorm"]
    assert torch.equal(quantized[0](x), (F.layer_norm(x, (4,)) * 2).round() / 2)
    assert quantized[2].weight_quant is None


def test_torchs_encoder_calls_its_norms():
    torch.manual_seed(0)
    encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0).eval()
    with torch.no_grad():
        encoder.norm1.weight.copy_(torch.linspace(0.1, 3, 8))
    expected = encoder(torch.randn(1, 3, 8, generator=torch.Generator().manual_seed(0)))
    norm = qnn.QuantLayerNorm(8, weight_bit_width=2)
    norm.load_state_dict(encoder.norm1.state_dict())
    encoder.norm1 = norm
    x = torch.randn(1, 3, 8, generator=torch.Generator().manual_seed(0))
    slow = encoder(x)
    with torch.no_grad():
        fast = encoder.eval()(x)
    torch.testing.assert_close(fast, slow)
    assert (fast - expected).abs().max() > 0.1

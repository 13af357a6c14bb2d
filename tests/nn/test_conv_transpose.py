"""Quantized transposed convolutions: the channels of their weight run over dimension 1, once for each group."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import bitwright.nn as qnn
from bitwright.quantizers import (
    Int8Act,
    Int8WeightPerChannel,
    Int8WeightPerTensor,
    Int32Bias,
    ShiftedUint8Act,
    ShiftedUint8WeightPerChannel,
    ShiftedUint8WeightPerTensor,
    Uint8Act,
)

CONVS = {
    1: (qnn.QuantConvTranspose1d, nn.ConvTranspose1d),
    2: (qnn.QuantConvTranspose2d, nn.ConvTranspose2d),
    3: (qnn.QuantConvTranspose3d, nn.ConvTranspose3d),
}

ARGUMENTS = {
    "kernel": {"kernel_size": 3},
    "stride": {"kernel_size": 2, "stride": 2},
    "stride, padding, output padding": {"kernel_size": 3, "stride": 2, "padding": 1, "output_padding": 1},
    "dilation": {"kernel_size": 3, "dilation": 2},
    "stride and dilation": {"kernel_size": 3, "dilation": 2, "stride": 3},
    "groups": {"kernel_size": 3, "groups": 2},
    "depthwise": {"kernel_size": 3, "groups": 4},
    "no bias": {"kernel_size": 2, "stride": 2, "bias": False, "groups": 2},
}

WEIGHTS = [
    Int8WeightPerTensor,
    Int8WeightPerChannel,
    Int8WeightPerChannel(bit_width=4),
    ShiftedUint8WeightPerTensor,
    ShiftedUint8WeightPerChannel,
]
INPUTS = {
    "signed": Int8Act(scale=0.1),
    "unsigned": Uint8Act(scale=0.05),
    "zero point": ShiftedUint8Act(calibration_steps=1),
}


def offset(x):
    """Integers as they are multiplied, in a type that holds every sum exactly."""
    return x.int().double() - x.zero_point.double()


@pytest.mark.parametrize("dims", CONVS)
@pytest.mark.parametrize("weight_quant", [Int8WeightPerTensor, Int8WeightPerChannel(bit_width=4)], ids=repr)
@pytest.mark.parametrize("arguments", ARGUMENTS.values(), ids=ARGUMENTS)
def test_computes_what_torch_computes_with_the_quantized_weight(arguments, weight_quant, dims):
    torch.manual_seed(0)
    layer = CONVS[dims][0](4, 8, weight_quant=weight_quant, **arguments)
    made = CONVS[dims][1](4, 8, **arguments)
    with torch.no_grad():
        made.weight.copy_(layer.quant_weight().value)
        if made.bias is not None:
            made.bias.copy_(layer.bias)
    x = torch.randn(2, 4, *[5] * dims)
    assert torch.equal(layer(x), made(x))
    assert torch.equal(layer.eval()(x), made(x))


@pytest.mark.parametrize("dims", CONVS)
def test_scales_run_over_output_channels(dims):
    layer = CONVS[dims][0](4, 6, 3, groups=2, weight_quant=Int8WeightPerChannel)
    assert layer.quant_weight().scale.shape == (1, 3, *[1] * dims)
    torch.testing.assert_close(
        layer.quant_weight().scale.reshape(-1), layer.weight.detach().transpose(0, 1).flatten(1).abs().amax(1) / 127
    )


@pytest.mark.parametrize("dims", CONVS)
@pytest.mark.parametrize("arguments", ARGUMENTS.values(), ids=ARGUMENTS)
@pytest.mark.parametrize("weight_quant", WEIGHTS, ids=repr)
@pytest.mark.parametrize("inputs", INPUTS)
def test_the_outputs_integers_are_sums_of_products(inputs, weight_quant, arguments, dims):
    torch.manual_seed(0)
    quantized_class, torch_class = CONVS[dims]
    act = qnn.QuantIdentity(act_quant=INPUTS[inputs], return_quant_tensor=True)
    has_bias = arguments.get("bias", True)
    layer = quantized_class(
        4,
        8,
        weight_quant=weight_quant,
        bias_quant=Int32Bias if has_bias else None,
        return_quant_tensor=True,
        **arguments,
    )
    x = act(torch.randn(2, 4, *[4] * dims) * 2)
    out = layer(x)
    exact = torch_class(4, 8, **arguments).double()
    with torch.no_grad():
        exact.weight.copy_(offset(layer.quant_weight()))
        if has_bias:
            exact.bias.copy_(layer.int_bias())
        expected = exact(offset(x))
    assert torch.equal(out.int().double(), expected)
    assert out.is_valid
    assert out.bit_width == layer.output_bit_width
    scale = layer.quant_weight().scale.reshape(-1)
    groups = arguments.get("groups", 1) if scale.numel() > 1 else 1
    torch.testing.assert_close(out.scale.reshape(-1), (x.scale * scale).repeat(groups))


@pytest.mark.parametrize("dims", CONVS)
def test_inputs_without_a_batch(dims):
    torch.manual_seed(0)
    act = qnn.QuantIdentity(scale=0.1, return_quant_tensor=True)
    layer = CONVS[dims][0](
        4, 6, 3, weight_quant=Int8WeightPerChannel, bias_quant=Int32Bias, return_quant_tensor=True, groups=2
    )
    x = torch.randn(4, *[5] * dims)
    assert torch.equal(layer(act(x)).int(), layer(act(x[None])).int()[0])


@pytest.mark.parametrize("dims", CONVS)
def test_output_size(dims):
    torch.manual_seed(0)
    layer = CONVS[dims][0](4, 3, 3, stride=2)
    made = CONVS[dims][1](4, 3, 3, stride=2)
    made.load_state_dict({"weight": layer.quant_weight().value.detach(), "bias": layer.bias.detach()})
    x = torch.randn(1, 4, *[5] * dims)
    for size in (11, 12):
        assert layer(x, output_size=[size] * dims).shape[2:] == (size,) * dims
        assert torch.equal(layer(x, [size] * dims), made(x, [size] * dims))
    with pytest.raises(ValueError, match="requested an output size"):
        layer(x, output_size=[20] * dims)


def test_literal_numbers():
    layer = qnn.QuantConvTranspose1d(
        1, 1, 2, stride=2, weight_bit_width=3, bias_quant=Int32Bias, return_quant_tensor=True
    )
    act = qnn.QuantIdentity(scale=0.5, return_quant_tensor=True)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[[0.3, -0.9]]]))  # steps of 0.3: 1 and -3
        layer.bias.fill_(0.4)  # steps of 0.15: 2.67
    out = layer(act(torch.tensor([[[1.0, -1.0]]])))  # steps of 0.5: 2 and -2
    assert out.int().tolist() == [[[2 + 3, -6 + 3, -2 + 3, 6 + 3]]]
    torch.testing.assert_close(out.value, torch.tensor([[[0.75, -0.45, 0.15, 1.35]]]))


@settings(max_examples=60)
@given(
    st.integers(1, 2),
    st.integers(1, 5),
    st.integers(1, 4),
    st.integers(1, 3),
    st.sampled_from([1, 2]),
)
def test_no_output_sums_more_products_than_counted_and_one_sums_as_many(dims, kernel, stride, dilation, groups):
    layer = CONVS[dims][0](
        4,
        4,
        kernel,
        stride,
        groups=groups,
        bias=False,
        dilation=dilation,
        weight_quant=Int8WeightPerTensor(bit_width=2, scale=1.0),
        input_quant=Int8Act(bit_width=2, scale=1.0),
        return_quant_tensor=True,
    )
    with torch.no_grad():
        layer.weight.fill_(1.0)
    large = torch.full((1, 4, *[2 * kernel * dilation + 1] * dims), -2.0)
    most = -layer(large).int().long().min().item()  # each product is -2 * 1
    products = most // 2
    assert layer._fan_in() == products
    width = layer.output_bit_width
    with torch.no_grad():
        layer.weight.fill_(-1.0)
    assert layer(large).int().max().item() == most
    assert most <= 2 ** (width - 1) - 1
    assert most > 2 ** (width - 2) - 1  # one bit less does not do


def test_output_bit_width_with_a_zero_point_and_a_bias():
    layer = qnn.QuantConvTranspose1d(
        1, 1, 2, stride=2, weight_quant=ShiftedUint8WeightPerTensor, input_quant=Uint8Act, input_scale=1.0, bias=False
    )
    layer(torch.ones(1, 1, 4))
    assert layer.output_bit_width == (255 * 255).bit_length() + 1
    layer = qnn.QuantConvTranspose1d(
        1, 1, 2, stride=1, bias_quant=Int32Bias, bias_bit_width=16, input_quant=Int8Act, input_scale=1.0
    )
    layer(torch.ones(1, 1, 4))
    assert layer.output_bit_width == (2 * 128 * 127 + 2**15).bit_length() + 1


def test_bias_scales_repeat_with_the_groups():
    layer = qnn.QuantConvTranspose2d(
        4, 6, 3, groups=2, weight_quant=Int8WeightPerChannel, bias_quant=Int32Bias, input_quant=Int8Act, input_scale=0.5
    )
    layer(torch.ones(1, 4, 4, 4))
    scale = layer.quant_weight().scale.reshape(-1)
    torch.testing.assert_close(layer.quant_bias().scale, (0.5 * scale).repeat(2))
    assert layer.int_bias().shape == (6,)


def test_gradients_equal_those_of_the_plain_layer():
    torch.manual_seed(0)
    layer = qnn.QuantConvTranspose2d(4, 6, 3, 2, groups=2, weight_quant=Int8WeightPerChannel, weight_detach_scale=True)
    x = torch.randn(1, 4, 5, 5)
    weight = layer.quant_weight().value.detach().requires_grad_()
    F.conv_transpose2d(x, weight, layer.bias, 2, groups=2).square().sum().backward()
    expected, layer.bias.grad = layer.bias.grad, None
    layer(x).square().sum().backward()
    assert torch.equal(layer.weight.grad, weight.grad)
    assert torch.equal(layer.bias.grad, expected)

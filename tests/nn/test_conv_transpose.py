"""Quantized transposed convolutions: each output has its scale, in whatever groups."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import bitwright.nn as qnn
from bitwright.qcore import QuantizerError
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


def weights_of_outputs(layer, weight):
    """For each output, the weights that it sums products of."""
    inputs, outputs = layer.in_channels // layer.groups, layer.out_channels // layer.groups
    return [weight[g * inputs : (g + 1) * inputs, j] for g in range(layer.groups) for j in range(outputs)]


def scale_of(layer, scale):
    """The one scale of what one output sums."""
    found = [each.unique() for each in weights_of_outputs(layer, scale.expand_as(layer.weight))]
    assert all(each.numel() == 1 for each in found)
    return torch.cat(found)


GROUPS = {  # groups, in, out
    "one": (1, 4, 6),
    "depthwise": (4, 4, 4),
    "depthwise, two outputs each": (4, 4, 8),
    "two": (2, 4, 6),
    "one output each": (2, 4, 2),
}


@pytest.mark.parametrize("dims", CONVS)
@pytest.mark.parametrize("kind", GROUPS)
def test_each_output_has_its_scale(kind, dims):
    groups, inputs, outputs = GROUPS[kind]
    layer = CONVS[dims][0](inputs, outputs, 3, groups=groups, weight_quant=Int8WeightPerChannel)
    weight = layer.quant_weight()
    expected = torch.stack([each.abs().max() / 127 for each in weights_of_outputs(layer, layer.weight.detach())])
    torch.testing.assert_close(scale_of(layer, weight.scale), expected, rtol=0, atol=0)
    assert weight.shape == layer.weight.shape
    assert weight.is_valid
    assert torch.equal(weight.int(), layer.int_weight())
    assert torch.equal(weight.int(), (layer.weight / weight.scale).round().to(torch.int8))
    assert torch.equal(layer.int_weight().abs().amax(), torch.tensor(127, dtype=torch.int8))


def test_a_small_channel_of_a_depthwise_layer_stays():
    layer = qnn.QuantConvTranspose2d(2, 2, 2, stride=2, groups=2, bias=False, weight_quant=Int8WeightPerChannel)
    with torch.no_grad():
        layer.weight[0], layer.weight[1] = 1.0, 0.001
    assert layer.quant_weight().scale.shape == (2, 1, 1, 1)
    torch.testing.assert_close(layer.quant_weight()[1], torch.full((1, 2, 2), 0.001))


def test_every_output_of_two_groups_stays():
    layer = qnn.QuantConvTranspose1d(4, 4, 1, groups=2, bias=False, weight_quant=Int8WeightPerChannel)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 1e-3], [-2.0, 2e-3], [1e-2, 1e-4], [1e-2, -2e-4]])[..., None])
    torch.testing.assert_close(layer.quant_weight().value, layer.weight.detach(), rtol=0.01, atol=0)
    assert layer.int_weight()[..., 0].tolist() == [[64, 64], [-127, 127], [127, 64], [127, -127]]


@pytest.mark.parametrize("kind", ["depthwise", "two", "one output each"])
def test_weight_axis_counts_the_outputs_first(kind):
    groups, inputs, outputs = GROUPS[kind]
    make = {"groups": groups, "bias_quant": Int32Bias, "input_quant": Int8Act, "input_scale": 0.5}
    torch.manual_seed(0)
    layer = qnn.QuantConvTranspose2d(inputs, outputs, 2, weight_axis=0, weight_statistic="abs_max", **make)
    torch.manual_seed(0)
    other = qnn.QuantConvTranspose2d(inputs, outputs, 2, weight_quant=Int8WeightPerChannel, **make)
    x = torch.randn(1, inputs, 3, 3)
    assert torch.equal(layer(x), other(x))
    with pytest.raises(QuantizerError) as caught:
        qnn.QuantConvTranspose2d(inputs, outputs, 2, weight_axis=1, **make)
    assert str(caught.value) == (
        f"QuantConvTranspose2d({inputs}, {outputs}, kernel_size=(2, 2), stride=(1, 1), groups={groups}): with "
        "weight_axis=1 the products that one output sums have several scales, and a bias on the scale of the products "
        "needs a common one. Write weight_axis=0 for one scale for each output channel, or weight_axis=None for one "
        "scale."
    )


@pytest.mark.parametrize("kind", GROUPS)
def test_learned_scales_start_from_each_outputs_weights_and_are_saved(kind):
    groups, inputs, outputs = GROUPS[kind]

    def build():
        return qnn.QuantConvTranspose1d(
            inputs, outputs, 3, groups=groups, weight_quant=Int8WeightPerChannel, weight_scaling="learned"
        )

    layer = build()
    x = torch.randn(1, inputs, 5)
    layer(x)
    expected = torch.stack([each.abs().max() for each in weights_of_outputs(layer, layer.weight.detach())])
    torch.testing.assert_close(layer.weight_quant.scaling.magnitude.detach(), expected)
    other = build()
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), layer(x))
    made = nn.ConvTranspose1d(inputs, outputs, 3, groups=groups)
    other.load_state_dict(made.state_dict())
    other(x)
    expected = torch.stack([each.abs().max() for each in weights_of_outputs(made, made.weight.detach())])
    torch.testing.assert_close(other.weight_quant.scaling.magnitude.detach(), expected)


@pytest.mark.parametrize("conv", [qnn.QuantConv2d, qnn.QuantConvTranspose2d])
@pytest.mark.parametrize("outputs", [3, 6])
@pytest.mark.parametrize("batch", [(), (2,)])
def test_a_depthwise_layer_takes_a_scale_for_each_channel_of_its_input(conv, outputs, batch):
    torch.manual_seed(0)
    scales = [0.5, 0.25, 2.0]
    act = qnn.QuantIdentity(scale=scales, axis=-3, return_quant_tensor=True)
    layer = conv(
        3,
        outputs,
        3,
        groups=3,
        weight_quant=Int8WeightPerChannel,
        bias_quant=Int32Bias,
        return_quant_tensor=True,
    )
    x = act(torch.randn(*batch, 3, 5, 5) * 9)
    out = layer(x)
    assert out.is_valid
    inputs = torch.tensor(scales).repeat_interleave(outputs // 3)
    assert torch.equal(layer.quant_bias().scale, inputs * layer.quant_weight().scale.reshape(-1))
    assert torch.equal(out.scale.reshape(-1), layer.quant_bias().scale)
    assert out.bit_width == layer.output_bit_width
    torchs = {qnn.QuantConv2d: nn.Conv2d, qnn.QuantConvTranspose2d: nn.ConvTranspose2d}[conv]
    exact = torchs(3, outputs, 3, groups=3).double()
    with torch.no_grad():
        exact.weight.copy_(layer.int_weight())
        exact.bias.copy_(layer.int_bias())
        assert torch.equal(out.int().double(), exact(x.int().double()))


def test_a_scale_for_each_channel_is_refused_where_an_output_sums_several():
    act = qnn.QuantIdentity(scale=[0.5, 0.25, 2.0, 1.0], axis=1, return_quant_tensor=True)
    layer = qnn.QuantConvTranspose2d(4, 4, 3, groups=2, bias_quant=Int32Bias)
    with pytest.raises(QuantizerError) as caught:
        layer(act(torch.randn(1, 4, 5, 5)))
    assert str(caught.value) == (
        "bias_quant: the input has 4 scales (axis 1), so its products with the weight have no common one for the bias. "
        "Quantize the input per tensor (axis=None), or choose bias_quant=Int8BiasOwnScale."
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
    scale = layer.quant_weight().scale
    scale = scale_of(layer, scale) if scale.numel() > 1 else scale.reshape(-1)
    torch.testing.assert_close(out.scale.reshape(-1), x.scale * scale)


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


def test_each_bias_is_on_the_scale_of_its_output():
    layer = qnn.QuantConvTranspose2d(
        4, 6, 3, groups=2, weight_quant=Int8WeightPerChannel, bias_quant=Int32Bias, input_quant=Int8Act, input_scale=0.5
    )
    layer(torch.ones(1, 4, 4, 4))
    assert torch.equal(layer.quant_bias().scale, 0.5 * scale_of(layer, layer.quant_weight().scale))
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

"""Quantized convolutions: torch's numbers on quantized weights, and integers that reproduce the output."""

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

CONVS = {1: (qnn.QuantConv1d, nn.Conv1d, F.conv1d), 2: (qnn.QuantConv2d, nn.Conv2d, F.conv2d)}
CONVS[3] = (qnn.QuantConv3d, nn.Conv3d, F.conv3d)

ARGUMENTS = {
    "kernel": {"kernel_size": 3},
    "stride and padding": {"kernel_size": 3, "stride": 2, "padding": 1},
    "dilation": {"kernel_size": 2, "dilation": 2},
    "groups": {"kernel_size": 3, "groups": 2},
    "depthwise": {"kernel_size": 3, "groups": 4, "padding": 1},
    "no bias": {"kernel_size": 1, "bias": False},
    "padding by name": {"kernel_size": 3, "padding": "same"},
    "padding by another name": {"kernel_size": 3, "padding": "valid"},
    "reflection": {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
    "replication": {"kernel_size": 3, "padding": 2, "padding_mode": "replicate"},
    "circular": {"kernel_size": 3, "padding": 1, "padding_mode": "circular"},
    "same by reflection": {"kernel_size": 3, "padding": "same", "padding_mode": "reflect"},
}

WEIGHTS = [
    Int8WeightPerTensor,
    Int8WeightPerTensor(bit_width=4),
    Int8WeightPerChannel,
    ShiftedUint8WeightPerTensor,
    ShiftedUint8WeightPerChannel,
]
INPUTS = {
    "signed": Int8Act(scale=0.1),
    "unsigned": Uint8Act(scale=0.05),
    "zero point": ShiftedUint8Act(calibration_steps=1),
}


def values(x):
    return getattr(x, "value", x)


def offset(x):
    """Integers as they are multiplied, in a type that holds every sum exactly."""
    return x.int().double() - x.zero_point.double()


def twin(layer, torch_class, arguments):
    """Torch's layer with the quantized layer's weight and bias."""
    made = torch_class(layer.in_channels, layer.out_channels, **arguments)
    with torch.no_grad():
        made.weight.copy_(values(layer.quant_weight()))
        if made.bias is not None:
            made.bias.copy_(layer.bias)
    return made


@pytest.mark.parametrize("dims", CONVS)
@pytest.mark.parametrize("weight_quant", [Int8WeightPerTensor, Int8WeightPerChannel(bit_width=4)], ids=repr)
@pytest.mark.parametrize("arguments", ARGUMENTS.values(), ids=ARGUMENTS)
def test_computes_what_torch_computes_with_the_quantized_weight(arguments, weight_quant, dims):
    torch.manual_seed(0)
    layer = CONVS[dims][0](4, 6 if arguments.get("groups") != 4 else 8, weight_quant=weight_quant, **arguments)
    x = torch.randn(2, 4, *[7] * dims)
    assert torch.equal(layer(x), twin(layer, CONVS[dims][1], arguments)(x))
    assert torch.equal(layer.eval()(x), twin(layer, CONVS[dims][1], arguments)(x))


@pytest.mark.parametrize("dims", CONVS)
@pytest.mark.parametrize("arguments", ARGUMENTS.values(), ids=ARGUMENTS)
@pytest.mark.parametrize("weight_quant", WEIGHTS, ids=repr)
@pytest.mark.parametrize("inputs", INPUTS)
def test_the_outputs_integers_are_sums_of_products(inputs, weight_quant, arguments, dims):
    torch.manual_seed(0)
    quantized_class, torch_class, _ = CONVS[dims]
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
    x = act(torch.randn(2, 4, *[5] * dims) * 2)
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
    assert out.scale.shape == ((1, 8, *[1] * dims) if scale.numel() > 1 else ())
    torch.testing.assert_close(out.scale.reshape(-1), x.scale * scale.reshape(-1))


@pytest.mark.parametrize("dims", CONVS)
def test_inputs_without_a_batch(dims):
    torch.manual_seed(0)
    act = qnn.QuantIdentity(scale=0.1, return_quant_tensor=True)
    layer = CONVS[dims][0](
        4, 6, 3, weight_quant=Int8WeightPerChannel, bias_quant=Int32Bias, return_quant_tensor=True, padding=1
    )
    x = torch.randn(4, *[5] * dims)
    one, many = layer(act(x)), layer(act(x[None]))
    assert torch.equal(one.int(), many.int()[0])
    assert one.scale.shape == (6, *[1] * dims)


def test_literal_numbers():
    layer = qnn.QuantConv1d(1, 1, 2, weight_bit_width=3, bias_quant=Int32Bias, return_quant_tensor=True)
    act = qnn.QuantIdentity(scale=0.5, return_quant_tensor=True)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[[0.3, -0.9]]]))  # steps of 0.3: 1 and -3
        layer.bias.fill_(0.4)  # steps of 0.15: 2.67
    out = layer(act(torch.tensor([[[1.0, 2.6, -1.0]]])))  # steps of 0.5: 2, 5, -2
    assert layer.int_weight().tolist() == [[[1, -3]]]
    assert layer.int_bias().tolist() == [3]
    assert out.int().tolist() == [[[2 - 15 + 3, 5 + 6 + 3]]]
    torch.testing.assert_close(out.value, torch.tensor([[[-1.5, 2.1]]]))
    assert out.bit_width == 33


@pytest.mark.parametrize(
    ("arguments", "fan_in"),
    [
        ({"kernel_size": 3}, 36),
        ({"kernel_size": 3, "groups": 2}, 18),
        ({"kernel_size": 3, "groups": 4}, 9),
        ({"kernel_size": (1, 5), "dilation": 2}, 20),
        ({"kernel_size": 1}, 4),
    ],
)
def test_output_bit_width_counts_the_products_of_one_output(arguments, fan_in):
    layer = qnn.QuantConv2d(4, 4, bias=False, input_quant=Int8Act, input_scale=1.0, padding=4, **arguments)
    assert layer.output_bit_width is None
    layer(torch.ones(1, 4, 8, 8))
    assert layer.output_bit_width == (fan_in * 128 * 127).bit_length() + 1


@settings(max_examples=25)
@given(
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 2),
    st.integers(1, 2),
    st.integers(0, 1),
    st.sampled_from([1, 2]),
    st.integers(2, 8),
    st.integers(2, 8),
    st.booleans(),
)
def test_sums_stay_within_the_output_bit_width_and_reach_it(
    dims, kernel, stride, dilation, padding, groups, input_bits, weight_bits, signed
):
    inputs = (Int8Act if signed else Uint8Act)(bit_width=input_bits, scale=1.0)
    layer = CONVS[dims][0](
        4,
        2,
        kernel,
        stride,
        padding,
        dilation,
        groups,
        False,
        weight_quant=Int8WeightPerTensor(bit_width=weight_bits, scale=1.0, narrow_range=False),
        input_quant=inputs,
        return_quant_tensor=True,
    )
    low_x, high_x = layer.input_quant.int_range.bounds()
    low_w, high_w = layer.weight_quant.int_range.bounds()
    reached = []
    for x, w in [(low_x, low_w), (low_x, high_w), (high_x, low_w), (high_x, high_w)]:
        with torch.no_grad():
            layer.weight.fill_(w)
        codes = layer(torch.full((1, 4, *[7] * dims), float(x))).int().long()
        reached += [codes.min().item(), codes.max().item()]
    width = layer.output_bit_width
    assert -(2 ** (width - 1)) <= min(reached)
    assert max(reached) <= 2 ** (width - 1) - 1
    assert min(reached) < -(2 ** (width - 2)) or max(reached) > 2 ** (width - 2) - 1  # one bit less does not do


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_memory_format(memory_format):
    torch.manual_seed(0)
    layer = qnn.QuantConv2d(4, 6, 3, weight_quant=Int8WeightPerChannel).to(memory_format=memory_format)
    x = torch.randn(2, 4, 7, 7).contiguous(memory_format=memory_format)
    out = layer(x)
    assert out.is_contiguous(memory_format=memory_format)
    assert layer.quant_weight().is_contiguous(memory_format=memory_format)
    out.sum().backward()
    torch.testing.assert_close(out, F.conv2d(x, layer.quant_weight().value, layer.bias))


def test_an_input_with_several_scales_has_the_right_values():
    act = qnn.QuantIdentity(act_quant=Int8Act(axis=1, scale=[0.1, 0.2]), return_quant_tensor=True)
    x = act(torch.ones(1, 2, 4, 4))
    layer = qnn.QuantConv2d(2, 3, 3)
    assert torch.equal(layer(x), layer(x.value))


def test_a_model_with_residual_and_pooling_in_integers():
    """A float forward and integer arithmetic agree from end to end."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.inp = qnn.QuantIdentity(scale=0.05, return_quant_tensor=True)
            self.conv1 = qnn.QuantConv2d(3, 4, 3, padding=1, bias_quant=Int32Bias, return_quant_tensor=True)
            self.act = qnn.QuantReLU(scale=0.05, return_quant_tensor=True)
            self.conv2 = qnn.QuantConv2d(4, 4, 3, padding=1, bias_quant=Int32Bias)
            self.act2 = qnn.QuantReLU(act_quant=self.act.act_quant, return_quant_tensor=True)
            self.fc = qnn.QuantLinear(64, 5, bias_quant=Int32Bias, return_quant_tensor=True)

        def forward(self, x):
            x = self.act(self.conv1(self.inp(x)))
            x = self.act2(self.conv2(x)) + x
            return self.fc(F.max_pool2d(x, 2).flatten(1))

    torch.manual_seed(0)
    model = Net().eval()
    x = torch.randn(2, 3, 8, 8)
    out = model(x)

    def requantize(codes, scale):
        return (codes.float() * scale / 0.05).round().clamp(0, 255)

    codes = (x / 0.05).round().clamp(-128, 127)
    first = F.conv2d(codes.double(), model.conv1.int_weight().double(), model.conv1.int_bias().double(), padding=1)
    first = requantize(first, torch.tensor(0.05) * model.conv1.quant_weight().scale)
    second = F.conv2d(first.double(), model.conv2.int_weight().double(), model.conv2.int_bias().double(), padding=1)
    second = requantize(second, torch.tensor(0.05) * model.conv2.quant_weight().scale) + first
    pooled = F.max_pool2d(second, 2).flatten(1).double()
    expected = F.linear(pooled, model.fc.int_weight().double(), model.fc.int_bias().double())
    assert torch.equal(out.int().double(), expected)


# padding="same" with a stride, which torch refuses


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")  # torch's, without a stride
@pytest.mark.parametrize("padding_mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("dims", [1, 2, 3])
@given(data=st.data())
@settings(max_examples=20)
def test_same_padding_with_a_stride_pads_more_behind(dims, padding_mode, data):
    each = st.tuples(*[st.integers(1, 3)] * dims)
    kernel, stride, dilation = data.draw(each), data.draw(each), data.draw(each)
    sizes = data.draw(st.tuples(*[st.integers(8, 11)] * dims))
    layer = CONVS[dims][0](
        4, 2, kernel, stride, "same", dilation, padding_mode=padding_mode, weight_quant=None, dtype=torch.float64
    )
    x = torch.randn(2, 4, *sizes, dtype=torch.float64)
    sides = []
    for size, taps, step, wide in zip(sizes, kernel, stride, dilation, strict=True):
        outputs = -(-size // step)
        total = max((outputs - 1) * step + wide * (taps - 1) + 1 - size, 0)
        sides = [total // 2, total - total // 2, *sides]
    padded = F.pad(x, sides, "constant" if padding_mode == "zeros" else padding_mode)
    out = layer(x)
    assert out.shape[2:] == tuple(-(-size // step) for size, step in zip(sizes, stride, strict=True))
    torch.testing.assert_close(out, CONVS[dims][2](padded, layer.weight, layer.bias, stride, 0, dilation))


def test_literal_numbers_of_same_padding_with_a_stride():
    layer = qnn.QuantConv1d(1, 1, 3, 2, "same", bias=False, weight_quant=None)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[[100.0, 10.0, 1.0]]]))
    four, five = (torch.arange(1.0, size + 1).reshape(1, 1, size) for size in (4, 5))
    assert layer(four).tolist() == [[[123.0, 340.0]]]  # one 0, behind: as in TensorFlow
    assert layer(five).tolist() == [[[12.0, 234.0, 450.0]]]  # one in front, one behind
    assert (layer.padding, "padding=same" in repr(layer)) == ("same", True)


@pytest.mark.parametrize("channels", [3, 6])
@pytest.mark.parametrize("quantizer", [Int8Act, ShiftedUint8Act])
def test_same_padding_pads_what_stands_for_zero(channels, quantizer):
    layer = qnn.QuantConv2d(
        channels, 2, 3, 2, "same", bias_quant=Int32Bias, input_quant=quantizer, return_quant_tensor=True
    )
    x = torch.randn(2, channels, 8, 9, generator=torch.Generator().manual_seed(0)) + 1
    out = layer(x)
    layer.eval()
    assert layer.input_quant is not None
    on = layer.input_quant(x)
    codes = F.conv2d(F.pad(on, (1, 1, 0, 1)), layer.quant_weight().value, layer.quant_bias().value, 2)
    torch.testing.assert_close(out.value, codes)
    assert out.is_valid


def test_same_padding_without_a_stride_is_torchs():
    x = torch.randn(1, 4, 7, 7)
    layer = qnn.QuantConv2d(4, 2, 3, 1, "same", weight_quant=None)
    assert torch.equal(layer(x), F.conv2d(x, layer.weight, layer.bias, padding="same"))
    with pytest.raises(ValueError, match=r"^Invalid padding string 'full'"):
        qnn.QuantConv2d(4, 2, 3, 2, "full")

"""QuantLinear: literal numbers, and integers that reproduce its output."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import bitwright.nn as qnn
from bitwright.qcore import BitwrightWarning, QuantTensor
from bitwright.quantizers import (
    Int8Act,
    Int8BiasOwnScale,
    Int8WeightPerChannel,
    Int8WeightPerTensor,
    Int16Bias,
    Int32Bias,
    ShiftedUint8Act,
    ShiftedUint8WeightPerChannel,
    ShiftedUint8WeightPerTensor,
    Uint4Act,
    Uint8Act,
)

WEIGHT = [[0.55, -1.0], [0.25, 0.2]]


def layer_of(weight=WEIGHT, bias=None, **kwargs):
    layer = qnn.QuantLinear(len(weight[0]), len(weight), bias is not None, **kwargs)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weight))
        if bias is not None:
            layer.bias.copy_(torch.tensor(bias))
    return layer


def test_weight_per_tensor():
    layer = layer_of()
    assert layer.int_weight().tolist() == [[70, -127], [32, 25]]
    assert layer.quant_weight().scale.item() == pytest.approx(1 / 127)
    assert layer.quant_weight().zero_point.item() == 0
    torch.testing.assert_close(layer(torch.eye(2)).T, torch.tensor([[70.0, -127.0], [32.0, 25.0]]) / 127)


def test_weight_per_channel():
    layer = layer_of(weight_quant=Int8WeightPerChannel)
    assert layer.int_weight().tolist() == [[70, -127], [127, 102]]
    torch.testing.assert_close(layer.quant_weight().scale, torch.tensor([[1.0], [0.25]]) / 127)


@pytest.mark.parametrize(
    ("bit_width", "expected"),
    [
        (2, [[1, -1], [0, 0]]),
        (3, [[2, -3], [1, 1]]),
        (4, [[4, -7], [2, 1]]),
        (8, [[70, -127], [32, 25]]),
        (16, [[18022, -32767], [8192, 6553]]),
    ],
)
def test_weight_at_other_bit_widths(bit_width, expected):
    layer = layer_of(weight_bit_width=bit_width)
    assert layer.int_weight().tolist() == expected
    assert layer.quant_weight().bit_width == bit_width


def test_weight_with_a_zero_point():
    layer = layer_of(weight_quant=ShiftedUint8WeightPerTensor)  # from -1 to 0.55 in 255 steps
    weight = layer.quant_weight()
    assert (weight.scale.item(), weight.zero_point.item()) == (pytest.approx(1.55 / 255), 165)
    assert weight.int().tolist() == [[255, 0], [206, 198]]
    assert (weight.int().dtype, weight.signed) == (torch.uint8, False)


def test_a_scale_that_is_given():
    layer = layer_of([[0.55, -1.0], [0.25, 0.1875]], weight_scale=2**-3)
    assert layer.int_weight().tolist() == [[4, -8], [2, 2]]  # 0.1875 is 1.5 steps, a tie: to even
    assert layer(torch.eye(2)).T.tolist() == [[0.5, -1.0], [0.25, 0.25]]


def test_bias_on_the_scale_of_the_products():
    layer = layer_of(bias=[0.3, -0.1], bias_quant=Int32Bias, input_quant=Int8Act, input_scale=0.5)
    layer(torch.eye(2))
    step = 0.5 / 127
    assert layer.int_bias().tolist() == [76, -25]  # 0.3 / step = 76.2, 0.1 / step = 25.4
    assert layer.quant_bias().scale.item() == pytest.approx(step)
    torch.testing.assert_close(layer.quant_bias().value, torch.tensor([76 * step, -25 * step]))


def test_bias_per_channel():
    layer = layer_of(
        bias=[0.3, -0.1], bias_quant=Int32Bias, weight_quant=Int8WeightPerChannel, input_quant=Int8Act, input_scale=0.5
    )
    layer(torch.eye(2))
    assert layer.int_bias().tolist() == [76, -102]
    torch.testing.assert_close(layer.quant_bias().scale, torch.tensor([0.5 / 127, 0.125 / 127]))


def test_bias_that_is_clipped():
    layer = layer_of(bias=[200.0, -0.1], bias_quant=Int16Bias, input_quant=Int8Act, input_scale=0.5)
    with pytest.warns(BitwrightWarning) as caught:
        layer(torch.eye(2))
    assert [str(each.message) for each in caught] == [
        "bias_quant: the bias of channel 0 lies outside the range of int16 on the scale of the products and is "
        "clipped. Write bias_quant=Int32Bias, or bias_quant=Int8BiasOwnScale for a scale of its own."
    ]
    layer(torch.eye(2))  # said once
    assert layer.int_bias().tolist() == [32767, -25]
    assert layer.int_bias().dtype == torch.int16


def test_bias_with_a_scale_of_its_own():
    layer = layer_of(bias=[0.3, -0.1], bias_quant=Int8BiasOwnScale)
    assert layer.int_bias().tolist() == [127, -42]
    torch.testing.assert_close(layer(torch.zeros(1, 2)), torch.tensor([[0.3, -42 * 0.3 / 127]]))


def test_bias_is_float_unless_asked():
    layer = layer_of(bias=[0.3, -0.1])
    assert layer.bias_quant is None
    assert layer.quant_bias() is layer.bias
    assert layer(torch.zeros(1, 2)).tolist() == [pytest.approx([0.3, -0.1])]


def test_no_bias():
    layer = layer_of()
    assert layer.bias is None
    assert layer.quant_bias() is None
    assert layer.int_bias() is None


def test_input_and_output_quantizers():
    layer = layer_of(input_quant=Int8Act, input_scale=0.5, input_bit_width=4, output_quant=Int8Act, output_scale=0.25)
    out = layer(torch.tensor([[0.7, 9.0]]))  # the input becomes 0.5 and 3.5
    assert out.tolist() == [[-3.25, 0.75]]  # from (0.5 * 70 - 3.5 * 127) / 127 and (0.5 * 32 + 3.5 * 25) / 127


def test_weight_quant_none_is_torch():
    torch.manual_seed(0)
    layer = qnn.QuantLinear(5, 3, weight_quant=None)
    x = torch.randn(4, 5)
    assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))
    assert layer.quant_weight() is layer.weight


@pytest.mark.parametrize("shape", [(5,), (2, 5), (2, 3, 5), (2, 3, 4, 5), (0, 5)])
def test_inputs_of_any_rank(shape):
    torch.manual_seed(0)
    layer = qnn.QuantLinear(5, 3, bias_quant=Int32Bias, input_quant=Int8Act, input_scale=0.1, return_quant_tensor=True)
    x = torch.randn(shape)
    out = layer(x)
    assert out.shape == (*shape[:-1], 3)
    codes = (x / 0.1).round().clamp(-128, 127).double()
    assert torch.equal(out.int().double(), F.linear(codes, layer.int_weight().double(), layer.int_bias().double()))


# Accumulators: the output's integers are sums of products of the input's and the weight's

WEIGHTS = [
    Int8WeightPerTensor,
    Int8WeightPerTensor(bit_width=4),
    Int8WeightPerChannel,
    Int8WeightPerChannel(bit_width=2),
    ShiftedUint8WeightPerTensor,
    ShiftedUint8WeightPerChannel,
]
INPUTS = {
    "signed": Int8Act(scale=0.1),
    "unsigned": Uint8Act(scale=0.05),
    "narrow": Int8Act(scale=0.1, narrow_range=True),
    "zero point": ShiftedUint8Act(calibration_steps=1),
}


def offset(x):
    """Integers as they are multiplied, in a type that holds every sum exactly."""
    return x.int().double() - x.zero_point.double()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("weight_quant", WEIGHTS, ids=repr)
@pytest.mark.parametrize("inputs", INPUTS)
def test_the_outputs_integers_are_sums_of_products(inputs, weight_quant, bias):
    torch.manual_seed(0)
    act = qnn.QuantIdentity(act_quant=INPUTS[inputs], return_quant_tensor=True)
    layer = qnn.QuantLinear(
        7, 5, bias, weight_quant=weight_quant, bias_quant=Int32Bias if bias else None, return_quant_tensor=True
    )
    x = act(torch.randn(3, 4, 7) * 3)
    out = layer(x)
    expected = F.linear(offset(x), offset(layer.quant_weight()), layer.int_bias().double() if bias else None)
    assert torch.equal(out.int().double(), expected)
    assert out.is_valid
    assert out.bit_width == layer.output_bit_width
    step = x.scale * layer.quant_weight().scale.reshape(-1)
    torch.testing.assert_close(out.value.double(), expected * step.double(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("inputs", "weight_quant", "features", "expected"),
    [
        (Int8Act, Int8WeightPerTensor, 1, 15),  # 128 * 127 = 16256
        (Int8Act, Int8WeightPerTensor, 2, 16),
        (Int8Act, Int8WeightPerTensor, 3, 17),
        (Uint8Act, Int8WeightPerTensor, 1, 16),  # 255 * 127 = 32385
        (Uint4Act, Int8WeightPerTensor(bit_width=2), 1, 5),  # 15 * 1
        (Uint4Act, Int8WeightPerTensor(bit_width=2), 3, 7),
        (Int8Act(bit_width=2, narrow_range=True), Int8WeightPerTensor(bit_width=2), 1, 2),
        (Int8Act(bit_width=2), Int8WeightPerTensor(bit_width=2, narrow_range=False), 1, 4),  # -2 * -2 = 4
    ],
)
def test_output_bit_width(inputs, weight_quant, features, expected):
    layer = qnn.QuantLinear(features, 3, False, weight_quant=weight_quant, input_quant=inputs, input_scale=0.1)
    assert layer.output_bit_width is None  # it depends on the input
    layer(torch.ones(1, features))
    assert layer.output_bit_width == expected


def test_output_bit_width_with_a_bias():
    layer = qnn.QuantLinear(2, 3, bias_quant=Int32Bias, input_quant=Int8Act, input_scale=0.1)
    layer(torch.ones(1, 2))
    assert layer.output_bit_width == 33
    layer = qnn.QuantLinear(2, 3, bias_quant=Int16Bias, input_quant=Int8Act, input_scale=0.1)
    layer(torch.ones(1, 2))
    assert layer.output_bit_width == 17  # 32767 + 2 * 16256


class Lowest:
    """A zero point at the lower end: only positive values."""

    def __call__(self, x, scale):
        return torch.full_like(scale, -128.0)


def test_output_bit_width_with_a_zero_point():
    """Integers are used minus the zero point: signed 8 bits from -255 to 255."""
    inputs = Int8Act(zero_point=Lowest, scale=1.0)
    layer = qnn.QuantLinear(
        2, 1, False, weight_quant=Int8WeightPerTensor(scale=1.0), input_quant=inputs, return_quant_tensor=True
    )
    with torch.no_grad():
        layer.weight.fill_(127.0)
    out = layer(torch.tensor([[255.0, 255.0], [0.0, 0.0]]))
    assert out.int().tolist() == [[2 * 255 * 127], [0]]
    assert layer.output_bit_width == out.bit_width == 17


def test_output_bit_width_of_an_output_quantizer():
    assert qnn.QuantLinear(2, 3, output_quant=Int8Act, output_bit_width=5).output_bit_width == 5


def test_output_bit_width_of_a_float_weight():
    layer = qnn.QuantLinear(2, 3, weight_quant=None, input_quant=Int8Act, input_scale=0.1)
    layer(torch.ones(1, 2))
    assert layer.output_bit_width is None


@given(
    features=st.integers(1, 40),
    input_bits=st.integers(2, 8),
    weight_bits=st.integers(2, 8),
    signed=st.booleans(),
    data=st.data(),
)
def test_sums_stay_within_the_output_bit_width_and_reach_it(features, input_bits, weight_bits, signed, data):
    inputs = (Int8Act if signed else Uint8Act)(bit_width=input_bits, scale=1.0)
    layer = qnn.QuantLinear(
        features,
        1,
        False,
        weight_quant=Int8WeightPerTensor(bit_width=weight_bits, scale=1.0, narrow_range=data.draw(st.booleans())),
        input_quant=inputs,
        return_quant_tensor=True,
    )
    low_x, high_x = layer.input_quant.int_range.bounds()
    low_w, high_w = layer.weight_quant.int_range.bounds()
    reached = []
    for x, w in [(low_x, low_w), (low_x, high_w), (high_x, low_w), (high_x, high_w)]:
        with torch.no_grad():
            layer.weight.fill_(w)
        out = layer(torch.full((1, features), float(x)))
        assert out.int().item() == x * w * features
        reached.append(x * w * features)
    width = layer.output_bit_width
    assert -(2 ** (width - 1)) <= min(reached)
    assert max(reached) <= 2 ** (width - 1) - 1
    narrower = width - 1  # one bit less does not do
    assert min(reached) < -(2 ** (narrower - 1)) or max(reached) > 2 ** (narrower - 1) - 1
    codes = torch.randint(low_x, high_x + 1, (8, features)).float()
    with torch.no_grad():
        layer.weight.copy_(torch.randint(low_w, high_w + 1, (1, features)))
    out = layer(codes)
    assert torch.equal(out.int().double(), F.linear(codes.double(), layer.int_weight().double()))


def test_a_chain_of_layers_carries_grids():
    torch.manual_seed(0)
    model = nn.Sequential(
        qnn.QuantIdentity(scale=0.1, return_quant_tensor=True),
        qnn.QuantLinear(6, 5, bias_quant=Int32Bias, return_quant_tensor=True),
        qnn.QuantReLU(scale=0.05, return_quant_tensor=True),
        qnn.QuantLinear(5, 4, bias_quant=Int32Bias, return_quant_tensor=True),
    )
    out = model(torch.randn(3, 6))
    assert isinstance(out, QuantTensor)
    assert out.is_valid
    first, second = model[1], model[3]
    hidden = model[2](first(model[0](torch.zeros(3, 6))))
    expected = F.linear(hidden.int().double(), second.int_weight().double(), second.int_bias().double())
    assert torch.equal(second(hidden).int().double(), expected)


def test_gradients_reach_weight_bias_and_input():
    layer = layer_of([[0.55, -1.0]], [0.3], bias_quant=Int32Bias, input_quant=Int8Act, input_scale=0.5)
    x = torch.tensor([[1.0, 2.0]], requires_grad=True)
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad, torch.tensor([[70 / 127, -1.0]]))
    assert layer.bias.grad.tolist() == [1.0]
    # straight through, and by the scale, which follows the largest magnitude: 70 - 0.55 * 127 = 0.15 steps
    torch.testing.assert_close(layer.weight.grad, torch.tensor([[1.0, 2.0 - 0.15 / 127]]))


def test_gradients_with_a_detached_scale():
    layer = layer_of([[0.55, -1.0]], weight_detach_scale=True)
    layer(torch.tensor([[1.0, 2.0]])).sum().backward()
    assert layer.weight.grad.tolist() == [[1.0, 2.0]]


def test_repr():
    assert repr(qnn.QuantLinear(4, 2, weight_bit_width=4)) == (
        "QuantLinear(\n"
        "  in_features=4, out_features=2, bias=True\n"
        "  (weight_quant): IntQuant(\n"
        "    int4 narrow, per tensor, float scale, half_even\n"
        "    (scaling): StatisticScaling(AbsMax(), per tensor)\n"
        "  )\n"
        ")"
    )

"""Mistakes: each says what was asked, what is possible, and what to write instead."""

import gc
import weakref

import pytest
import torch
from torch import nn

import bitwright.nn as qnn
from bitwright.qcore import BitwrightError, LearnedBitWidth, QuantizerError, SettingError
from bitwright.qcore.errors import ReadOnlyError
from bitwright.quantizers import (
    Int8Act,
    Int8BiasOwnScale,
    Int8WeightPerChannel,
    Int8WeightPerTensor,
    Int32Bias,
    PowerOfTwo,
    Uint8Act,
    Uint8ActPerChannel,
)

LINEAR = "QuantLinear(in_features=4, out_features=4, bias=True): "


class Typo(Int8WeightPerTensor):
    scalling = "learned"


class Asking(nn.Module):
    def __init__(self, int_range, sigmaa):
        super().__init__()


class Asks(Int8WeightPerTensor):
    scaling = Asking


class Float(nn.Module):
    def __init__(self, int_range, scaling, rounding):
        super().__init__()


class NoQuantizer(Int8WeightPerTensor):
    tensor_quant = Float


NO_LEVELS = (
    "expected a whole number from 2 to 32. A narrow signed range of 1 bit has no levels but 0: one bit is binary "
    "quantization (signs times a scale), which is not an integer grid. Write {}bit_width=2 for the levels -1, 0, 1."
)

MISTAKES = {
    "a number of channels that is none": (
        lambda: qnn.QuantReLU(act_quant=Uint8ActPerChannel, channels="64"),
        "QuantReLU(): channels='64' is not possible: expected a whole number of channels, 1 or more.",
    ),
    "a number of channels below 1": (
        lambda: qnn.QuantReLU(act_quant=Uint8ActPerChannel, channels=-3),
        "QuantReLU(): channels=-3 is not possible: expected a whole number of channels, 1 or more.",
    ),
    "a misspelled setting": (
        lambda: qnn.QuantLinear(4, 4, weight_bitwidth=2),
        LINEAR + "nothing in Int8WeightPerTensor uses weight_bitwidth=2. Did you mean weight_bit_width?",
    ),
    "a misspelled prefix": (
        lambda: qnn.QuantLinear(4, 4, wieght_bit_width=2),
        LINEAR + "wieght_bit_width=2 is for no quantizer of this layer: keywords start with one of weight_, bias_, "
        "input_, output_, grad_. Did you mean weight_bit_width=2?",
    ),
    "no prefix": (
        lambda: qnn.QuantLinear(4, 4, bit_width=2),
        LINEAR + "bit_width=2 is for no quantizer of this layer: keywords start with one of weight_, bias_, input_, "
        "output_, grad_. Did you mean weight_bit_width=2?",
    ),
    "nonsense": (
        lambda: qnn.QuantLinear(4, 4, banana=7),
        LINEAR + "banana=7 is for no quantizer of this layer: keywords start with one of weight_, bias_, input_, "
        "output_, grad_.",
    ),
    "a misspelled slot": (
        lambda: qnn.QuantLinear(4, 4, wight_quant=Int8Act),
        LINEAR + "wight_quant=Int8Act is for no quantizer of this layer: keywords start with one of weight_, bias_, "
        "input_, output_, grad_. Did you mean weight_quant=Int8Act?",
    ),
    "a slot by another library's name": (
        lambda: qnn.QuantLinear(4, 4, weight_in_quant=Int8Act),
        LINEAR
        + "weight_in_quant=Int8Act is for no quantizer of this layer: keywords start with one of weight_, bias_, "
        "input_, output_, grad_. Did you mean weight_quant=Int8Act?",
    ),
    "a misspelled option of the layer": (
        lambda: qnn.QuantLinear(4, 4, return_quant_tensr=True),
        LINEAR + "return_quant_tensr=True is for no quantizer of this layer: keywords start with one of weight_, "
        "bias_, input_, output_, grad_. Did you mean return_quant_tensor=True?",
    ),
    "a weight's setting on an activation": (
        lambda: qnn.QuantReLU(weight_bit_width=4),
        "QuantReLU(): weight_bit_width=4 is for no quantizer of this layer. An activation layer has no weight or "
        "bias, and its settings take no prefix. Did you mean bit_width=4?",
    ),
    "a prefix on an activation": (
        lambda: qnn.QuantReLU(act_bit_width=4),
        "QuantReLU(): act_bit_width=4 is for no quantizer of this layer. An activation layer has one set of "
        "keywords: settings take no prefix. Did you mean bit_width=4?",
    ),
    "another slot on an activation": (
        lambda: qnn.QuantReLU(output_quant=Int8Act),
        "QuantReLU(): output_quant=Int8Act is for no quantizer of this layer. An activation layer has one set of "
        "keywords: settings take no prefix. Did you mean act_quant=Int8Act?",
    ),
    "a misspelled setting of an activation": (
        lambda: qnn.QuantReLU(bitwidth=4),
        "QuantReLU(): nothing in Uint8Act uses bitwidth=4. Did you mean bit_width?",
    ),
    "0 bits": (
        lambda: qnn.QuantLinear(4, 4, weight_bit_width=0),
        LINEAR + "weight_bit_width=0 is not possible: expected a whole number from 2 to 32. Write weight_bit_width=2.",
    ),
    "1 bit": (
        lambda: qnn.QuantLinear(4, 4, weight_bit_width=1),
        LINEAR + "weight_bit_width=1 is not possible: " + NO_LEVELS.format("weight_"),
    ),
    "1 bit of an activation": (
        lambda: qnn.QuantReLU(bit_width=1),
        "QuantReLU(): bit_width=1 is not possible: " + NO_LEVELS.format(""),
    ),
    "33 bits": (
        lambda: qnn.QuantLinear(4, 4, weight_bit_width=33),
        LINEAR + "weight_bit_width=33 is not possible: expected a whole number from 2 to 32. Write "
        "weight_bit_width=32.",
    ),
    "half a bit": (
        lambda: qnn.QuantLinear(4, 4, weight_bit_width=4.5),
        LINEAR + "weight_bit_width=4.5 is not possible: expected a whole number from 2 to 32. Write "
        "weight_bit_width=4.",
    ),
    "bits in words": (
        lambda: qnn.QuantLinear(4, 4, weight_bit_width="four"),
        LINEAR + "weight_bit_width='four' is not possible: expected a whole number from 2 to 32.",
    ),
    "a truth value for bits": (
        lambda: qnn.QuantLinear(4, 4, weight_bit_width=True),
        LINEAR + "weight_bit_width=True is not possible: expected a whole number from 2 to 32.",
    ),
    "bits in a class": (
        lambda: qnn.QuantLinear(4, 4, weight_quant=Int8WeightPerTensor(bit_width=0)),
        LINEAR + "in Int8WeightPerTensor(bit_width=0), bit_width=0 is not possible: expected a whole number from 2 "
        "to 32. Write bit_width=2.",
    ),
    "learned bits out of order": (
        lambda: qnn.QuantLinear(4, 4, weight_bit_width=LearnedBitWidth, weight_initial_bit_width=9),
        LINEAR + "weight_initial_bit_width=9 is not possible: expected a bit width from weight_min_bit_width=2 to "
        "weight_max_bit_width=8. Write weight_max_bit_width=9.",
    ),
    "a typo in a class": (
        lambda: qnn.QuantLinear(4, 4, weight_quant=Typo),
        LINEAR + "nothing in Typo uses scalling = 'learned'. Did you mean scaling?",
    ),
    "a scaling that asks for what nobody provides": (
        lambda: qnn.QuantLinear(4, 4, weight_quant=Asks),
        LINEAR + "Asking asks for 'sigmaa', which Asks does not have (tensor_quant > scaling > sigmaa). Write "
        "`sigmaa = ...` in the quantizer, or give the argument a default. Or build on a complete one: "
        "weight_quant=Int8WeightPerTensor, or a subclass of it.",
    ),
    "an unknown scaling": (
        lambda: qnn.QuantLinear(4, 4, weight_scaling="lerned"),
        LINEAR + "weight_scaling='lerned' is not possible: expected one of 'constant', 'statistic', 'learned', "
        "'calibrated', 'running'. Write weight_scaling='learned'.",
    ),
    "an unknown rounding": (
        lambda: qnn.QuantLinear(4, 4, weight_rounding="nearest"),
        LINEAR + "weight_rounding='nearest' is not possible: expected one of 'half_even', 'half_up', 'floor', 'ceil', "
        "'toward_zero', 'stochastic', 'learned'.",
    ),
    "a setting of another statistic": (
        lambda: qnn.QuantLinear(4, 4, weight_statistic="mean_sigma", weight_sigmma=2.0),
        LINEAR + "nothing in Int8WeightPerTensor uses weight_sigmma=2.0. Did you mean weight_sigma?",
    ),
    "a flag that is none": (
        lambda: qnn.QuantLinear(4, 4, weight_signed="no"),
        LINEAR + "weight_signed='no' is not possible: expected True or False.",
    ),
    "a negative scale": (
        lambda: qnn.QuantLinear(4, 4, weight_scale=-1.0),
        LINEAR + "weight_scale=-1.0 is not possible: expected a positive, finite number.",
    ),
    "several scales for no axis": (
        lambda: qnn.QuantLinear(4, 4, weight_scale=[1.0, 2.0]),
        LINEAR + "weight_scale=[1.0, 2.0] is not possible: expected one number. Say which dimension the numbers are "
        "for: weight_axis=1.",
    ),
    "steps that are none": (
        lambda: qnn.QuantReLU(calibration_steps=0),
        "QuantReLU(): calibration_steps=0 is not possible: expected a whole number of training steps, 1 or more.",
    ),
    "an axis that is none": (
        lambda: qnn.QuantReLU(axis="channel"),
        "QuantReLU(): axis='channel' is not possible: expected a dimension such as 1, or None for one scale per "
        "tensor.",
    ),
    "an axis that the weight does not have": (
        lambda: qnn.QuantLinear(4, 4, weight_axis=5),
        LINEAR + "weight_axis=5 is not a dimension of the weight, which has 2. Write weight_axis=0 for one scale for "
        "each output channel, or weight_axis=None for one scale.",
    ),
    "an axis without a scale for the bias": (
        lambda: qnn.QuantConvTranspose2d(4, 4, 3, weight_axis=0, bias_quant=Int32Bias),
        "QuantConvTranspose2d(4, 4, kernel_size=(3, 3), stride=(1, 1)): with weight_axis=0 the products that one "
        "output sums have several scales, and a bias on the scale of the products needs a common one. Write "
        "weight_axis=1 for one scale for each output channel, or weight_axis=None for one scale.",
    ),
    "an axis without a grid for the output": (
        lambda: qnn.QuantLinear(4, 4, False, weight_axis=-1, return_quant_tensor=True),
        "QuantLinear(in_features=4, out_features=4, bias=False): with weight_axis=-1 the products that one output "
        "sums have several scales, and return_quant_tensor=True needs a common one. Write weight_axis=0 for one scale "
        "for each output channel, or weight_axis=None for one scale.",
    ),
    "settings without a quantizer": (
        lambda: qnn.QuantLinear(4, 4, bias_bit_width=4),
        LINEAR + "bias_bit_width=4 is given, but bias_quant is None. Write bias_quant=Int32Bias too, or leave "
        "bias_bit_width out.",
    ),
    "settings of an activation without a quantizer": (
        lambda: qnn.QuantReLU(act_quant=None, bit_width=4),
        "QuantReLU(): bit_width=4 is given, but act_quant is None. Write act_quant=Int8Act too, or leave bit_width "
        "out.",
    ),
    "settings of an input without a quantizer": (
        lambda: qnn.QuantReLU(input_bit_width=4),
        "QuantReLU(): input_bit_width=4 is given, but input_quant is None. Write input_quant=Int8Act too, or leave "
        "input_bit_width out.",
    ),
    "a bias quantizer without a bias": (
        lambda: qnn.QuantLinear(4, 4, False, bias_quant=Int32Bias),
        "QuantLinear(in_features=4, out_features=4, bias=False): bias_quant=Int32Bias is given, but there is no bias. "
        "Write bias=True, or leave bias_quant out.",
    ),
    "a name for a quantizer": (
        lambda: qnn.QuantLinear(4, 4, weight_quant="int8"),
        LINEAR + "weight_quant='int8' is not a quantizer. Pass a class such as Int8WeightPerTensor, the quantizer "
        "module of another layer to share it, or None.",
    ),
    "a module for a quantizer": (
        lambda: qnn.QuantReLU(act_quant=nn.ReLU),
        "QuantReLU(): act_quant=<class 'torch.nn.modules.activation.ReLU'> is not a quantizer. Pass a class such as "
        "Int8Act, the quantizer module of another layer to share it, or None.",
    ),
    "a fragment for a quantizer": (
        lambda: qnn.QuantLinear(4, 4, weight_quant=PowerOfTwo),
        LINEAR + "weight_quant=PowerOfTwo is a fragment, not a quantizer. Put it before a complete one: class "
        "MyInt8WeightPerTensor(PowerOfTwo, Int8WeightPerTensor).",
    ),
    "a quantizer of something else": (
        lambda: qnn.QuantLinear(4, 4, weight_quant=NoQuantizer),
        LINEAR + "NoQuantizer resolves to Float, which is no TensorQuant. Its attribute tensor_quant must be IntQuant "
        "or a subclass of TensorQuant.",
    ),
    "a bias quantizer for a weight": (
        lambda: qnn.QuantLinear(4, 4, weight_quant=Int32Bias),
        LINEAR + "Int32Bias quantizes biases and can't be weight_quant. Write weight_quant=Int8WeightPerTensor.",
    ),
    "a bias quantizer for an activation": (
        lambda: qnn.QuantReLU(act_quant=Int32Bias),
        "QuantReLU(): Int32Bias quantizes biases and can't be act_quant. Write act_quant=Int8Act.",
    ),
    "output channels for an activation": (
        lambda: qnn.QuantReLU(act_quant=Int8WeightPerChannel),
        "QuantReLU(): act_quant=Int8WeightPerChannel has a scale for each output channel of a weight. Write "
        "act_quant=Int8ActPerChannel, which has one for each channel of its input.",
    ),
    "settings for a shared quantizer": (
        lambda: qnn.QuantLinear(4, 4, weight_quant=qnn.QuantLinear(4, 4).weight_quant, weight_bit_width=4),
        LINEAR + "weight_bit_width=4 would change the quantizer module that weight_quant shares with another layer. "
        "Give the setting where that module is made, or pass a quantizer class.",
    ),
    "a quantized output of a float bias": (
        lambda: qnn.QuantLinear(4, 4, return_quant_tensor=True),
        LINEAR + "return_quant_tensor=True needs outputs that lie on a grid, and the bias is not quantized on the "
        "scale of the products. Set bias_quant=Int32Bias, or output_quant=Int8Act to quantize the output.",
    ),
    "a quantized output of a bias with another scale": (
        lambda: qnn.QuantLinear(4, 4, bias_quant=Int8BiasOwnScale, return_quant_tensor=True),
        LINEAR + "return_quant_tensor=True needs outputs that lie on a grid, and the bias is not quantized on the "
        "scale of the products. Set bias_quant=Int32Bias, or output_quant=Int8Act to quantize the output.",
    ),
    "a quantized output of a float weight": (
        lambda: qnn.QuantLinear(4, 4, weight_quant=None, return_quant_tensor=True),
        LINEAR + "return_quant_tensor=True needs outputs that lie on a grid, and the weight is not quantized. Set "
        "weight_quant=Int8WeightPerTensor, or output_quant=Int8Act to quantize the output.",
    ),
    "a quantized output of no quantizer": (
        lambda: qnn.QuantReLU(act_quant=None, input_quant=Int8Act, return_quant_tensor=True),
        "QuantReLU(): return_quant_tensor=True needs act_quant, which is None. Write act_quant=Int8Act.",
    ),
    "integers of a float weight": (
        lambda: qnn.QuantLinear(4, 4, weight_quant=None).int_weight(),
        LINEAR + "the weight has no quantizer, so it has no integers.",
    ),
    "integers of a float bias": (
        lambda: qnn.QuantLinear(4, 4).int_bias(),
        LINEAR + "the bias has no quantizer, so it has no integers. Write bias_quant=Int32Bias.",
    ),
    "the bias before any input": (
        lambda: qnn.QuantLinear(4, 4, bias_quant=Int32Bias).quant_bias(),
        LINEAR + "the scale of BiasQuant(int32, scale of the products, half_even) depends on the input's, and the "
        "layer has seen no quantized input yet. Run the model on one batch first.",
    ),
    "the bias's integers before any input": (
        lambda: qnn.QuantLinear(4, 4, bias_quant=Int32Bias).int_bias(),
        LINEAR + "the scale of BiasQuant(int32, scale of the products, half_even) depends on the input's, and the "
        "layer has seen no quantized input yet. Run the model on one batch first.",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(mistake):
    wrong, message = MISTAKES[mistake]
    with pytest.raises(QuantizerError) as caught:
        wrong()
    assert str(caught.value) == message
    assert isinstance(caught.value, BitwrightError)
    assert isinstance(caught.value, ValueError)
    assert caught.value.__cause__ is None  # nothing of the machinery in the traceback


# Mistakes that only a forward can show name the module by its path in the model


class Block(nn.Module):
    def __init__(self, *layers):
        super().__init__()
        self.body = nn.Sequential(*layers)

    def forward(self, x):
        return self.body(x)


def per_channel():
    return qnn.QuantIdentity(axis=1, scale=[0.1, 0.2, 0.3, 0.4], return_quant_tensor=True)


LOST = (
    "Set return_quant_tensor=True on the layer before. If it is set, an operation in between has left the grid, such "
    "as average pooling or an activation function of torch's: put QuantIdentity(return_quant_tensor=True) behind it. "
    "Or give this layer input_quant=Int8Act, or "
)
IN_A_MODEL = {
    "a plain input for the bias": (
        lambda: [qnn.QuantReLU(scale=0.1), qnn.QuantLinear(4, 4, bias_quant=Int32Bias)],
        "0.body.1: the scale of bias_quant follows the input's, and the input is a plain tensor. " + LOST + "choose a "
        "bias with a scale of its own: bias_quant=Int8BiasOwnScale.",
    ),
    "a float weight for the bias": (
        lambda: [
            qnn.QuantReLU(scale=0.1, return_quant_tensor=True),
            qnn.QuantLinear(4, 4, weight_quant=None, bias_quant=Int32Bias),
        ],
        "0.body.1.bias_quant: this bias quantizer needs the scales of input and weight, and the weight lies on "
        "no grid of integers. Set weight_quant=Int8WeightPerTensor, or bias_quant=Int8BiasOwnScale.",
    ),
    "several input scales for the bias": (
        lambda: [per_channel(), qnn.QuantLinear(4, 4, bias_quant=Int32Bias)],
        "0.body.1.bias_quant: the input has 4 scales (axis 1), so its products with the weight have no common one for "
        "the bias. Quantize the input per tensor (axis=None), or choose bias_quant=Int8BiasOwnScale.",
    ),
    "a plain input for a quantized output": (
        lambda: [qnn.QuantLinear(4, 4, False, return_quant_tensor=True)],
        "0.body.0: return_quant_tensor=True needs a quantized input, and the input is a plain tensor. "
        + LOST
        + "output_quant=Int8Act.",
    ),
    "several input scales for a quantized output": (
        lambda: [per_channel(), qnn.QuantLinear(4, 4, False, return_quant_tensor=True)],
        "0.body.1: the input has 4 scales (axis 1), so its products with the weight lie on no common grid. Quantize "
        "the input per tensor (axis=None), or set output_quant=Int8Act.",
    ),
    "an axis that the input does not have": (
        lambda: [qnn.QuantReLU(act_quant=Uint8Act, axis=3)],
        "0.body.0.act_quant: axis=3 is not a dimension of an input of 2 dimensions. Write one from -2 to 1, or "
        "axis=None for one scale.",
    ),
    "another number of scales": (
        lambda: [qnn.QuantReLU(axis=1, scale=[0.1, 0.2])],
        "0.body.0.act_quant.scaling: the input has 4 entries along axis 1, and 2 scales are given. Give one scale, or "
        "one for each entry.",
    ),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("mistake", IN_A_MODEL)
def test_mistakes_in_a_model(mistake, training):
    layers, message = IN_A_MODEL[mistake]
    model = nn.Sequential(Block(*layers()), nn.Identity()).train(training)
    with pytest.raises(QuantizerError) as caught:
        model(torch.ones(2, 4))
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "layers",
    [
        lambda: [qnn.QuantReLU(scale=0.1, return_quant_tensor=True), qnn.QuantLinear(4, 4, bias_quant=Int32Bias)],
        lambda: [qnn.QuantLinear(4, 4, bias_quant=Int32Bias, input_quant=Int8Act)],
        lambda: [qnn.QuantLinear(4, 4, bias_quant=Int8BiasOwnScale)],
        lambda: [per_channel(), qnn.QuantLinear(4, 4, bias_quant=Int8BiasOwnScale)],
        lambda: [per_channel(), qnn.QuantLinear(4, 4, False, return_quant_tensor=True, output_quant=Int8Act)],
    ],
)
def test_what_the_messages_say_to_write_works(layers):
    assert nn.Sequential(Block(*layers()))(torch.ones(2, 4)).shape == (2, 4)


def test_input_overrides_of_an_activation():
    layer = qnn.QuantReLU(input_quant=Int8Act, input_bit_width=4, input_scale=0.5, scale=0.25)
    assert layer.input_quant.int_range.bounds() == (-8, 7)
    assert layer.act_quant.int_range.bounds() == (0, 255)
    assert layer(torch.tensor([9.0, 0.3])).tolist() == [3.5, 0.5]


def test_a_setting_error_knows_its_parts():
    with pytest.raises(SettingError) as caught:
        qnn.QuantLinear(4, 4, weight_bit_width=0)
    assert (caught.value.setting, caught.value.found) == ("bit_width", 0)


# After construction


def test_a_quantizer_assigned_to_a_built_layer():
    layer = qnn.QuantLinear(4, 2).eval()
    layer.weight_quant = Int8WeightPerTensor(bit_width=2)
    assert layer.int_weight().abs().max().item() == 1
    assert (layer.weight_quant.of_parameter, layer.weight_quant.training) == (True, False)
    other = qnn.QuantLinear(4, 2)
    other.weight_quant = layer.weight_quant
    assert other.weight_quant is layer.weight_quant
    layer.weight_quant = None
    x = torch.randn(3, 4)
    assert torch.equal(layer(x), nn.functional.linear(x, layer.weight, layer.bias))
    assert "weight_quant.scheme" not in layer.state_dict()
    relu = qnn.QuantReLU()
    relu.act_quant = Uint8Act(bit_width=2, scale=0.5)
    assert relu(torch.tensor([9.0])).item() == 1.5


def test_what_can_not_be_assigned_leaves_the_layer_as_it_was():
    layer = qnn.QuantLinear(4, 4, bias=False, input_quant=Int8Act, return_quant_tensor=True)
    before = layer.weight_quant
    with pytest.raises(QuantizerError) as error:
        layer.weight_quant = None
    assert str(error.value) == (
        "QuantLinear(in_features=4, out_features=4, bias=False): return_quant_tensor=True needs outputs that lie on a "
        "grid, and the weight is not quantized. Set weight_quant=Int8WeightPerTensor, or output_quant=Int8Act to "
        "quantize the output."
    )
    with pytest.raises(QuantizerError) as error:
        layer.bias_quant = Int32Bias
    assert str(error.value) == (
        "QuantLinear(in_features=4, out_features=4, bias=False): bias_quant=Int32Bias is given, but there is no bias. "
        "Write bias=True, or leave bias_quant out."
    )
    with pytest.raises(QuantizerError) as error:
        layer.weight_quant = 3
    assert str(error.value) == (
        "QuantLinear(in_features=4, out_features=4, bias=False): weight_quant=3 is not a quantizer. Pass a class such "
        "as Int8WeightPerTensor, the quantizer module of another layer to share it, or None."
    )
    assert layer.weight_quant is before
    assert layer.bias_quant is None


@pytest.mark.parametrize(
    ("make", "name", "item", "write"),
    [
        (lambda: qnn.QuantLinear(4, 4), "weight_bit_width", 4, "layer.weight_quant = Int8WeightPerTensor(bit_width=4)"),
        (
            lambda: qnn.QuantLinear(4, 4, weight_rounding="floor"),
            "weight_scale",
            0.5,
            "layer.weight_quant = Int8WeightPerTensor(rounding='floor', scale=0.5)",
        ),
        (lambda: qnn.QuantReLU(), "bit_width", 4, "layer.act_quant = Uint8Act(bit_width=4)"),
        (lambda: qnn.QuantReLU(), "max_value", 6.0, "layer.act_quant = Uint8Act(max_value=6.0)"),
    ],
)
def test_settings_of_a_built_layer(make, name, item, write):
    layer = make()
    with pytest.raises(ReadOnlyError) as error:
        setattr(layer, name, item)
    described = "QuantReLU()" if "act" in write else LINEAR.removesuffix(": ")
    assert str(error.value) == f"{described}: {name}={item!r} can't be set on a layer that is built. Write {write}."
    assert not hasattr(layer, name)
    layer.note = "an attribute of the user's own"
    assert layer.note == "an attribute of the user's own"


# Nothing outlives its layer


class Alpha(nn.Module):
    """A rounding with a parameter of the weight's shape."""

    def __init__(self, shape):
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(shape))

    def forward(self, x):
        return torch.floor(x) + (torch.sigmoid(self.alpha) > 0.5)


def test_no_tensor_or_module_outlives_its_layer():
    layers = [qnn.QuantLinear(4, 4, weight_rounding=Alpha, input_quant=Int8Act, bias_quant=Int32Bias) for _ in range(3)]
    for layer in layers:
        layer(torch.ones(1, 4))
        layer.eval()(torch.ones(1, 4))
        del layer
    refs = [weakref.ref(part) for each in layers for part in (*each.parameters(), *each.buffers(), *each.modules())]
    assert len(refs) > 20
    del layers
    gc.collect()
    assert [ref() for ref in refs if ref() is not None] == []


def test_no_class_of_the_users_outlives_its_layers():
    def build():
        class Mine(nn.Module):
            def __init__(self, int_range):
                super().__init__()

            def forward(self, x):
                return x.abs().max() / 7

        layer = qnn.QuantLinear(4, 4, weight_scaling=Mine)
        layer(torch.ones(1, 4))
        return weakref.ref(Mine)

    found = [build() for _ in range(3)]
    gc.collect()
    gc.collect()  # the keys of derived quantizers go after them
    assert [each() for each in found] == [None] * 3


@pytest.mark.parametrize("layer", [qnn.QuantReLU, qnn.QuantIdentity, qnn.QuantSoftmax])
def test_what_is_ours_is_keyword_only(layer):
    with pytest.raises(TypeError, match="positional argument"):
        layer(None, None, None, None, None, Uint8Act)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: qnn.QuantLinear(3, 3, Int8WeightPerTensor),
            "QuantLinear: bias=Int8WeightPerTensor is not possible: expected True or False. Write "
            "QuantLinear(weight_quant=Int8WeightPerTensor).",
        ),
        (
            lambda: qnn.QuantConv2d(3, 4, 3, bias=Int32Bias),
            "QuantConv2d: bias=Int32Bias is not possible: expected True or False. Write "
            "QuantConv2d(bias_quant=Int32Bias).",
        ),
        (
            lambda: qnn.QuantConvTranspose1d(3, 4, 3, bias=3),
            "QuantConvTranspose1d: bias=3 is not possible: expected True or False.",
        ),
        (
            lambda: qnn.QuantLinear(3, 3, return_quant_tensor=3),
            "QuantLinear: return_quant_tensor=3 is not possible: expected True or False.",
        ),
    ],
)
def test_flags_are_flags(make, message):
    with pytest.raises(QuantizerError) as error:
        make()
    assert str(error.value) == message


def test_flag_of_a_built_layer():
    layer = qnn.QuantLinear(3, 3, input_quant=Int8Act, bias=False)
    with pytest.raises(QuantizerError) as error:
        layer.return_quant_tensor = "yes"
    assert str(error.value) == "QuantLinear: return_quant_tensor='yes' is not possible: expected True or False."
    assert layer.return_quant_tensor is False


def test_module_of_another_role_is_not_shared():
    linear, relu = qnn.QuantLinear(3, 3, bias_quant=Int32Bias), qnn.QuantReLU()
    with pytest.raises(QuantizerError, match=r"^QuantIdentity\(\): Int8WeightPerTensor quantizes weights and can't be"):
        qnn.QuantIdentity(act_quant=linear.weight_quant)
    with pytest.raises(QuantizerError, match=r"Uint8Act quantizes activations and can't be weight_quant\. Write"):
        qnn.QuantLinear(3, 3, weight_quant=relu.act_quant)
    with pytest.raises(QuantizerError, match=r"Int32Bias quantizes biases and can't be weight_quant\. Write"):
        qnn.QuantLinear(3, 3, weight_quant=linear.bias_quant)

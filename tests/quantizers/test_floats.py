"""Floats of few bits: what is declared, by which keywords it changes, in layers."""

import pickle
import re

import pytest
import torch

import bitwright.nn as qnn
from bitwright import quantizers
from bitwright.qcore import (
    E2M1,
    E2M3,
    E3M2,
    E4M3,
    E4M3FNUZ,
    E5M2,
    E5M2FNUZ,
    NF4,
    GridQuant,
    Minifloat,
    PerAxis,
    PerTensor,
    QuantizerError,
    SettingError,
    diff,
    resolve,
)
from bitwright.quantizers import (
    FloatBase,
    FormatWeight,
    Fp4e2m1WeightPerTensor,
    Fp8e4m3Act,
    Fp8e4m3DynamicActPerToken,
    Fp8e4m3WeightPerChannel,
    Fp8e4m3WeightPerTensor,
    Fp8e5m2WeightPerTensor,
    Int8Act,
    Int32Bias,
    of_format,
)
from bitwright.quantizers.floats import __all__ as declared

FORMATS = {
    "Fp8e4m3": E4M3,
    "Fp8e5m2": E5M2,
    "Fp8e4m3fnuz": E4M3FNUZ,
    "Fp8e5m2fnuz": E5M2FNUZ,
    "Fp6e3m2": E3M2,
    "Fp6e2m3": E2M3,
    "Fp4e2m1": E2M1,
}
KINDS = {"WeightPerTensor": PerTensor(), "WeightPerChannel": PerAxis(0), "Act": PerTensor()}


def layer(quantizer, **settings):
    torch.manual_seed(0)
    return qnn.QuantLinear(72, 5, weight_quant=quantizer, **settings)


@pytest.fixture
def x():
    return torch.randn(8, 72, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("kind", KINDS)
def test_declared(name, kind):
    quantizer = getattr(quantizers, name + kind)
    quant = resolve(quantizer, {"channel_axis": 0, "shape": (5, 72)} if "Weight" in kind else {})
    assert type(quant) is GridQuant
    assert (quant.number_format, quant.granularity) == (FORMATS[name], KINDS[kind])
    assert pickle.loads(pickle.dumps(quantizer)) is quantizer
    assert len(quantizer.__doc__.splitlines()[0]) > 40


def test_all_are_here():
    assert sorted(declared) == sorted(name + kind for name in FORMATS for kind in KINDS)


def test_literal_values():
    weight = torch.tensor([[448.0, 17.0, 1.0, -0.001, 0.0]])
    for name, expected in {
        "Fp8e4m3": [448, 16, 1, -0.001953125, 0],
        "Fp8e5m2": [448, 16, 1, -0.0009765625, 0],
        "Fp4e2m1": [448, 0, 0, 0, 0],
        "Fp6e3m2": [448, 16, 1, 0, 0],
    }.items():
        quant = resolve(getattr(quantizers, f"{name}WeightPerTensor"), {"channel_axis": 0, "shape": (1, 5)})
        torch.testing.assert_close(quant(weight)[0], torch.tensor(expected, dtype=torch.float32), rtol=1e-6, atol=0.0)


def test_weights_are_levels():
    for quantizer in (Fp8e4m3WeightPerTensor, Fp8e4m3WeightPerChannel, Fp4e2m1WeightPerTensor):
        weight = layer(quantizer).quant_weight()
        assert weight.is_valid
        assert torch.equal(weight.grid.from_int(weight.int()), weight.value)


# Settings


def test_bits_by_keyword():
    module = layer(Fp8e4m3WeightPerTensor, weight_exponent_bits=3, weight_mantissa_bits=4)
    assert module.weight_quant.number_format == Minifloat(3, 4, nan=True)
    assert layer(Fp8e4m3WeightPerTensor, weight_exponent_bias=11).weight_quant.number_format.exponent_bias == 11
    assert layer(Fp8e4m3WeightPerTensor, weight_number_format=NF4).weight_quant.number_format == NF4
    act = qnn.QuantIdentity(act_quant=Fp8e4m3Act, exponent_bits=2, mantissa_bits=1, nan=False, scale=1.0)
    assert act(torch.tensor([2.4, 9.0])).tolist() == [2, 6]


def test_a_float_of_ones_own():
    class Fp7Weight(FloatBase, FormatWeight):
        exponent_bits = 3
        mantissa_bits = 3

    module = layer(Fp7Weight)
    assert (module.weight_quant.number_format.bits, module.quant_weight().int().dtype) == (7, torch.uint8)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"weight_exponent_bits": 9},
            "weight_exponent_bits=9 is not possible: expected a whole number from 1 to 8.",
        ),
        (
            {"weight_nan": False, "weight_saturating": False},
            "weight_saturating=False is not possible: expected True where there is neither infinity nor NaN. Write "
            "weight_nan=True.",
        ),
    ],
)
def test_impossible_bits(settings, message):
    where = "QuantLinear(in_features=72, out_features=5, bias=True): "
    with pytest.raises(SettingError, match=re.escape(where + message)):
        layer(Fp8e4m3WeightPerTensor, **settings)


def test_bits_are_needed():
    class Incomplete(FloatBase, FormatWeight):
        mantissa_bits = 3

    message = (
        "QuantLinear(in_features=72, out_features=5, bias=True): value(number_format) asks for 'exponent_bits', which "
        "Incomplete does not have (tensor_quant > number_format > exponent_bits)."
    )
    with pytest.raises(QuantizerError, match=re.escape(message)):
        layer(Incomplete)


def test_of_format():
    assert of_format(Fp8e4m3WeightPerTensor, E5M2) == Fp8e5m2WeightPerTensor
    assert diff(Fp8e4m3WeightPerTensor, Fp8e5m2WeightPerTensor) == {
        "exponent_bits": (4, 5),
        "mantissa_bits": (3, 2),
        "infinities": (False, True),
    }
    other = of_format(Fp8e4m3DynamicActPerToken, Minifloat(4, 3, 11, nan=True, negative_zero=False))
    assert (other.__name__, other.exponent_bias) == ("Fp8e4m3fnuzDynamicActPerToken", 11)
    assert of_format(other, E4M3).exponent_bias is None
    said = "`Fp8e4m3Act` with floats of 8 bits, e3m4fn without NaN: up to 31."
    assert of_format(Fp8e4m3Act, Minifloat(3, 4)).__doc__ == said


# In layers


def test_activations_learn_their_scale(x):
    act = qnn.QuantIdentity(act_quant=Fp8e4m3Act, calibration_steps=1, return_quant_tensor=True)
    act(x)
    y = act(x.clone().requires_grad_())
    y.value.square().sum().backward()
    assert y.is_valid
    assert act.act_quant.scaling.magnitude_offset.grad.abs() > 0


def test_relu_before_levels(x):
    module = qnn.QuantReLU(act_quant=Fp8e4m3Act, scale=0.01)
    assert torch.equal(module(x), qnn.QuantIdentity(act_quant=Fp8e4m3Act, scale=0.01)(x.relu()))


def test_layers_that_follow(x):
    model = torch.nn.Sequential(
        qnn.QuantIdentity(act_quant=Fp8e4m3Act, scale=0.01, return_quant_tensor=True),
        layer(Fp8e4m3WeightPerTensor, output_quant=Int8Act(scale=0.1), return_quant_tensor=True),
    )
    assert model(x).is_valid


def test_products_lie_on_no_grid(x):
    module = layer(Fp8e4m3WeightPerTensor, input_quant=Int8Act(scale=0.1), bias=False, return_quant_tensor=True)
    message = (
        "QuantLinear: return_quant_tensor=True needs outputs that lie on a grid, and products with the levels of the "
        "weight, e4m3fn, lie on none. Set output_quant=Int8Act, or return_quant_tensor=False."
    )
    with pytest.raises(QuantizerError, match=re.escape(message)):
        module(x)


def test_no_bias_on_the_scale_of_products(x):
    module = layer(Fp8e4m3WeightPerTensor, input_quant=Int8Act(scale=0.1), bias_quant=Int32Bias)
    message = (
        "bias_quant: this bias quantizer puts the bias on the grid of the products, and products with the levels of "
        "the weight, e4m3fn, lie on none. Choose a bias with a scale of its own: bias_quant=Int8BiasOwnScale."
    )
    with pytest.raises(QuantizerError, match=re.escape(message)):
        module(x)

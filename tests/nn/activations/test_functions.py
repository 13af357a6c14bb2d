"""Quantized activations compute torch's function, then put the result on the grid."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F

import bitwright.nn as qnn
from bitwright.qcore import QuantizerError
from bitwright.quantizers import Int8Act, ShiftedUint8Act, Uint8Act

X = torch.tensor([-9.0, -1.5, -0.3, 0.0, 0.3, 1.1, 2.5, 9.0])

# layer, torch's function, signed by default, integers of X in steps of 1/8 with Int8Act
LAYERS = {
    "identity": (qnn.QuantIdentity(), lambda x: x, [-72, -12, -2, 0, 2, 9, 20, 72]),
    "relu": (qnn.QuantReLU(), F.relu, [0, 0, 0, 0, 2, 9, 20, 72]),
    "relu6": (qnn.QuantReLU6(), F.relu6, [0, 0, 0, 0, 2, 9, 20, 48]),
    "leaky relu": (qnn.QuantLeakyReLU(0.5), lambda x: F.leaky_relu(x, 0.5), [-36, -6, -1, 0, 2, 9, 20, 72]),
    "sigmoid": (qnn.QuantSigmoid(), torch.sigmoid, [0, 1, 3, 4, 5, 6, 7, 8]),
    "tanh": (qnn.QuantTanh(), torch.tanh, [-8, -7, -2, 0, 2, 6, 8, 8]),
    "hard tanh": (qnn.QuantHardTanh(-0.5, 2.0), lambda x: F.hardtanh(x, -0.5, 2.0), [-4, -4, -2, 0, 2, 9, 16, 16]),
    "hard swish": (qnn.QuantHardSwish(), F.hardswish, [0, -3, -1, 0, 1, 6, 18, 72]),
    "silu": (qnn.QuantSiLU(), F.silu, [0, -2, -1, 0, 1, 7, 18, 72]),
    "gelu": (qnn.QuantGELU(), F.gelu, [0, -1, -1, 0, 1, 8, 20, 72]),
    "gelu tanh": (qnn.QuantGELU("tanh"), lambda x: F.gelu(x, approximate="tanh"), [0, -1, -1, 0, 1, 8, 20, 72]),
    "softmax": (qnn.QuantSoftmax(-1), lambda x: F.softmax(x, -1), [0, 0, 0, 0, 0, 0, 0, 8]),
    "elu": (qnn.QuantELU(0.5), lambda x: F.elu(x, 0.5), [-4, -3, -1, 0, 2, 9, 20, 72]),
    "celu": (qnn.QuantCELU(0.5), lambda x: F.celu(x, 0.5), [-4, -4, -2, 0, 2, 9, 20, 72]),
    "selu": (qnn.QuantSELU(), F.selu, [-14, -11, -4, 0, 3, 9, 21, 76]),
    "mish": (qnn.QuantMish(), F.mish, [0, -2, -1, 0, 2, 8, 20, 72]),
    "softplus": (qnn.QuantSoftplus(2.0, 5.0), lambda x: F.softplus(x, 2.0, 5.0), [0, 0, 2, 3, 4, 9, 20, 72]),
    "hardsigmoid": (qnn.QuantHardsigmoid(), F.hardsigmoid, [0, 2, 4, 4, 4, 5, 7, 8]),
    "log sigmoid": (qnn.QuantLogSigmoid(), F.logsigmoid, [-72, -14, -7, -6, -4, -2, -1, 0]),
    "log softmax": (qnn.QuantLogSoftmax(-1), lambda x: F.log_softmax(x, -1), [-128, -84, -74, -72, -70, -63, -52, 0]),
}
DEFAULTS = {
    "identity": Int8Act,
    "relu": Uint8Act,
    "relu6": Uint8Act,
    "leaky relu": Int8Act,
    "sigmoid": Uint8Act,
    "tanh": Int8Act,
    "hard tanh": Int8Act,
    "hard swish": ShiftedUint8Act,
    "silu": ShiftedUint8Act,
    "gelu": ShiftedUint8Act,
    "gelu tanh": ShiftedUint8Act,
    "softmax": Uint8Act,
    "elu": ShiftedUint8Act,
    "celu": ShiftedUint8Act,
    "selu": ShiftedUint8Act,
    "mish": ShiftedUint8Act,
    "softplus": Uint8Act,
    "hardsigmoid": Uint8Act,
    "log sigmoid": ShiftedUint8Act,
    "log softmax": ShiftedUint8Act,
}
ARGUMENTS = {
    "leaky relu": (0.5,),
    "hard tanh": (-0.5, 2.0),
    "gelu tanh": ("tanh",),
    "softmax": (-1,),
    "elu": (0.5,),
    "celu": (0.5,),
    "softplus": (2.0, 5.0),
    "log softmax": (-1,),
}
INPLACE = [name for name in LAYERS if hasattr(LAYERS[name][0], "inplace")]


def made(name, **kwargs):
    return type(LAYERS[name][0])(*ARGUMENTS.get(name, ()), **kwargs)


@pytest.mark.parametrize("name", LAYERS)
def test_literal_numbers(name):
    layer = made(name, act_quant=Int8Act, scale=0.125, return_quant_tensor=True)
    out = layer(X.clone())
    assert out.int().tolist() == LAYERS[name][2]
    assert out.tolist() == [code / 8 for code in LAYERS[name][2]]


@pytest.mark.parametrize("name", LAYERS)
def test_the_default_quantizer_suits_the_function(name):
    layer = made(name)
    assert layer.act_quant.quantizer == DEFAULTS[name]
    assert layer.act_quant.signed == (DEFAULTS[name] is Int8Act)
    assert (layer.act_quant.zero_point is None) == (DEFAULTS[name] is not ShiftedUint8Act)
    x = torch.linspace(-4, 4, 1001)
    expected = LAYERS[name][1](x)
    step = (expected.max() - expected.min().clamp_max(0)) / 100
    assert (layer(x.clone()) - expected).abs().max() < step  # nothing is clipped, 8 bits are fine


@pytest.mark.parametrize("name", LAYERS)
def test_act_quant_none_is_torch(name):
    assert torch.equal(made(name, act_quant=None)(X.clone()), LAYERS[name][1](X))


@pytest.mark.parametrize("name", LAYERS)
def test_the_function_is_applied_to_the_quantized_input(name):
    layer = made(name, act_quant=None, input_quant=Int8Act(scale=0.5))
    assert torch.equal(layer(X.clone()), LAYERS[name][1]((X / 0.5).round() * 0.5))


@pytest.mark.parametrize("name", LAYERS)
def test_a_quant_tensor_gives_what_its_values_give(name):
    q = qnn.QuantIdentity(scale=0.5, return_quant_tensor=True)(X)
    layer = made(name, act_quant=Int8Act, scale=0.125)
    assert type(layer(q)) is torch.Tensor
    assert torch.equal(layer(q), layer(q.value))


@pytest.mark.parametrize("name", INPLACE)
def test_inplace_computes_the_same_and_never_writes_into_a_quant_tensor(name):
    layer = made(name, inplace=True, scale=0.125, act_quant=Int8Act, return_quant_tensor=True)
    assert layer.inplace
    q = qnn.QuantIdentity(scale=0.5, return_quant_tensor=True)(X)
    before = q.int().clone()
    assert layer(X.clone()).int().tolist() == LAYERS[name][2]
    layer(q)
    assert torch.equal(q.int(), before)


def test_inplace_does_not_disturb_gradients_of_a_quant_tensor_used_twice():
    grads = []
    for inplace in (False, True):
        leaf = X.clone().requires_grad_()
        q = qnn.QuantIdentity(scale=0.5, return_quant_tensor=True)(leaf)
        (q * q + qnn.QuantSiLU(inplace, scale=0.125, act_quant=Int8Act)(q)).sum().backward()
        grads.append(leaf.grad)
    assert torch.equal(*grads)


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_are_the_functions_inside_the_range_and_zero_outside(name):
    x = torch.linspace(-4, 4, 801).add(1e-3).requires_grad_()
    expected = LAYERS[name][1](x)
    made(name, act_quant=Int8Act, scale=2**-6)(x * 1).sum().backward()
    got, x.grad = x.grad, None
    inside = ((expected / 2**-6).round() <= 127) & ((expected / 2**-6).round() >= -128)
    expected.backward(inside.float())
    torch.testing.assert_close(got, x.grad)


@pytest.mark.parametrize("name", LAYERS)
def test_copies_and_pickles_compute_the_same(name):
    layer = made(name, act_quant=Int8Act, scale=0.125, input_quant=Int8Act, input_scale=0.25)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert repr(other) == repr(layer)
        assert torch.equal(other(X.clone()), layer(X.clone()))


# Input that is not floating


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64, torch.bool])
@pytest.mark.parametrize("name", LAYERS)
def test_integers_come_in_and_floats_come_out(name, dtype):
    x = torch.tensor([0, 1, 2, 3, 100, 120, 200, 255]).to(dtype)
    layer = made(name, act_quant=Int8Act, scale=0.75, bit_width=9)
    for mode in (True, False):
        got = layer.train(mode)(x)
        assert got.dtype == torch.float32
        assert torch.equal(got, layer(x.float()))


def test_literal_numbers_of_integers():
    layer = qnn.QuantIdentity(signed=False, scale=0.75, bit_width=9)
    assert layer(torch.tensor([0, 1, 128, 200, 255], dtype=torch.uint8)).tolist() == [0.0, 0.75, 128.25, 200.25, 255.0]
    layer = qnn.QuantIdentity(calibration_steps=1, statistic="abs_max")
    got = layer(torch.arange(250, 256, dtype=torch.uint8))
    torch.testing.assert_close(got / (255 / 128), torch.tensor([125.0, 126.0, 126.0, 127.0, 127.0, 127.0]))


@pytest.mark.parametrize(
    ("name", "described"),
    [("identity", "QuantIdentity"), ("relu", "QuantReLU"), ("softmax", "QuantSoftmax")],
)
def test_complex_input_is_refused(name, described):
    with pytest.raises(QuantizerError) as caught:
        made(name, scale=0.1)(torch.tensor([1 + 2j]))
    assert str(caught.value) == (
        f"{described}: the input is torch.complex64, and only real numbers can be quantized. Quantize "
        "torch.view_as_real(x), or the magnitude x.abs()."
    )


def test_torchs_spellings_are_the_same_classes():
    assert qnn.QuantHardtanh is qnn.QuantHardTanh
    assert qnn.QuantHardswish is qnn.QuantHardSwish

"""Quantizers to other levels than integers, in layers."""

import copy
import pickle
import re

import pytest
import torch

import bitwright.nn as qnn
from bitwright.qcore import (
    BINARY,
    E2M1,
    E4M3,
    NF4,
    GridQuant,
    PerAxis,
    PerGroup,
    PerTensor,
    QuantizerError,
    QuantTensor,
)
from bitwright.quantizers import (
    BinaryWeightPerTensor,
    Fp8e4m3Act,
    Fp8e4m3WeightPerChannel,
    Fp8e4m3WeightPerTensor,
    Int8Act,
    Int32Bias,
    MXFloat4e2m1Weight,
    MXFloat8e4m3Weight,
    NF4Weight,
    NVFloat4Weight,
)

DECLARED = {
    BinaryWeightPerTensor: (BINARY, PerTensor(), "binary, per tensor, float scale, signs times the mean"),
    Fp8e4m3WeightPerTensor: (E4M3, PerTensor(), "e4m3fn, per tensor, float scale"),
    Fp8e4m3WeightPerChannel: (E4M3, PerAxis(0), "e4m3fn, axis 0, float scale"),
    MXFloat8e4m3Weight: (E4M3, PerGroup(32, 1), "e4m3fn, groups of 32 along axis 1, MX (floor) scale"),
    MXFloat4e2m1Weight: (E2M1, PerGroup(32, 1), "e2m1fn, groups of 32 along axis 1, MX (floor) scale"),
    NVFloat4Weight: (E2M1, PerGroup(16, 1), "e2m1fn, groups of 16 along axis 1, two-level (e4m3fn) scale"),
    NF4Weight: (NF4, PerGroup(64, 1), "nf4, groups of 64 along axis 1, float scale"),
}
weights = pytest.mark.parametrize("quantizer", DECLARED, ids=repr)


def layer(quantizer, **settings):
    torch.manual_seed(0)
    return qnn.QuantLinear(72, 5, weight_quant=quantizer, **settings)


@pytest.fixture
def x():
    return torch.randn(8, 72, generator=torch.Generator().manual_seed(0))


@weights
def test_declared(quantizer):
    number_format, granularity, scheme = DECLARED[quantizer]
    quant = layer(quantizer).weight_quant
    assert type(quant) is GridQuant
    assert (quant.number_format, quant.granularity, quant.scheme()) == (number_format, granularity, scheme)


@weights
def test_weights_are_levels(quantizer):
    weight = layer(quantizer).quant_weight()
    assert isinstance(weight, QuantTensor)
    assert weight.is_valid
    codes = weight.int()
    assert int(codes.max()) < 2**weight.bit_width
    assert torch.equal(weight.grid.from_int(codes), weight.value)


@weights
def test_trains(quantizer, x):
    torch.manual_seed(0)
    model = torch.nn.Sequential(layer(quantizer), torch.nn.ReLU(), qnn.QuantLinear(5, 1, weight_quant=quantizer))
    target = x[:, :1].abs() - x[:, 1:2]
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = (model(x) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert min(losses[-5:]) < 0.3 * losses[0]


@weights
def test_state_and_copies(quantizer, x):
    one, other = layer(quantizer), qnn.QuantLinear(72, 5, weight_quant=quantizer)
    other.load_state_dict(one.state_dict())
    for each in (other, copy.deepcopy(one), pickle.loads(pickle.dumps(one))):
        assert torch.equal(each(x), one(x))
    float_layer = torch.nn.Linear(72, 5)
    other.load_state_dict(float_layer.state_dict())
    assert torch.equal(other.weight, float_layer.weight)


@weights
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_types(quantizer, x, dtype):
    module = layer(quantizer).to(dtype)
    y = module(x.to(dtype))
    y.sum().backward()
    assert y.dtype == module.weight.grad.dtype == dtype
    assert module.quant_weight().is_valid


@weights
def test_compiles(quantizer, x):
    torch.compiler.reset()
    module = layer(quantizer)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    y = module(x)
    (expected,) = torch.autograd.grad(y.square().mean(), module.weight)
    z = compiled(x)
    (found,) = torch.autograd.grad(z.square().mean(), module.weight)
    assert torch.equal(z, y)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_activations(x):
    act = qnn.QuantIdentity(act_quant=Fp8e4m3Act, calibration_steps=1, return_quant_tensor=True)
    act(x)
    leaf = x.clone().requires_grad_()
    y = act(leaf)
    y.value.square().sum().backward()
    assert y.is_valid
    assert act.act_quant.scaling.magnitude_offset.grad.abs() > 0
    torch.compiler.reset()
    assert torch.equal(torch.compile(act.eval(), fullgraph=True, backend="aot_eager")(x).value, act(x).value)


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


def test_frozen(x):
    module = layer(MXFloat4e2m1Weight)
    with torch.no_grad():
        expected = module(x)
        with qnn.frozen(module.eval()):
            assert torch.equal(module(x), expected)
            assert torch.equal(module(x), expected)

"""What holds for every quantizer on every layer with a weight, and on every activation layer."""

import warnings

import pytest
import torch
from torch import Tensor

import bitwright.nn as qnn
from bitwright.qcore import BitwrightWarning, QuantTensor, TensorQuant, values_of
from bitwright.qcore.declare.inject import QuantizerType
from bitwright.quantizers import Int8Act, Int8WeightPerTensor
from tests.conformance.examples import (
    ACT_LAYERS,
    ACTS,
    BIASES,
    QUANTIZERS,
    WEIGHT_LAYERS,
    WEIGHTS,
    floats,
    input_of,
    made,
    twin_of,
    warm,
)

pytestmark = pytest.mark.filterwarnings("ignore:.* is clipped:bitwright.qcore.BitwrightWarning")  # biases of 8 bits


def on_grid(x):
    assert isinstance(x, QuantTensor)
    codes = x.int()
    low, high = x.grid.bounds
    assert x.is_valid
    assert low <= codes.min()
    assert codes.max() <= high
    wide = torch.promote_types(x.dtype, torch.float32)
    assert torch.equal(((codes.to(wide) - x.zero_point) * x.scale).to(x.dtype), x.value.detach())
    assert (x.scale > 0).all()
    if (x.zero_point != 0).any():
        assert (x.zero_point == x.zero_point.round()).all()
        assert low <= x.zero_point.min()
        assert x.zero_point.max() <= high
    return codes


def test_everything_is_covered():
    assert set(WEIGHTS) | set(ACTS) | set(BIASES) == set(QUANTIZERS)
    assert len(WEIGHTS) + len(ACTS) + len(BIASES) == len(QUANTIZERS)
    assert all(isinstance(each, QuantizerType) for each in QUANTIZERS.values())


def test_int8_weights_per_tensor_are_the_default():
    for layer in WEIGHT_LAYERS.values():
        assert made(layer).weight_quant.quantizer == Int8WeightPerTensor


# Weights


def weight_cases():
    return [(layer, quantizer) for layer in WEIGHT_LAYERS for quantizer in WEIGHTS]


@pytest.mark.parametrize(("layer", "quantizer"), weight_cases())
def test_weights(layer, quantizer):
    """Grid, zero, granularity, idempotence, and one result in training, evaluation and inference."""
    module = made(WEIGHT_LAYERS[layer], weight_quant=WEIGHTS[quantizer])
    with torch.no_grad():
        module.weight.view(-1)[:3] = 0.0
        if quantizer.startswith("Uint"):  # they are for weights that are never negative
            module.weight.abs_()
    x = input_of(WEIGHT_LAYERS[layer])
    trained = module(x)
    groups = module.weight.numel() // 6  # of all the six input channels
    scales = 4 if "PerChannel" in quantizer else groups if "PerGroup" in quantizer else 1
    assert module.quant_weight().scale.numel() == scales
    codes = on_grid(module.quant_weight())
    assert (module.quant_weight().value.reshape(-1)[:3] == 0).all()
    assert torch.equal(module.int_weight(), codes)
    assert torch.equal(module.eval()(x), trained)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert torch.equal(module(x), trained)
    plain = made(WEIGHT_LAYERS[layer], **floats(WEIGHT_LAYERS[layer]))
    with torch.no_grad():
        plain.weight.copy_(module.quant_weight())
    assert torch.equal(plain(x), trained)
    with torch.no_grad():
        module.weight.copy_(module.quant_weight())
    assert torch.equal(module.int_weight(), codes)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("quantizer", WEIGHTS)
def test_weights_in_other_precisions(quantizer, dtype):
    layer = made(qnn.QuantLinear, weight_quant=WEIGHTS[quantizer], dtype=dtype)
    wide = made(qnn.QuantLinear, weight_quant=WEIGHTS[quantizer], dtype=torch.promote_types(dtype, torch.float32))
    with torch.no_grad():
        wide.weight.copy_(layer.weight)
    assert layer(input_of(qnn.QuantLinear, dtype)).dtype == dtype
    assert layer.quant_weight().dtype == dtype
    if "Learned" not in quantizer and "MSE" not in quantizer:  # a learned scale is kept in the weight's precision
        assert torch.equal(layer.int_weight(), wide.int_weight())
    codes = layer.int_weight()
    low, high = layer.quant_weight().grid.bounds
    assert low <= codes.min()
    assert codes.max() <= high


@pytest.mark.parametrize("quantizer", WEIGHTS)
def test_weights_train(quantizer):
    layer = made(qnn.QuantLinear, weight_quant=WEIGHTS[quantizer])
    layer(input_of(qnn.QuantLinear)).square().sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in layer.parameters())
    assert layer.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("quantizer", WEIGHTS)
def test_degenerate_weights_are_finite(quantizer):
    layer = made(qnn.QuantLinear, weight_quant=WEIGHTS[quantizer])
    for fill in (0.0, 1e-30, 1e30, -0.5):
        with torch.no_grad():
            layer.weight.fill_(fill)
        assert torch.isfinite(layer.quant_weight().value).all()
        assert torch.isfinite(layer.quant_weight().scale).all()


# Activations


def act_cases():
    return [(layer, quantizer) for layer in ACT_LAYERS for quantizer in ACTS]


def calibrated(layer, quantizer, **kwargs):
    """An activation layer that saw one batch."""
    return warm(made(layer, act_quant=quantizer, return_quant_tensor=True, **kwargs))


@pytest.mark.parametrize(("layer", "quantizer"), act_cases())
def test_activations(layer, quantizer):
    """Grid, idempotence, and one result in training, evaluation and inference."""
    module = made(ACT_LAYERS[layer], act_quant=ACTS[quantizer], return_quant_tensor=True)
    x = input_of(ACT_LAYERS[layer])
    trained = module(x)
    on_grid(trained)
    assert torch.equal(values_of(module.eval()(x)), values_of(trained))
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            out = module(x)
            assert torch.equal(values_of(out), values_of(trained))
            assert torch.equal(out.int(), trained.int())
    module.return_quant_tensor = False
    assert type(module(x)) is Tensor
    assert torch.equal(module(x), values_of(trained))
    quant = module.act_quant
    assert isinstance(quant, TensorQuant)
    assert torch.equal(quant(values_of(trained).detach()), values_of(trained))
    twin = twin_of(ACT_LAYERS[layer])
    assert twin is not None
    expected = twin(x)
    low, high = trained.grid.bounds
    reach = ((low - trained.zero_point) * trained.scale, (high - trained.zero_point) * trained.scale)
    clipped = torch.clamp(expected, *reach)
    assert ((values_of(trained) - clipped).abs() <= trained.scale * 0.501).all()


@pytest.mark.parametrize("quantizer", ACTS)
def test_zero_stays_zero(quantizer):
    layer = calibrated(qnn.QuantIdentity, ACTS[quantizer])
    for training in (True, False):
        out = layer.train(training)(torch.tensor([0.0, 0.7, -0.4, 0.0]).reshape(1, 4, 1).expand(2, 4, 3).clone())
        assert (values_of(out)[:, [0, 3]] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("quantizer", ACTS)
def test_activations_in_other_precisions(quantizer, dtype):
    layer = calibrated(qnn.QuantIdentity, ACTS[quantizer])
    x = input_of(qnn.QuantIdentity, dtype)
    out = layer.eval()(x)
    assert out.dtype == dtype
    wide = layer(x.to(torch.promote_types(dtype, torch.float32)))
    assert torch.equal(values_of(out), values_of(wide).to(dtype))


@pytest.mark.parametrize("quantizer", ACTS)
def test_memory_format(quantizer):
    layer = made(qnn.QuantReLU, act_quant=ACTS[quantizer], return_quant_tensor=True)
    dense = torch.randn(2, 4, 5, 6)
    expected = layer(dense)
    layer.eval()
    for x in (
        dense.to(memory_format=torch.channels_last),
        dense.transpose(2, 3).contiguous().transpose(2, 3),
        torch.stack([dense, dense], -1)[..., 0],
        dense[:1].expand(2, 4, 5, 6),
    ):
        out = layer(x)
        assert torch.equal(values_of(out)[:1], values_of(expected)[:1])
        assert out.int().shape == x.shape
    assert layer(dense.to(memory_format=torch.channels_last)).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("quantizer", ACTS)
def test_activations_train(quantizer):
    layer = calibrated(qnn.QuantIdentity, ACTS[quantizer], calibration_steps=1)
    x = input_of(qnn.QuantIdentity).requires_grad_()
    layer(x).square().sum().backward()
    assert torch.isfinite(x.grad).all()
    assert x.grad.abs().sum() > 0
    assert all(torch.isfinite(parameter.grad).all() for parameter in layer.parameters())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("quantizer", ACTS)
def test_degenerate_activations_are_finite(quantizer, training):
    for fill in (0.0, 1e-30, 1e30, -0.5):
        layer = made(qnn.QuantIdentity, act_quant=ACTS[quantizer]).train(training)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", BitwrightWarning)
            assert torch.isfinite(layer(torch.full((2, 3, 4), fill))).all()
    layer = made(qnn.QuantIdentity, act_quant=ACTS[quantizer])
    layer(torch.ones(2, 3, 4))
    assert layer(torch.ones(0, 3, 4)).shape == (0, 3, 4)


@pytest.mark.parametrize("slot", ["input", "output"])
@pytest.mark.parametrize("quantizer", ACTS)
def test_activation_quantizers_serve_layers_with_weights(quantizer, slot):
    module = made(qnn.QuantConv2d, **{f"{slot}_quant": ACTS[quantizer]})
    x = input_of(qnn.QuantConv2d)
    trained = module(x)
    assert torch.equal(module.eval()(x), trained)
    with torch.no_grad():
        assert torch.equal(module(x), trained)


# Biases


@pytest.mark.parametrize("layer", WEIGHT_LAYERS)
@pytest.mark.parametrize("quantizer", BIASES)
def test_biases(quantizer, layer):
    module = made(WEIGHT_LAYERS[layer], bias_quant=BIASES[quantizer], input_quant=Int8Act, input_scale=0.05)
    with torch.no_grad():
        module.bias[0] = 0.0
    x = input_of(WEIGHT_LAYERS[layer])
    trained = module(x)
    bias = module.quant_bias()
    assert torch.equal(module.int_bias(), on_grid(bias))
    assert bias.value[0] == 0
    if module.bias_quant.follows_input:
        assert torch.equal(bias.scale, module.quant_weight().scale.reshape(()) * 0.05)
    assert torch.equal(module.eval()(x), trained)
    with torch.no_grad():
        assert torch.equal(module(x), trained)
        assert torch.equal(module(x), trained)
    trained.sum().backward()
    assert module.bias.grad is not None

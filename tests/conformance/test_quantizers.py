"""What holds for every quantizer on every layer with a weight, and on every activation layer."""

import warnings

import pytest
import torch
from torch import Tensor

import bitwright.nn as qnn
from bitwright.qcore import BitwrightWarning, CalibratedScaling, QuantTensor, TensorQuant, resolve, values_of
from bitwright.qcore.declare.inject import QuantizerType
from bitwright.quantizers import Int8Act, Int8WeightPerTensor
from bitwright.testing.places import Places
from tests.conformance.examples import (
    ACT_LAYERS,
    ACTS,
    BIASES,
    INTEGERS,
    QUANTIZERS,
    WEIGHT_LAYERS,
    WEIGHTS,
    floats,
    input_of,
    kinds,
    made,
    twin_of,
    warm,
)

pytestmark = pytest.mark.filterwarnings("ignore:.* is clipped:bitwright.qcore.BitwrightWarning")  # biases of 8 bits


def on_grid(x):
    assert isinstance(x, QuantTensor)
    codes = x.int()
    levels = x.grid.number_format
    assert x.is_valid
    assert int(codes.max()) < 2**levels.bits
    scale = x.grid.along(x.grid.scale, x.shape)
    assert (scale > 0).all()
    wide = torch.promote_types(x.dtype, torch.float32)
    if not levels.whole and x.grid.zero_point is not None:
        torch.testing.assert_close(x.grid.from_int(codes).to(x.dtype), x.value.detach())
        return codes
    zero_point = 0.0 if x.grid.zero_point is None else x.grid.along(x.grid.zero_point, x.shape)
    assert torch.equal(((levels.decode(codes, wide) - zero_point) * scale).to(x.dtype), x.value.detach())
    if not levels.whole:
        return codes
    low, high = x.grid.bounds
    assert low <= codes.min()
    assert codes.max() <= high
    if (x.zero_point != 0).any():
        assert (x.zero_point == x.zero_point.round()).all()
        assert low <= x.zero_point.min()
        assert x.zero_point.max() <= high
    return codes


def cases(layers, of, simplest):
    """Every quantizer on the simplest layer, and one for each combination of parts on all layers."""
    known = kinds(of)
    found = [(layer, name) for layer in layers for name in (of if layer == simplest else known)]
    return [each for each in found if each not in ((f"QuantReLU{end}", "BinaryAct") for end in ("", "6"))]


def test_everything_is_covered():
    assert set(WEIGHTS) | set(ACTS) | set(BIASES) == set(QUANTIZERS)
    assert len(WEIGHTS) + len(ACTS) + len(BIASES) == len(QUANTIZERS)
    assert all(isinstance(each, QuantizerType) for each in QUANTIZERS.values())


def test_int8_weights_per_tensor_are_the_default():
    for layer in WEIGHT_LAYERS.values():
        assert made(layer).weight_quant.quantizer == Int8WeightPerTensor


# Weights


@pytest.mark.parametrize(("layer", "quantizer"), cases(WEIGHT_LAYERS, WEIGHTS, "QuantLinear"))
def test_weights(layer, quantizer):
    """Grid, zero, granularity, idempotence, and one result in training, evaluation and inference."""
    module = made(WEIGHT_LAYERS[layer], weight_quant=WEIGHTS[quantizer])
    with torch.no_grad():
        module.weight.view(-1)[:3] = 0.0
        if quantizer.startswith("Uint"):  # they are for weights that are never negative
            module.weight.abs_()
    x = input_of(WEIGHT_LAYERS[layer])
    trained = module(x)
    grid = module.quant_weight().grid
    assert grid.scale.numel() == grid.granularity.count(module.weight.shape)
    if quantizer in INTEGERS:
        groups = module.weight.numel() // 6  # of all the six input channels
        scales = 4 if "PerChannel" in quantizer else groups if "PerGroup" in quantizer else 1
        assert grid.scale.numel() == scales
    codes = on_grid(module.quant_weight())
    if grid.number_format.has_zero and "A2QPlus" not in quantizer:  # which centres weights
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
    moved = not torch.equal(module.quant_weight().scale, grid.scale) or module.weight_quant.transform is not None
    assert torch.equal(module.int_weight(), codes) or (moved and quantizer not in INTEGERS)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("quantizer", WEIGHTS)
def test_weights_in_other_precisions(quantizer, dtype):
    layer = made(qnn.QuantLinear, weight_quant=WEIGHTS[quantizer], dtype=dtype)
    wide = made(qnn.QuantLinear, weight_quant=WEIGHTS[quantizer], dtype=torch.promote_types(dtype, torch.float32))
    with torch.no_grad():
        wide.weight.copy_(layer.weight)
    assert layer(input_of(qnn.QuantLinear, dtype)).dtype == dtype
    assert layer.quant_weight().dtype == dtype
    if not list(layer.weight_quant.parameters()):  # a learned scale is kept in the weight's precision
        assert torch.equal(layer.int_weight(), wide.int_weight())
    codes, levels = layer.int_weight().long(), layer.quant_weight().grid.number_format
    low, high = levels.bounds if levels.whole else (0, 2**levels.bits - 1)
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


def calibrated(layer, quantizer, **kwargs):
    """An activation layer that saw one batch."""
    return warm(made(layer, act_quant=quantizer, return_quant_tensor=True, **kwargs))


@pytest.mark.parametrize(("layer", "quantizer"), cases(ACT_LAYERS, ACTS, "QuantIdentity"))
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
    if not quant.dynamic:  # else the scale follows what was rounded
        assert torch.equal(quant(values_of(trained).detach()), values_of(trained))
    twin = twin_of(ACT_LAYERS[layer])
    assert twin is not None
    expected = twin(x)
    grid, levels = trained.grid, trained.grid.number_format
    scale = grid.along(grid.scale, x.shape)
    zero_point = 0.0 if grid.zero_point is None else grid.along(grid.zero_point, x.shape)
    clipped = torch.clamp(expected, (levels.low - zero_point) * scale, (levels.high - zero_point) * scale)
    gap = Places(levels).gap(values_of(trained).detach() / scale) * scale
    assert ((values_of(trained) - clipped).abs() <= gap * 0.501).all()


@pytest.mark.parametrize("quantizer", ACTS)
def test_zero_stays_zero(quantizer):
    if not resolve(ACTS[quantizer]).number_format.has_zero:
        pytest.skip("0 is no level")
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
    kind = qnn.QuantIdentity if quantizer == "BinaryAct" else qnn.QuantReLU
    layer = made(kind, act_quant=ACTS[quantizer], return_quant_tensor=True)
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
    collects = isinstance(resolve(ACTS[quantizer]).scaling, CalibratedScaling)
    steps = {"calibration_steps": 1} if collects else {}
    layer = calibrated(qnn.QuantIdentity, ACTS[quantizer], **steps)
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

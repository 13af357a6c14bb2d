"""What layers with a weight share: quantizers by slot, integers on request, and nothing that is ever stale."""

import copy
import gc
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils.fusion import fuse_conv_bn_eval

import bitwright.nn as qnn
from bitwright.qcore import LearnedBitWidth, QuantizerError, QuantTensor, bit_width_report, size_penalty
from bitwright.quantizers import (
    Int4Act,
    Int8Act,
    Int8Bias,
    Int8BiasOwnScale,
    Int8WeightPerChannel,
    Int8WeightPerChannelLearned,
    Int8WeightPerChannelMSE,
    Int8WeightPerTensor,
    Int8WeightPerTensorLearned,
    Int8WeightPerTensorPowerOfTwo,
    Int16Bias,
    Int32Bias,
    ShiftedUint8Act,
    ShiftedUint8WeightPerChannel,
    ShiftedUint8WeightPerTensor,
    Uint8Act,
)

LAYERS = {
    "linear": (lambda **kwargs: qnn.QuantLinear(6, 4, **kwargs), (3, 6)),
    "conv1d": (lambda **kwargs: qnn.QuantConv1d(6, 4, 3, **kwargs), (3, 6, 5)),
    "conv2d": (lambda **kwargs: qnn.QuantConv2d(6, 4, 3, groups=2, **kwargs), (3, 6, 5, 5)),
    "conv3d": (lambda **kwargs: qnn.QuantConv3d(6, 4, 2, **kwargs), (3, 6, 3, 3, 3)),
    "transposed 1d": (lambda **kwargs: qnn.QuantConvTranspose1d(6, 4, 3, **kwargs), (3, 6, 5)),
    "transposed 2d": (lambda **kwargs: qnn.QuantConvTranspose2d(6, 4, 3, groups=2, **kwargs), (3, 6, 5, 5)),
    "transposed 3d": (lambda **kwargs: qnn.QuantConvTranspose3d(6, 4, 2, **kwargs), (3, 6, 3, 3, 3)),
}
WEIGHTS = [
    Int8WeightPerTensor,
    Int8WeightPerChannel(bit_width=4),
    Int8WeightPerTensorLearned,
    Int8WeightPerChannelLearned(bit_width=3),
    Int8WeightPerChannelMSE(bit_width=3),
    Int8WeightPerTensorPowerOfTwo,
    ShiftedUint8WeightPerTensor,
    ShiftedUint8WeightPerChannel,
    Int8WeightPerTensor(scale=0.01),
    Int8WeightPerTensor(bit_width=LearnedBitWidth),
    Int8WeightPerTensor(rounding="floor"),
]


@pytest.fixture(params=LAYERS)
def kind(request):
    torch.manual_seed(0)
    return LAYERS[request.param]


# Overrides by prefix


def test_keywords_with_a_prefix_reach_the_quantizer_of_that_slot():
    layer = qnn.QuantLinear(
        4,
        2,
        weight_bit_width=3,
        weight_narrow_range=False,
        bias_quant=Int32Bias,
        bias_bit_width=16,
        input_quant=Int8Act,
        input_bit_width=5,
        input_signed=False,
        output_quant=Uint8Act,
        output_scale=0.5,
    )
    assert layer.weight_quant.int_range.bounds() == (-4, 3)
    assert layer.bias_quant.int_range.bounds() == (-(2**15), 2**15 - 1)
    assert layer.input_quant.int_range.bounds() == (0, 31)
    assert layer.output_quant.int_range.bounds() == (0, 255)
    assert layer.output_quant.scaling.scale.item() == 0.5
    assert layer.weight_quant.quantizer == Int8WeightPerTensor(bit_width=3, narrow_range=False)


def test_a_subclass_a_call_and_keywords_say_the_same():
    class Declared(Int8WeightPerTensor):
        bit_width = 3
        scaling = "learned"

    torch.manual_seed(0)
    weight = torch.randn(2, 4)
    layers = [
        qnn.QuantLinear(4, 2, weight_quant=Declared),
        qnn.QuantLinear(4, 2, weight_quant=Int8WeightPerTensor(bit_width=3, scaling="learned")),
        qnn.QuantLinear(4, 2, weight_bit_width=3, weight_scaling="learned"),
        qnn.QuantLinear(4, 2, weight_quant=Declared(bit_width=8), weight_bit_width=3),
    ]
    for layer in layers:
        layer.load_state_dict({"weight": weight, "bias": torch.zeros(2)})
    assert len({str(layer.int_weight().tolist()) for layer in layers}) == 1
    assert {layer.weight_quant.scheme() for layer in layers} == {"int3 narrow, per tensor, float scale"}


# Integers on request


@pytest.mark.parametrize("weight_quant", WEIGHTS, ids=repr)
def test_weights_integers_times_scale_are_what_the_layer_computes_with(kind, weight_quant):
    make, shape = kind
    layer = make(weight_quant=weight_quant)
    weight = layer.quant_weight()
    codes = layer.int_weight()
    assert torch.equal((codes.float() - weight.zero_point) * weight.scale, weight.value)
    assert not codes.dtype.is_floating_point
    low, high = weight.grid.bounds
    assert low <= codes.min()
    assert codes.max() <= high
    x = torch.randn(shape)
    out = layer(x)
    plain = make(weight_quant=None)
    with torch.no_grad():
        plain.weight.copy_(weight.value)
        plain.bias.copy_(layer.bias)
    assert torch.equal(out, plain(x))


@pytest.mark.parametrize("weight_quant", WEIGHTS, ids=repr)
def test_training_evaluation_and_inference_compute_the_same(kind, weight_quant):
    make, shape = kind
    layer = make(weight_quant=weight_quant, bias_quant=Int8BiasOwnScale)
    x = torch.randn(shape)
    trained = layer(x)
    layer.eval()
    assert torch.equal(layer(x), trained)
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            assert torch.equal(layer(x), trained)


@pytest.mark.parametrize("bias_quant", [Int8Bias, Int16Bias, Int32Bias], ids=repr)
@pytest.mark.parametrize("weight_quant", [Int8WeightPerTensor, Int8WeightPerChannel], ids=repr)
def test_bias_scale_is_input_scale_times_weight_scale(kind, weight_quant, bias_quant):
    make, shape = kind
    layer = make(weight_quant=weight_quant, bias_quant=bias_quant, input_quant=Int8Act, input_scale=0.25)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        layer(torch.randn(shape))
        layer(torch.randn(shape))
    assert len(caught) == (bias_quant is Int8Bias)  # which is clipped here, and says so once
    bias = layer.quant_bias()
    products = layer._take_weight(layer._seen)[1].scale.reshape(-1) * 0.25  # one for each output, or one
    assert bias.scale.numel() == (1 if weight_quant is Int8WeightPerTensor else 4)
    assert torch.equal(bias.scale.reshape(-1), products.repeat(bias.scale.numel() // products.numel()))
    low, high = bias.grid.bounds
    expected = torch.round(layer.bias.detach() / bias.scale).clamp(low, high)
    assert torch.equal(layer.int_bias().float(), expected)
    assert torch.equal(bias.value, expected * bias.scale)


def test_bias_follows_a_quant_tensor_and_the_weight():
    layer = qnn.QuantLinear(4, 2, bias_quant=Int32Bias)
    for scale in (0.5, 0.25):
        layer(qnn.QuantIdentity(scale=scale, return_quant_tensor=True)(torch.ones(1, 4)))
        assert layer.quant_bias().scale.item() == pytest.approx(scale * layer.quant_weight().scale.item())


def test_a_bias_with_a_zero_point_input():
    layer = qnn.QuantLinear(
        4, 2, bias_quant=Int32Bias, input_quant=ShiftedUint8Act(calibration_steps=1), return_quant_tensor=True
    )
    out = layer(torch.linspace(-1, 3, 8).reshape(2, 4))
    x = layer.input_quant.eval()
    codes = (torch.linspace(-1, 3, 8).reshape(2, 4) / x.grid(torch.ones(1)).scale).round()
    expected = F.linear(codes.double(), layer.int_weight().double(), layer.int_bias().double())
    assert torch.equal(out.int().double(), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("weight_quant", WEIGHTS, ids=repr)
def test_integers_in_other_precisions(kind, weight_quant, dtype):
    make, shape = kind
    layer = make(weight_quant=weight_quant, dtype=dtype)
    codes = layer.int_weight()
    low, high = layer.weight_quant.int_range.bounds()
    assert int(low) <= codes.min()
    assert codes.max() <= int(high)
    weight = layer.quant_weight()
    assert weight.dtype == dtype
    wide = torch.promote_types(dtype, torch.float32)
    assert torch.equal(((codes.to(wide) - weight.zero_point) * weight.scale).to(dtype), weight.value)
    assert layer(torch.randn(shape, dtype=dtype)).dtype == dtype


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_integers_do_not_depend_on_what_half_precision_can_tell_apart(dtype):
    weight = torch.linspace(0, 1.05, 256, dtype=dtype)  # just above a power of two bfloat16 is coarser than the grid
    layer = qnn.QuantLinear(256, 1, weight_quant=ShiftedUint8WeightPerTensor, bias_quant=Int16Bias, dtype=dtype)
    layer.input_quant = qnn.QuantIdentity(scale=0.5).act_quant
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.fill_(0.7)
    layer(torch.ones(1, 256, dtype=dtype))
    scale = layer.quant_weight().scale
    assert scale.item() == pytest.approx(weight.max().item() / 255)
    wide = torch.promote_types(dtype, torch.float32)
    assert torch.equal(layer.int_weight()[0].to(wide), (weight.to(wide) / scale).round())
    assert layer.int_bias().item() == round(layer.bias.item() / (0.5 * scale.item()))


# Learned scales and bit widths


def test_a_learned_scale_starts_from_the_weight_as_it_is_at_the_first_forward():
    layer = qnn.QuantLinear(4, 2, weight_quant=Int8WeightPerTensorLearned)
    nn.init.constant_(layer.weight, 2.54)
    layer(torch.ones(1, 4))
    assert layer.quant_weight().scale.item() == pytest.approx(0.02)
    nn.init.constant_(layer.weight, 9.0)
    layer(torch.ones(1, 4))
    assert layer.quant_weight().scale.item() == pytest.approx(0.02)  # from now on it is learned


def test_learned_scales_get_gradients_and_are_positive():
    layer = qnn.QuantLinear(4, 2, weight_quant=Int8WeightPerChannelLearned(bit_width=3))
    optimizer = torch.optim.SGD(layer.parameters(), 10.0)
    for _ in range(5):
        optimizer.zero_grad()
        layer(torch.randn(8, 4)).square().sum().backward()
        assert layer.weight_quant.scaling.magnitude_offset.grad.abs().sum() > 0
        optimizer.step()
        assert (layer.quant_weight().scale > 0).all()


def test_a_learned_bit_width():
    layer = qnn.QuantLinear(4, 2, weight_bit_width=LearnedBitWidth, weight_initial_bit_width=6)
    model = nn.Sequential(layer)
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    for _ in range(4):
        optimizer.zero_grad()
        (model(torch.ones(1, 4)).sum() * 0 + size_penalty(model)).backward()
        optimizer.step()
    assert bit_width_report(model)["0.weight_quant.bit_width"] == {"bit_width": 4, "exact": 4.0, "min": 2, "max": 8}
    assert layer.quant_weight().bit_width == 4
    assert layer.int_weight().abs().max() == 7


# Shared quantizer modules


def test_a_weight_quantizer_can_be_shared():
    first = qnn.QuantLinear(4, 2, weight_quant=Int8WeightPerTensorLearned)
    second = qnn.QuantLinear(4, 3, weight_quant=first.weight_quant)
    model = nn.ModuleList([first, second])
    assert len([name for name, _ in model.named_parameters() if "weight_quant" in name]) == 1
    assert second.quant_weight().scale is not None
    assert torch.equal(first.quant_weight().scale, second.quant_weight().scale)


def test_input_quantizers_can_be_shared_and_then_layers_add_on_one_grid():
    first = qnn.QuantLinear(4, 2, output_quant=Int8Act, output_scale=0.5, return_quant_tensor=True)
    second = qnn.QuantLinear(4, 2, output_quant=first.output_quant, return_quant_tensor=True)
    x = torch.randn(3, 4)
    total = first(x) + second(x)
    assert isinstance(total, QuantTensor)
    assert torch.equal(total.int().int(), first(x).int().int() + second(x).int().int())


def test_two_slots_of_one_layer_that_share_a_quantizer_are_measured_together():
    first = qnn.QuantIdentity(calibration_steps=2)
    quant = first.act_quant
    layer = qnn.QuantLinear(1, 1, False, input_quant=quant, output_quant=quant)
    nn.init.constant_(layer.weight, 2.0)
    model = nn.Sequential(first, layer)
    for largest in (1.0, 3.0):
        assert quant.calibrating
        model(torch.tensor([[largest]]))
    assert not quant.calibrating
    assert copy.deepcopy(model)[1].input_quant.scaling.steps == 6


def test_a_layer_that_only_made_a_quantizer_is_not_waited_for():
    maker = qnn.QuantIdentity(calibration_steps=1)
    quant = maker.act_quant
    del maker
    gc.collect()
    model = nn.ModuleList([qnn.QuantIdentity(act_quant=quant) for _ in range(2)])
    model[0](torch.ones(1))
    alone = copy.deepcopy(model[0])
    assert (quant.calibrating, alone.act_quant.scaling.calls) == (True, 2)  # a copy goes on where it is
    model[1](torch.ones(1))
    assert not quant.calibrating
    quant.scaling.start_calibration()
    assert copy.deepcopy(model[0]).act_quant.scaling.calls == 1


def test_a_shared_layer_follows_the_scale_of_each_call():
    layer = qnn.QuantLinear(4, 4, bias_quant=Int32Bias, return_quant_tensor=True)
    one, other = (qnn.QuantIdentity(scale=scale, return_quant_tensor=True) for scale in (0.1, 0.3))
    x = torch.randn(2, 4)
    for act in (one, other, one):
        out = layer(act(x))
        assert out.scale.item() == pytest.approx(act(x).scale.item() * layer.quant_weight().scale.item())
        assert torch.equal(
            out.int().double(), F.linear(act(x).int().double(), layer.int_weight().double(), layer.int_bias().double())
        )
    layer.eval()
    with torch.no_grad():
        for act in (one, other, one):
            out = layer(act(x))
            expected = F.linear(act(x).int().double(), layer.int_weight().double(), layer.int_bias().double())
            assert torch.equal(out.int().double(), expected)


# The cache of evaluation


def settled(layer, x):
    """Outputs in evaluation, from a cache if there is one, and of a copy that has none."""
    with torch.no_grad():
        return layer(x), copy.deepcopy(layer).eval()(x)


CHANGES = {
    "optimizer step": lambda layer: torch.optim.SGD(layer.parameters(), 0.5).step(),
    "in place": lambda layer: layer.weight.mul_(1.5),
    "in place, one element": lambda layer: layer.weight.__setitem__((0, 0), 3.0),
    "in place, bias": lambda layer: layer.bias.add_(0.4),
    "init": lambda layer: nn.init.normal_(layer.weight),
    "data replaced": lambda layer: setattr(layer.weight, "data", layer.weight.data * 1.5),
    "data replaced twice": lambda layer: [setattr(layer.weight, "data", layer.weight.data * 1.5) for _ in range(2)],
    "data of the scale replaced": lambda layer: [
        setattr(each, "data", each.data * 1.5) for each in layer.weight_quant.parameters()
    ],
    "data of the range replaced": lambda layer: [
        setattr(each, "data", each.data * 1.5) for each in layer.input_quant.parameters()
    ],
    "parameter replaced": lambda layer: setattr(layer, "weight", nn.Parameter(layer.weight * 1.5)),
    "bias replaced": lambda layer: setattr(layer, "bias", nn.Parameter(layer.bias + 0.4)),
    "load_state_dict": lambda layer: layer.load_state_dict(
        {name: tensor * 1.5 if name in ("weight", "bias") else tensor for name, tensor in layer.state_dict().items()}
    ),
    "float checkpoint": lambda layer: layer.load_state_dict(
        {"weight": layer.weight * 1.5, "bias": layer.bias + 0.4}, strict=True
    ),
    "to double and back": lambda layer: layer.double().float(),
    "train and back": lambda layer: layer.train().eval(),
    "train, a step, back": lambda layer: _step(layer),
    "scale, in place": lambda layer: [
        each.mul_(1.5) for each in layer.weight_quant.state_dict(keep_vars=True).values() if each.is_floating_point()
    ],
    "constant scale, in place": lambda layer: [
        each.mul_(1.5) for each in layer.weight_quant.buffers() if each.is_floating_point()
    ],
    "bias quantizer, in place": lambda layer: [
        each.mul_(1.5)
        for each in [*layer.bias_quant.parameters(), *layer.bias_quant.buffers()]
        if each.is_floating_point()
    ],
    "input quantizer, in place": lambda layer: [
        each.mul_(1.5)
        for each in [*layer.input_quant.parameters(), *layer.input_quant.buffers()]
        if each.is_floating_point()
    ],
}


def _step(layer):
    layer.train()
    optimizer = torch.optim.SGD(layer.parameters(), 0.5)
    with torch.enable_grad():
        layer(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    layer.eval()


COMBINATIONS = [
    (Int8WeightPerTensor, Int32Bias, Int8Act(calibration_steps=1)),
    (Int8WeightPerChannel(bit_width=4), Int8BiasOwnScale, Int8Act(scale=0.02)),
    (Int8WeightPerTensorLearned, Int32Bias, Int8Act(scale=0.02)),
    (Int8WeightPerTensor(scale=0.02), Int8BiasOwnScale(scaling="learned"), ShiftedUint8Act(calibration_steps=1)),
    (ShiftedUint8WeightPerTensor, Int32Bias, ShiftedUint8Act(calibration_steps=1)),
    (Int8WeightPerTensor(bit_width=LearnedBitWidth), Int32Bias, Int8Act(scaling="running")),
    (Int8WeightPerTensor(scaling="running"), Int8BiasOwnScale, Int8Act(scaling="statistic")),
]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(("weight_quant", "bias_quant", "input_quant"), COMBINATIONS)
def test_evaluation_is_never_stale(change, weight_quant, bias_quant, input_quant):
    torch.manual_seed(0)
    layer = qnn.QuantLinear(4, 3, weight_quant=weight_quant, bias_quant=bias_quant, input_quant=input_quant)
    for parameter in layer.parameters():
        parameter.grad = torch.full_like(parameter, 0.1)
    x = torch.randn(5, 4)
    layer(x)
    layer.eval()
    first, fresh = settled(layer, x)
    assert torch.equal(first, fresh)
    with torch.no_grad():
        CHANGES[change](layer)
    again, fresh = settled(layer, x)
    assert torch.equal(again, fresh)
    third, _ = settled(layer, x)
    assert torch.equal(third, fresh)


@pytest.mark.parametrize("size", [8, 64, 256])
def test_memory_that_is_used_again_is_not_taken_for_the_old_weight(size):
    layer = qnn.QuantLinear(size, size, bias_quant=Int32Bias, input_quant=Int8Act, input_scale=0.1).eval()
    x = torch.randn(2, size)
    with torch.no_grad():
        for _ in range(4):
            layer(x)
            for parameter in (layer.weight, layer.bias, layer.weight, layer.bias):  # each ends where it began, perhaps
                parameter.data = parameter.data * 1.5
            assert torch.equal(layer(x), copy.deepcopy(layer)(x))


@pytest.mark.parametrize("size", [1, 64, 4096])
def test_memory_that_is_used_again_is_not_taken_for_the_old_range(size):
    layer = qnn.QuantIdentity(axis=1, statistic="abs_max", calibration_steps=1)
    x = torch.randn(2, size)
    layer(x)
    layer.eval()
    base, offset = layer.act_quant.scaling.magnitude_base, layer.act_quant.scaling.magnitude_offset
    with torch.no_grad():
        for _ in range(4):
            layer(x)
            for _ in range(2):
                base.data = base.data * 0.9
            assert torch.equal(layer(x), copy.deepcopy(layer)(x))
            for _ in range(2):
                offset.data = offset.data - 0.1
            assert torch.equal(layer(x), copy.deepcopy(layer)(x))


def test_evaluation_keeps_nothing():
    layer = qnn.QuantLinear(4, 3, bias_quant=Int32Bias, input_quant=Int8Act, input_scale=0.1).eval()
    with torch.no_grad():
        before = {name: vars(each).keys() for name, each in layer.named_modules()}
        layer(torch.ones(1, 4))
        assert {name: vars(each).keys() for name, each in layer.named_modules()} == {
            name: keys | {"_seen"} if name == "" else keys for name, keys in before.items()
        }
        weights = [layer._take_weight(None)[0] for _ in range(2)]
        assert weights[0] is not weights[1]


def test_gradients_in_evaluation():
    layer = qnn.QuantLinear(4, 3).eval()
    with torch.no_grad():
        layer(torch.ones(1, 4))
    layer(torch.ones(1, 4)).sum().backward()
    assert layer.weight.grad is not None


def test_what_was_seen_in_inference_mode_serves_training_later():
    layer = qnn.QuantLinear(4, 3, bias_quant=Int32Bias, input_quant=Int8Act, input_scale=0.1).eval()
    with torch.inference_mode():
        expected = layer(torch.ones(1, 4)).clone()
    with torch.no_grad():
        assert torch.equal(layer(torch.ones(1, 4)), expected)
    layer.train()
    layer(torch.ones(1, 4)).sum().backward()
    assert layer.weight.grad is not None


@pytest.mark.parametrize("wrap", ["weight_norm", "spectral_norm", "orthogonal", "own"])
def test_parametrizations(wrap):
    class Doubled(nn.Module):
        def forward(self, weight):
            return 2 * weight

    torch.manual_seed(0)
    layer = qnn.QuantLinear(4, 4, weight_bit_width=4)
    if wrap == "own":
        parametrize.register_parametrization(layer, "weight", Doubled())
    else:
        getattr(parametrizations, wrap)(layer)
    optimizer = torch.optim.SGD(layer.parameters(), 0.5)
    x = torch.randn(5, 4)
    for _ in range(3):
        layer.train()
        optimizer.zero_grad()
        layer(x).square().sum().backward()
        optimizer.step()
        layer.eval()
        with torch.no_grad():
            assert layer.int_weight().abs().max() == 7
            torch.testing.assert_close(layer(x), F.linear(x, layer.quant_weight().value, layer.bias))
            scale = layer.weight.abs().max() / 7
            torch.testing.assert_close(layer.quant_weight().value, (layer.weight / scale).round() * scale)


# Biases and the weights beside them


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("weight_quant", [Int8WeightPerChannel, Int8WeightPerChannelLearned], ids=repr)
def test_a_dead_channel_keeps_its_bias(weight_quant, gradients):
    """Its weights are 0 whatever their scale is: the scale is one that holds the bias."""
    conv = qnn.QuantConv2d(
        2, 3, 1, weight_quant=weight_quant, bias_quant=Int32Bias, input_quant=Int8Act, input_scale=2**-5
    ).eval()
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([[1.27, 0.5], [0.0, 0.0], [1e-9, -1e-9]]).reshape(3, 2, 1, 1))
        conv.bias.fill_(0.5)
    with torch.set_grad_enabled(gradients):
        out = conv(torch.zeros(1, 2, 1, 1)).flatten()
        torch.testing.assert_close(out, torch.full((3,), 0.5), rtol=0, atol=2e-4)
        assert out[1:].tolist() == pytest.approx([0.5, 0.5], abs=1e-8)
    scale = conv.quant_weight().scale.flatten()
    assert scale.tolist() == pytest.approx([0.01, 0.5 / (2**-5 * 2**30), 0.5 / (2**-5 * 2**30)])
    assert conv.int_weight().flatten(1).tolist() == [[127, 50], [0, 0], [0, 0]]
    assert conv.int_bias().tolist() == [1600, 2**30, 2**30]


def test_a_layer_that_starts_at_zero_learns_its_bias():
    head = qnn.QuantLinear(4, 1, bias_quant=Int32Bias, input_quant=Int8Act, input_scale=2**-5)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    optimizer = torch.optim.SGD([head.bias], 0.1)
    for _ in range(100):
        optimizer.zero_grad()
        (head(torch.zeros(8, 4)) - 3.0).square().mean().backward()
        optimizer.step()
    assert head.bias.item() == pytest.approx(3, abs=1e-4)
    assert head(torch.zeros(1, 4)).item() == pytest.approx(3, abs=1e-4)


def test_a_dead_channel_of_a_depthwise_layer_with_several_outputs_for_each_input():
    conv = qnn.QuantConv2d(
        2,
        4,
        1,
        groups=2,
        weight_quant=Int8WeightPerChannel,
        bias_quant=Int32Bias,
        input_quant=Int8Act(axis=1, scale=[2**-5, 2**-4]),
    ).eval()
    with torch.no_grad():
        conv.weight[1] = 0.0
        conv.bias.fill_(0.5)
    assert conv(torch.zeros(1, 2, 1, 1)).flatten().tolist() == pytest.approx([0.5] * 4, abs=1e-3)


@pytest.mark.parametrize("small", [1e-3, 1e-5, 1e-6])
def test_integers_of_a_large_bias(small):
    """They are exact above 2**24, where float32 values can't tell neighbours apart."""
    layer = qnn.QuantLinear(
        2, 2, weight_quant=Int8WeightPerChannel, bias_quant=Int32Bias, input_quant=Int8Act, input_scale=0.0123
    ).eval()
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.27, 0.0], [small, 0.0]]))
        layer.bias.copy_(torch.tensor([0.5, 0.7]))
    layer(torch.zeros(1, 2))
    scale = torch.tensor(0.0123) * layer.quant_weight().scale.reshape(-1)
    right = (layer.bias.detach().double() / scale.double()).round()
    assert layer.int_bias().tolist() == right.int().tolist()
    assert right[1] > 2**12


def test_biases_mapped_over():
    """An ensemble: one layer, several biases."""
    layer = qnn.QuantLinear(3, 2, bias_quant=Int32Bias, input_quant=Int8Act, input_scale=2**-5)
    biases = torch.tensor([[0.5, -1.0], [0.25, 2.0]])
    out = torch.func.vmap(lambda bias: torch.func.functional_call(layer, {"bias": bias}, torch.zeros(1, 3)))(biases)
    torch.testing.assert_close(out[:, 0], biases, rtol=0, atol=1e-3)


# Weights that come from elsewhere


@pytest.mark.parametrize("weight_quant", [Int8WeightPerChannel, Int8WeightPerTensorLearned], ids=repr)
def test_batch_normalization_folded_by_torch(weight_quant):
    torch.manual_seed(0)
    conv, norm = qnn.QuantConv2d(3, 4, 3, bias=False, weight_quant=weight_quant), nn.BatchNorm2d(4)
    with torch.no_grad():
        norm.weight.uniform_(5, 50)
    x = torch.randn(2, 3, 8, 8)
    conv(x)
    fused = fuse_conv_bn_eval(conv.eval(), norm.eval())
    with torch.no_grad():
        right = norm(F.conv2d(x, conv.weight))
        assert ((fused(x) - right).abs().max() / right.abs().max()).item() < 0.01
    assert fused.quant_weight().scale.max().item() == pytest.approx(fused.weight.abs().max().item() / 127)


@pytest.mark.parametrize("way", ["data", "numpy", "fill", "polyak"])
@pytest.mark.parametrize("gradients", [False, True])
def test_weights_written_past_autograd(way, gradients):
    layer = qnn.QuantLinear(2, 1, bias=False).eval()
    with torch.set_grad_enabled(gradients):
        layer(torch.eye(2))
        if way == "data":
            layer.weight.data = torch.tensor([[1.27, 0.304]])
        elif way == "numpy":
            layer.weight.detach().numpy()[:] = [[1.27, 0.304]]
        elif way == "fill":
            layer.weight.data.copy_(torch.tensor([[1.27, 0.304]]))
        else:
            layer.weight.data.mul_(0).add_(torch.tensor([[1.27, 0.304]]), alpha=1)
        assert layer(torch.eye(2)).flatten().tolist() == pytest.approx([1.27, 0.3])


# One quantizer for several weights


def shared(weight_quant, *largest):
    first = qnn.QuantLinear(2, 1, bias=False, weight_quant=weight_quant)
    layers = [first, *(qnn.QuantLinear(2, 1, bias=False, weight_quant=first.weight_quant) for _ in largest[1:])]
    with torch.no_grad():
        for layer, each in zip(layers, largest, strict=True):
            layer.weight.copy_(torch.tensor([[each, 0.0]]))
    return nn.ModuleList(layers)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
@pytest.mark.parametrize("training", [True, False])
def test_a_stored_scale_of_two_weights_is_measured_over_both(order, training):
    layers = shared(Int8WeightPerTensorLearned, 1.27, 2.54).train(training)
    for index in order:
        layers[index](torch.eye(2))
        assert layers[index].quant_weight().scale.item() == pytest.approx(0.02)
    assert [each.int_weight().tolist() for each in layers] == [[[64, 0]], [[127, 0]]]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
@pytest.mark.parametrize("scaling", ["running", "calibrated"])
def test_an_average_of_two_weights_is_taken_over_both(order, scaling):
    layers = shared(Int8WeightPerTensor(scaling=scaling), 1.27, 2.54)
    for _ in range(3):
        for index in order:
            layers[index](torch.eye(2))
    assert [each.quant_weight().scale.item() for each in layers] == pytest.approx([0.02, 0.02])


@pytest.mark.parametrize("out", [3, 4])
def test_weights_with_another_number_of_channels_share_no_scales(out):
    model = nn.Sequential(qnn.QuantLinear(2, 2, weight_quant=Int8WeightPerChannelLearned))
    model.append(qnn.QuantLinear(2, out, weight_quant=model[0].weight_quant))
    with pytest.raises(QuantizerError) as error:
        model(torch.eye(2))
    assert str(error.value) == (
        "0.weight_quant has a scale for each index of axis 0, and the tensors of the layers that share it have 2 and "
        f"{out} of them. Share a quantizer with axis=None, or give each layer its own."
    )


def test_the_flag_of_a_layer_that_is_built():
    layer = qnn.QuantLinear(2, 2, input_quant=Int8Act)
    layer.return_quant_tensor = True
    with pytest.raises(QuantizerError) as error:
        layer(torch.eye(2))
    assert str(error.value) == (
        "QuantLinear(in_features=2, out_features=2, bias=True): return_quant_tensor=True needs outputs that lie on a "
        "grid, and the bias is not quantized on the scale of the products. Set bias_quant=Int32Bias, or "
        "output_quant=Int8Act to quantize the output."
    )
    layer.bias = None
    assert layer(torch.eye(2)).is_valid
    layer.bias = nn.Parameter(torch.tensor([0.1, 0.7]))
    with pytest.raises(QuantizerError, match="and the bias is not quantized on the scale of the products"):
        layer(torch.eye(2))


def test_a_scale_that_follows_each_weight_is_shared_by_none():
    layers = shared(Int8WeightPerTensor, 1.27, 2.54)
    assert [each.quant_weight().scale.item() for each in layers] == pytest.approx([0.01, 0.02])
    assert {each.quant_weight().grid.source for each in layers} == {None}
    assert not isinstance(layers[0].quant_weight() + layers[1].quant_weight(), QuantTensor)


def test_float_checkpoints_of_weights_with_one_scale():
    layers = shared(Int8WeightPerTensorLearned, 1.27, 2.54)
    layers[0](torch.eye(2))
    floats = {"0.weight": torch.tensor([[5.08, 0.0]]), "1.weight": torch.tensor([[0.1, 0.0]])}
    layers.load_state_dict(floats)
    layers[1](torch.eye(2))
    assert [each.quant_weight().scale.item() for each in layers] == pytest.approx([0.04, 0.04])
    copied = copy.deepcopy(layers)
    assert copied[0].weight_quant is copied[1].weight_quant
    copied.load_state_dict({**floats, "0.weight": torch.tensor([[0.1, 0.0]])})
    copied[1](torch.eye(2))
    assert copied[0].quant_weight().scale.item() == pytest.approx(0.1 / 127)
    assert layers[0].quant_weight().scale.item() == pytest.approx(0.04)


def test_a_stored_scale_assigned_to_another_layer_is_measured_over_both():
    layers = shared(Int8WeightPerTensorLearned, 1.27)
    layers[0](torch.eye(2))
    other = qnn.QuantLinear(2, 1, bias=False)
    with torch.no_grad():
        other.weight.copy_(torch.tensor([[2.54, 0.0]]))
    other.weight_quant = layers[0].weight_quant
    layers[0](torch.eye(2))
    assert other.quant_weight().scale.item() == pytest.approx(0.02)


def test_a_learned_scale_per_channel_from_a_given_range():
    layer = qnn.QuantConv2d(3, 2, 3, weight_quant=Int8WeightPerChannelLearned, weight_max_value=0.635)
    assert layer.quant_weight().scale.flatten().tolist() == pytest.approx([0.005, 0.005])
    act = qnn.QuantIdentity(act_quant=Int8Act(axis=1, scaling="learned", max_value=1.28), return_quant_tensor=True)
    assert act(torch.randn(2, 3, 4, 4)).scale.flatten().tolist() == pytest.approx([0.01] * 3)


# Devices and dtypes


def test_meta_device_then_materialized():
    with torch.device("meta"):
        model = nn.Sequential(
            qnn.QuantIdentity(return_quant_tensor=True, device="meta"),
            qnn.QuantConv2d(3, 4, 3, weight_quant=Int8WeightPerChannelLearned, bias_quant=Int32Bias),
            qnn.QuantReLU(),
            qnn.QuantHardTanh(-9, 9, scale=2**-4),
        )
    assert {tensor.device.type for tensor in [*model.parameters(), *model.buffers()]} == {"meta"}
    torch.manual_seed(0)
    source = nn.Sequential(nn.Identity(), nn.Conv2d(3, 4, 3), nn.ReLU())
    model.to_empty(device="cpu")
    model.load_state_dict(source.state_dict())
    assert torch.equal(model[1].weight, source[1].weight)
    x = torch.randn(2, 3, 6, 6)
    assert (model(x) - source(x)).abs().max() < 0.1


def test_device_and_dtype_are_those_asked_for():
    layer = qnn.QuantLinear(4, 2, device="meta", dtype=torch.float64, weight_quant=Int8WeightPerChannelLearned)
    assert (layer.weight.device.type, layer.weight.dtype) == ("meta", torch.float64)
    scaling = layer.weight_quant.scaling
    for each in (scaling.magnitude_base, scaling.magnitude_offset, scaling.magnitude):
        assert (each.device.type, each.dtype, each.shape) == ("meta", torch.float64, (2,))
    act = qnn.QuantReLU(device="meta", dtype=torch.float64)
    scaling = act.act_quant.scaling
    for each in (scaling.magnitude_base, scaling.magnitude_offset):
        assert (each.device.type, each.dtype, each.shape) == ("meta", torch.float64, (1,))
    assert scaling.magnitude.shape == ()


def test_a_meta_forward_tells_shapes():
    layer = qnn.QuantConv2d(3, 4, 3, device="meta", weight_quant=Int8WeightPerChannel)
    out = layer(torch.empty(2, 3, 6, 6, device="meta"))
    assert (out.shape, out.device.type) == ((2, 4, 4, 4), "meta")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_dtype_argument_and_to_agree(dtype):
    torch.manual_seed(0)
    made = qnn.QuantLinear(4, 2, dtype=dtype, weight_quant=Int8WeightPerTensorLearned, input_quant=Int4Act)
    cast = qnn.QuantLinear(4, 2, weight_quant=Int8WeightPerTensorLearned, input_quant=Int4Act).to(dtype)
    assert [parameter.dtype for parameter in made.parameters()] == [parameter.dtype for parameter in cast.parameters()]
    assert cast(torch.randn(3, 4, dtype=dtype)).dtype == dtype
    assert made(torch.randn(3, 4, dtype=dtype)).dtype == dtype


@pytest.mark.parametrize("quantized", [True, False])
def test_autocast(quantized):
    torch.manual_seed(0)
    layer = qnn.QuantLinear(
        8, 4, bias_quant=Int32Bias if quantized else None, input_quant=Int8Act if quantized else None
    )
    x = torch.randn(3, 8)
    layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), layer(x), rtol=0.05, atol=0.05)
    out.float().square().sum().backward()
    assert layer.weight.grad.dtype == torch.float32
    assert layer.int_weight().dtype == torch.int8

"""What layers with a weight share: quantizers by slot, integers on request, and a cache that is never stale."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import bitwright.nn as qnn
from bitwright.qcore import LearnedBitWidth, QuantTensor, bit_width_report, size_penalty
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
    assert {layer.weight_quant.scheme() for layer in layers} == {
        "int3 narrow, per tensor, scale LearnedScaling, half_even"
    }


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
            assert torch.equal(layer(x), trained)  # from the cache


@pytest.mark.parametrize("bias_quant", [Int8Bias, Int16Bias, Int32Bias], ids=repr)
@pytest.mark.parametrize("weight_quant", [Int8WeightPerTensor, Int8WeightPerChannel], ids=repr)
def test_bias_scale_is_input_scale_times_weight_scale(kind, weight_quant, bias_quant):
    make, shape = kind
    layer = make(weight_quant=weight_quant, bias_quant=bias_quant, input_quant=Int8Act, input_scale=0.25)
    layer(torch.randn(shape))
    bias = layer.quant_bias()
    products = layer._take_weight()[1].scale.reshape(-1) * 0.25  # one for each output, or one
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


def test_the_cache_holds_in_evaluation_only():
    layer = qnn.QuantLinear(4, 3).eval()
    with torch.no_grad():
        layer(torch.ones(1, 4))
        held = layer._take_weight()[0]
        assert layer._take_weight()[0] is held
    assert layer._take_weight()[0] is not held
    assert layer._take_weight()[0].requires_grad
    layer.train()
    with torch.no_grad():
        assert layer._take_weight()[0] is not layer._take_weight()[0]


def test_gradients_in_evaluation():
    layer = qnn.QuantLinear(4, 3).eval()
    with torch.no_grad():
        layer(torch.ones(1, 4))
    layer(torch.ones(1, 4)).sum().backward()
    assert layer.weight.grad is not None


def test_what_is_cached_in_inference_mode_serves_training_later():
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

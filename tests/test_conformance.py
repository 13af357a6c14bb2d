"""What holds for everything there is: every quantizer on every layer. Adding one adds its tests."""

import copy
import inspect
import pickle
import re
import warnings
from io import BytesIO

import pytest
import torch
from torch import Tensor, nn

import bitwright.nn as qnn
from bitwright import quantizers
from bitwright.qcore import BitwrightWarning, QuantizerError, QuantTensor, TensorQuant, describe, values_of
from bitwright.qcore.declare.inject import QuantizerType
from bitwright.quantizers import Int8Act, Int8WeightPerTensor, Int32Bias

pytestmark = pytest.mark.filterwarnings("ignore:.* is clipped:bitwright.qcore.BitwrightWarning")  # biases of 8 bits

FRAGMENTS = {"BiasBase", "IntBase", "PerGroup", "PerOutputChannel", "PowerOfTwo", "Shifted", "of_width"}
BASES = {"ActivationLayer", "QuantFunction", "QuantLayer", "Slot", "WeightLayer"}  # they stand in for no layer of torch
FUNCTIONS = {"calibrating", "finish_calibration", "frozen", "intercepted", "quantizers_of", "unquantized"}

QUANTIZERS = {name: getattr(quantizers, name) for name in quantizers.__all__ if name not in FRAGMENTS}
WEIGHTS = {name: each for name, each in QUANTIZERS.items() if "Weight" in name}
ACTS = {name: each for name, each in QUANTIZERS.items() if "Act" in name}
BIASES = {name: each for name, each in QUANTIZERS.items() if "Bias" in name}

LAYERS = {name: getattr(qnn, name) for name in qnn.__all__ if name not in BASES | FUNCTIONS}
WEIGHT_LAYERS = {name: layer for name, layer in LAYERS.items() if issubclass(layer, qnn.WeightLayer)}
ACT_LAYERS = {name: layer for name, layer in LAYERS.items() if issubclass(layer, qnn.ActivationLayer)}

OURS_WEIGHT = {"weight_quant", "bias_quant", "input_quant", "output_quant", "return_quant_tensor"}
OURS_ACT = {"act_quant", "input_quant", "return_quant_tensor", "device", "dtype"}


def twin_of(layer):
    """The torch class that a layer stands in for."""
    return next(base for base in layer.__mro__ if base.__module__.startswith("torch.nn") and base is not nn.Module)


def arguments(layer):
    """Arguments for torch's class, and the shape of an input."""
    if not issubclass(layer, qnn.WeightLayer):
        return ((-1,) if layer is qnn.QuantSoftmax else ()), (3, 4, 5)
    if layer is qnn.QuantLinear:
        return (6, 4), (3, 6)
    dims = int(layer.__name__[-2])
    return (6, 4, 3), (2, 6, *[5] * dims)


def floats(layer):
    """Keywords that leave everything float."""
    return {"weight_quant" if issubclass(layer, qnn.WeightLayer) else "act_quant": None}


def made(layer, **kwargs):
    torch.manual_seed(0)
    return layer(*arguments(layer)[0], **kwargs)


def input_of(layer, dtype=torch.float32, seed=0):
    shape = arguments(layer)[1]
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


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
    assert set(WEIGHT_LAYERS) | set(ACT_LAYERS) == set(LAYERS)
    assert all(isinstance(each, QuantizerType) for each in QUANTIZERS.values())


# Layers


@pytest.mark.parametrize("name", LAYERS)
def test_positional_arguments_are_torchs(name):
    layer = LAYERS[name]
    ours = inspect.signature(layer).parameters.values()
    torchs = inspect.signature(twin_of(layer)).parameters.values()
    deprecated = {"min_value", "max_value"} if twin_of(layer) is nn.Hardtanh else set()  # by torch, for years
    fixed = [each for each in torchs if each.kind is each.POSITIONAL_OR_KEYWORD and each.name not in deprecated]
    positional = [each for each in ours if each.kind is each.POSITIONAL_OR_KEYWORD]
    assert [(each.name, each.default) for each in positional] == [(each.name, each.default) for each in fixed]
    keywords = {each.name for each in ours if each.kind is each.KEYWORD_ONLY}
    assert keywords == (OURS_WEIGHT if name in WEIGHT_LAYERS else OURS_ACT)
    assert [each.name for each in ours if each.kind is each.VAR_KEYWORD] == ["overrides"]
    assert not [each for each in ours if each.kind is each.VAR_POSITIONAL]


@pytest.mark.parametrize("name", LAYERS)
def test_forward_takes_what_torchs_takes(name):
    layer = LAYERS[name]
    torchs = inspect.signature(twin_of(layer).forward).parameters
    x = input_of(layer)
    module = made(layer)
    assert next(iter(torchs.values())).name == "self"
    assert torch.equal(module(input=x), module(x))
    assert set(list(torchs)[1:]) <= set(inspect.signature(layer.forward).parameters)


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_a_torch_layer(name):
    layer = LAYERS[name]
    assert isinstance(made(layer), twin_of(layer))
    assert name.lower() == f"quant{twin_of(layer).__name__}".lower()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", LAYERS)
def test_without_quantizers_it_is_torchs(name, dtype):
    layer = LAYERS[name]
    ours = made(layer, **floats(layer))
    torchs = twin_of(layer)(*arguments(layer)[0])
    assert list(ours.state_dict()) == list(torchs.state_dict())
    torchs.load_state_dict(ours.state_dict())
    ours, torchs = ours.to(dtype), torchs.to(dtype)
    for training in (True, False):
        outs, grads = [], []
        for module in (ours.train(training), torchs.train(training)):
            x = input_of(layer, dtype).requires_grad_()
            out = module(x)
            out.float().square().sum().backward()
            outs.append(out)
            grads.append(x.grad)
        assert type(outs[0]) is Tensor
        assert torch.equal(*outs)
        assert torch.equal(*grads)


@pytest.mark.parametrize("name", LAYERS)
def test_default_weights_are_initialised_as_torchs(name):
    layer = LAYERS[name]
    ours = made(layer)
    torch.manual_seed(0)
    torchs = twin_of(layer)(*arguments(layer)[0])
    for one, other in zip(torchs.parameters(), ours.parameters(), strict=False):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", LAYERS)
def test_few_modules(name):
    layer = LAYERS[name]
    assert len(list(made(layer).modules())) <= 5
    full = {"input_quant": Int8Act}
    if name in WEIGHT_LAYERS:
        full["bias_quant"] = Int32Bias
    assert len(list(made(layer, **full).modules())) <= 6


@pytest.mark.parametrize("name", LAYERS)
def test_repr_and_describe(name):
    layer = LAYERS[name]
    for kwargs in ({}, floats(layer), {"input_quant": Int8Act}):
        assert repr(made(layer, **kwargs)).startswith(name)
    tree = describe(made(layer))
    assert tree.to_dict()["needs"]
    assert tree.find("bit_width").value == "8"


@pytest.mark.parametrize("name", LAYERS)
def test_the_meta_device(name):
    with torch.device("meta"):
        module = made(LAYERS[name])
    assert {tensor.device.type for tensor in [*module.parameters(), *module.buffers()]} <= {"meta"}
    assert repr(module) == repr(made(LAYERS[name]))
    assert list(module.state_dict()) == list(made(LAYERS[name]).state_dict())


@pytest.mark.parametrize("name", LAYERS)
def test_an_unknown_keyword_is_refused(name):
    with pytest.raises(QuantizerError, match=f"^{name}\\("):
        made(LAYERS[name], bitwidth=4)


@pytest.mark.parametrize("name", LAYERS)
def test_input_and_output_quantizers(name):
    layer = LAYERS[name]
    module = made(layer, input_quant=Int8Act, input_scale=0.25)
    x = input_of(layer) * 20
    on = (x / 0.25).round().clamp(-128, 127) * 0.25
    plain = copy.deepcopy(module)
    plain.input_quant = None
    assert torch.equal(module(x), plain(on))


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


def warm(layer, quantizer, **kwargs):
    """An activation layer that saw one batch."""
    module = made(layer, act_quant=quantizer, return_quant_tensor=True, **kwargs)
    module(input_of(layer))
    return module


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
    expected = twin_of(ACT_LAYERS[layer])(*arguments(ACT_LAYERS[layer])[0])(x)
    low, high = trained.grid.bounds
    reach = ((low - trained.zero_point) * trained.scale, (high - trained.zero_point) * trained.scale)
    clipped = torch.clamp(expected, *reach)
    assert ((values_of(trained) - clipped).abs() <= trained.scale * 0.501).all()


@pytest.mark.parametrize("quantizer", ACTS)
def test_zero_stays_zero(quantizer):
    layer = warm(qnn.QuantIdentity, ACTS[quantizer])
    for training in (True, False):
        out = layer.train(training)(torch.tensor([0.0, 0.7, -0.4, 0.0]).reshape(1, 4, 1).expand(2, 4, 3).clone())
        assert (values_of(out)[:, [0, 3]] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("quantizer", ACTS)
def test_activations_in_other_precisions(quantizer, dtype):
    layer = warm(qnn.QuantIdentity, ACTS[quantizer])
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
    layer = warm(qnn.QuantIdentity, ACTS[quantizer], calibration_steps=1)
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


# State


def trained_layers():
    for name, layer in WEIGHT_LAYERS.items():
        yield name, lambda layer=layer: made(layer, input_quant=Int8Act, bias_quant=Int32Bias), layer
    for name, layer in ACT_LAYERS.items():
        yield name, lambda layer=layer: made(layer), layer
    for name, quantizer in WEIGHTS.items():
        yield name, lambda quantizer=quantizer: made(qnn.QuantLinear, weight_quant=quantizer), qnn.QuantLinear
    for name, quantizer in ACTS.items():
        yield name, lambda quantizer=quantizer: made(qnn.QuantIdentity, act_quant=quantizer), qnn.QuantIdentity
    for name, quantizer in BIASES.items():
        make = lambda quantizer=quantizer: made(qnn.QuantLinear, bias_quant=quantizer, input_quant=Int8Act)  # noqa: E731
        yield name, make, qnn.QuantLinear


EVERYTHING = {name: (make, layer) for name, make, layer in trained_layers()}


def saved(anything, **kwargs):
    buffer = BytesIO()
    torch.save(anything, buffer)
    buffer.seek(0)
    return torch.load(buffer, **kwargs)


@pytest.mark.parametrize("name", EVERYTHING)
def test_state_goes_round(name):
    make, layer = EVERYTHING[name]
    module = make()
    keys = list(module.state_dict())
    module(input_of(layer))
    x = input_of(layer, seed=1)
    assert list(module.state_dict()) == keys
    loaded = make()
    loaded.load_state_dict(saved(module.state_dict(), weights_only=True), strict=True)
    copies = [loaded, copy.deepcopy(module), pickle.loads(pickle.dumps(module)), saved(module, weights_only=False)]
    expected = module.eval()(x)
    for each in copies:
        assert torch.equal(each.eval()(x), expected)
        assert list(each.state_dict()) == keys
        assert repr(each) == repr(module)
    for quant in (each for each in module.modules() if isinstance(each, TensorQuant)):
        assert pickle.loads(pickle.dumps(quant.quantizer)) == quant.quantizer


@pytest.mark.parametrize("name", EVERYTHING)
def test_a_float_checkpoint_loads_strictly(name):
    make, layer = EVERYTHING[name]
    module = make()
    module(input_of(layer))
    source = twin_of(layer)(*arguments(layer)[0])
    module.load_state_dict(source.state_dict(), strict=True)
    for parameter, loaded in source.named_parameters():
        assert torch.equal(module.state_dict()[parameter], loaded)
    if hasattr(module, "weight_quant"):
        fresh = make()
        with torch.no_grad():
            fresh.weight.copy_(source.weight)
            fresh.bias.copy_(source.bias)
        assert torch.equal(module.int_weight(), fresh.int_weight())


@pytest.mark.parametrize("name", EVERYTHING)
def test_training_resumes_to_the_bit(name):
    make, layer = EVERYTHING[name]
    module = make()
    if not list(module.parameters()):
        pytest.skip("nothing to train")
    optimizer = torch.optim.Adam(module.parameters(), 0.01)

    def steps(model, optimizer, seeds):
        losses = []
        for seed in seeds:
            loss = model(input_of(layer, seed=seed)).square().mean()
            optimizer.zero_grad()
            if loss.requires_grad:  # an activation alone has nothing to learn while it collects
                loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    steps(module, optimizer, range(2))
    file = saved([module.state_dict(), optimizer.state_dict()], weights_only=True)
    expected = steps(module, optimizer, range(2, 5))
    resumed = make()
    restarted = torch.optim.Adam(resumed.parameters(), 0.01)
    resumed.load_state_dict(file[0])
    restarted.load_state_dict(file[1])
    assert steps(resumed, restarted, range(2, 5)) == expected


# Compiled: everything at once, so that it is compiled once


class Zoo(nn.Module):
    def __init__(self, layers):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x):
        return [values_of(layer(x)) for layer in self.layers]


def families(of):
    """One quantizer for each name without its bit width: they differ in nothing else."""
    return {re.sub(r"\d+", "", name): each for name, each in of.items()}.values()


def zoos():
    linears = [made(qnn.QuantLinear, weight_quant=each) for each in families(WEIGHTS)]
    biases = [made(qnn.QuantLinear, bias_quant=each, input_quant=Int8Act(scale=0.1)) for each in families(BIASES)]
    acts = [warm(qnn.QuantIdentity, each) for each in families(ACTS)]
    return {
        "weights and biases": ([*linears, *biases], qnn.QuantLinear),
        "activations": ([*acts, *(made(each) for each in ACT_LAYERS.values())], qnn.QuantReLU),
    }


@pytest.mark.slow
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ["weights and biases", "activations"])
def test_compiled_is_eager(name, training):
    torch._dynamo.reset()
    layers, kind = zoos()[name]
    zoo = Zoo(layers)
    zoo(input_of(kind))
    zoo.train(training)
    twin = copy.deepcopy(zoo)
    x, y = (input_of(kind, seed=3).requires_grad_() for _ in range(2))
    expected = zoo(x)
    out = torch.compile(twin, backend="aot_eager", fullgraph=True)(y)
    for index, (one, other) in enumerate(zip(expected, out, strict=True)):
        assert torch.equal(one, other), zoo.layers[index]
    sum(each.square().sum() for each in expected).backward()
    sum(each.square().sum() for each in out).backward()
    torch.testing.assert_close(x.grad, y.grad)
    for (parameter, one), other in zip(zoo.named_parameters(), twin.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None), parameter
        if one.grad is not None:
            torch.testing.assert_close(
                one.grad, other.grad, rtol=1e-4, atol=1e-5, msg=lambda text, at=parameter: at + text
            )


def test_int8_weights_per_tensor_are_the_default():
    for layer in WEIGHT_LAYERS.values():
        assert made(layer).weight_quant.quantizer == Int8WeightPerTensor

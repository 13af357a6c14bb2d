"""What holds for every layer: without quantizers it is torch's, and with them it computes one result everywhere."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bitwright.nn as qnn
from bitwright.nn import quantizers_of, unquantized
from bitwright.qcore import QuantTensor, TensorQuant, values_of
from bitwright.quantizers import Int8Act, Int32Bias
from tests.conformance.examples import (
    ACT_LAYERS,
    LAYERS,
    ON_INTEGERS,
    WEIGHT_LAYERS,
    copied,
    example_of,
    floats,
    full,
    input_of,
    inputs_of,
    made,
    mapped,
    same,
    seeded,
    tensors_of,
    twin_of,
    values,
    warm,
)

pytestmark = pytest.mark.filterwarnings("ignore:.* is clipped:bitwright.qcore.BitwrightWarning")

KINDS = ["usual", "full"]
DTYPES = [torch.float32, torch.float64, torch.bfloat16]


def of_kind(layer: Any, kind: str, **keywords: Any) -> Any:
    return made(layer, **(full(layer) if kind == "full" else {}), **keywords)


def trained(module: Any, inputs: Any) -> tuple[Any, list[Tensor | None]]:
    """The result of a call, and the gradients of what went in and of the parameters."""
    inputs = mapped(lambda each: each.detach().clone().requires_grad_(), inputs)
    out = seeded(module, *inputs)
    sum(each.float().square().sum() for each in tensors_of(out) if each.is_floating_point()).backward()
    given = [each for each in tensors_of(inputs) if each.is_floating_point()]
    held = list(module.parameters()) if isinstance(module, nn.Module) else []
    return out, [each.grad for each in (*given, *held)]


# Without quantizers


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", LAYERS)
def test_without_quantizers_it_is_torchs(name, dtype):
    layer = LAYERS[name]
    ours, torchs, exact = made(layer, **floats(layer)), twin_of(layer), example_of(layer).exact
    if torchs is None:
        pytest.skip("nothing in torch is like it")
    if isinstance(torchs, nn.Module):
        assert list(ours.state_dict()) == list(torchs.state_dict())
        torchs.load_state_dict(ours.state_dict())
        torchs.to(dtype)
    ours.to(dtype)
    for training in (True, False):
        ours.train(training)
        if isinstance(torchs, nn.Module):
            torchs.train(training)
        (one, ones), (other, others) = trained(ours, inputs_of(layer, dtype)), trained(torchs, inputs_of(layer, dtype))
        assert not [each for each in tensors_of(one) if type(each) is not Tensor]
        same(one, other, exact)
        assert [each is None for each in ones] == [each is None for each in others]
        if dtype is not torch.bfloat16 or exact:
            same(ones, others, exact)


@pytest.mark.parametrize("name", LAYERS)
def test_weights_are_initialised_as_torchs(name):
    layer, torchs = LAYERS[name], twin_of(LAYERS[name])
    if not isinstance(torchs, nn.Module):
        pytest.skip("nothing in torch is like it")
    for ours in (made(layer), made(layer, **full(layer))):
        own = dict(ours.named_parameters())
        for parameter, wanted in torchs.named_parameters():
            assert torch.equal(own[parameter], wanted), parameter


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", LAYERS)
def test_switched_off_it_is_float(name, kind):
    layer = LAYERS[name]
    module, plain = warm(of_kind(layer, kind)), made(layer, **floats(layer))
    state = module.state_dict()
    plain.load_state_dict({key: state[key] for key in plain.state_dict()})
    with unquantized(module.eval()):
        same(module(*inputs_of(layer)), plain.eval()(*inputs_of(layer)), example_of(layer).exact)


# With them


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", LAYERS)
def test_one_result_in_training_evaluation_and_inference(name, kind):
    layer = LAYERS[name]
    module, inputs = warm(of_kind(layer, kind)).eval(), inputs_of(layer)
    expected = module(*inputs)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            same(module(*inputs), expected)
    with qnn.frozen(module), torch.no_grad():
        same(module(*inputs), expected)
        same(module(*inputs), expected)


@pytest.mark.parametrize("name", LAYERS)
def test_quantizers_change_the_result(name):
    layer = LAYERS[name]
    keywords = {name: each and each(bit_width=3) for name, each in full(layer).items() if name != "bias_quant"}
    module = warm(made(layer, **keywords)).eval()
    outs = [each for each in values(module(*inputs_of(layer))) if each.is_floating_point()]
    with unquantized(module):
        floats = [each for each in values(module(*inputs_of(layer))) if each.is_floating_point()]
    assert any(not torch.equal(*each) for each in zip(outs, floats, strict=True))


@pytest.mark.parametrize("name", LAYERS)
def test_every_quantizer_is_asked_in_a_forward(name):
    layer = LAYERS[name]
    module = warm(made(layer, **full(layer))).eval()
    asked: set[str] = set()

    def noted(path: str) -> Any:
        def note(quant: TensorQuant, x: Tensor, *context: object) -> Any:
            asked.add(path)
            return quant._quantize(x, *context)

        return note

    quantizers = quantizers_of(module)
    with qnn.intercepted(quantizers, noted):
        module(*inputs_of(layer))
    assert sorted(set(quantizers) - asked) == []


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", LAYERS)
def test_gradients_reach_every_parameter_and_learned_scale(name, kind, dtype):
    layer = LAYERS[name]
    module = of_kind(layer, kind).to(dtype)
    for each in quantizers_of(module).values():
        if not each.of_parameter:
            vars(each.scaling)["calibration_steps"] = 1  # learned from then on
    warm(module, *inputs_of(layer, dtype))
    out, grads = trained(module, inputs_of(layer, dtype))
    assert {each.dtype for each in tensors_of(out) if each.is_floating_point()} <= {dtype}
    names = [f"input {i}" for i in range(len(grads) - len(list(module.parameters())))]
    names += [path for path, _ in module.named_parameters()]
    missing = [path for path, grad in zip(names, grads, strict=True) if grad is None]
    assert missing == []
    assert [path for path, grad in zip(names, grads, strict=True) if not torch.isfinite(grad).all()] == []


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.filterwarnings("ignore::bitwright.qcore.BitwrightWarning")
def test_degenerate_inputs_give_no_nan(name, kind, training):
    layer = LAYERS[name]
    for fill in (0.0, 1e-30, 1e30, -0.5):
        inputs = mapped(lambda each, fill=fill: torch.full_like(each, fill), inputs_of(layer))
        if not any(torch.isnan(each).any() for each in values(made(layer, **floats(layer)).train(training)(*inputs))):
            out = of_kind(layer, kind).train(training)(*inputs)
            assert not any(torch.isnan(each).any() for each in values(out)), fill


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", LAYERS)
def test_constant_parameters_give_no_nan(name, kind):
    layer = LAYERS[name]
    for fill in (0.0, 1e-30, -0.5):
        module = of_kind(layer, kind)
        with torch.no_grad():
            for each in module.parameters(recurse=False):
                each.fill_(fill)
        assert all(torch.isfinite(each).all() for each in values(module(*inputs_of(layer))))


# What carries a grid


@pytest.mark.parametrize("name", LAYERS)
def test_quant_tensors_in(name):
    layer = LAYERS[name]
    if name in ON_INTEGERS:
        pytest.skip("what it computes depends on the grid")
    module = warm(of_kind(layer, "usual")).eval()
    on = qnn.QuantIdentity(act_quant=Int8Act(scale=0.05), return_quant_tensor=True)
    given = mapped(on, inputs_of(layer))
    same(module(*given), module(*mapped(values_of, given)))


@pytest.mark.parametrize("name", LAYERS)
def test_quant_tensors_out(name):
    layer = LAYERS[name]
    module = made(layer, **full(layer))
    plain = warm(copied(module)).eval()
    module.return_quant_tensor = True
    module = warm(module).eval()
    out = module(*inputs_of(layer))
    assert not any(isinstance(each, QuantTensor) for each in tensors_of(plain(*inputs_of(layer))))
    same(out, plain(*inputs_of(layer)))
    carried = [each for each in tensors_of(out) if isinstance(each, QuantTensor)]
    assert bool(carried) == example_of(layer).carries
    for each in carried:
        assert each.is_valid
        assert torch.equal(values_of(each), (each.int().to(each.dtype) - each.zero_point) * each.scale)


# Layers with a weight, and activations


@pytest.mark.parametrize("name", [*WEIGHT_LAYERS, *ACT_LAYERS])
def test_few_modules(name):
    layer = LAYERS[name]
    assert len(list(made(layer).modules())) <= 5
    more = {"input_quant": Int8Act} | ({"bias_quant": Int32Bias} if name in WEIGHT_LAYERS else {})
    assert len(list(made(layer, **more).modules())) <= max(6, 1 + 2 * len(layer.slots))


@pytest.mark.parametrize("name", [*WEIGHT_LAYERS, *ACT_LAYERS])
def test_input_quantizers(name):
    layer = LAYERS[name]
    module = made(layer, input_quant=Int8Act, input_scale=0.25)
    x = input_of(layer) * 20
    on = (x / 0.25).round().clamp(-128, 127) * 0.25
    plain = copied(module)
    plain.input_quant = None
    assert torch.equal(module(x), plain(on))

"""Compiled, every layer and quantizer gives eager's numbers and gradients. Many at once, as each compiles long."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bitwright.nn as qnn
from bitwright.qcore import values_of
from bitwright.quantizers import Int8Act
from tests.conformance.examples import (
    ACT_LAYERS,
    ACTS,
    BIASES,
    ELEMENTWISE,
    EXAMPLES,
    LAYERS,
    WEIGHTS,
    copied,
    full,
    input_of,
    inputs_of,
    kinds,
    made,
    mapped,
    tensors_of,
    values,
    warm,
)

pytestmark = pytest.mark.filterwarnings("ignore:.* is clipped:bitwright.qcore.BitwrightWarning")


class Zoo(nn.Module):
    """Several layers that take the same input."""

    def __init__(self, layers: list[Any]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [values_of(layer(x)) for layer in self.layers]


def zoos() -> dict[str, tuple[list[Any], Any]]:
    linears = [made(qnn.QuantLinear, weight_quant=each) for each in kinds(WEIGHTS).values()]
    biases = [made(qnn.QuantLinear, bias_quant=each, input_quant=Int8Act(scale=0.1)) for each in kinds(BIASES).values()]
    acts = [made(qnn.QuantIdentity, act_quant=each, return_quant_tensor=True) for each in kinds(ACTS).values()]
    functions = [made(each) for name, each in ACT_LAYERS.items() if EXAMPLES[name] is ELEMENTWISE]
    return {
        "weights and biases": ([*linears, *biases], qnn.QuantLinear),
        "activations": ([*(warm(each) for each in acts), *functions], qnn.QuantReLU),
    }


def compared(model: Any, inputs: tuple[Any, ...]) -> None:
    """Outputs and gradients of a model and of its compiled copy."""
    torch._dynamo.reset()
    twin = copied(model)
    given, again = (mapped(lambda each: each.detach().clone().requires_grad_(), inputs) for _ in range(2))
    torch.manual_seed(1)
    expected = model(*given)
    torch.manual_seed(1)
    out = torch.compile(twin, backend="aot_eager", fullgraph=True)(*again)
    for index, (one, other) in enumerate(zip(values(expected), values(out), strict=True)):
        assert torch.equal(one, other), index
    sum(each.float().square().sum() for each in tensors_of(expected) if each.is_floating_point()).backward()
    sum(each.float().square().sum() for each in tensors_of(out) if each.is_floating_point()).backward()
    for one, other in zip(tensors_of(given), tensors_of(again), strict=True):
        torch.testing.assert_close(one.grad, other.grad)
    for (parameter, one), other in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None), parameter
        if one.grad is not None:
            torch.testing.assert_close(
                one.grad, other.grad, rtol=1e-3, atol=1e-4, msg=lambda text, at=parameter: at + text
            )


@pytest.mark.slow
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ["weights and biases", "activations"])
def test_compiled_is_eager(name, training):
    layers, kind = zoos()[name]
    zoo = Zoo(layers)
    zoo(input_of(kind))
    compared(zoo.train(training), (input_of(kind, seed=3),))


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "training"), [("usual", False), ("full", True)])
@pytest.mark.parametrize("name", LAYERS)
def test_a_compiled_layer_is_the_eager_one(name, kind, training):
    """Trained with a quantizer in every slot, and evaluated with the usual ones."""
    layer = LAYERS[name]
    module = warm(made(layer, **(full(layer) if kind == "full" else {})))
    compared(module.train(training), inputs_of(layer, seed=3))


ALIKE = re.compile(r"[13]d$|LSTM|GRU|RNN|Attention|Transformer")  # layers of two dimensions, or compiled in tests/nn


@pytest.mark.parametrize(
    "name", [pytest.param(each, marks=[pytest.mark.slow] if ALIKE.search(each) else []) for each in LAYERS]
)
def test_a_layer_is_traced_in_one_graph(name):
    """The quick half of the above: dynamo takes every quantized layer whole."""
    layer = LAYERS[name]
    module = warm(made(layer, **full(layer))).eval()
    torch._dynamo.reset()
    compiled = torch.compile(copied(module), backend="eager", fullgraph=True)
    with torch.no_grad():
        for one, other in zip(values(compiled(*inputs_of(layer))), values(module(*inputs_of(layer))), strict=True):
            assert torch.equal(one, other)

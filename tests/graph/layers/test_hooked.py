"""Modules with a `forward` of their own: those of accelerate become quantized, others are refused."""

import functools
import re

import pytest
import torch
from torch import nn

from bitwright.graph.conversion.conversion import quantize
from bitwright.graph.errors import GraphError
from bitwright.graph.rules.ready import W2
from bitwright.quantizers import Int4DynamicActPerToken


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.other = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        return torch.matmul(self.one(x), self.other(x).T)


def hooked(model, called):
    """The model with a hook for each module that has parameters, in accelerate's way."""

    def forward(module, *args):
        called.append(module)
        return module._old_forward(*args)

    for module in model.modules():
        module._old_forward, module._hf_hook = module.forward, object()
        module.forward = functools.update_wrapper(functools.partial(forward, module), module.forward)
    return model


@pytest.fixture
def block():
    torch.manual_seed(0)
    return Block()


@pytest.mark.parametrize("inplace", [True, False])
@pytest.mark.parametrize("rules", [W2, {torch.matmul: {"input_quant": Int4DynamicActPerToken}}], ids=["layers", "call"])
def test_hooks_of_accelerate_call_quantized_layers(block, rules, inplace):
    x, called = torch.randn(3, 8), []
    expected = quantize(block, rules, examples=x)(x)
    before = block(x)
    model = hooked(block, called)
    quantized = quantize(model, rules, examples=x, inplace=inplace)
    called.clear()
    assert torch.equal(quantized(x), expected)
    assert called == [quantized, quantized.one, quantized.other]
    assert not torch.equal(expected, before)
    if not inplace:
        assert torch.equal(model(x), before)


def test_another_forward_of_a_layer_stays_float(block):
    block.one.forward = block.other.forward
    quantized = quantize(block, W2, examples=torch.randn(3, 8))
    assert (type(quantized.one), type(quantized.other).__name__) == (nn.Linear, "QuantLinear")
    expected = (
        'quantize: the rule "one" is for one (Linear), and a `forward` was set on this module, which hides that of its '
        "class."
    )
    with pytest.raises(GraphError, match=f"^{re.escape(expected)}$"):
        quantize(block, {"one": W2})

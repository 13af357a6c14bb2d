"""MiniLM with quantized attention: what it says of the likeness of texts."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bitwright.nn as qnn
from bitwright.quantizers import Int8Act, Int8WeightPerChannel
from tests.graph.models import minilm, packages, real
from tests.graph.models.metrics import sqnr

W8A8 = {
    "weight_quant": Int8WeightPerChannel,
    **{f"{slot}_quant": Int8Act for slot in ("input", "query", "key", "value", "context")},
}


def loaded():
    """The two forms of the model, and the documents; or a skip that says what to install."""
    try:
        return real.minilm(), real.torch_minilm(), real.lee_documents()
    except packages.NotInstalledError as missing:
        pytest.skip(str(missing))


@torch.no_grad()
def vectors(model: nn.Module, documents: list[tuple[Tensor, Tensor]]) -> Tensor:
    with qnn.frozen(model):
        return torch.cat([model(*batch) for batch in documents])


def judged(
    model: nn.Module, reference: nn.Module, documents: list[tuple[Tensor, Tensor]]
) -> tuple[float, float, float]:
    """Twenty documents give the ranges; Pearson of the float model and the quantized one, and the latter's SQNR."""
    with qnn.calibrating(model):
        for batch in documents[:2]:
            model(*batch)
    expected, found = vectors(reference, documents), vectors(model.eval(), documents)
    return real.lee_pearson(expected), real.lee_pearson(found), sqnr(expected, found)


@pytest.mark.slow
def test_minilm_with_multi_head_attention_quantized():
    """Loaded from the weights of torch's layers."""
    _, model, documents = loaded()
    quantized: Any = copy.deepcopy(model)
    for layer in quantized.encoder.layers:
        attention = qnn.QuantMultiheadAttention(384, 12, 0.1, batch_first=True, **W8A8)
        attention.load_state_dict(layer.self_attn.state_dict(), strict=True)
        layer.self_attn = attention
    before, after, noise = judged(quantized, model, documents)
    assert before == pytest.approx(0.656, abs=0.0005)
    assert after == pytest.approx(before, abs=0.01)
    assert noise > 20


@pytest.mark.slow
def test_minilm_of_quantized_transformer_layers():
    """Inputs of the linear layers in 8 bits as well, which costs the most."""
    _, model, documents = loaded()
    quantized = copy.deepcopy(model)
    for number, layer in enumerate(model.encoder.layers):
        twin = qnn.QuantTransformerEncoderLayer(384, 12, 1536, 0.1, "gelu", 1e-12, batch_first=True, **W8A8)
        twin.load_state_dict(layer.state_dict(), strict=True)
        quantized.encoder.layers[number] = twin
    before, after, noise = judged(quantized, model, documents)
    assert after > before - 0.01
    assert noise > 16


class Attend(nn.Module):
    """MiniLM's self-attention with a quantized layer in the place of its function."""

    def __init__(self, attention: minilm.SelfAttention) -> None:
        super().__init__()
        self.heads, width = attention.heads, attention.query.in_features
        for name in ("query", "key", "value"):
            layer = qnn.QuantLinear(width, width, weight_quant=Int8WeightPerChannel, input_quant=Int8Act)
            layer.load_state_dict(getattr(attention, name).state_dict(), strict=True)
            setattr(self, name, layer)
        self.attention = qnn.QuantScaledDotProductAttention(output_quant=Int8Act)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        heads = (layer(x) for layer in (self.query, self.key, self.value))
        q, k, v = (each.unflatten(-1, (self.heads, -1)).transpose(1, 2) for each in heads)
        return self.attention(q, k, v, bias).transpose(1, 2).flatten(2)


@pytest.mark.slow
def test_minilm_with_its_attention_quantized():
    """The other form, whose attention is a function of the file."""
    model, _, documents = loaded()
    quantized: Any = copy.deepcopy(model)
    for layer in quantized.encoder.layer:
        layer.attention.add_module("self", Attend(layer.attention.get_submodule("self")))
    before, after, noise = judged(quantized, model, documents)
    assert after == pytest.approx(before, abs=0.01)
    assert noise > 20

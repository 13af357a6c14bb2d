"""Rotations that stay in a model: where they are put, quantized and exported."""

import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bitwright.nn as qnn
from bitwright.export import export_onnx_qcdq, verify_onnx
from bitwright.graph import GraphError, calibrate, quantize, record, rotate
from bitwright.graph.rotation.online import RotatedAttention, RotatedScores, key_products
from bitwright.quantizers import Int8Act, Int8WeightPerChannel
from tests.graph.rotation.prenorm import Llama, ids, of


@pytest.mark.parametrize("fused", [True, False])
def test_keys(fused):
    """Queries and keys turn alike: what goes into a cache has changed, the result has not."""
    model = of(Llama, fused=fused)
    rotated = rotate(model, ids(), where="keys")
    torch.testing.assert_close(rotated(ids()), model(ids()), rtol=1e-11, atol=1e-11)
    kind, path = (RotatedAttention, "rotated_attention") if fused else (RotatedScores, "rotated_matmul")
    site = rotated.blocks[0].get_submodule(path)
    assert type(site) is kind
    assert site.rotation.size == 4
    assert [entry.path for entry in rotated.report.changed] == [f"blocks.0.{'attention' if fused else 'matmul'}"]  # type: ignore[attr-defined]


def test_only_products_of_queries_and_keys():
    graph = record(of(Llama, fused=False), ids())
    assert [node.path for node in key_products(graph)] == ["blocks.0.matmul"]
    assert len(graph.functions(["matmul"])) == 2


class Unwritten(nn.Module):
    """An attention that can't be rewritten, as it is called under a name for several things."""

    def forward(self, q, k, v):
        for attend in (F.scaled_dot_product_attention,):
            found = list(map(attend, (q,), (k,), (v,)))
        return found[0]


def test_attention_that_stays():
    x = torch.randn(1, 3, 4)
    said = (
        "rotate: nothing to rotate for where='keys'. attention: attention is computed by list(...) at "
        "test_online.py:42 in Unwritten.forward, not by an operator or a call written there. Write "
        "torch.nn.functional.scaled_dot_product_attention(...) there, or self.attention = "
        'qnn.QuantFunction(torch.nn.functional.scaled_dot_product_attention, ...) in the block, or "attention": None.'
    )
    with pytest.raises(GraphError, match=f"^{re.escape(said)}$"):
        rotate(Unwritten(), (x, x, x), where="keys")


def test_quantizers_behind_the_transforms():
    """The inputs of a quantized layer are those that were rotated; residual rules leave the transforms alone."""
    rotated = rotate(of(Llama, dtype=torch.float32), ids(), where=("stream", "values", "hidden", "keys"))
    rules = {
        nn.Linear: {"weight_quant": Int8WeightPerChannel, "input_quant": Int8Act},
        F.scaled_dot_product_attention: {"input_quant": Int8Act},
        torch.add: {"input_quant": Int8Act},
    }
    quantized = quantize(rotated, rules, examples=ids())
    calibrate(quantized, [ids(), ids(1)])
    block = quantized.blocks[0]
    assert type(block.down) is nn.Sequential
    assert type(block.down.rotation) is qnn.HadamardTransform
    assert isinstance(block.rotated_attention.attention, qnn.QuantScaledDotProductAttention | qnn.QuantFunction)
    expected, got = (each(ids()).detach() for each in (rotated, quantized))
    assert float((got - expected).square().sum() / expected.square().sum()) < 0.01


def attention(block, q, k, v):
    return torch.softmax(q @ k.transpose(-1, -2), -1) @ v


class Chosen(nn.Module):
    """Attention as transformers writes it: a function outside, held by a variable."""

    def forward(self, x):
        attend = {"eager": attention}["eager"]
        return attend(self, x, x, x)


def test_a_function_that_is_rewritten_twice():
    """First by the rotation, then by quantize: the product of queries and keys stays rotated."""
    x = torch.randn(2, 5, 4)
    rotated = rotate(Chosen(), x, where="keys")
    quantized = quantize(rotated, {torch.matmul: {"input_quant": Int8Act}}, examples=x)
    calibrate(quantized, [x])
    calls = record(quantized, x).calls("rotated_matmul.rotation")
    assert len(calls) == 2
    assert isinstance(quantized.rotated_matmul.matmul, qnn.QuantFunction)


@pytest.mark.slow
def test_export(tmp_path):
    """The same numbers in ONNX: butterflies, and the product with a matrix of order 12."""
    rotated = rotate(of(Llama, dtype=torch.float32), ids(), where=("stream", "values", "hidden", "keys"))
    rules = {nn.Linear: {"weight_quant": Int8WeightPerChannel, "input_quant": Int8Act}}
    quantized = quantize(rotated, rules, examples=ids())
    calibrate(quantized, [ids(), ids(1)])
    export_onnx_qcdq(quantized, ids(), tmp_path / "model.onnx", verify=False)
    report = verify_onnx(quantized, tmp_path / "model.onnx", ids())
    assert (report.differences, report.compared > 1000) == (0, True)

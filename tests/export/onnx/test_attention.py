"""Attention in files: 0 differences, of static and dynamic length."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bitwright.nn as qnn
from bitwright.export import export_onnx_qcdq, export_onnx_qdq, verify_onnx
from bitwright.quantizers import Int8Act, Int8WeightPerChannel, Int32Bias, Uint8Act
from tests.nn.attention.test_scaled_dot_product import Block

pytest.importorskip("onnxruntime")

EXPORTS = pytest.mark.parametrize("export", [export_onnx_qcdq, export_onnx_qdq])
ALL = {**{f"{slot}_quant": Int8Act for slot in ("input", "scores", "context", "output")}, "bias_quant": Int32Bias}
TOKENS, SOURCE = torch.export.Dim("tokens", min=2, max=64), torch.export.Dim("source", min=2, max=64)


class SelfAttention(nn.Module):
    def __init__(self, causal: bool = False, need_weights: bool = False, **options: Any) -> None:
        super().__init__()
        self.attention = qnn.QuantMultiheadAttention(16, 4, batch_first=True, **options)
        self.causal, self.need_weights = causal, need_weights

    def forward(self, x: Tensor) -> Any:
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1]) if self.causal else None
        options = {"need_weights": self.need_weights, "is_causal": self.causal}
        found = self.attention(x, x, x, attn_mask=mask, **options)
        return found if self.need_weights else found[0]


class CrossAttention(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.attention = qnn.QuantMultiheadAttention(16, 4, **options)

    def forward(self, x: Tensor, memory: Tensor, padding: Tensor) -> Tensor:
        return self.attention(x, memory, memory, key_padding_mask=padding, need_weights=False)[0]


def trained(model: nn.Module, *inputs: Tensor) -> nn.Module:
    """A model whose quantizers have seen two batches."""
    with torch.no_grad():
        model(*inputs)
        model(*(0.83 * each if each.is_floating_point() else each for each in inputs))
    qnn.finish_calibration(model)
    return model.eval()


def exact(
    export: Any, model: nn.Module, inputs: tuple[Tensor, ...], others: tuple[Tensor, ...] = (), **options: Any
) -> None:
    """The file of a model has its numbers, on these inputs and others."""
    trained(model, *inputs)
    program = export(model, inputs, **options)
    for each in (inputs, others):
        if each:
            report = verify_onnx(model, program, each)
            assert report.ok, report.table()
            assert report.differences == 0


SELF: Mapping[str, Mapping[str, Any]] = {
    "usual": {},
    "all slots": ALL,
    "4 bits, causal": {"causal": True, "weight_bit_width": 4},
    "per channel": {**ALL, "weight_quant": Int8WeightPerChannel},
    "weights returned": {**ALL, "need_weights": True},
    "torch's kernel, causal": {"causal": True, "attention_quant": None},
}


QUICK = {"all slots", "torch's kernel, causal"}
SELF_CASES = [pytest.param(case, marks=[] if case in QUICK else pytest.mark.slow) for case in SELF]


@EXPORTS
@pytest.mark.parametrize("case", SELF_CASES)
def test_self_attention(case, export):
    exact(export, SelfAttention(**SELF[case]), (torch.randn(3, 6, 16),))


@pytest.mark.parametrize("case", SELF_CASES)
def test_self_attention_of_any_length(case):
    model = SelfAttention(**SELF[case])
    exact(export_onnx_qdq, model, (torch.randn(3, 6, 16),), (torch.randn(3, 9, 16),), dynamic_shapes=({1: TOKENS},))


CROSS: Mapping[str, Mapping[str, Any]] = {
    "all slots": ALL,
    "per channel": {**ALL, "weight_quant": Int8WeightPerChannel},
    "other widths": {**ALL, "kdim": 8, "vdim": 8},
    "more keys": {**ALL, "add_bias_kv": True, "add_zero_attn": True},
    "usual": {},
}


def cross_inputs(targets: int, tokens: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    padding = torch.zeros(3, tokens, dtype=torch.bool)
    padding[0, 2:] = True
    padding[2] = True  # no key at all
    return torch.randn(targets, 3, 16), torch.randn(tokens, 3, width), padding


@EXPORTS
@pytest.mark.parametrize("case", [pytest.param(case, marks=pytest.mark.slow) for case in CROSS])
def test_cross_attention_with_padding(case, export):
    exact(export, CrossAttention(**CROSS[case]), cross_inputs(4, 5, CROSS[case].get("kdim", 16)))


def test_cross_attention_of_any_lengths():
    shapes = ({0: TOKENS}, {0: SOURCE}, {1: SOURCE})
    inputs, others = cross_inputs(4, 5, 16), cross_inputs(7, 8, 16)
    exact(export_onnx_qcdq, CrossAttention(**ALL), inputs, others, dynamic_shapes=shapes)


BLOCKS: Mapping[str, Mapping[str, Any]] = {
    "usual": {},
    "all slots": {"scores_quant": Int8Act, "output_quant": Int8Act, "attention_bit_width": 4},
    "torch's kernel": {"attention_quant": None},
}


@pytest.mark.slow
@EXPORTS
@pytest.mark.parametrize("case", BLOCKS)
def test_a_block_of_an_llm(case, export):
    exact(export, Block(**BLOCKS[case]), (torch.randn(3, 6, 16),))


@pytest.mark.parametrize(
    "case", ["all slots", *(pytest.param(case, marks=pytest.mark.slow) for case in BLOCKS if case != "all slots")]
)
def test_a_block_of_an_llm_of_any_length(case):
    x, longer = torch.randn(3, 6, 16), torch.randn(3, 11, 16)
    exact(export_onnx_qcdq, Block(**BLOCKS[case]), (x,), (longer,), dynamic_shapes=({1: TOKENS},))


def test_tokens_into_a_linear_layer_beside_weights_of_4_bits():
    """Types of 4 bits ask for an opset in which onnxruntime loads no reshaped integers of 8 bits."""
    first = qnn.QuantLinear(16, 32, input_quant=Int8Act, bias_quant=Int32Bias)
    model = nn.Sequential(first, nn.LayerNorm(32), qnn.QuantLinear(32, 16, weight_bit_width=4))
    exact(export_onnx_qdq, model, (torch.randn(3, 6, 16),))


class Coder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        options = {**ALL, "linear2_input_quant": Uint8Act}
        encoder = qnn.QuantTransformerEncoderLayer(16, 4, 32, batch_first=True, **options)
        self.encoder = nn.TransformerEncoder(encoder, 2, enable_nested_tensor=False)
        decoder = qnn.QuantTransformerDecoderLayer(16, 4, 32, batch_first=True, norm_first=True, weight_bit_width=4)
        self.decoder = nn.TransformerDecoder(decoder, 1)

    def forward(self, x: Tensor, y: Tensor, padding: Tensor) -> Tensor:
        memory = self.encoder(x, src_key_padding_mask=padding)
        mask = nn.Transformer.generate_square_subsequent_mask(y.shape[1])
        return self.decoder(y, memory, tgt_mask=mask, memory_key_padding_mask=padding, tgt_is_causal=True)


@pytest.mark.slow
@EXPORTS
def test_encoder_and_decoder(export):
    padding = torch.zeros(3, 6, dtype=torch.bool)
    padding[0, 4:] = True
    exact(export, Coder(), (torch.randn(3, 6, 16), torch.randn(3, 5, 16), padding))

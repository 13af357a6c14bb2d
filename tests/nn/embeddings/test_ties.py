"""A table that another layer shares has one scheme."""

import re

import pytest
import torch
from torch import nn

import bitwright.nn as qnn
from bitwright.export import ExportError, integers
from bitwright.graph import GraphError, quantize
from bitwright.nn.embeddings.ties import check_ties, share_ties
from bitwright.qcore import QuantizerError
from bitwright.quantizers import Int8WeightPerChannel, Int8WeightPerTensor, Int8WeightPerTensorLearned

ROWS = torch.tensor([[0, 3]])


class Language(nn.Module):
    """A language model of two layers, quantized or not."""

    def __init__(self, embedding, head):
        super().__init__()
        self.embedding, self.head = embedding, head
        self.head.weight = self.embedding.weight

    def forward(self, rows):
        return self.head(self.embedding(rows))


def tied(one=Int8WeightPerTensor, other=Int8WeightPerTensor):
    return Language(qnn.QuantEmbedding(6, 4, weight_quant=one), qnn.QuantLinear(4, 6, bias=False, weight_quant=other))


def message(text):
    return f"^{re.escape(text)}$"


DIFFER = (
    "embedding and head share one weight, and quantize it in two ways: embedding.weight_quant is int8 narrow, per "
    "tensor, float scale, head.weight_quant is int8 narrow, axis 0, float scale."
)
SHARE = f"{DIFFER} Share the quantizer, too: model.head.weight_quant = model.embedding.weight_quant."


@pytest.mark.parametrize("quantizer", [Int8WeightPerTensor, Int8WeightPerChannel, Int8WeightPerTensorLearned])
def test_a_shared_module_gives_equal_codes(quantizer):
    embedding = qnn.QuantEmbedding(6, 4, weight_quant=quantizer)
    model = Language(embedding, qnn.QuantLinear(4, 6, bias=False, weight_quant=embedding.weight_quant))
    model(ROWS).square().sum().backward()
    assert torch.equal(model.head.int_weight(), model.embedding.int_weight())
    check_ties(model)
    found = integers(model, ROWS)
    assert torch.equal(found["embedding"].weight.codes, found["head"].weight.codes)


def test_two_ways_are_refused_where_the_parameter_would_be_stored_twice():
    model = tied(other=Int8WeightPerChannel)
    with pytest.raises(QuantizerError, match=message(SHARE)):
        check_ties(model)
    with pytest.raises(ExportError, match=message(SHARE)):
        integers(model, ROWS)
    model.head.weight_quant = model.embedding.weight_quant
    integers(model, ROWS)


def test_two_learned_scales_are_two_ways():
    model = tied(Int8WeightPerTensorLearned, Int8WeightPerTensorLearned)
    with pytest.raises(QuantizerError, match="share one weight"):
        check_ties(model)
    share_ties(model)
    assert model.head.weight_quant is model.embedding.weight_quant
    check_ties(model)


def test_scales_that_follow_the_weight_may_stay_apart():
    model = tied()
    check_ties(model)
    share_ties(model)
    assert model.head.weight_quant is not model.embedding.weight_quant


def test_one_of_them_may_stay_float():
    check_ties(tied(other=None))
    check_ties(Language(qnn.QuantEmbedding(6, 4), nn.Linear(4, 6, bias=False)))


def test_rules_that_say_the_same_share_the_quantizer():
    model = Language(nn.Embedding(6, 4), nn.Linear(4, 6, bias=False))
    both = {"weight_quant": Int8WeightPerTensorLearned}
    quantized = quantize(model, {nn.Embedding: both, nn.Linear: both})
    assert quantized.head.weight is quantized.embedding.weight
    assert quantized.head.weight_quant is quantized.embedding.weight_quant
    rules = {nn.Embedding: {}, nn.Linear: {"weight_quant": Int8WeightPerChannel}}
    text = f"quantize: {DIFFER} Give both the same weight_quant."
    with pytest.raises(GraphError, match=message(text)):
        quantize(model, rules)


def test_layers_that_share_no_table_are_left_alone():
    linears = nn.Sequential(qnn.QuantLinear(4, 4), qnn.QuantLinear(4, 4, weight_bit_width=2))
    linears[1].weight = linears[0].weight
    check_ties(linears)

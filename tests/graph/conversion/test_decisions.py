"""What quantize decided stays with the model."""

import copy
import pickle

import torch
from torch import nn

from bitwright.graph.conversion.conversion import quantize
from bitwright.graph.conversion.decisions import Decision, SlotDecision, decisions_of
from bitwright.graph.rules.ready import W8A8
from bitwright.quantizers import Int8Act, Int8WeightPerChannel


def model():
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2), nn.Flatten())


def test_every_layer_has_one():
    q = quantize(model(), {nn.Linear: W8A8, "2": None, "0": {"weight_bit_width": 4}})
    assert decisions_of(q) == [
        Decision(
            "0",
            "QuantLinear",
            {
                "weight": SlotDecision(Int8WeightPerChannel(bit_width=4), (0, 2), ("nn.Linear", '"0"')),
                "input": SlotDecision(Int8Act, (0,), ("nn.Linear",)),
            },
        ),
        Decision("1", "ReLU", {}, "no rule is for it"),
        Decision("2", "Linear", {}, 'by the rule "2"'),
        Decision("3", "Flatten", {}, "there is no quantized layer for Flatten"),
    ]
    assert [each.quantized for each in decisions_of(q)] == [True, False, False, False]


def test_what_a_layer_has_of_its_own():
    q = quantize(model(), {"0": {"weight_bit_width": 4}})
    assert decisions_of(q)[0].slots["weight"].why == ('"0"',)
    q = quantize(model(), {"0": {"input_quant": Int8Act}})
    assert decisions_of(q)[0].slots["weight"].why == ("usual in QuantLinear",)


def test_they_are_copied_and_in_no_state_dict():
    float_model = model()
    q = quantize(float_model, W8A8)
    assert decisions_of(copy.deepcopy(q)) == decisions_of(q)
    assert decisions_of(pickle.loads(pickle.dumps(q))) == decisions_of(q)
    assert not [key for key in q.state_dict() if "decision" in key]
    assert decisions_of(float_model) == []
    assert decisions_of(torch.compile(q, backend="eager")) == []


def test_a_second_call_adds_to_the_first():
    q = quantize(quantize(model(), {"0": W8A8}), {"2": W8A8})
    assert [each.layer for each in decisions_of(q)] == ["QuantLinear", "ReLU", "QuantLinear", "Flatten"]
    assert decisions_of(q)[0].quantized


def test_attention_is_one_layer():
    q = quantize(nn.TransformerEncoderLayer(4, 2, 8), {nn.Linear: W8A8, nn.LayerNorm: None})
    decided = {each.path: each for each in decisions_of(q)}
    assert decided["self_attn"].float_reason == "no rule is for it"
    assert "self_attn.out_proj" not in decided
    assert decided["linear1"].quantized
    assert decided["norm1"].float_reason == "by the rule nn.LayerNorm"

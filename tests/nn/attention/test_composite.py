"""Layers made of layers: their slots are the parts' slots."""

import re

import pytest
import torch
from torch import nn

import bitwright.nn as qnn
from bitwright.nn.attention.composite import Composite, become
from bitwright.qcore import QuantizerError
from bitwright.quantizers import Int4WeightPerTensor, Int8Act, Int8WeightPerTensor


class Pair(Composite):
    """Two linear layers, of which the first has a slot here."""

    def __init__(self, **given):
        super().__init__()
        self.one, self.two = nn.Linear(4, 3), nn.Linear(3, 2)
        become(self, "one", nn.Linear, qnn.QuantLinear)
        self.slots = (qnn.Slot("first", "one.weight"), qnn.Slot("between"))
        self.routes = {"first": ("one", "weight")}
        self.fill_slots(**given)


def test_a_quantizer_belongs_to_the_part():
    pair = Pair(first_quant=Int8WeightPerTensor, first_bit_width=4, between_quant=Int8Act)
    assert pair.one.weight_quant.bit_width == 4
    assert pair.first_quant is pair.one.weight_quant
    assert "one.weight_quant.scheme" in pair.state_dict()
    assert "between_quant.scheme" in pair.state_dict()
    assert not [key for key in pair.state_dict() if key.startswith("first")]
    assert pair.tensor_of("first") is pair.one.weight
    pair.first_quant = None
    assert pair.one.weight_quant is None
    with pytest.raises(AttributeError, match="'Pair' object has no attribute 'second_quant'"):
        _ = pair.second_quant


def test_what_a_frozen_part_keeps_is_forgotten():
    pair = Pair(first_quant=Int8WeightPerTensor)
    x = torch.randn(5, 4)
    with qnn.frozen(pair.eval()), torch.no_grad():
        before = pair.one(x)
        pair.first_quant = Int4WeightPerTensor
        assert not torch.equal(pair.one(x), before)


def test_a_part_becomes_quantized_in_place():
    pair = Pair()
    two, weight = pair.two, pair.two.weight
    become(pair, "two", nn.Linear, qnn.QuantLinear)
    assert pair.two is two
    assert two.weight is weight
    assert type(two) is qnn.QuantLinear
    assert two.weight_quant is None
    pair.two = nn.Identity()
    message = (
        "Pair: two is a Identity, and only an nn.Linear there can become a QuantLinear. Put one there, or quantize the "
        "parts one by one."
    )
    with pytest.raises(QuantizerError, match=f"^{re.escape(message)}$"):
        become(pair, "two", nn.Linear, qnn.QuantLinear)

"""Rules as a user writes them: read, shown, refused."""

import operator
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bitwright.nn as qnn
from bitwright.graph.errors import GraphError
from bitwright.graph.rules.ready import W8A8
from bitwright.graph.rules.rules import first, is_function, last, read_rules, written
from bitwright.quantizers import Int8Act, Int8DynamicAct, Int8WeightPerChannel, NF4Weight


def convolution(path, module):
    return isinstance(module, nn.Conv2d)


class Own(nn.Linear):
    pass


@pytest.mark.parametrize(
    ("where", "text"),
    [
        (nn.Conv2d, "nn.Conv2d"),
        (Own, "Own"),
        (qnn.QuantConv2d, "qnn.QuantConv2d"),
        ("layer1.*", '"layer1.*"'),
        (torch.add, "torch.add"),
        (torch.Tensor.add_, "torch.Tensor.add_"),
        (F.softmax, "F.softmax"),
        (operator.add, "operator.add"),
        (first(), "first()"),
        (last(nn.Linear), "last(nn.Linear)"),
        (convolution, "convolution"),
    ],
)
def test_places_are_shown_as_typed(where, text):
    assert written(where) == text
    assert str(read_rules([(where, {"weight_bit_width": 4})])[0]) == text


def test_mapping_and_pairs_are_alike():
    assert read_rules({nn.Linear: W8A8, "head": None}) == read_rules([(nn.Linear, W8A8), ("head", None)])


def test_the_same_place_may_come_twice_in_pairs():
    rules = read_rules([("a", {"weight_bit_width": 4}), ("b", None), ("a", {"weight_bit_width": 8})])
    assert [(rule.index, rule.where, rule.settings) for rule in rules] == [
        (0, "a", {"weight_bit_width": 4}),
        (1, "b", None),
        (2, "a", {"weight_bit_width": 8}),
    ]


def test_keywords_among_the_rules_are_for_all_layers_with_weights():
    rules = read_rules({**W8A8, "head": None, "weight_bit_width": 4})
    assert [(rule.where, rule.settings) for rule in rules] == [
        (None, {"weight_quant": Int8WeightPerChannel, "input_quant": Int8Act}),
        ("head", None),
        (None, {"weight_bit_width": 4}),
    ]


def test_a_keyword_may_be_none():
    assert read_rules({"weight_bit_width": 4, "input_quant": None})[0].settings == {
        "weight_bit_width": 4,
        "input_quant": None,
    }


def test_the_settings_are_a_copy():
    given = {"weight_bit_width": 4}
    rule = read_rules({nn.Linear: given})[0]
    given["weight_bit_width"] = 2
    assert rule.settings == {"weight_bit_width": 4}


@pytest.mark.parametrize("function", [torch.add, torch.Tensor.add_, F.softmax, operator.iadd, torch.matmul, torch.cat])
def test_functions_are_no_predicates(function):
    assert is_function(function)
    assert read_rules({function: W8A8})[0].is_function


@pytest.mark.parametrize("predicate", [convolution, lambda path, module: True])
def test_predicates_are_no_functions(predicate):
    assert not is_function(predicate)


def test_ends_are_values():
    assert {first(): 1, first(nn.Linear): 2, last(): 3}[first()] == 1
    assert first() != last()
    assert first(nn.Linear) != first(nn.Conv2d)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (
            5,
            "quantize: rules=5 is not possible: expected a mapping or a list of pairs. Write {nn.Linear: W8A8, 'head': "
            "None}, or [(nn.Linear, W8A8), ('head', None)].",
        ),
        (
            [nn.Linear],
            "quantize: rules=[<class 'torch.nn.modules.linear.Linear'>] is not possible: expected a mapping or a list "
            "of pairs. Write {nn.Linear: W8A8, 'head': None}, or [(nn.Linear, W8A8), ('head', None)].",
        ),
        (
            {},
            "quantize: there are no rules, so nothing would be quantized. Pass W8A8, or {nn.Linear: W8A8}.",
        ),
        (
            {5: W8A8},
            "quantize: 5 is no place in a model. Write a type of layer (nn.Linear), a path with or without wildcards "
            "('layer1.*'), a function (torch.add), first(), last(), or a function of path and module.",
        ),
        (
            {int: W8A8},
            "quantize: <class 'int'> is no place in a model. Write a type of layer (nn.Linear), a path with or without "
            "wildcards ('layer1.*'), a function (torch.add), first(), last(), or a function of path and module.",
        ),
        (
            {nn.Linear: 5},
            "quantize: the rule nn.Linear says 5. Write keywords of layers (dict(weight_bit_width=4), or W8A8), a "
            "quantized layer (qnn.QuantLinear), or None to leave it float.",
        ),
        (
            {nn.Linear: NF4Weight},
            "quantize: the rule nn.Linear says NF4Weight, a quantizer, but not of what. Write the keyword of layers "
            "with it, such as dict(weight_quant=NF4Weight).",
        ),
        (
            {nn.Linear: Int8DynamicAct},
            "quantize: the rule nn.Linear says Int8DynamicAct, a quantizer, but not of what. Write the keyword of "
            "layers with it, such as dict(input_quant=Int8DynamicAct).",
        ),
        (
            {"head": nn.Linear},
            "quantize: the rule \"head\" says <class 'torch.nn.modules.linear.Linear'>. Write keywords of layers "
            "(dict(weight_bit_width=4), or W8A8), a quantized layer (qnn.QuantLinear), or None to leave it float.",
        ),
        (
            {nn.Linear: {nn.Linear: 4}},
            "quantize: the rule nn.Linear has the setting <class 'torch.nn.modules.linear.Linear'>. Settings are "
            "keywords of layers, such as weight_bit_width=4.",
        ),
    ],
)
def test_what_is_no_rule(rules, message):
    with pytest.raises(GraphError, match=f"^{re.escape(message)}$"):
        read_rules(rules)


@pytest.mark.parametrize("end", [first, last])
def test_ends_of_no_layer(end):
    message = f"{end.__name__}: 'head' is not a type of layer. Write {end.__name__}(nn.Linear), or {end.__name__}()."
    with pytest.raises(GraphError, match=f"^{re.escape(message)}$"):
        end("head")

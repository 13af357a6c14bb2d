"""Rules in files."""

import json
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bitwright.nn as qnn
from bitwright import quantizers
from bitwright.graph.errors import GraphError
from bitwright.graph.rules.ready import W8A8, integer
from bitwright.graph.rules.rule_files import load_rules, save_rules
from bitwright.graph.rules.rules import first, last, read_rules
from bitwright.qcore import FloatScale
from bitwright.quantizers import Int4WeightPerChannel, Int8Act, Int8WeightPerChannel

RULES = [
    (nn.Conv2d, W8A8),
    ("layer1.*", {"weight_bit_width": 4, "weight_restriction": FloatScale, "weight_min_scale": 1e-6}),
    (first(), {"weight_quant": Int8WeightPerChannel(bit_width=6, narrow_range=False)}),
    (last(nn.Linear), {"input_quant": Int8Act(restriction=FloatScale), "output_quant": None}),
    (torch.add, {"input_quant": Int8Act}),
    (F.softmax, {"act_quant": quantizers.Uint8Act}),
    (torch.Tensor.matmul, None),
    (nn.ReLU, qnn.QuantReLU),
    (torch.is_tensor, None),
    ("head", None),
]


@pytest.mark.parametrize("ending", ["json", "toml", "TOML"])
def test_rules_come_back(tmp_path, ending):
    file = tmp_path / f"rules.{ending}"
    save_rules(RULES, file)
    assert read_rules(load_rules(file)) == read_rules(RULES)


def test_keywords_alone_come_back(tmp_path):
    rules = {**integer(12, 8), "head": None, "weight_bit_width": 4}
    save_rules(rules, tmp_path / "rules.toml")
    assert read_rules(load_rules(tmp_path / "rules.toml")) == read_rules(rules)


def test_what_stands_in_a_file(tmp_path):
    save_rules(RULES[:4], tmp_path / "rules.json")
    assert json.loads((tmp_path / "rules.json").read_text()) == {
        "rules": [
            {"type": "torch.nn.Conv2d", "weight_quant": "Int8WeightPerChannel", "input_quant": "Int8Act"},
            {
                "path": "layer1.*",
                "weight_bit_width": 4,
                "weight_restriction": "bitwright.qcore.scaling.restriction.FloatScale",
                "weight_min_scale": 1e-06,
            },
            {"first": True, "weight_quant": "Int8WeightPerChannel(bit_width=6, narrow_range=False)"},
            {
                "last": "torch.nn.Linear",
                "input_quant": "Int8Act(restriction='bitwright.qcore.scaling.restriction.FloatScale')",
                "output_quant": "None",
            },
        ]
    }


def test_a_file_by_hand(tmp_path):
    file = tmp_path / "rules.toml"
    file.write_text(
        """
        # all of them
        [[rules]]
        weight_quant = "Int4WeightPerChannel"
        input_quant = "bitwright.quantizers.Int8Act"

        [[rules]]
        function = "operator.add"
        input_scaling = "learned"

        [[rules]]
        path = "head"
        float = true
        """
    )
    rules = load_rules(file)
    assert rules[:2] == [("weight_quant", Int4WeightPerChannel), ("input_quant", Int8Act)]
    assert rules[2][1] == {"input_scaling": "learned"}
    assert rules[3] == ("head", None)


def local(path, module):
    return True


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (
            [(lambda path, module: True, W8A8)],
            "save_rules: <lambda> (rule 1) can't be written: nobody could find it by its name. Define it with def or "
            "class at the top of a module, and import it from there.",
        ),
        (
            {nn.Linear: {"weight_scaling": object()}},
            "save_rules: weight_scaling of rule 1 is <object>, which has no name that a file could have. Use a class "
            "or a function of a module, a number or a string.",
        ),
        (
            {nn.Linear: {"type": 4}},
            "save_rules: the setting 'type' of rule 1 has a name that means something in files.",
        ),
        (
            {nn.Linear: {"weight_quant": Int8WeightPerChannel(levels=[1, 2])}},
            "save_rules: weight_quant of rule 1 has the setting [1, 2]. Declare a quantizer class with it, and name "
            "that.",
        ),
    ],
)
def test_what_has_no_name(tmp_path, rules, message):
    with pytest.raises(GraphError) as raised:
        save_rules(rules, tmp_path / "rules.json")
    assert (
        re.sub(
            r"test_\w+\.<locals>\.|<object object at \w+>",
            lambda found: "" if "test" in found[0] else "<object>",
            str(raised.value),
        )
        == message
    )
    assert not (tmp_path / "rules.json").exists()


def test_other_formats(tmp_path):
    message = "save_rules: 'rules.yaml' must end in .json or .toml, which says the format."
    with pytest.raises(GraphError, match=f"^{re.escape(message)}$"):
        save_rules(W8A8, "rules.yaml")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "{",
            "load_rules: FILE can't be read: Expecting property name enclosed in double quotes: line 1 column 2 (char "
            "1).",
        ),
        ("[]", "load_rules: FILE has no list named rules. Write [[rules]] before each, or see save_rules."),
        (
            '{"rules": [{"type": "torch.nn.Linear", "path": "a"}]}',
            "load_rules: rule 1 of FILE has type and path. Write one of them, and another rule for the other.",
        ),
        (
            '{"rules": [{"type": "torch.nn.Linaer", "float": true}]}',
            "load_rules: rule 1 of FILE, type: 'torch.nn.Linaer' can't be found. Write the name of a shipped "
            "quantizer, or that of the module too: 'mypackage.quantizers.MyWeight'.",
        ),
        (
            '{"rules": [{"path": "a", "float": true, "weight_bit_width": 4}]}',
            "load_rules: rule 1 of FILE has weight_bit_width besides float.",
        ),
        (
            '{"rules": [{"path": "a", "layer": "bitwright.nn.QuantReLU", "weight_bit_width": 4}]}',
            "load_rules: rule 1 of FILE has weight_bit_width besides layer.",
        ),
        (
            '{"rules": [{}]}',
            "load_rules: rule 1 of FILE says nothing. Write a place (type, path ...) and keywords of layers.",
        ),
        (
            '{"rules": [{"path": "a", "weight_quant": "Int8WeightPerChannel(levels)"}]}',
            "load_rules: rule 1 of FILE, weight_quant: Int8WeightPerChannel(levels) can't be read: write settings by "
            "name, as in Int8Act(bit_width=4).",
        ),
    ],
)
def test_files_that_are_no_rules(tmp_path, content, message):
    file = tmp_path / "rules.json"
    file.write_text(content)
    with pytest.raises(GraphError) as raised:
        load_rules(file)
    assert str(raised.value) == message.replace("FILE", str(file))

"""allocate_bits: budgets, costs, groups, and rules that quantize takes."""

import json
import re
import sys

import pytest
import torch
from torch import nn

from bitwright.graph import (
    W8A8,
    Candidate,
    GraphError,
    SensitivityTable,
    allocate_bits,
    explain,
    load_rules,
    quantize,
    save_rules,
    sensitivity,
)
from bitwright.quantizers import Int8Act, Int8WeightPerChannel

pytest.importorskip("scipy")


def table(damages, sizes=None, groups=(), widths=(2, 4, 8)):
    """A table of layers a, b, c ... with these damages."""
    paths = [chr(ord("a") + number) for number in range(len(damages))]
    sizes = sizes or [10] * len(paths)
    candidates = tuple(
        Candidate(path, str(bits), damage, damage, size, float(bits * size), bits * size / 8, 5.0, 5.0 * bits * 8)
        for path, own, size in zip(paths, damages, sizes, strict=True)
        for bits, damage in zip(widths, own, strict=True)
    )
    return SensitivityTable("Net", "kl", tuple(paths), tuple(map(str, widths)), candidates, groups)


STEEP, FLAT = [9.0, 1.0, 0.0], [0.3, 0.2, 0.1]


def test_bits_go_where_they_help():
    found = allocate_bits(table([STEEP, FLAT]), 60)
    assert found.settings == {"a": "4", "b": "2"}
    assert (found.spent, found.budget, found.bits, found.damage) == (60.0, 60, 3.0, 1.3)
    assert str(found) == "\n".join(
        [
            "60 of 60 weight_bits; predicted damage 1.3",
            "layer  setting  bits",
            "a            4     4",
            "b            2     2",
        ]
    )
    assert json.loads(json.dumps(found.as_dict()))["choices"][0]["path"] == "a"
    assert (found["a"].bits, len(found), [each.path for each in found]) == (4.0, 2, ["a", "b"])


@pytest.mark.parametrize(
    ("cost", "budget", "spent"),
    [
        ("average_bits", 3, 3.0),
        ("bytes", 8, 7.5),
        ("bops", 250, 240.0),
        (lambda candidate: 1.0 if candidate.setting == "4" else 0.0 if candidate.setting == "2" else 7.0, 1, 1.0),
    ],
)
def test_costs(cost, budget, spent):
    found = allocate_bits(table([STEEP, FLAT]), budget, cost)
    assert (found.settings, found.spent) == ({"a": "4", "b": "2"}, spent)


def test_groups_agree():
    given = table([STEEP, FLAT, FLAT], groups=(("a", "b"),))
    assert allocate_bits(given, 120).settings == {"a": "4", "b": "4", "c": "4"}
    assert allocate_bits(given, 120, groups=[]).settings == {"a": "8", "b": "2", "c": "2"}
    assert allocate_bits(given, 100, groups=[["b", "c"]]).settings == {"a": "4", "b": "2", "c": "2"}
    assert set(allocate_bits(given, 230, groups=["*"]).settings.values()) == {"4"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"budget": 39},
            "allocate_bits: budget=39 is too small: with every layer at its cheapest, the table's settings need 40 "
            "weight_bits. Spend that, or try cheaper settings. For bits of one weight on average, write "
            "cost='average_bits'.",
        ),
        (
            {"budget": 1.5, "cost": "average_bits"},
            "allocate_bits: budget=1.5 is too small: with every layer at its cheapest, the table's settings need 2 "
            "average_bits. Spend that, or try cheaper settings.",
        ),
        (
            {"budget": "40"},
            "allocate_bits: budget='40' is not possible: expected a number of weight_bits.",
        ),
        (
            {"budget": 40, "cost": "bit"},
            "allocate_bits: cost='bit' is not possible: expected one of 'weight_bits', 'average_bits', 'bytes', "
            "'bops', or a function of a Candidate.",
        ),
        (
            {"budget": 40, "cost": lambda candidate: None},
            "allocate_bits: cost= returned None for a under '2'. A cost takes a Candidate and returns a finite number.",
        ),
        (
            {"budget": 40, "groups": "a"},
            "allocate_bits: groups='a' is not possible. Write a list of groups, each a glob or a list of globs: "
            'groups=["block1.attn.*", ["up", "gate"]]; [] for none.',
        ),
        (
            {"budget": 40, "groups": ["a", "d*"]},
            "allocate_bits: 'd*' among the groups matches no layer of the table. They are a, b.",
        ),
    ],
)
def test_what_is_refused(arguments, message):
    with pytest.raises(GraphError, match=f"^{re.escape(message)}$"):
        allocate_bits(table([STEEP, FLAT]), **arguments)


def test_what_is_no_table():
    message = "allocate_bits: table=5 is no table. Pass what sensitivity(model, data, ...) returned."
    with pytest.raises(GraphError, match=f"^{re.escape(message)}$"):
        allocate_bits(5, 40)


def test_without_scipy(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    message = "allocate_bits needs the package scipy: pip install bitwright[allocate]"
    with pytest.raises(GraphError, match=f"^{re.escape(message)}$"):
        allocate_bits(table([STEEP, FLAT]), 60)


class Attention(nn.Module):
    """Layers that take one tensor, an LSTM, a head."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.lstm = nn.LSTM(6, 4, batch_first=True)
        self.act = nn.ReLU()
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = nn.functional.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x))
        return self.head(self.act(self.lstm(x)[0]))


def test_rules_go_into_quantize_and_files(tmp_path):
    torch.manual_seed(0)
    model, x = Attention().eval(), torch.randn(4, 5, 6)
    q = quantize(model, {**W8A8, nn.ReLU: {}, "head": {"weight_bit_width": 6}}, examples=x)
    found = sensitivity(q, x, {"3": 3, "w8a6": {"weight_bit_width": 8, "input_bit_width": 6}}, layers=["?", "lstm"])
    assert found.groups == (("q", "k", "v"),)
    chosen = allocate_bits(found, 6, "average_bits")
    assert chosen.settings == {"q": "w8a6", "k": "w8a6", "v": "w8a6", "lstm": "3"}
    assert chosen.rules["head"] == {
        "weight_quant": Int8WeightPerChannel(bit_width=6),
        "input_quant": Int8Act(signed=False),
    }
    assert list(chosen.rules) == ["q", "k", "v", "lstm", "act", "head"]
    save_rules(chosen.rules, tmp_path / "rules.toml")
    for rules in (chosen.rules, load_rules(tmp_path / "rules.toml")):
        made = quantize(model, rules, examples=x)
        assert [each.bit_width for each in (made.q.weight_quant, made.q.input_quant, made.k.weight_quant)] == [8, 6, 8]
        assert made.k.input_quant is made.q.input_quant
        assert [made.lstm.weight_hh_l0_quant.bit_width, made.lstm.input_quant.bit_width] == [3, 8]
        assert [made.head.weight_quant.bit_width, made.act.act_quant.bit_width] == [6, 8]


def test_noise_adds_up():
    """What is predicted for two layers is what the model made by the rules does, to about 1 dB above 20 dB."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 16)).eval()
    x = torch.randn(64, 16)
    found = sensitivity(quantize(model, {nn.Linear: {"weight_quant": Int8WeightPerChannel}}), x, [5, 6])
    chosen = allocate_bits(found, 6, "average_bits")
    assert min(each.score for each in chosen) > 20
    predicted = -10 * torch.tensor(chosen.damage).log10().item()
    assert explain(quantize(model, chosen.rules), x).sqnr == pytest.approx(predicted, abs=1)
    assert chosen.predicted == f"predicted SQNR of the outputs {predicted:.1f} dB"


def test_a_layer_left_float():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).eval()
    q = quantize(model, {nn.Linear: {"weight_quant": Int8WeightPerChannel}})
    chosen = allocate_bits(sensitivity(q, torch.randn(8, 4), {"4": 4, "float": None}), 32 * 16 + 4 * 16)
    assert sorted(chosen.settings.values()) == ["4", "float"]
    made = quantize(model, chosen.rules)
    kinds = {path: type(made.get_submodule(path)).__name__ for path in chosen.settings}
    assert kinds == {path: "Linear" if name == "float" else "QuantLinear" for path, name in chosen.settings.items()}

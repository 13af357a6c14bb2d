"""What explain found, as text, data and a page."""

import math

import pytest

from bitwright.graph.explaining.explanation import ExplainedLayer, ExplainedQuantizer, Explanation, decibels

WEIGHT = ExplainedQuantizer("weight", "Int8WeightPerChannel", "int8 narrow, axis 0", ("nn.Conv2d",), "", 0.0, 255, 12)
INPUT = ExplainedQuantizer("input", "Int8Act", "int8, per tensor", ("nn.Conv2d", '"a"'), "", 0.00002, 256, 0)
ACT = ExplainedQuantizer("act", "Uint8Act", "uint8, per tensor", (), "a.input_quant", 0.125, 256, 100)
LAYERS = (
    ExplainedLayer("a", "QuantConv2d", (WEIGHT, INPUT), "", 31.25, 31.25),
    ExplainedLayer("b", "ReLU", (), "no rule is for it"),
    ExplainedLayer("c.act", "QuantReLU", (ACT,), "", 12.5, 3.0),
    ExplainedLayer("d", "QuantReLU", (ACT,), "", math.inf, None),
    *(ExplainedLayer(f"e.{number}", "ReLU", (), "no rule is for it") for number in range(6)),
    ExplainedLayer("f", "Linear", (), 'by the rule "f"'),
)


def test_text_with_figures():
    assert str(Explanation("Net", LAYERS, 10.04)) == (
        "Net: 3 of 11 layers quantized; SQNR of the outputs 10.0 dB; most noise: c.act 12.5, a 31.2\n"
        "layer  class        slot    quantizer                                               set by          clipped"
        "        dead   SQNR  so far\n"
        "a      QuantConv2d  weight  Int8WeightPerChannel: int8 narrow, axis 0               nn.Conv2d           0 %"
        "   12 of 255   31.2    31.2\n"
        '                    input   Int8Act: int8, per tensor                               nn.Conv2d; "a"  <0.01 %'
        "    0 of 256\n"
        "c.act  QuantReLU    act     Uint8Act: uint8, per tensor, shared with a.input_quant                   12.5 %"
        "  100 of 256   12.5     3.0\n"
        "d      QuantReLU    act     Uint8Act: uint8, per tensor, shared with a.input_quant                   12.5 %"
        "  100 of 256  exact\n"
        "float: ReLU, no rule is for it: b, e.0, e.1, e.2 and 3 more\n"
        'float: Linear, by the rule "f": f'
    )


def test_text_without_rules_and_data():
    quantizer = ExplainedQuantizer("act", "Uint8Act", "uint8, per tensor")
    assert str(Explanation("Net", (ExplainedLayer("", "QuantReLU", (quantizer,)),))) == (
        "Net: 1 of 1 layers quantized\n"
        "layer      class      slot  quantizer\n"
        "the model  QuantReLU  act   Uint8Act: uint8, per tensor"
    )


def test_text_of_a_float_model():
    layers = tuple(ExplainedLayer(str(number), "Linear", (), "no quantizers") for number in range(5))
    assert str(Explanation("Net", layers)) == (
        "Net: 0 of 5 layers quantized\nfloat: Linear, no quantizers: 0, 1, 2, 3, 4"
    )


def test_layers_by_path():
    found = Explanation("Net", LAYERS)
    assert found["c.act"] is LAYERS[2]
    assert len(found) == 11
    assert list(found) == list(LAYERS)
    with pytest.raises(KeyError, match=r"^'x'$"):
        found["x"]


def test_worst_come_first():
    assert [each.path for each in Explanation("Net", LAYERS, 1.0).worst] == ["c.act", "a", "d"]


def test_dict():
    found = Explanation("Net", LAYERS[:2], 10.0).to_dict()
    assert found["model"] == "Net"
    assert found["sqnr"] == 10.0
    assert found["layers"][1] == {
        "path": "b",
        "layer": "ReLU",
        "quantizers": (),
        "float_reason": "no rule is for it",
        "sqnr": None,
        "sqnr_so_far": None,
    }
    assert found["layers"][0]["quantizers"][1]["why"] == ("nn.Conv2d", '"a"')


@pytest.mark.parametrize(
    ("ratio", "text"), [(12.34, "12.3"), (-1.0, "-1.0"), (math.inf, "exact"), (math.nan, ""), (None, "")]
)
def test_decibels(ratio, text):
    assert decibels(ratio) == text


def test_page(tmp_path):
    path = tmp_path / "x.html"
    Explanation("Net<T>", LAYERS, 10.0).save(path)
    text = path.read_text(encoding="utf-8")
    assert text.startswith("<!DOCTYPE html>")
    assert "<h1>Net&lt;T&gt;</h1>" in text
    assert "<script" not in text
    assert "http" not in text
    assert text.count('<tr class="layer">') == 5  # three layers, and two rows of float ones
    assert text.count('<div class="bar"') == 3
    assert '<div class="bar" title="31.2 dB"><div class="" style="width: 52%">' in text
    assert '<div class="bar" title="12.5 dB"><div class="low" style="width: 21%">' in text
    assert '<td class="text">nn.Conv2d; &quot;a&quot;</td>' in text
    assert "b, e.0, e.1, e.2, e.3, e.4, e.5" in text


def test_page_without_data(tmp_path):
    path = str(tmp_path / "x.html")
    Explanation("Net", (ExplainedLayer("c", "QuantReLU", (ExplainedQuantizer("act", "Q", "int8"),)),)).save(path)
    with open(path, encoding="utf-8") as file:
        text = file.read()
    assert '<div class="bar"' not in text
    assert "<h2>Float</h2>" not in text
    assert "<tr><th>layer</th><th>class</th><th>slot</th><th>quantizer</th></tr>" in text

"""The public calls: what their settings do, what they refuse, and what they say."""

import json
import re

import pytest
import torch
from torch import nn

import bitwright.nn as qnn
from bitwright.graph import (
    Entry,
    GraphError,
    LayerwiseReport,
    adaround,
    autoround,
    gpfq,
    gptq,
    magr,
    qronos,
    search_scales,
)
from bitwright.quantizers import Int4WeightPerGroup, Int8WeightPerChannelPowerOfTwo, ShiftedUint4WeightPerGroup

ROUNDING = {"gptq": gptq, "gpfq": gpfq, "qronos": qronos, "adaround": adaround, "autoround": autoround}


def made(**settings):
    torch.manual_seed(0)
    settings = settings or {"weight_bit_width": 3}
    return nn.Sequential(qnn.QuantLinear(16, 8, **settings)).eval()


def data(rows=256):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(rows, 5, generator=generator) @ torch.randn(5, 16, generator=generator)


def codes(model):
    return model[0].int_weight().long()


@pytest.mark.parametrize("name", ROUNDING)
def test_errors_of_outputs_become_smaller_and_the_report_tells_them(name):
    model, x = made(), data()
    floats = model[0].weight.detach().clone()
    with torch.no_grad():
        nearest = model[0].take("weight")[0]
        report = ROUNDING[name](model, x, progress=False)
        power = (x @ floats.T).square().sum()
        before, after = ((x @ (each - floats).T).square().sum() / power for each in (nearest, model[0].weight))
    entry = report["0"]
    assert (report.call, entry.action) == (name, name)
    assert entry.figures["before"] == pytest.approx(float(before), rel=1e-3)
    assert entry.figures["after"] == pytest.approx(float(after), rel=1e-3)
    assert after < 0.5 * before
    again = made()
    ROUNDING[name](again, x, progress=False)
    assert torch.equal(again[0].weight, model[0].weight)


@pytest.mark.parametrize("quantizer", [Int4WeightPerGroup, ShiftedUint4WeightPerGroup], ids=str)
def test_dynamic_groups_take_scales_and_zero_points_from_weights_as_they_become(quantizer):
    settings = {"weight_quant": quantizer, "weight_group_size": 4, "weight_bit_width": 2}
    x, grids = data(), {}
    for groups in ("static", "dynamic"):
        model = made(**settings)
        own = model[0].take("weight")[1]
        figures = gptq(model, x, groups=groups, progress=False)["0"].figures
        assert figures["after"] < 0.5 * figures["before"]
        values, grid = model[0].take("weight")
        assert torch.equal(values, model[0].weight)
        grids[groups] = grid
        if groups == "static":
            assert torch.equal(grid.scale, own.scale)
    assert not torch.equal(grids["static"].scale, grids["dynamic"].scale)
    if grids["static"].zero_point is not None:
        assert not torch.equal(grids["static"].zero_point, grids["dynamic"].zero_point)


def test_groups_that_stay_are_told():
    model = made()
    report = gptq(model, data(), groups="dynamic", progress=False)
    assert report["0"].reason == "its scales are not those of groups of inputs, or are fixed: they stay"
    report = gptq(made(), data(40), progress=False)
    assert report["0"].reason == "40 inputs for 16 columns are few; 64 would do"


def test_scales_that_are_searched_or_tuned():
    model, x = made(weight_bit_width=2), data()
    own = model[0].take("weight")[1].scale
    report = search_scales(model, x, progress=False)
    assert report["0"].figures["after"] < report["0"].figures["before"]
    assert model[0].take("weight")[1].scale < own
    first = report["0"].figures["after"]
    assert gptq(model, x, progress=False)["0"].figures["before"] == pytest.approx(first, rel=1e-4)
    tuned, kept = made(), made()
    autoround(tuned, x, progress=False)
    autoround(kept, x, tune_scales=False, progress=False)
    assert not torch.equal(tuned[0].take("weight")[1].scale, kept[0].take("weight")[1].scale)
    assert torch.equal(kept[0].take("weight")[1].scale, made()[0].take("weight")[1].scale)


def test_scales_that_are_powers_of_two_stay_so():
    model = made(weight_quant=Int8WeightPerChannelPowerOfTwo, weight_bit_width=3)
    search_scales(model, data(), progress=False)
    autoround(model, data(), progress=False)
    assert set(torch.log2(model[0].take("weight")[1].scale).flatten().tolist()) <= set(map(float, range(-20, 4)))


def test_magr_shrinks_the_largest_weights_for_those_that_round():
    model = made()
    largest = model[0].weight.detach().abs().amax()
    report = magr(model, data(), alpha=0.01, progress=False)
    assert report["0"].action == "magr"
    assert model[0].weight.abs().amax() < 0.95 * largest
    assert not model[0].weight_quant.fixed
    assert model[0].weight.unique().numel() > 20
    assert gptq(model, data(), progress=False).changed


@pytest.mark.parametrize(
    ("algorithm", "settings", "said"),
    [
        (gptq, {"act_order": "none"}, "gptq: act_order='none' is not possible: expected True or False."),
        (gptq, {"groups": "none"}, "gptq: groups='none' is not possible: expected 'static' or 'dynamic'."),
        (
            gptq,
            {"damping": -1},
            "gptq: damping=-1 is not a number from 0 to 1, in units of the mean power of a layer's inputs; 0.01 is "
            "usual.",
        ),
        (
            qronos,
            {"damping": 2},
            "qronos: damping=2 is not a number from 0 to 1, in units of the mean power of a layer's inputs; 0.01 is "
            "usual.",
        ),
        (
            gpfq,
            {"block_size": 0},
            "gpfq: block_size=0 is not a whole number of columns, 1 or more; it decides nothing but the time.",
        ),
        (adaround, {"beta": (0, 2)}, "adaround: beta=(0, 2) is not two exponents, 1 or more; (20, 2) is usual."),
        (magr, {"alpha": -1.0}, "magr: alpha=-1.0 is not a finite number, 0 or more; 0.001 is usual."),
        (magr, {"steps": 1.5}, "magr: steps=1.5 is not a whole number, 0 or more; 200 is usual."),
        (search_scales, {"lowest": 1}, "search_scales: lowest=1 is not a factor above 0 and below 1; 0.2 is usual."),
    ],
)
def test_settings_that_are_impossible(algorithm, settings, said):
    model = made()
    before = model[0].weight.clone()
    with pytest.raises(GraphError, match="^" + re.escape(said) + "$"):
        algorithm(model, data(), progress=False, **settings)
    assert torch.equal(model[0].weight, before)
    assert not model[0].weight_quant.fixed


@pytest.mark.parametrize("algorithm", [*ROUNDING.values(), magr, search_scales])
def test_names_in_messages(algorithm):
    with pytest.raises(GraphError) as caught:
        algorithm(nn.Linear(2, 2), data())
    assert str(caught.value) == (
        f"{algorithm.__name__}: this Linear has no quantized weight. Quantize it first: "
        "quantize(model, {nn.Conv2d: W8A8, nn.Linear: W8A8})."
    )


# Reports


REPORT = LayerwiseReport(
    "gptq",
    (
        Entry("fc", "gptq", "", {"before": 0.02, "after": 0.01, "rows": 512.0}),
        Entry("head", "left", "no data reaches it"),
    ),
)


def test_reports_are_saved_as_json(tmp_path):
    path = tmp_path / "report.json"
    path.write_text("before")
    REPORT.save(path)
    assert json.loads(path.read_text()) == {
        "call": "gptq",
        "entries": [
            {"path": "fc", "action": "gptq", "reason": "", "figures": {"before": 0.02, "after": 0.01, "rows": 512.0}},
            {"path": "head", "action": "left", "reason": "no data reaches it", "figures": {}},
        ],
    }
    REPORT.save(str(path))


def test_reports_are_drawn():
    pytest.importorskip("matplotlib")
    (axes,) = REPORT.plot().axes
    assert [each.get_text() for each in axes.get_yticklabels()] == ["fc"]
    assert [line.get_xdata().tolist() for line in axes.get_lines()] == [[0.02], [0.01]]
    assert axes.get_xscale() == "log"
    assert [each.get_text() for each in axes.get_legend().get_texts()] == ["round-to-nearest", "gptq"]
    without = LayerwiseReport("gptq", (Entry("fc", "gptq", "", {"before": 0.0, "after": 0.0}),))
    assert without.plot().axes[0].get_xscale() == "linear"


def test_a_report_that_can_not_be_drawn(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(GraphError) as caught:
        REPORT.plot()
    assert str(caught.value) == "LayerwiseReport.plot needs the package matplotlib: pip install bitwright[plot]"

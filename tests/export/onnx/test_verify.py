"""A comparison finds what is wrong, and tells rounding ties from errors."""

import json
import math
import os
import re

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import bitwright.nn as qnn
from bitwright.export import (
    ExportError,
    VerificationReport,
    VerificationRow,
    export_onnx_qcdq,
    storage_report,
    verify_onnx,
)
from bitwright.export.capture.record import record
from bitwright.export.comparing.portion import Portion
from bitwright.export.onnx import write
from bitwright.export.onnx.comparing import portions
from bitwright.export.onnx.comparing.disk import opened
from bitwright.export.onnx.comparing.quantizers import same_grids
from bitwright.export.onnx.verify import _Work
from bitwright.nn.contexts.intercepting import quantizers_of
from bitwright.quantizers import Int8Act, Int32Bias, Uint8Act


@pytest.fixture
def model():
    layers = [
        qnn.QuantIdentity(act_quant=Int8Act(scale=0.05)),
        qnn.QuantLinear(8, 8, bias=True, weight_bit_width=4),
        qnn.QuantReLU(scale=0.01),
        qnn.QuantLinear(8, 3, bias=True),
    ]
    return nn.Sequential(*layers).eval()


def tampered(program, name, change):
    proto = program.model_proto
    for each in proto.graph.initializer:
        if each.name == name:
            each.raw_data = change(
                np.frombuffer(each.raw_data, {1: "f4", 2: "u1", 3: "i1", 6: "i4"}[each.data_type]).copy()
            ).tobytes()
            return proto
    raise AssertionError(name)


def test_table(model):
    report = verify_onnx(model, export_onnx_qcdq(model, torch.randn(4, 8)), torch.randn(4, 8))
    assert report.ok
    lines = str(report).splitlines()
    assert lines[0] == f"{report.compared} numbers compared: 0 differences, 0 tie flips"
    assert re.fullmatch(r"outputs off by at most \S+, \S+ of their range; on average \S+, \S+", lines[1])
    assert lines[2:] == ["same top class in 4 of 4 samples"]
    assert report.output_error <= 1e-5
    names = ["0.act_quant", "1.weight_quant", "2.act_quant", "3.weight_quant", "linear_1"]
    assert [row.name for row in report.only("off").rows] == names
    assert [row.name for row in report.only("on").rows] == names
    assert [row.compared for row in report.only("off").rows] == [32, 64, 32, 24, 12]
    assert [(row.name, row.kind, row.compared) for row in report.only("plain").rows] == [("linear_1", "output", 12)]
    assert report.table().splitlines()[4].split() == ["off", "0.act_quant", "32", "0", "0", "0"]


@pytest.mark.parametrize(
    ("name", "change", "rows"),
    [
        (
            "1.weight_quant.codes",
            lambda codes: codes + np.eye(8, dtype="i1").reshape(-1),
            {"1.weight_quant", "2.act_quant"},
        ),
        ("3.bias", lambda bias: bias + 1e-3, {"linear_1"}),
        ("2.act_quant.scale", lambda scale: scale * np.float32(1.001), {"2.act_quant"}),
        ("0.act_quant.zero_point", lambda zero: zero + 1, {"0.act_quant"}),
    ],
    ids=["weight", "bias", "scale", "zero_point"],
)
def test_an_error_is_found_where_it_is(model, name, change, rows):
    x = torch.randn(64, 8)
    proto = tampered(export_onnx_qcdq(model, x), name, change)
    report = verify_onnx(model, proto, x)
    assert not report.ok
    for optimizations in ("off", "on"):
        assert {row.name for row in report.only(optimizations).rows if row.differences} == rows
    (output,) = report.only("plain").rows  # the one place where the errors before it are seen, too
    assert report.output_error == output.absolute
    assert (report.output_error > 1e-4) == (name != "0.act_quant.zero_point")  # which moves codes, and no values


def test_a_model_trained_further_differs_from_its_file(model):
    program = export_onnx_qcdq(model, torch.randn(4, 8))
    with torch.no_grad():
        model[1].weight.mul_(1.5)
    report = verify_onnx(model, program, torch.randn(4, 8))
    assert {row.name: row.note for row in report.rows if row.note} == {"1.weight_quant": "the file has another scale"}


def test_ties_are_told_from_differences():
    """The file's bias is moved across the rounding boundary of every value, from less and from more than 1e-3 away."""
    layer = nn.Linear(1, 1)
    model = nn.Sequential(layer, qnn.QuantIdentity(act_quant=Uint8Act(scale=1.0))).eval()
    x = torch.arange(1.0, 9.0).reshape(-1, 1)
    for bias, moved, found in (
        (0.4995, 0.0, (0, 0)),
        (0.4995, 0.001, (0, 16)),
        (0.4985, 0.001, (0, 0)),
        (0.4985, 0.002, (24, 0)),  # the codes, with optimizations off and on, and the outputs
        (0.4995, 1.001, (16, 0)),  # off by two; the outputs lie behind a value that may be a tie
    ):
        with torch.no_grad():
            layer.weight.fill_(1.0)
            layer.bias.fill_(bias)
        proto = tampered(export_onnx_qcdq(model, x), "0.bias", lambda held, moved=moved: held + np.float32(moved))
        report = verify_onnx(model, proto, x)
        assert (report.differences, report.tie_flips) == found
        assert report.output_error == pytest.approx(max(row.largest for row in report.only("on").rows[:1]))


def test_samples_run_in_portions(model):
    x = torch.randn(1000, 8)
    fixed = export_onnx_qcdq(model, x[:50])
    free = export_onnx_qcdq(model, x[:50], dynamic_shapes=({0: "batch"},))
    reports = [
        verify_onnx(model, fixed, x),
        verify_onnx(model, free, x),
        verify_onnx(model, free, x, batch_size=300),
        verify_onnx(model, free.model_proto, (x,), batch_size=5000),
    ]
    for report in reports:
        assert report.ok
        assert {row.name: row.compared for row in report.only("on").rows}["2.act_quant"] == 8000


def test_report_adds_up():
    report = VerificationReport()
    assert not report.ok  # nothing compared
    assert (report.output_error, report.relative_output_error) == (0.0, 0.0)
    report.add([VerificationRow("a", "activation", "on", 10, 0, 1, 1.0), VerificationRow("b", "output", "on", 5)])
    report.add([VerificationRow("a", "activation", "on", 10, 2, 0, 3.0, "odd")])
    assert report.rows[0] == VerificationRow("a", "activation", "on", 20, 2, 1, 3.0, "odd")
    assert (report.compared, report.differences, report.tie_flips, report.ok) == (25, 2, 1, False)
    assert report.top1_agreement is None
    figures = {"mean": 0.1, "mean_absolute": 0.75, "samples": 3, "alike": 2}
    report.add([VerificationRow("b", "output", "plain", 5, 0, 3, 0.25, absolute=2.0, **figures)])
    figures = {"mean": 0.3, "mean_absolute": 0.25, "samples": 1, "alike": 1}
    report.add([VerificationRow("b", "output", "plain", 5, 0, 0, 0.5, absolute=1.0, **figures)])
    assert (report.output_error, report.relative_output_error, report.tie_flips) == (2.0, 0.5, 1)
    assert (report.mean_output_error, report.relative_mean_output_error) == (0.5, 0.2)
    assert (report.output_tie_flips, report.top1_agreement) == (3, 0.75)
    assert str(report).splitlines()[:3] == [
        "35 numbers compared: 2 differences, 1 tie flip",
        "outputs off by at most 2, 0.5 of their range; on average 0.5, 0.2; 3 numbers beyond 1e-05 of it after tie "
        "flips",
        "same top class in 3 of 4 samples",
    ]


def test_integers_of_a_later_call_that_were_those_of_an_earlier_one():
    """Four calls on two grids: the bias is held twice, and each call is compared with the right one."""

    class Calls(nn.Module):
        def __init__(self):
            super().__init__()
            self.fine = qnn.QuantIdentity(scale=0.01, return_quant_tensor=True)
            self.coarse = qnn.QuantIdentity(scale=0.05, return_quant_tensor=True)
            self.layer = qnn.QuantLinear(8, 4, bias_quant=Int32Bias)

        def forward(self, x):
            fine, coarse = self.fine(x), self.coarse(x)
            return [self.layer(each) for each in (fine, coarse, fine, coarse)]

    model, x = Calls().eval(), torch.randn(3, 8)
    program = export_onnx_qcdq(model, x)
    held = [name for name in program.model.graph.initializers if "bias_quant" in name and name.endswith("codes")]
    assert held == ["layer.bias_quant.codes", "layer.bias_quant.1.codes"]
    report = verify_onnx(model, program, x)
    names = [row.name for row in report.only("off").rows if row.kind == "stored" and "bias" in row.name]
    assert names == ["layer.bias_quant", *(f"layer.bias_quant.{number}" for number in (1, 2, 3))]
    broken = tampered(program, "layer.bias_quant.1.codes", lambda codes: codes + 1)
    found = {row.name: row.differences for row in verify_onnx(model, broken, x).only("off").rows}
    assert (found["layer.bias_quant"], found["layer.bias_quant.1"], found["layer.bias_quant.3"]) == (0, 4, 4)


@pytest.fixture
def forwards(monkeypatch):
    """How many samples each forward of the model, and each run of the file, has."""
    found = {"model": [], "file": []}
    through, run = portions.Portion.through, _Work.run

    def counted(part, module):
        found["model"].append(len(part.tensors[0]))
        return through(part, module)

    def ran(work, part, where):
        found["file"].append((where, len(part.tensors[0])))
        return run(work, part, where)

    monkeypatch.setattr(portions.Portion, "through", counted)
    monkeypatch.setattr(_Work, "run", ran)
    return found


def test_where_both_sides_have_the_same_codes_the_model_runs_once(model, forwards):
    x = torch.randn(4, 8)
    program = export_onnx_qcdq(model, x)
    assert forwards == {"model": [4], "file": [("on", 4), ("plain", 4), ("off", 4)]}
    proto = tampered(program, "1.weight_quant.codes", lambda codes: codes + np.eye(8, dtype="i1").reshape(-1))
    forwards["model"].clear()
    assert not verify_onnx(model, proto, x).ok
    assert forwards["model"] == [4, 4]  # from the codes of the file, and the model's own


def test_portions_take_so_many_bytes(forwards):
    torch.manual_seed(0)
    model = nn.Sequential(qnn.QuantIdentity(scale=0.05), qnn.QuantLinear(1000, 100)).eval()
    x = torch.randn(60, 1000)
    program = export_onnx_qcdq(model, x[:3], dynamic_shapes=({0: "batch"},), verify=False)
    # a sample: twice 1000 codes and 100 outputs, and 8 times the 4000 bytes of the largest tensor
    each = 2 * (1000 + 400) + 8 * 4000
    report = verify_onnx(model, program, x, memory=25 * each)
    assert report.ok
    assert [size for where, size in forwards["file"] if where == "plain"] == [25, 25, 10]
    assert forwards["file"][0] == ("off", 2)  # measured
    forwards["file"].clear()
    assert verify_onnx(model, program, x, memory=1, batch_size=20).rows[0].compared == 60000
    assert [size for where, size in forwards["file"] if where == "plain"] == [1] * 60
    forwards["file"].clear()
    verify_onnx(model, program, x, batch_size=20)
    assert [size for where, size in forwards["file"] if where == "plain"] == [20, 20, 20]


def test_external_data_are_read_where_they_lie(model, tmp_path, monkeypatch):
    """Beyond the size of one file, weights go beside it; both are verified, by every way to name them."""
    monkeypatch.setattr(write, "LARGEST_FILE", 10_000)
    model = nn.Sequential(model[0], qnn.QuantLinear(8, 1500, weight_bit_width=4), qnn.QuantReLU(scale=0.01)).eval()
    x, path = torch.randn(64, 8), tmp_path / "model.onnx"
    program = export_onnx_qcdq(model, x, path)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
    assert (tmp_path / "model.onnx.data").stat().st_size >= 12000
    for named in (program, path, str(path), program.model_proto, onnx.load(path)):
        report = verify_onnx(model, named, x)
        assert report.ok
        assert report.rows[1].compared == 12000
        assert storage_report(named).rows[0].shape == (1500, 8)
    data = (tmp_path / "model.onnx.data").read_bytes()
    codes = next(each for each in onnx.load(path, load_external_data=False).graph.initializer if "codes" in each.name)
    offset = next(int(each.value) for each in codes.external_data if each.key == "offset")
    (tmp_path / "model.onnx.data").write_bytes(data[:offset] + bytes([(data[offset] + 1) % 7]) + data[offset + 1 :])
    assert [row.differences for row in verify_onnx(model, path, x).rows if row.kind == "stored"] == [1, 1]


def test_no_file_is_replaced_if_one_of_them_cannot_be(model, tmp_path, monkeypatch):
    monkeypatch.setattr(write, "LARGEST_FILE", 100)
    x, path = torch.randn(4, 8), tmp_path / "model.onnx"
    model[1] = qnn.QuantLinear(8, 400).eval()
    model = model[:2]
    export_onnx_qcdq(model, x, path)
    before = {each.name: each.read_bytes() for each in tmp_path.iterdir()}
    replace = os.replace

    def refuse(made, place):
        if str(place) == str(path):
            raise PermissionError("in use")
        replace(made, place)

    with torch.no_grad():
        model[1].weight.neg_()
    monkeypatch.setattr(write.os, "replace", refuse)
    with pytest.raises(PermissionError, match="in use"):
        export_onnx_qcdq(model, x, path)
    assert {each.name: each.read_bytes() for each in tmp_path.iterdir()} == before
    path.unlink()
    (tmp_path / "model.onnx.data").unlink()
    with pytest.raises(PermissionError, match="in use"):
        export_onnx_qcdq(model, x, path)
    assert list(tmp_path.iterdir()) == []


def test_outputs_after_a_tie_flip_are_told_apart_from_codes():
    """Three codes of eight flip, and are the outputs, which are off by one there."""
    model = nn.Sequential(nn.Linear(2, 2), qnn.QuantIdentity(act_quant=Uint8Act(scale=1.0))).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(2))
        model[0].bias.fill_(0.4995)
    x = torch.tensor([[1.0, 2.0], [3.0, 3.2], [5.3, 4.0], [9.0, 9.0]])
    proto = tampered(export_onnx_qcdq(model, x), "0.bias", lambda held: held + np.array([0.001, 0.0], "f4"))
    report = verify_onnx(model, proto, x)
    assert (report.differences, report.tie_flips, report.output_tie_flips) == (0, 6, 3)  # codes: off and on
    assert (report.output_error, report.mean_output_error) == (1.0, 3 / 8)
    assert report.relative_output_error == pytest.approx(1 / 9)
    assert report.relative_mean_output_error == pytest.approx(3 / 8 / 9)
    assert report.top1_agreement == 0.5  # two samples have two highest classes in the file


def test_report_as_json_and_picture(tmp_path):
    pytest.importorskip("matplotlib")
    rows = [
        VerificationRow("act", "activation", "on", 10, 0, 1, 1.0),
        VerificationRow("y", "output", "plain", 4, 1, 0, math.inf, absolute=math.inf, mean_absolute=math.inf),
    ]
    report = VerificationReport(rows)
    report.save(tmp_path / "report.json")
    found = json.loads((tmp_path / "report.json").read_text())
    assert (found["ok"], found["differences"], found["tie_flips"], found["output_error"]) == (False, 1, 1, None)
    assert found["rows"][0]["name"] == "act"
    (axes,) = report.plot().axes
    assert [line.get_label() for line in axes.lines] == ["tie flips", "differences"]
    assert [list(line.get_xdata()) for line in axes.lines] == [[0.1], [0.0]]
    assert [each.get_text() for each in axes.get_yticklabels()] == ["act (on)"]


def test_no_file():
    with pytest.raises(ExportError, match=r"^verify_onnx: there is no file 'missing\.onnx'\.$"):
        verify_onnx(nn.Identity(), "missing.onnx", torch.randn(1, 8))
    with pytest.raises(ExportError, match=r"^storage_report: there is no file 'missing\.onnx'\.$"):
        storage_report("missing.onnx")


def test_what_was_recorded_is_what_the_model_evaluates(model):
    x = torch.randn(5, 8)
    quantizers = quantizers_of(model)
    recording = record(model, quantizers, (x,), None)
    with opened("verify_onnx", export_onnx_qcdq(model, x)) as file, torch.no_grad():
        work = _Work("verify_onnx", model, quantizers, file)
        grids, outputs = work._evaluated(Portion((x,), {}))
    known = work._recorded(recording, grids)
    assert known is not None
    assert same_grids(known[0], grids)
    assert [torch.equal(*pair) for pair in zip(known[1], outputs, strict=True)] == [True]
    assert work._recorded(recording, {}) is None
    assert work._recorded(None, grids) is None

"""Grouped and depthwise layers, a scale for each output: their files and their integers."""

import pytest
import torch
from torch import nn

import bitwright.nn as qnn
from bitwright.export import (
    accumulator_report,
    compare_integers,
    export_onnx_qcdq,
    export_onnx_qdq,
    integers,
    verify_onnx,
)
from bitwright.quantizers import Int8ActPerChannel, Int8WeightPerChannel, Int32Bias

GROUPS = {"depthwise": (4, 4), "two outputs each": (4, 8), "two groups": (2, 8), "one output each": (2, 2)}


class Grouped(nn.Module):
    def __init__(self, **inputs):
        super().__init__()
        self.act = qnn.QuantIdentity(calibration_steps=1, return_quant_tensor=True, **inputs)
        self.layers = nn.ModuleList(
            qnn.QuantConvTranspose2d(
                4, outputs, 3, 2, groups=groups, weight_quant=Int8WeightPerChannel, bias_quant=Int32Bias
            )
            for groups, outputs in GROUPS.values()
            if not inputs or groups == 4
        )
        self.ends = nn.ModuleList(qnn.QuantReLU(calibration_steps=1) for _ in self.layers)

    def forward(self, x):
        x = self.act(x)
        return tuple(end(layer(x)) for layer, end in zip(self.layers, self.ends, strict=True))


@pytest.mark.parametrize("export", [export_onnx_qcdq, export_onnx_qdq])
@pytest.mark.parametrize("inputs", [{}, {"act_quant": Int8ActPerChannel}], ids=["one scale", "a scale per channel"])
def test_the_file_computes_the_same(export, inputs):
    torch.manual_seed(0)
    model = Grouped(**inputs)
    model(torch.randn(4, 4, 6, 6))
    program = export(model.eval(), torch.randn(2, 4, 6, 6))
    report = verify_onnx(model, program, torch.randn(10, 4, 6, 6))
    assert report.differences == 0, report.table()
    scales = program.model.graph.initializers["layers.1.weight_quant.scale"]
    assert list(scales.shape) == [8]


def test_the_integers_compute_the_same():
    torch.manual_seed(0)
    model = Grouped()
    x = torch.randn(4, 4, 6, 6)
    model(x)
    model.eval()
    found = integers(model, x)
    for index, (groups, outputs) in enumerate(GROUPS.values()):
        weight = found[f"layers.{index}"].weight
        assert weight.codes.shape == (outputs, 4 // groups, 3, 3)  # outputs first, as for convolutions
        assert weight.grid.scale.shape == (outputs,)
        assert found[f"layers.{index}"].output.scale.shape == (outputs,)
    report = compare_integers(model, x)
    assert report.ok, report
    assert report.differences == 0
    for index, row in enumerate(accumulator_report(model, x).rows):
        codes, bias = (found[f"layers.{index}"].quantizers[slot].codes.long() for slot in ("weight", "bias"))
        up, down = (codes.flatten(1).clamp(*ends).sum(1) for ends in ((0, None), (None, 0)))
        whole = up * 127 - down * 128 + bias.clamp_min(0)  # of the whole kernel, of which an output sums one phase
        assert bool((row.worst.high <= whole).all())
        assert bool((row.actual.high <= row.worst.high).all())
        assert bool((row.actual.low >= row.worst.low).all())

"""A model without any quantizer goes through each door that takes floats."""

import re

import pytest
import torch
from torch import nn

import bitwright.nn as qnn
from bitwright.export import ExportError, export_qonnx, verify_qonnx
from tests.export.doors.ways import DOORS, goes_out, refusal


@pytest.mark.parametrize("door", [each for each in DOORS if each != "onnx-integer"])
def test_nothing_quantized(door, tmp_path):
    pytest.importorskip("qonnx" if door == "qonnx" else "onnxruntime")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU()).eval()
    report = goes_out(door, model, (torch.randn(2, 4),), (torch.randn(2, 4),), tmp_path)
    assert {row.kind for row in report.rows if row.compared} == {"output"}


def test_integers_alone(tmp_path, monkeypatch):
    pytest.importorskip("onnxscript")
    said = refusal("onnx-integer", nn.Linear(4, 3).eval(), (torch.randn(2, 4),), tmp_path, monkeypatch)
    assert said == [
        ("the model (Linear)", "addmm. Write qnn.QuantLinear with bias_quant=Int32Bias, and quantize its input.")
    ]


def test_its_file_is_none_of_a_quantized_model(tmp_path):
    pytest.importorskip("qonnx")
    x, path = torch.randn(2, 4), tmp_path / "model.onnx"
    export_qonnx(nn.Linear(4, 3).eval(), x, path)
    said = (
        "verify_qonnx: the file has no node of qonnx.custom_op.general that export_qonnx wrote. Pass what export_qonnx "
        "returned, or the path of its file."
    )
    with pytest.raises(ExportError, match=f"^{re.escape(said)}$"):
        verify_qonnx(qnn.QuantLinear(4, 3).eval(), path, x)

"""What QONNX's readers can't take: refused before tracing, all of it at once."""

import re

import pytest
import torch
from torch import nn

import bitwright.nn as qnn
from bitwright.export import ExportError, export_qonnx
from bitwright.quantizers import (
    BinaryAct,
    Fp8e4m3WeightPerTensor,
    Int4WeightPerGroup,
    Int8DynamicAct,
    ShiftedUint8Act,
    ShiftedUint8WeightPerTensor,
    Uint8Act,
)

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")


def test_all_at_once():
    model = nn.Sequential(
        qnn.QuantIdentity(act_quant=ShiftedUint8Act),
        qnn.QuantLinear(64, 64, weight_quant=Int4WeightPerGroup),
        qnn.QuantIdentity(act_quant=Int8DynamicAct),
        qnn.QuantLinear(64, 64, weight_quant=Fp8e4m3WeightPerTensor),
        qnn.QuantReLU(rounding="half_up"),
        qnn.QuantLinear(64, 64, weight_quant=ShiftedUint8WeightPerTensor),
        qnn.QuantReLU(act_quant=Uint8Act(narrow_range=True)),
        qnn.QuantIdentity(bit_width=24),
        qnn.QuantIdentity(act_quant=BinaryAct(rounding="floor")),
    )
    x = torch.randn(4, 64)
    model(x)
    before = {name: each.clone() for name, each in model.state_dict().items()}
    said = """QONNX can't express 9 parts of this model:
  0.act_quant: it has a zero point, and QONNX has none. Choose a quantizer without one, such as Int8Act or Uint8Act.
  1.weight_quant: its scales are for groups of 32 along axis 1; QONNX takes one scale per tensor, or per index of one \
dimension. Choose another quantizer, such as Int8WeightPerChannel.
  2.act_quant: its scale follows the input, and QONNX takes scales that are known beforehand. Choose a quantizer whose \
range is measured or learned, such as Int8Act.
  3.weight_quant: its levels are e4m3fn, and QONNX has integers only. Write export_onnx_qdq, which stores them, or \
quantize to integers.
  4.act_quant: rounding 'half_up'; QONNX has 'half_even', 'floor'. Write rounding='half_even'.
  5.weight_quant: it has a zero point, and QONNX has none. Choose a quantizer without one, such as Int8WeightPerChannel.
  6.act_quant: it leaves out the largest of its unsigned integers, which QONNX has no word for. Write \
narrow_range=False.
  7.act_quant: 24 bits, signed; QONNX stores 2 to 22. Write bit_width=22 or less.
  8.act_quant: BipolarQuant takes the nearest of two levels, and this rounding does not. Write rounding='half_even'."""
    with pytest.raises(ExportError, match=f"^{re.escape(said)}$"):
        export_qonnx(model, x)
    assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())


def test_recurrent_layers_are_named_once():
    model = nn.Sequential(qnn.QuantLSTM(5, 6))
    said = (
        "QONNX can't express 1 part of this model:\n  0 (QuantLSTM): QONNX has no loop over time, and its readers take "
        "no recurrent layers. Export it by export_onnx_qdq, or call a cell (QuantLSTMCell) once for each step."
    )
    with pytest.raises(ExportError, match=f"^{re.escape(said)}$"):
        export_qonnx(model.eval(), torch.randn(7, 3, 5))


def test_half_precision():
    said = "weight_quant: its input is float64, and QONNX is float32. Export a float32 model: model.float()."
    with pytest.raises(ExportError, match=re.escape(said)):
        export_qonnx(qnn.QuantLinear(4, 4).double().eval(), torch.randn(1, 4).double())


def test_open_shapes():
    said = (
        "export_qonnx(dynamic_shapes=...) is not possible: QONNX's readers need fixed shapes. Leave it out, and pass "
        "args of the batch size that the file is to have."
    )
    with pytest.raises(ExportError, match=f"^{re.escape(said)}$"):
        export_qonnx(qnn.QuantLinear(4, 4), torch.randn(1, 4), dynamic_shapes=({0: "batch"},))

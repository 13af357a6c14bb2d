"""All shipped quantizers in one model, through each door: what is refused, literally, and that all others agree."""

import re
import warnings

import pytest
import torch
from torch import nn

import bitwright.nn as qnn
from bitwright.export import ExportError, supports
from bitwright.qcore import settings
from bitwright.quantizers import Int8Act
from tests.export.doors.ways import DOORS
from tests.quantizers.matrix import listed, role, table
from tests.quantizers.shipped import COMPLETE

NAMES = [name for name, each in COMPLETE.items() if role(each) in ("weight", "activation", "bias")]

# What QCDQ, the integer dialect and QONNX refuse, by what each of them says
FLOATING = {
    "additive powers of two, 4 bits": "Apot4WeightPerChannel Apot4WeightPerTensor",
    "e2m1fn": """Fp4e2m1Act Fp4e2m1WeightPerChannel Fp4e2m1WeightPerTensor MXFloat4e2m1Act MXFloat4e2m1Weight
        NVFloat4Act NVFloat4Weight""",
    "e2m3fn": "Fp6e2m3Act Fp6e2m3WeightPerChannel Fp6e2m3WeightPerTensor MXFloat6e2m3Act MXFloat6e2m3Weight",
    "e3m0b7fn": "Pot4Act Pot4WeightPerChannel Pot4WeightPerTensor",
    "e3m2fn": "Fp6e3m2Act Fp6e3m2WeightPerChannel Fp6e3m2WeightPerTensor MXFloat6e3m2Act MXFloat6e3m2Weight",
    "e4m3fn": """Fp8e4m3Act Fp8e4m3DynamicAct Fp8e4m3DynamicActPerGroup Fp8e4m3DynamicActPerToken
        Fp8e4m3WeightPerChannel Fp8e4m3WeightPerTensor MXFloat8e4m3Act MXFloat8e4m3Weight""",
    "e4m3fnuz": "Fp8e4m3fnuzAct Fp8e4m3fnuzWeightPerChannel Fp8e4m3fnuzWeightPerTensor",
    "e5m2": """Fp8e5m2Act Fp8e5m2DynamicAct Fp8e5m2DynamicActPerToken Fp8e5m2WeightPerChannel
        Fp8e5m2WeightPerTensor MXFloat8e5m2Act MXFloat8e5m2Weight""",
    "e5m2fnuz": "Fp8e5m2fnuzAct Fp8e5m2fnuzWeightPerChannel Fp8e5m2fnuzWeightPerTensor",
    "nf4": "NF4Weight",
    "unsigned additive powers of two, 4 bits": "Apot4Act",
}
ODD = {
    "odd integers of 2 bits": "OddInt2WeightPerTensorSAWB",
    "odd integers of 4 bits": "Int4WeightPerTensorDoReFa",
}
BINARY = {"binary": "BinaryAct BinaryConnectWeight BinaryWeightPerChannel BinaryWeightPerTensor"}
HALFWAY = "ShiftedUint4WeightPerChannelHQO ShiftedUint4WeightPerGroupHQO ShiftedUint4WeightPerTensorHQO"
GROUPS = """Int2WeightPerGroup Int3WeightPerGroup Int4WeightPerGroup Int4WeightPerGroupHQO Int4WeightPerGroupLSQ
    Int4WeightPerGroupQuantizedScale Int8WeightPerGroup MXInt8Weight ShiftedUint4WeightPerGroup
    ShiftedUint8WeightPerGroup"""
DYNAMIC = """Int4DynamicAct Int4DynamicActPerGroup Int4DynamicActPerToken Int8DynamicAct Int8DynamicActPerGroup
    Int8DynamicActPerToken MXInt8Act ShiftedUint4DynamicAct ShiftedUint4DynamicActPerGroup
    ShiftedUint4DynamicActPerToken ShiftedUint8DynamicAct ShiftedUint8DynamicActPerGroup
    ShiftedUint8DynamicActPerToken Uint8DynamicAct"""


def levels(target, by_format, only=""):
    remedy = "Write export_onnx_qdq, which stores them, or quantize to integers."
    return {
        f"its levels are {each}, and {target} has integers only. {remedy}": " ".join(
            name for name in names.split() if only in name
        )
        for each, names in by_format.items()
    }


def stored_scales(target):
    return {
        f"its scales are for groups of 32 along axis 1; {target} takes one scale per tensor, or per index of one "
        "dimension. Choose another quantizer, such as Int8WeightPerChannel.": GROUPS,
        f"its scale follows the input, and {target} takes scales that are known beforehand. Choose a quantizer whose "
        "range is measured or learned, such as Int8Act.": DYNAMIC,
    }


HALF_LEVELS = {"uint4 with a float zero point": HALFWAY}
REFUSED = {
    "onnx-qcdq": {
        # activations of any levels are computed by operators of ONNX, and odd integers are integers
        **levels("QCDQ", FLOATING, only="Weight"),
        "its zero point lies between two integers, and QCDQ takes whole ones. Choose a quantizer whose zero point is "
        "an integer, such as ShiftedUint8WeightPerTensor.": HALFWAY,
    },
    "onnx-qdq": {},
    "onnx-integer": {
        **levels("the integer dialect", FLOATING | ODD | BINARY | HALF_LEVELS),
        **stored_scales("the integer dialect"),
        "its scales are for axis 1; the integer dialect takes one scale per tensor. Write input_axis=None.": (
            "Int8ActPerChannel ShiftedUint8ActPerChannel Uint8ActPerChannel"
        ),
        "16 bits, signed; the integer dialect stores 2 to 8. Write input_bit_width=8 or less.": "Int16ActPowerOfTwo",
    },
    "qonnx": {
        **levels("QONNX", FLOATING | ODD | HALF_LEVELS),
        **stored_scales("QONNX"),
        "it has a zero point, and QONNX has none. Choose a quantizer without one, such as Int8Act or Uint8Act.": (
            "ShiftedUint4Act ShiftedUint4ActLSQPlus ShiftedUint8Act ShiftedUint8ActPerChannel"
        ),
        "it has a zero point, and QONNX has none. Choose a quantizer without one, such as Int8WeightPerChannel.": (
            "ShiftedUint4WeightPerChannel ShiftedUint4WeightPerTensor ShiftedUint8WeightPerChannel "
            "ShiftedUint8WeightPerTensor"
        ),
    },
    "program": {},
}
HEADS = {
    "onnx-qcdq": "QCDQ can't express 28 quantizers of this model:",
    "onnx-integer": "the integer dialect can't express 82 quantizers of this model:",
    "qonnx": "QONNX can't express 82 parts of this model:",
}


def said_of(door):
    """What a door says of each quantizer that it refuses."""
    return {name: said for said, names in REFUSED[door].items() for name in names.split()}


def slot(name):
    """Where a layer has it."""
    if getattr(settings(COMPLETE[name])["tensor_quant"].declared, "truncates", False):
        return "output_quant"
    return {"weight": "weight_quant", "activation": "input_quant", "bias": "bias_quant"}[role(COMPLETE[name])]


class All(nn.Module):
    """A layer for each quantizer, side by side."""

    def __init__(self, names):
        super().__init__()
        options = {name: {"bias": slot(name) == "bias_quant", "input_quant": Int8Act} for name in names}
        self.layers = nn.ModuleDict(
            {name: qnn.QuantLinear(64, 8, **{**each, slot(name): COMPLETE[name]}) for name, each in options.items()}
        )
        for name in names:
            if slot(name) == "bias_quant":
                nn.init.zeros_(self.layers[name].bias)  # which every width holds

    def forward(self, x):
        return tuple(layer(x) for layer in self.layers.values())


def calibrated(names):
    """All of them, after two batches."""
    torch.manual_seed(0)
    model = All(names).train()
    with torch.no_grad():
        model(torch.randn(256, 64))
        model(0.83 * torch.randn(256, 64))
    qnn.finish_calibration(model)
    return model.eval()


def never(*args, **kwargs):
    raise AssertionError("traced")


def test_all_rows_of_the_table_are_here():
    assert len(table()) == 87
    assert {name for weights, acts, *_ in table().values() for name in listed(weights) + listed(acts)} <= set(NAMES)


@pytest.mark.parametrize("door", HEADS)
def test_what_is_refused(door, tmp_path, monkeypatch):
    pytest.importorskip("onnxscript")
    model, said, path = calibrated(NAMES), said_of(door), tmp_path / "model.onnx"
    monkeypatch.setattr(torch.export, "export", never)
    monkeypatch.setattr(torch.onnx, "export", never)
    lines = [f"  layers.{name}.{slot(name)}: {said[name]}" for name in NAMES if name in said]
    expected = "\n".join([HEADS[door], *lines])
    with pytest.raises(ExportError, match=f"^{re.escape(expected)}$"):
        DOORS[door].export(model, torch.randn(16, 64), path)
    assert list(tmp_path.iterdir()) == []
    assert supports(model, door).blocked == [f"layers.{name}.{slot(name)}" for name in NAMES if name in said]


@pytest.mark.slow
@pytest.mark.parametrize("door", DOORS)
def test_all_others_agree(door):
    """One file with all of them: every code and scale, and every output."""
    pytest.importorskip("qonnx" if door == "qonnx" else "onnxruntime")
    names = [name for name in NAMES if name not in said_of(door)]
    model = calibrated(names)
    assert supports(model, door).ok
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        program = DOORS[door].export(model, torch.randn(16, 64))
    report = DOORS[door].verify(model, program, torch.randn(16 if door in ("qonnx", "onnx-integer") else 64, 64))
    assert report.differences == 0, report.table()
    assert report.tie_flips <= 1e-3 * report.compared
    seen = {row.name for row in report.rows if row.compared}
    assert {f"layers.{name}.{slot(name)}" for name in names} <= seen

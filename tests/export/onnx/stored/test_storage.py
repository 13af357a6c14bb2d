"""What the file of a format holds: types, tables, scales, bytes; and what is refused."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

import bitwright.nn as qnn
from bitwright.export import (
    ExportError,
    StorageReport,
    StorageRow,
    export_onnx_integer,
    export_onnx_qcdq,
    export_onnx_qdq,
    storage_report,
    verify_onnx,
)
from bitwright.export.onnx.dialects import QCDQ, QDQ
from bitwright.qcore import (
    BINARY,
    E2M1,
    E2M3,
    E3M2,
    E4M3,
    E4M3FNUZ,
    E5M2,
    E5M2FNUZ,
    NF4,
    Codebook,
    Integers,
    Minifloat,
    OddIntegers,
    powers_of_two,
)
from bitwright.quantizers import (
    BinaryWeightPerTensor,
    Fp8e4m3WeightPerChannel,
    Fp8e4m3WeightPerTensor,
    Int4WeightPerGroup,
    Int8Act,
    Int8WeightPerChannel,
    MXFloat4e2m1Weight,
    MXFloat8e4m3Weight,
    NF4Weight,
    NVFloat4Weight,
    ShiftedUint4WeightPerGroupHQO,
)
from bitwright.quantizers.base import FormatWeight

pytest.importorskip("onnxruntime")


def layer(quant, inputs=128, outputs=8):
    torch.manual_seed(0)
    return qnn.QuantLinear(inputs, outputs, bias=False, weight_quant=quant).eval()


def exported(quant, export=export_onnx_qdq, **options):
    return export(layer(quant), torch.randn(2, 128), **options)


@pytest.mark.parametrize(
    ("number_format", "qdq", "qcdq"),
    [
        (E4M3, "FLOAT8E4M3FN", None),
        (E5M2, "FLOAT8E5M2", None),
        (E4M3FNUZ, "FLOAT8E4M3FNUZ", None),
        (E5M2FNUZ, "FLOAT8E5M2FNUZ", None),
        (E3M2, "FLOAT8E4M3FN", None),
        (E2M3, "FLOAT8E4M3FN", None),
        (E2M1, "UINT4 codes + table of 16 levels", None),
        (Minifloat(4, 3), "UINT8 codes + table of 256 levels", None),
        (Minifloat(5, 4), "UINT16 codes + table of 1024 levels", None),
        (Minifloat(7, 9), None, None),
        (NF4, "UINT4 codes + table of 16 levels", None),
        (Codebook((-1, 0, 1)), "INT2", "INT8"),
        (Codebook((0, 1, 2, 4)), "UINT2 codes + table of 4 levels", "UINT8"),
        (Codebook((-0.5, 0, 3)), "UINT2 codes + table of 3 levels", None),
        (BINARY, "INT2", "INT8"),
        (OddIntegers(2), "UINT2 codes + table of 4 levels", "INT8"),
        (OddIntegers(4), "UINT4 codes + table of 16 levels", "INT8"),
        (powers_of_two(4), "UINT4 codes + table of 16 levels", None),
        (powers_of_two(5), "FLOAT8E5M2", None),
        (Integers(3), "INT4", "INT8"),
        (Integers(2, narrow_range=True), "INT2", "INT8"),
        (Integers(5, signed=False), "UINT8", "UINT8"),
        (Integers(16), "INT16", "INT16"),
        (Integers(17), None, None),
    ],
    ids=str,
)
def test_how_a_format_is_stored(number_format, qdq, qcdq):
    """In the fewest bits; where two forms have as many, in a type that has the levels."""
    for dialect, expected in ((QDQ, qdq), (QCDQ, qcdq)):
        found = dialect.stored_as(number_format)
        assert (found if found is None else str(found)) == expected


@pytest.mark.parametrize(
    ("quant", "nodes", "opset", "row"),
    [
        (Fp8e4m3WeightPerTensor, ["DequantizeLinear"], 19, ("FLOAT8E4M3FN", "1 x FLOAT", 1028)),
        (Fp8e4m3WeightPerChannel, ["DequantizeLinear"], 19, ("FLOAT8E4M3FN", "8 x FLOAT", 1056)),
        (
            MXFloat8e4m3Weight,
            ["DequantizeLinear", "DequantizeLinear"],
            21,
            ("FLOAT8E4M3FN", "32 x FLOAT8E5M2 under one FLOAT", 1060),
        ),
        (
            MXFloat4e2m1Weight,
            ["Cast", "Gather", "DequantizeLinear", "Gather", "Mul"],
            21,
            ("UINT4 codes + table of 16 levels", "32 x FLOAT8E5M2 under one FLOAT", 548),
        ),
        (
            NVFloat4Weight,
            ["Cast", "Gather", "DequantizeLinear", "Gather", "Mul"],
            21,
            ("UINT4 codes + table of 16 levels", "64 x FLOAT8E4M3FN under one FLOAT", 580),
        ),
        (NF4Weight, ["Cast", "Gather", "Gather", "Mul"], 21, ("UINT4 codes + table of 16 levels", "16 x FLOAT", 576)),
        (BinaryWeightPerTensor, ["DequantizeLinear", "Sum"], 25, ("INT2", "1 x FLOAT", 261)),
        (Int4WeightPerGroup, ["DequantizeLinear"], 21, ("INT4", "32 x FLOAT", 640)),
        (
            ShiftedUint4WeightPerGroupHQO,
            ["Cast", "Gather", "Sub", "Gather", "Mul"],
            21,
            ("UINT4", "32 x FLOAT", 768),
        ),
    ],
)
def test_what_a_file_holds(quant, nodes, opset, row):
    program = exported(quant)
    assert [node.op_type for node in program.model.graph][: len(nodes)] == nodes
    assert program.model.opset_imports[""] == opset
    (found,) = storage_report(program).rows
    assert found.name == "weight_quant"
    assert found.shape == (8, 128)
    assert (found.stored_as, found.scales, found.bytes) == row
    assert found.bits_per_weight == 8 * row[-1] / 1024
    assert verify_onnx(layer(quant), program, torch.randn(8, 128)).differences == 0


def test_bytes_of_a_file(tmp_path):
    """4 bits a weight and 8 for each 32 of them, whatever the graph takes: 0.53 bytes, where float32 has 4."""
    path = tmp_path / "layer.onnx"
    program = export_onnx_qdq(layer(MXFloat4e2m1Weight, 512, 256), torch.randn(2, 512), path)
    report = storage_report(path)
    assert report.bytes == 512 * 256 // 2 + 512 * 256 // 32 + 4 == storage_report(program).bytes
    assert report.table_bytes == 64
    assert 0 <= Path(path).stat().st_size - report.bytes - report.table_bytes - 4 * 512 < 2000


class Turned(nn.Module):
    """Two products with one weight, which is (inputs, outputs)."""

    def __init__(self):
        super().__init__()
        self.layer = qnn.QuantLinear(24, 40)

    def forward(self, x):
        quantizer = self.layer.weight_quant
        assert quantizer is not None
        weight = quantizer(self.layer.weight)
        return x @ weight, x.flip(0) @ weight


def test_packed_weights_are_listed_as_they_were():
    program = export_onnx_qdq(Turned(), torch.randn(2, 40), fast=True, accuracy_level=1)
    assert [node.op_type for node in program.model.graph].count("MatMulNBits") == 2
    row = StorageRow("layer.weight_quant", (40, 24), "INT8 in MatMulNBits", "24 x FLOAT", 24 * 64 + 4 * 24)
    assert storage_report(program).rows == (row,)


@pytest.mark.filterwarnings("ignore:export_onnx_qdq. fast=True waives")
@pytest.mark.parametrize(
    ("quant", "settings", "row"),
    [
        (Int4WeightPerGroup, {}, ("INT4 in MatMulNBits", "32 x FLOAT", 8 * 64 + 4 * 32)),
        (Int8WeightPerChannel, {}, ("INT8 in MatMulNBits", "8 x FLOAT", 8 * 128 + 4 * 8)),
        (Int8WeightPerChannel, {"weight_bit_width": 2}, ("INT2 in MatMulNBits", "8 x FLOAT", 8 * 32 + 4 * 8)),
        (ShiftedUint4WeightPerGroupHQO, {}, None),
    ],
)
def test_what_a_fast_file_holds(quant, settings, row):
    torch.manual_seed(0)
    model = qnn.QuantLinear(128, 8, weight_quant=quant, **settings)
    program = export_onnx_qdq(model, torch.randn(2, 128), fast=True)
    (found,) = storage_report(program).rows
    assert (found.name, found.shape) == ("weight_quant", (8, 128))
    assert row is None or (found.stored_as, found.scales, found.bytes) == row


def test_tables_and_groups_are_shared():
    model = nn.Sequential(*(layer(MXFloat4e2m1Weight, 64, 64) for _ in range(3)), layer(NF4Weight, 64, 8)).eval()
    program = export_onnx_qdq(model, torch.randn(2, 64))
    names = set(program.model.graph.initializers)
    assert {name for name in names if name.startswith(("levels", "groups"))} == {"levels", "levels.1", "groups"}
    assert storage_report(program).table_bytes == 128


def test_scales_that_are_no_neighbours_are_floats():
    """An 8-bit float has 32 powers of two: a group of zeros, whose scale is the smallest there is, has none of them."""
    model = layer(MXFloat8e4m3Weight)
    with torch.no_grad():
        model.weight[2, 32:64] = 0
    program = export_onnx_qdq(model, torch.randn(2, 128))
    assert storage_report(program).rows[0].scales == "32 x FLOAT"
    assert verify_onnx(model, program, torch.randn(8, 128)).differences == 0
    with torch.no_grad():
        model.weight[2, 32:64] = 2.0**-28 * model.weight[0, :32].abs().max()
    assert storage_report(export_onnx_qdq(model, torch.randn(2, 128))).rows[0].scales.startswith("32 x FLOAT8E5M2")


def test_integers_of_other_formats_in_qcdq():
    """Levels that are all integers are stored as such, with a Clip that shows their ends."""
    program = exported(BinaryWeightPerTensor, export_onnx_qcdq)
    assert [node.op_type for node in program.model.graph][:2] == ["Clip", "DequantizeLinear"]
    held = program.model.graph.initializers
    assert [held[f"weight_quant.{end}_int"].const_value.numpy().item() for end in ("min", "max")] == [-1, 1]
    assert set(held["weight_quant.codes"].const_value.numpy().ravel().tolist()) == {-1, 1}


def test_two_bits_go_into_no_kernel():
    """With integers at the input and an output on a grid, onnxruntime would choose kernels that it has not."""
    torch.manual_seed(0)
    around = {"input_quant": Int8Act(scale=2.0**-6), "output_quant": Int8Act(scale=2.0**-5)}
    model = nn.Sequential(
        qnn.QuantConv2d(8, 16, 3, weight_bit_width=2, **around),
        nn.Flatten(2),
        qnn.QuantLinear(16, 40, weight_bit_width=2, **around),
        nn.Flatten(),
        qnn.QuantLinear(640, 4, weight_quant=BinaryWeightPerTensor, **around),
    ).eval()
    program = export_onnx_qdq(model, torch.randn(2, 8, 6, 6))
    assert verify_onnx(model, program, torch.randn(2, 8, 6, 6)).differences == 0


class Wide(FormatWeight):
    """Levels that take too many bits for a table."""

    number_format = Minifloat(7, 9)


REFUSALS = {
    "floats in integers": (
        export_onnx_qcdq,
        Fp8e4m3WeightPerTensor,
        {},
        "QCDQ can't express 1 quantizer of this model:\n  weight_quant: its levels are e4m3fn, and QCDQ has integers "
        "only. Write export_onnx_qdq, which stores them, or quantize to integers.",
    ),
    "a table in integers": (
        export_onnx_qcdq,
        NF4Weight,
        {},
        "QCDQ can't express 1 quantizer of this model:\n  weight_quant: its levels are nf4, and QCDQ has integers "
        "only. Write export_onnx_qdq, which stores them, or quantize to integers.",
    ),
    "integer operators": (
        export_onnx_integer,
        MXFloat4e2m1Weight,
        {},
        "the integer dialect can't express 1 quantizer of this model:\n  weight_quant: its levels are e2m1fn, and the "
        "integer dialect has integers only. Write export_onnx_qdq, which stores them, or quantize to integers.",
    ),
    "too wide": (
        export_onnx_qdq,
        Wide,
        {},
        "QDQ can't express 1 quantizer of this model:\n  weight_quant: its levels are e7m9fn without NaN, of 17 bits; "
        "QDQ has no type with these levels, and codes beside a table have up to 16. Choose a format of up to 16 bits.",
    ),
    "8-bit floats in an old opset": (
        export_onnx_qdq,
        Fp8e4m3WeightPerTensor,
        {"opset_version": 18},
        "opset_version=18 is too old: weight_quant has levels of e4m3fn, stored as FLOAT8E4M3FN, which ONNX has since "
        "opset 19. Write opset_version=19, or leave it out.",
    ),
    "a table in an old opset": (
        export_onnx_qdq,
        NF4Weight,
        {"opset_version": 20},
        "opset_version=20 is too old: weight_quant has levels of nf4, stored as UINT4 codes + table of 16 levels, "
        "which ONNX has since opset 21. Write opset_version=21, or leave it out.",
    ),
    "groups in an old opset": (
        export_onnx_qdq,
        MXFloat8e4m3Weight,
        {"opset_version": 20},
        "opset_version=20 is too old: weight_quant has scales in groups, which ONNX has since opset 21. Write "
        "opset_version=21, or leave it out.",
    ),
    "a new opset": (
        export_onnx_qdq,
        Fp8e4m3WeightPerTensor,
        {"opset_version": 28},
        "opset_version=28 is too new: onnxruntime does not run its QuantizeLinear and DequantizeLinear. Write "
        "opset_version=27 or less, or leave it out: this model needs 19.",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals(case):
    export, quant, options, message = REFUSALS[case]
    with pytest.raises(ExportError, match=f"^{re.escape(message)}$"):
        exported(quant, export, **options)


def test_a_report_is_a_table():
    rows = (
        StorageRow(
            "0.weight_quant", (16, 64), "UINT4 codes + table of 16 levels", "32 x FLOAT8E5M2 under one FLOAT", 548
        ),
        StorageRow("0.bias_quant", (16,), "INT32", "1 x FLOAT", 68),
    )
    report = StorageReport(rows, 64)
    assert report.bytes == 616
    assert [row.bits_per_weight for row in rows] == [4.28125, 34.0]
    assert str(report) == (
        "616 bytes in 2 stored tensors, 64 bytes of tables\n"
        "tensor          numbers  bits each  stored as                         scales\n"
        "0.weight_quant     1024      4.281  UINT4 codes + table of 16 levels  32 x FLOAT8E5M2 under one FLOAT\n"
        "0.bias_quant         16         34  INT32                             1 x FLOAT"
    )


def test_a_report_of_no_model():
    message = (
        "storage_report: program=3 is not an exported model. Pass what an export returned, the path of a file, or an "
        "onnx.ModelProto."
    )
    with pytest.raises(ExportError, match=f"^{re.escape(message)}$"):
        storage_report(3)  # type: ignore[arg-type]

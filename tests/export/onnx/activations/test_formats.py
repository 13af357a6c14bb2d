"""Activations of every number format in a file, with scales that stay and scales that follow the input."""

import re
from typing import NamedTuple

import pytest
import torch
from torch import nn

import bitwright.nn as qnn
from bitwright.export import ExportError, export_onnx_qcdq, export_onnx_qdq, verify_onnx
from bitwright.qcore import (
    BINARY,
    E2M1,
    E3M2,
    E4M3,
    E5M2,
    E5M2FNUZ,
    NF4,
    Minifloat,
    NumberFormat,
    PerBlock,
    PerGroup,
    PerToken,
    powers_of_two,
)
from bitwright.quantizers import (
    Int8DynamicAct,
    MXFloat4e2m1Act,
    NVFloat4Act,
    ShiftedUint8DynamicAct,
)
from bitwright.quantizers.base import FormatBase


class Act(FormatBase):
    """A scale that stays."""

    quantizes = "activation"
    number_format = E4M3
    scaling = "constant"
    scale = 0.05


class Dynamic(FormatBase):
    """A scale that follows the input."""

    quantizes = "activation"
    number_format = E4M3
    scaling = "statistic"


class Squares(NamedTuple("_Squares", [("number", int)]), NumberFormat):
    """A format of the user's own."""

    __slots__ = ()

    @property
    def levels(self):
        return tuple(float(code * code) for code in range(self.number))


class Many(nn.Module):
    """Several quantizers at once, in one file: each behind a layer of its own."""

    def __init__(self, acts):
        super().__init__()
        self.plain = nn.ModuleList(nn.Linear(12, 10) for _ in acts)
        self.acts = nn.ModuleList(qnn.QuantIdentity(act_quant=act) for act in acts)

    def forward(self, x):
        return tuple(act(plain(x)) for plain, act in zip(self.plain, self.acts, strict=True))


def operators(program):
    return [node.op_type for node in program.model_proto.graph.node]


def exported(acts, export=export_onnx_qdq):
    """The program, after it was verified on other inputs than the example, of another number of samples."""
    torch.manual_seed(0)
    model = Many(acts).eval()
    program = export(model, torch.randn(3, 12), dynamic_shapes=({0: "batch"},))
    report = verify_onnx(model, program, torch.randn(64, 12) * torch.logspace(-2, 2, 64)[:, None])
    assert report.differences == 0, report.table()
    assert sum(row.compared for row in report.only("on").rows if row.kind == "activation") == 64 * 10 * len(acts)
    return program


FORMATS = [E4M3, E2M1, NF4, BINARY, Squares(5)]
MORE = [E5M2FNUZ, E3M2, powers_of_two(4), Minifloat(3, 1)]


@pytest.mark.parametrize(
    ("export", "formats", "pairs"),
    [
        (export_onnx_qdq, FORMATS, 5),  # all but NF4
        pytest.param(export_onnx_qcdq, FORMATS, 2, marks=pytest.mark.slow),  # binary and squares, which are integers
        pytest.param(export_onnx_qdq, MORE, 5, marks=pytest.mark.slow),
    ],
)
def test_scales_that_stay(export, formats, pairs):
    program = exported([*(Act(number_format=each) for each in formats), Act(axis=1, scale=0.1)], export)
    assert operators(program).count("QuantizeLinear") == pairs


def test_one_node_pair():
    program = exported([Act, Act(number_format=E5M2)])
    assert sorted(set(operators(program))) == ["DequantizeLinear", "Gemm", "QuantizeLinear"]
    assert program.model.opset_imports[""] == 19
    kinds = {each.name: each.dtype.name for each in program.model.graph.initializers.values()}
    assert kinds["acts.0.act_quant.zero_point"] == "FLOAT8E4M3FN"
    assert kinds["acts.1.act_quant.zero_point"] == "FLOAT8E5M2"


@pytest.mark.slow
@pytest.mark.parametrize("rounding", ["half_up", "floor"])
def test_other_roundings(rounding):
    exported([Act(number_format=each, rounding=rounding) for each in (E4M3, NF4, BINARY)])


NATIVE = [
    (Int8DynamicAct, 18),
    (Int8DynamicAct(granularity=PerToken()), 21),
    (Int8DynamicAct(granularity=PerGroup(4), statistic="mean_sigma", bit_width=5), 21),
    (ShiftedUint8DynamicAct, 18),
    (ShiftedUint8DynamicAct(granularity=PerToken(), bit_width=6), 21),
    (Dynamic, 19),
    (Dynamic(granularity=PerToken()), 21),
    (Dynamic(axis=1), 19),
]


@pytest.mark.parametrize(
    ("export", "start", "pairs"),
    [
        (export_onnx_qdq, 3, 5),
        pytest.param(export_onnx_qdq, 0, 8, marks=pytest.mark.slow),
        pytest.param(export_onnx_qcdq, 0, 5, marks=pytest.mark.slow),
    ],
)
def test_scales_that_follow(export, start, pairs):
    program = exported([act for act, _ in NATIVE[start:]], export)
    assert operators(program).count("QuantizeLinear") == pairs


@pytest.mark.parametrize(("act", "opset"), NATIVE[:2])
def test_opset_follows_from_what_a_file_needs(act, opset):
    assert exported([act]).model.opset_imports[""] == opset


TRACED = [MXFloat4e2m1Act(group_size=4), Int8DynamicAct(rounding="half_up")]
MORE_TRACED = [
    *(MXFloat4e2m1Act(group_size=5, mx_rule=rule) for rule in ("even", "rceil")),
    NVFloat4Act(group_size=4),
    Dynamic(number_format=NF4, granularity=PerToken()),
    Dynamic(granularity=PerBlock((1, 4))),
]


@pytest.mark.parametrize("acts", [TRACED, pytest.param(MORE_TRACED, marks=pytest.mark.slow)])
def test_traced_throughout(acts):
    program = exported(acts)
    assert operators(program).count("QuantizeLinear") == (acts is MORE_TRACED)  # blocks of one row are groups


def test_constant_tensors_of_the_model_are_no_activations():
    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.act = qnn.QuantIdentity(act_quant=Dynamic(number_format=E2M1))
            self.register_buffer("offset", torch.linspace(-1, 1, 12))

        def forward(self, x):
            return x + self.act(self.offset * 2)

    model = Shifted().eval()
    assert verify_onnx(model, export_onnx_qdq(model, torch.randn(3, 12)), torch.randn(3, 12)).ok


def test_infinite_values_saturate():
    model = nn.Sequential(qnn.QuantIdentity(act_quant=Act(scale=1.0))).eval()
    program = export_onnx_qdq(model, torch.randn(3))
    x = torch.tensor([float("inf"), float("-inf"), 1e9])
    assert model(x).tolist() == [448.0, -448.0, 448.0]
    assert verify_onnx(model, program, x).ok


def test_not_saturating():
    loose = Minifloat(4, 3, nan=True, saturating=False)
    with pytest.raises(
        ExportError,
        match=re.escape(
            "QDQ can't express 1 quantizer of this model:\n"
            "  0.act_quant: e4m3fn, not saturating: what rounds past its ends becomes infinite or NaN, where "
            "QDQ stops at the ends. Write saturating=True, as the ready formats have it."
        ),
    ):
        export_onnx_qdq(nn.Sequential(qnn.QuantIdentity(act_quant=Act(number_format=loose))), torch.randn(3))


def test_statistics_that_onnx_has_no_operators_for():
    model = nn.Sequential(qnn.QuantIdentity(act_quant=Int8DynamicAct(statistic="percentile", percentile=90.0)))
    with pytest.raises(
        ExportError,
        match=re.escape(
            "QDQ can't express 1 quantizer of this model:\n"
            "  0.act_quant: its scale follows the input, and torch.onnx.export has no operators for how "
            "StatisticScaling(AbsPercentile(90.0), per tensor) works it out. Write statistic='abs_max', or "
            "scaling='calibrated' and run some batches in training mode."
        ),
    ):
        export_onnx_qdq(model, torch.randn(4, 12))


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (
            Act,
            "opset_version=18 is too old: 0.act_quant has levels of e4m3fn, stored as FLOAT8E4M3FN, which ONNX has "
            "since opset 19. Write opset_version=19, or leave it out.",
        ),
        (
            Int8DynamicAct(granularity=PerToken()),
            "opset_version=18 is too old: 0.act_quant has scales in groups, which ONNX has since opset 21. Write "
            "opset_version=21, or leave it out.",
        ),
    ],
)
def test_old_opset(act, message):
    with pytest.raises(ExportError, match=re.escape(message)):
        export_onnx_qdq(nn.Sequential(qnn.QuantIdentity(act_quant=act)), torch.randn(3, 4), opset_version=18)

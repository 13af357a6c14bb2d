"""Stored tensors of every number format and granularity, in every kind of layer: the file has the model's bits."""

import math
import re
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

import bitwright.nn as qnn
from bitwright.export import ExportError, export_onnx_qcdq, export_onnx_qdq, verify_onnx
from bitwright.qcore import (
    BINARY,
    E2M1,
    E2M3,
    E3M2,
    E4M3FNUZ,
    E5M2,
    E5M2FNUZ,
    NF4,
    Codebook,
    Minifloat,
    NumberFormat,
    OddIntegers,
    powers_of_two,
)
from bitwright.quantizers import (
    BinaryWeightPerTensor,
    Fp8e4m3WeightPerChannel,
    Fp8e4m3WeightPerTensor,
    Int4WeightPerGroup,
    Int8Act,
    Int8BiasOwnScale,
    MXFloat4e2m1Weight,
    MXFloat8e4m3Weight,
    NF4Weight,
    NVFloat4Weight,
)
from bitwright.quantizers.base import FormatWeight, PerGroup, PerOutputChannel

pytest.importorskip("onnxruntime")


class Posit(NamedTuple("_Posit", [("bits", int)]), NumberFormat):
    """A user's own format: posits without regime bits past the first three, of 5 bits."""

    __slots__ = ()

    @property
    def levels(self):
        above = [2.0**power * (1 + half / 2) for power in (-4, -2, -1, 0, 1, 2, 4) for half in (0, 1)]
        return (0.0, *above, *(-each for each in above))


class PerTensor(FormatWeight):
    """Any format, one scale."""


class PerChannel(PerOutputChannel, FormatWeight):
    """Any format, a scale for each channel."""


class Grouped(PerGroup, FormatWeight):
    """Any format, a scale for 6 neighbours."""

    group_size = 6


class Int4PowerOfTwo(Int4WeightPerGroup):
    """Integers with scales that are powers of two."""

    restriction = "power_of_two"
    group_size = 6


WEIGHTS: dict[str, Any] = {
    "fp8 per tensor": Fp8e4m3WeightPerTensor,
    "fp8 per channel": Fp8e4m3WeightPerChannel,
    "e5m2 groups": Grouped(number_format=E5M2),
    "e4m3fnuz per channel": PerChannel(number_format=E4M3FNUZ),
    "e5m2fnuz": PerTensor(number_format=E5M2FNUZ),
    "e3m2 groups": Grouped(number_format=E3M2),
    "e2m3 per channel": PerChannel(number_format=E2M3),
    "e2m1": PerTensor(number_format=E2M1),
    "e4m3 without NaN": PerChannel(number_format=Minifloat(4, 3)),
    "mxfp8": MXFloat8e4m3Weight(group_size=8),
    "mxfp4": MXFloat4e2m1Weight(group_size=8),
    "nvfp4": NVFloat4Weight(group_size=5),
    "nf4": NF4Weight(group_size=7),
    "nf4 per channel": PerChannel(number_format=NF4),
    "binary": BinaryWeightPerTensor,
    "binary groups": Grouped(number_format=BINARY),
    "odd integers": PerChannel(number_format=OddIntegers(2)),
    "powers of two": Grouped(number_format=powers_of_two(4)),
    "three bits": PerTensor(number_format=Codebook((-3, -1, 0, 0.25, 2))),
    "posit": PerChannel(number_format=Posit(5)),
    "int4 powers of two": Int4PowerOfTwo,
}


class Each(nn.Module):
    """One layer for each kind of weight, all of the same input."""

    def __init__(self, layer, act):
        super().__init__()
        self.act = act
        self.layers = nn.ModuleDict({name.replace(" ", "_"): layer(quant) for name, quant in WEIGHTS.items()})

    def forward(self, x):
        x = x if self.act is None else self.act(x)
        return tuple(layer(x) for layer in self.layers.values())


LAYERS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "linear": (lambda quant: qnn.QuantLinear(20, 5, weight_quant=quant), (20,)),
    "linear 3-d": (lambda quant: qnn.QuantLinear(20, 5, weight_quant=quant), (3, 20)),
    "conv": (lambda quant: qnn.QuantConv2d(10, 4, 3, weight_quant=quant), (10, 5, 5)),
    "conv transpose": (lambda quant: qnn.QuantConvTranspose2d(10, 4, 3, weight_quant=quant), (10, 4, 4)),
}


@pytest.mark.parametrize("act", [None, Int8Act], ids=["float", "int8"])
@pytest.mark.parametrize("kind", LAYERS)
def test_layers(kind, act):
    torch.manual_seed(0)
    layer, shape = LAYERS[kind]
    model = Each(layer, None if act is None else qnn.QuantIdentity(act_quant=act, calibration_steps=1)).train()
    model(torch.randn(8, *shape))
    model.eval()
    program = export_onnx_qdq(model, torch.randn(2, *shape), dynamic_shapes=({0: "batch"},))
    report = verify_onnx(model, program, torch.randn(16, *shape))
    assert report.differences == 0, report.table()
    stored = {row.name for row in report.rows if row.kind == "stored"}
    assert stored == {f"layers.{name.replace(' ', '_')}.weight_quant" for name in WEIGHTS}

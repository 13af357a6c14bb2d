"""Stored tensors of every number format and granularity, in every kind of layer: the file has the model's bits."""

from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

import bitwright.nn as qnn
from bitwright.export import export_onnx_qdq, verify_onnx
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
    Fp8e4m3WeightPerChannel,
    Fp8e4m3WeightPerTensor,
    Int4WeightPerGroup,
    Int8Act,
    MXFloat4e2m1Weight,
    MXFloat8e4m3Weight,
    NF4Weight,
    NVFloat4Weight,
)
from bitwright.quantizers.base import FormatWeight, PerGroup, PerOutputChannel

pytest.importorskip("onnxruntime")


class Posit(NamedTuple("_Posit", [("bits", int)]), NumberFormat):  # type: ignore[misc]
    """A user's own format: finer around 1 than far from it, as posits are."""

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
    "binary": PerTensor(number_format=BINARY),
    "binary groups": Grouped(number_format=BINARY),
    "odd integers": PerChannel(number_format=OddIntegers(2)),
    "powers of two": Grouped(number_format=powers_of_two(4)),
    "three bits": PerTensor(number_format=Codebook((-3, -1, 0, 0.25, 2))),
    "posit": PerChannel(number_format=Posit(5)),
    "int4 powers of two": Int4PowerOfTwo,
}


RECURRENT = {name: WEIGHTS[name] for name in ("fp8 per channel", "mxfp4", "nvfp4", "nf4 per channel", "binary")}


class Each(nn.Module):
    """One layer for each kind of weight, all of the same input."""

    def __init__(self, layer, weights):
        super().__init__()
        self.layers = nn.ModuleDict({name.replace(" ", "_"): layer(quant) for name, quant in weights.items()})

    def forward(self, x):
        return tuple(layer(x) for layer in self.layers.values())


class Tied(nn.Module):
    """A table whose quantizer and numbers the output layer shares."""

    def __init__(self, quant):
        super().__init__()
        self.table = qnn.QuantEmbedding(24, 32, weight_quant=quant)
        self.head = qnn.QuantLinear(32, 24, bias=False, weight_quant=self.table.weight_quant)
        self.head.weight = self.table.weight

    def forward(self, x):
        return self.head(self.table(x))


def linear(quant):
    return qnn.QuantLinear(76, 8, weight_quant=quant)


def convolution(quant):
    return qnn.QuantConv2d(10, 7, 3, weight_quant=quant)


def transposed(quant):
    return qnn.QuantConvTranspose2d(10, 7, 3, weight_quant=quant)


def unrolled(quant):
    return qnn.QuantLSTM(34, 6, weight_quant=quant, hidden_scale=2.0**-7)


def integers_first(layer):
    return lambda quant: nn.Sequential(qnn.QuantIdentity(act_quant=Int8Act, scale=2.0**-6), layer(quant))


def floats(*shape):
    return lambda batch: torch.randn(batch, *shape)


def rows(batch):
    return torch.randint(0, 24, (batch, 3))


# in tensors of more than 127 bytes, which onnxruntime treats otherwise
LAYERS: dict[str, tuple[Any, dict[str, Any], Any]] = {
    "linear": (linear, WEIGHTS, floats(76)),
    "linear, integers": (integers_first(linear), WEIGHTS, floats(76)),
    "linear 3-d": (linear, WEIGHTS, floats(3, 76)),
    "linear 3-d, integers": (integers_first(linear), WEIGHTS, floats(3, 76)),
    "convolution": (convolution, WEIGHTS, floats(10, 5, 5)),
    "convolution, integers": (integers_first(convolution), WEIGHTS, floats(10, 5, 5)),
    "transposed": (transposed, WEIGHTS, floats(10, 4, 4)),
    "transposed, integers": (integers_first(transposed), WEIGHTS, floats(10, 4, 4)),
    "tied tables": (Tied, WEIGHTS, rows),
    "recurrent": (unrolled, RECURRENT, floats(2, 34)),
}
OFTEN = ("linear, integers", "convolution, integers", "tied tables", "recurrent")


KINDS = [pytest.param(each, marks=() if each in OFTEN else pytest.mark.slow) for each in LAYERS]


@pytest.mark.parametrize("kind", KINDS)
def test_the_file_computes_the_same(kind):
    torch.manual_seed(0)
    layer, weights, example = LAYERS[kind]
    model = Each(layer, weights).eval()
    batch = {} if kind == "recurrent" else {"dynamic_shapes": ({0: "batch"},)}
    program = export_onnx_qdq(model, example(2), **batch)
    report = verify_onnx(model, program, example(2 if kind == "recurrent" else 16))
    assert report.differences == 0, report.table()
    compared = {row.name.split(".")[1] for row in report.rows if row.kind == "stored"}
    assert compared == {name.replace(" ", "_") for name in weights}

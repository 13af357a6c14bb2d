"""The integer dialect of ONNX: layers without an integer operator of their own. Exporting raises unless bits agree."""

import re
from typing import Any

import pytest
import torch
from torch import nn

import bitwright.nn as qnn
from bitwright.export import ExportError, compare_integers, export_onnx_integer, run_integers
from bitwright.export.integer.operators.transposed import mirrored
from bitwright.qcore import values_of
from bitwright.quantizers import (
    Int8Act,
    Int8BiasOwnScale,
    Int8WeightPerChannel,
    Int32Bias,
    ShiftedUint8Act,
    ShiftedUint8WeightPerChannel,
    TruncTo8bit,
)

pytest.importorskip("onnxruntime")

OWN: dict[str, Any] = {"bias_quant": Int8BiasOwnScale}
SUMS: dict[str, Any] = {"bias_quant": Int32Bias}
LAYERS = {
    "transposed": lambda: qnn.QuantConvTranspose2d(4, 6, 3, 2, 1, 1, 2, True, 2, **SUMS),
    "transposed, cropped": lambda: qnn.QuantConvTranspose2d(4, 3, 2, (3, 1), 2, bias=False),
    "transposed, per channel": lambda: qnn.QuantConvTranspose2d(4, 3, 3, 2, weight_quant=Int8WeightPerChannel, **OWN),
    "circular": lambda: qnn.QuantConv2d(4, 3, 3, padding=1, padding_mode="circular", **SUMS),
    "reflect": lambda: qnn.QuantConv2d(4, 3, 3, padding=1, padding_mode="reflect", **SUMS),
    "own scale": lambda: qnn.QuantConv2d(4, 3, 3, weight_quant=Int8WeightPerChannel, **OWN),
    "own scale, linear": lambda: qnn.QuantLinear(5, 3, **OWN),
    "zero points": lambda: qnn.QuantLinear(5, 3, weight_quant=ShiftedUint8WeightPerChannel, **SUMS),
    "slopes": lambda: nn.Sequential(qnn.QuantConv2d(4, 4, 3, **SUMS), qnn.QuantPReLU(4)),
    "nearest": lambda: nn.Sequential(nn.Upsample(scale_factor=1.5), qnn.QuantConv2d(4, 3, 3, **SUMS)),
    "leaky": lambda: qnn.QuantLeakyReLU(0.3),
}


def calibrated(layer: nn.Module) -> nn.Module:
    model = nn.Sequential(qnn.QuantIdentity(act_quant=ShiftedUint8Act, return_quant_tensor=True), layer)
    with qnn.calibrating(model):
        model(torch.randn(2, 4, 6, 5, generator=torch.Generator().manual_seed(0)))
    return model.eval()


@pytest.mark.parametrize("name", LAYERS)
def test_layers_have_equal_bits(name: str) -> None:
    model = calibrated(LAYERS[name]())
    x = torch.randn(2, 4, 6, 5, generator=torch.Generator().manual_seed(1))
    kinds = {node.op_type for node in export_onnx_integer(model, x).model_proto.graph.node}
    assert not {"Conv", "ConvTranspose", "Gemm", "MatMul", "LeakyRelu", "PRelu"} & kinds
    run = run_integers(model, x)
    assert run.integer_only
    with torch.no_grad():
        expected = values_of(model(x))
    torch.testing.assert_close(run.outputs, expected, rtol=0, atol=float(expected.abs().max()) / 100)


@pytest.mark.parametrize("rounding", ["floor", "ceil", "half_up", "toward_zero"])
def test_roundings_are_part_of_a_quantizer(rounding: str) -> None:
    """They are the division, the rounding and QuantizeLinear, as in the other dialects."""
    model = calibrated(qnn.QuantLinear(5, 3, output_quant=Int8Act(rounding=rounding), **SUMS))
    x = torch.randn(2, 4, 6, 5, generator=torch.Generator().manual_seed(1))
    program = export_onnx_integer(model, x)
    kinds = [node.op_type for node in program.model_proto.graph.node]
    assert kinds[:4] == ["QuantizeLinear", "MatMulInteger", "Add", "Cast"]
    assert kinds[4:6] == ["Mul", "Div"]
    assert kinds[-2:] == ["QuantizeLinear", "DequantizeLinear"]
    assert compare_integers(model, -x, program=program).differences == 0


def test_bits_are_dropped() -> None:
    model = calibrated(qnn.QuantLinear(5, 3, bias=False, output_quant=TruncTo8bit))
    x = torch.randn(2, 4, 6, 5, generator=torch.Generator().manual_seed(1))
    assert compare_integers(model, -x, program=export_onnx_integer(model, x)).differences == 0


class Wavy:
    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return torch.round(x + 0.1 * torch.sin(x))


def test_a_rounding_that_runtimes_compute_differently_is_refused() -> None:
    model = calibrated(qnn.QuantLinear(5, 3, output_quant=Int8Act(rounding=Wavy), **SUMS))
    message = (
        "the integer dialect can't express this model:\n  1 (QuantLinear): Sin. There is no integer arithmetic for it: "
        "replace it, or use export_onnx_qcdq, which keeps it float."
    )
    with pytest.raises(ExportError, match=re.escape(message) + "$"):
        export_onnx_integer(model, torch.randn(1, 4, 6, 5))


def test_mirrored_kernels() -> None:
    """A transposed convolution is a convolution of its input with zeros between, by this kernel."""
    x, weight = torch.randint(-9, 9, (1, 4, 5)).double(), torch.randint(-9, 9, (4, 3, 2)).double()
    spread = torch.zeros(1, 4, 10).double()
    spread[:, :, ::2] = x
    found = nn.functional.conv1d(spread, mirrored(weight, 2), padding=1, groups=2)[:, :, :10]
    assert torch.equal(found, nn.functional.conv_transpose1d(x, weight, stride=2, groups=2))


def test_zero_points_of_a_convolution_are_refused() -> None:
    model = calibrated(qnn.QuantConv2d(4, 3, 3, weight_quant=ShiftedUint8WeightPerChannel, **SUMS))
    message = (
        "the integer dialect can't express this model:\n  1 (QuantConv2d): its weight has 3 zero points, and "
        "ConvInteger takes one. Write a weight_quant without zero point, such as Int8WeightPerChannel, or per tensor."
    )
    with pytest.raises(ExportError, match=re.escape(message) + "$"):
        export_onnx_integer(model, torch.randn(1, 4, 6, 5))

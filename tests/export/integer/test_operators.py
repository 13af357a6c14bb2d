"""The integer dialect of ONNX: layers without an integer operator of their own. Exporting raises unless bits agree."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bitwright.nn as qnn
from bitwright.export import ExportError, compare_integers, export_onnx_integer, run_integers
from bitwright.export.integer.operators.transposed import mirrored
from bitwright.export.integer.reference.comparison import ExportedFile
from bitwright.export.onnx import write
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
ZEROS = ShiftedUint8WeightPerChannel
LAYERS = {
    "transposed": lambda: qnn.QuantConvTranspose2d(4, 6, 3, 2, 1, 1, 2, True, 2, **SUMS),
    "transposed, cropped": lambda: qnn.QuantConvTranspose2d(4, 3, 2, (3, 1), 2, bias=False),
    "transposed, per channel": lambda: qnn.QuantConvTranspose2d(4, 3, 3, 2, weight_quant=Int8WeightPerChannel, **OWN),
    "circular": lambda: qnn.QuantConv2d(4, 3, 3, padding=1, padding_mode="circular", **SUMS),
    "reflect": lambda: qnn.QuantConv2d(4, 3, 3, padding=1, padding_mode="reflect", **SUMS),
    "own scale": lambda: qnn.QuantConv2d(4, 3, 3, weight_quant=Int8WeightPerChannel, **OWN),
    "own scale, linear": lambda: qnn.QuantLinear(5, 3, **OWN),
    "zero points": lambda: qnn.QuantLinear(5, 3, weight_quant=ShiftedUint8WeightPerChannel, **SUMS),
    "zero points of a convolution": lambda: qnn.QuantConv2d(4, 3, 3, 1, 1, weight_quant=ZEROS, **SUMS),
    "zero points in groups": lambda: qnn.QuantConv2d(4, 6, 3, groups=2, weight_quant=ZEROS, **SUMS),
    "zero points, transposed": lambda: qnn.QuantConvTranspose2d(4, 3, 3, weight_quant=ZEROS, **SUMS),
    "slopes": lambda: nn.Sequential(qnn.QuantConv2d(4, 4, 3, **SUMS), qnn.QuantPReLU(4)),
    "nearest": lambda: nn.Sequential(nn.Upsample(scale_factor=1.5), qnn.QuantConv2d(4, 3, 3, **SUMS)),
    "leaky": lambda: qnn.QuantLeakyReLU(0.3),
    "leaky, not at all": lambda: qnn.QuantLeakyReLU(0.0),
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


class Between(nn.Module):
    """A function of integers, whose results are quantized again."""

    def __init__(self, function: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.one, self.other, self.out = (qnn.QuantIdentity(scale=0.05, return_quant_tensor=True) for _ in range(3))
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.function(self.one(x), self.other(0.7 * x)))


FUNCTIONS: dict[str, tuple[Callable[..., Any], set[str]]] = {
    "windows that leave out their padding": (
        lambda x, y: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
        {"ConvInteger", "Cast", "Mul"},
    ),
    "windows beyond the end": (lambda x, y: F.avg_pool2d(x, 3, 2, ceil_mode=True), {"ConvInteger", "Cast", "Mul"}),
    "both": (lambda x, y: F.avg_pool2d(x, 3, 2, 1, True, False), {"ConvInteger", "Cast", "Mul"}),
    "padding and beyond": (lambda x, y: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True), {"ConvInteger", "Cast", "Mul"}),
    "the mean of all": (lambda x, y: x.mean(), {"ReduceSum", "Cast", "Mul"}),
    "adaptive windows": (lambda x, y: F.adaptive_avg_pool2d(x, (4, 3)), {"Where", "Add", "Cast", "Mul"}),
    "means of products": (lambda x, y: (x * y).mean((1, 3)), {"ReduceSum", "Cast", "Mul"}),
    "sums of products": (lambda x, y: (x * y).sum(1), {"ReduceSum", "Cast", "Mul"}),
    "running sums": (lambda x, y: x.cumsum(-1), {"CumSum", "Cast", "Mul"}),
    "running sums of products": (lambda x, y: (x * y).cumsum(1), {"CumSum", "Cast", "Mul"}),
    "negative factors": (lambda x, y: -0.3 * x, {"Neg", "Cast", "Mul"}),
    "negative factors of products": (lambda x, y: (x * y) / -3, {"Neg", "Cast", "Mul"}),
    "frames": (lambda x, y: F.pad(x, (1, 1), value=0.25), {"Pad"}),
    "windows over frames": (lambda x, y: F.avg_pool2d(F.pad(x, (1, 2), value=-0.5), 3), {"Pad", "ConvInteger"}),
    "the smallest": (lambda x, y: x.amin(1), {"ReduceMin"}),
    "masked means": (lambda x, y: x.masked_fill(y > 1, 0.0).mean(1), {"Where", "ReduceSum", "Cast", "Mul"}),
    "products": (lambda x, y: x * y, {"Cast", "Mul"}),
    "squares": (lambda x, y: x * x, {"Cast", "Mul"}),
    "parts": (lambda x, y: sum(x.split([1, 3], 1)), {"Slice", "Cast", "Add", "Mul"}),
    "choices": (lambda x, y: torch.where(x > 0.2, x, y), {"Greater", "Where"}),
    "masks": (lambda x, y: x.masked_fill(y > 1, 0.0), {"Greater", "Where"}),
    "thresholds": (lambda x, y: F.threshold(x, 0.2, 0.0), {"Where"}),
    "magnitudes": (lambda x, y: x.abs(), {"Abs"}),
    "the largest": (lambda x, y: x.topk(2, 1)[0], {"TopK"}),
    "triangles": (lambda x, y: x.tril(), {"Trilu"}),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_have_equal_bits(name: str) -> None:
    function, kinds = FUNCTIONS[name]
    model, x = Between(function).eval(), torch.randn(2, 4, 6, 5, generator=torch.Generator().manual_seed(1))
    program = export_onnx_integer(model, x)
    assert kinds <= {node.op_type for node in program.model_proto.graph.node}
    comparison = compare_integers(model, -x, program=program)
    assert comparison.differences == 0
    assert comparison.run.integer_only


def test_slopes_after_negative_factors() -> None:
    """The sign is in the integers, so that what is below zero is what it was."""
    model = Between(lambda x, y: F.leaky_relu(x * -0.5, 0.3)).eval()
    x = torch.randn(2, 4, 6, 5, generator=torch.Generator().manual_seed(1))
    assert compare_integers(model, -x, program=export_onnx_integer(model, x)).differences == 0


def test_sums_of_products_beyond_32_bits() -> None:
    """2^20 products of 127 and 98 are more than 2^33, and a runtime adds them without overflow."""
    model = Between(lambda x, y: (x * y).mean(1)).eval()
    x = torch.full((1, 2**20), 7.0)
    program = export_onnx_integer(model, x / 100)  # on which 32 bits suffice
    comparison = compare_integers(model, x, program=program, accumulator_bits=35)
    assert [comparison.run.codes[f"{name}.act_quant"].unique().tolist() for name in ("one", "other")] == [[127], [98]]
    assert comparison.differences == 0


def test_weights_beyond_one_file_are_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They lie beside the graph, and a number that changed there is found."""
    monkeypatch.setattr(write, "LARGEST_FILE", 4000)
    run, folders = ExportedFile.run, []
    monkeypatch.setattr(ExportedFile, "run", lambda file, *given: folders.append(file.folder) or run(file, *given))
    model, path = calibrated(qnn.QuantLinear(5, 1000, bias=False)), tmp_path / "model.onnx"
    x = torch.randn(2, 4, 6, 5, generator=torch.Generator().manual_seed(1))
    export_onnx_integer(model, x, path)
    assert [folder is not None for folder in folders] == [True, True, True]  # off, on, as it is
    data = tmp_path / "model.onnx.data"
    assert data.stat().st_size >= 5000
    assert compare_integers(model, -x, program=path).differences == 0
    stored = bytearray(data.read_bytes())
    stored[:5000] = bytes(5000)
    data.write_bytes(stored)
    assert compare_integers(model, -x, program=path).differences > 0


def test_windows_are_those_of_torch() -> None:
    """Sizes where the last window would begin in the padding, and strides beyond the kernel."""
    settings = [(*each, True, included) for each in ((3, 2, 1), (2, 3, 1), (3, 3, 0)) for included in (False, True)]
    model = Between(lambda x, y: torch.cat([F.avg_pool2d(x, *each).flatten() for each in settings])).eval()
    for size in range(3, 9):
        x = torch.randn(1, 2, size, 9, generator=torch.Generator().manual_seed(size))
        program = export_onnx_integer(model, x)  # raises unless bits agree
        kinds = [node.op_type for node in program.model_proto.graph.node]
        assert (kinds.count("ConvInteger"), kinds.count("AveragePool")) == (6, 0)


@pytest.mark.parametrize("value", [0.26, 6.4, float("-inf")])
def test_frames_off_the_grid_are_refused(value: float) -> None:
    """Between two integers, beyond the largest, and none at all."""
    model = Between(lambda x, y: F.pad(x, (1, 1), value=value)).eval()
    message = (
        "the integer dialect can't express this model:\n  the model (Between): constant_pad_nd. There is no integer "
        "arithmetic for it: replace it, or use export_onnx_qcdq, which keeps it float."
    )
    with pytest.raises(ExportError, match=re.escape(message) + "$"):
        export_onnx_integer(model, torch.randn(1, 4, 6, 5))


def test_windows_of_open_batches() -> None:
    model = Between(lambda x, y: F.avg_pool2d(x, 3, 2, 1, True, False)).eval()
    x = torch.randn(2, 4, 6, 5, generator=torch.Generator().manual_seed(1))
    program = export_onnx_integer(model, x, dynamic_shapes=({0: torch.export.Dim("batch")},))
    assert "AveragePool" not in {node.op_type for node in program.model_proto.graph.node}
    assert compare_integers(model, torch.cat([x, -x]), program=program).differences == 0


def test_weighted_upsampling_is_refused() -> None:
    model = Between(lambda x, y: F.interpolate(x, scale_factor=2.0, mode="bilinear")).eval()
    message = (
        "the integer dialect can't express this model:\n  the model (Between): Resize. There is no integer arithmetic "
        "for it: replace it, or use export_onnx_qcdq, which keeps it float."
    )
    with pytest.raises(ExportError, match=re.escape(message) + "$"):
        export_onnx_integer(model, torch.randn(1, 4, 6, 5))

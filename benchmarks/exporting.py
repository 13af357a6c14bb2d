"""ONNX files: how large they are, how fast onnxruntime runs them, and how long it takes to make them."""

import contextlib
import importlib
import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bitwright.graph import calibrate, quantize

from .converting import SETTINGS
from .layers import Layers, Scheme
from .models import LENET, Encoder, MobileNetV2
from .networks import evaluated
from .timing import Timed
from .workload import Sampler, Workload

__all__ = ["EXPORTING"]


def export_float(model: nn.Module, inputs: torch.Tensor, path: Path) -> None:
    """By torch's exporter."""
    torch.onnx.export(model, (inputs,), path, dynamo=True, external_data=False, verbose=False)


def export_bitwright_qdq(model: nn.Module, inputs: torch.Tensor, path: Path) -> None:
    """In the narrowest integer types that ONNX has."""
    importlib.import_module("bitwright.export").export_onnx_qdq(model, inputs, path)


def export_bitwright_qcdq(model: nn.Module, inputs: torch.Tensor, path: Path) -> None:
    """In 8-bit integer types, for which onnxruntime has its fastest operators."""
    importlib.import_module("bitwright.export").export_onnx_qcdq(model, inputs, path)


def export_brevitas(model: nn.Module, inputs: torch.Tensor, path: Path) -> None:
    """By the older of its two exporters: the newer one writes float weights and can't write quantized biases."""
    export = importlib.import_module("brevitas.export").export_onnx_qcdq
    export(model, args=inputs, export_path=str(path), dynamo=False)


Made = tuple[nn.Module, torch.Tensor]
NARROW = {"float": export_float, "bitwright": export_bitwright_qdq, "Brevitas": export_brevitas}
FAST = {"float": export_float, "bitwright": export_bitwright_qcdq, "Brevitas": export_brevitas}
Exporters = dict[str, Callable[[nn.Module, torch.Tensor, Path], None]]


def exported(exporters: Exporters, scheme: Scheme, library: str, folder: Path) -> Path:
    """LeNet-5 in evaluation, exported into an empty folder."""
    path = folder / "model.onnx"
    model, inputs = evaluated(LENET, scheme, library), LENET.batch()[0]
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):  # exporters report their progress
        exporters[library](model, inputs, path)
    return path


def size(exporters: Exporters, scheme: Scheme, library: str) -> Callable[[], float]:
    """Counts the bytes of all files that an export writes."""

    def counted() -> float:
        with tempfile.TemporaryDirectory() as folder:
            exported(exporters, scheme, library, Path(folder))
            return sum(file.stat().st_size for file in Path(folder).iterdir())

    return counted


def latency(exporters: Exporters, scheme: Scheme, library: str) -> Callable[[], float]:
    """Times onnxruntime, with its default optimisations and one thread."""
    onnxruntime: Any = importlib.import_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3  # it warns of initializers that Brevitas lists as inputs
    with tempfile.TemporaryDirectory() as folder:
        path = exported(exporters, scheme, library, Path(folder))
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    inputs = {session.get_inputs()[0].name: LENET.batch()[0].numpy()}
    return Timed(partial(session.run, None, inputs))


def mobilenet() -> Made:
    """MobileNetV2 with random weights, and a photo."""
    torch.manual_seed(0)
    model = MobileNetV2(Layers(Scheme()))
    for each in model.modules():
        if isinstance(each, nn.Conv2d):
            nn.init.kaiming_normal_(each.weight, nonlinearity="relu")
    return model, torch.randn(1, 3, 224, 224)


def minilm() -> Made:
    """An encoder of MiniLM's size, and two sentences of 32 tokens."""
    torch.manual_seed(0)
    encoder = Encoder(Layers(Scheme()), depth=6, width=384)
    return nn.Sequential(nn.Embedding(30522, 384), encoder), torch.randint(30522, (2, 32))


def making(network: Callable[[], Made], library: str) -> Sampler:
    """Times an export: of the float model by torch, or of the W8A8 model by ours, which verifies the file, too."""
    model, inputs = network()
    model.eval()
    if library == "bitwright":
        rules = {kind: SETTINGS for kind in (nn.Conv2d, nn.Linear) if any(isinstance(e, kind) for e in model.modules())}
        model = quantize(model, rules, examples=(inputs,))
        with calibrate(model):
            model(inputs)
        model.eval()

    def export() -> None:
        with (
            tempfile.TemporaryDirectory() as folder,
            open(os.devnull, "w") as nowhere,
            contextlib.redirect_stdout(nowhere),
        ):
            NARROW[library](model, inputs, Path(folder) / "model.onnx")

    return Timed(export)


LIBRARIES = ("bitwright", "Brevitas")
W4A4B32, W8A8B32 = Scheme(4, 4, int_bias=True), Scheme(8, 8, int_bias=True)

EXPORTING = {
    "onnx-size": Workload("ONNX file of LeNet-5, W4", LIBRARIES, partial(size, NARROW, Scheme(4)), repeats=False),
    "onnx-size-w4a4b32": Workload(
        "ONNX file of LeNet-5, W4A4 + Int32Bias", LIBRARIES, partial(size, NARROW, W4A4B32), repeats=False
    ),
    "onnxruntime-w4": Workload("onnxruntime, LeNet-5 batch 64, W4", LIBRARIES, partial(latency, FAST, Scheme(4))),
    "onnxruntime-w4a4b32": Workload(
        "onnxruntime, LeNet-5 batch 64, W4A4 + Int32Bias", LIBRARIES, partial(latency, FAST, W4A4B32)
    ),
    "onnxruntime-w8a8b32": Workload(
        "onnxruntime, LeNet-5 batch 64, W8A8 + Int32Bias", LIBRARIES, partial(latency, FAST, W8A8B32)
    ),
    "export-mobilenet": Workload(
        "export and verify MobileNetV2, W8A8 / torch's export", ("bitwright",), partial(making, mobilenet)
    ),
    "export-minilm": Workload(
        "export and verify an encoder of MiniLM's size, W8A8 / torch's export", ("bitwright",), partial(making, minilm)
    ),
}

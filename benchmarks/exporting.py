"""ONNX files: how large they are, and how fast onnxruntime runs them."""

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

from .layers import Scheme
from .models import LENET
from .networks import evaluated
from .timing import Timed
from .workload import Workload

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
}

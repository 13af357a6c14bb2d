"""How long the exported files of a W8A8 network take in onnxruntime, beside the float network.

``python -m benchmarks.runtime`` builds a VGG of eight convolutions with BatchNorm and exports it in float and
quantized: as it is, with float biases, and with BatchNorm folded into the convolutions and `Int32Bias`, which is what
onnxruntime's integer kernels need; each of them also with ``fast=True``, and as integer operators. A stack of linear
layers is exported with weights of 8 and 4 bits alone. All files of a network are timed in turn, on one thread, and
compared with their models: what ``fast=True`` waives is counted as differences, too.
"""

import argparse
import copy
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

import bitwright.nn as qnn
from bitwright.export import (
    VerificationReport,
    export_onnx_integer,
    export_onnx_qcdq,
    export_onnx_qdq,
    verify_onnx,
)
from bitwright.qcore import BitwrightWarning
from bitwright.quantizers import Int4WeightPerGroup, Int8WeightPerChannel, Int32Bias

__all__ = ["Vgg", "fold_batch_norm", "main"]

CHANNELS = (32, 32, 64, 64, 128, 128, 256, 256)
CALIBRATION = 5  # batches


class Vgg(nn.Module):
    """Convolutions of 3x3, each with BatchNorm and ReLU; after every other one a max pooling; a linear layer.

    Args:
        quantized: whether weights and activations have 8 bits.
        folded: whether BatchNorm is left out and the convolutions have biases in its place. Where they are quantized,
            these are `Int32Bias`, and so is the linear layer's.
    """

    def __init__(self, quantized: bool, folded: bool) -> None:
        super().__init__()
        bias_quant = Int32Bias if folded else None

        def conv(in_channels: int, out_channels: int) -> nn.Module:
            if not quantized:
                return nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=folded)
            return qnn.QuantConv2d(in_channels, out_channels, 3, padding=1, bias=folded, bias_quant=bias_quant)

        def quantizing(layer: type[nn.Module]) -> nn.Module:
            return layer(calibration_steps=CALIBRATION, return_quant_tensor=folded)

        self.entry = quantizing(qnn.QuantIdentity) if quantized else nn.Identity()
        self.convs, self.norms, self.relus = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for in_channels, out_channels in zip((3, *CHANNELS), CHANNELS, strict=False):
            self.convs.append(conv(in_channels, out_channels))
            self.norms.append(nn.Identity() if folded else nn.BatchNorm2d(out_channels))
            self.relus.append(quantizing(qnn.QuantReLU) if quantized else nn.ReLU())
        self.pool = nn.MaxPool2d(2)
        features = CHANNELS[-1] * 4 * 4
        self.head = qnn.QuantLinear(features, 10, bias_quant=bias_quant) if quantized else nn.Linear(features, 10)

    def forward(
        self,
        images: Tensor,  # (N, 3, 64, 64)
    ) -> Tensor:
        """The logits, (N, 10)."""
        x = self.entry(images)
        for place, (conv, norm, relu) in enumerate(zip(self.convs, self.norms, self.relus, strict=True)):
            x = relu(norm(conv(x)))
            if place % 2:
                x = self.pool(x)
        return self.head(x.flatten(1))


def fold_batch_norm(model: Vgg) -> dict[str, Tensor]:
    """The state dict of the same network without BatchNorm, whose arithmetic moves into weights and biases."""
    state = {name: each for name, each in model.state_dict().items() if not name.startswith("norms")}
    for place, norm in enumerate(model.norms):
        assert isinstance(norm, nn.BatchNorm2d)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        factor = norm.weight / (norm.running_var + norm.eps).sqrt()
        state[f"convs.{place}.weight"] = state[f"convs.{place}.weight"] * factor[:, None, None, None]
        state[f"convs.{place}.bias"] = norm.bias - norm.running_mean * factor
    return state


@dataclass(frozen=True)
class File:
    """An exported model.

    Attributes:
        title: what it is.
        path: of the ONNX file.
        report: what the comparison with the model found.
        apart: the largest distance of a logit from the model's, as a share of their range, over the whole network.
    """

    title: str
    path: Path
    report: VerificationReport
    apart: float

    @classmethod
    def of(
        cls, title: str, export: Callable[..., object], model: nn.Module, images: Tensor, path: Path, **options: Any
    ) -> "File":
        """Export a model in evaluation for batches of one, and compare the file with it, image by image."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", BitwrightWarning)  # of what is waived: it is in the table
            export(model, images[:1], path, input_names=["images"], **options)
        session, report = _session(path), VerificationReport()
        with torch.no_grad():
            expected = torch.cat([model(image) for image in images.split(1)])
        found = torch.cat([torch.from_numpy(_run(session, image)) for image in images.split(1)])
        for image in images.split(1) if export is not export_onnx_integer else ():  # which compares bits itself
            report.add(verify_onnx(model, path, image).rows)
        return cls(title, path, report, ((found - expected).abs().max() / (expected.max() - expected.min())).item())


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table.

    Args:
        arguments: of the command line.

    Returns:
        The exit status: 1 if a file differs from its model.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.runtime", description="Time exported files.")
    parser.add_argument("--rounds", type=int, default=200, help="in each, every file runs once (default: 200)")
    parser.add_argument("--images", type=int, default=16, help="that files are compared on (default: 16)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    images = torch.randn(options.images, 3, 64, 64)
    with tempfile.TemporaryDirectory() as folder:
        networks = [(_files(images, Path(folder)), images), _weights_alone(options.images, Path(folder))]
        timed = [(files, _latencies(files, inputs[:1], options.rounds)) for files, inputs in networks]
    print(f"{'':40} {'ms':>6} {'ratio':>6} {'differences':>12} {'tie flips':>10} {'per million':>12} {'outputs':>9}")
    for files, taken in timed:
        for file, seconds in zip(files, taken, strict=True):
            codes = sum(row.compared for row in file.report.rows if row.kind == "activation")
            rare = f"{1e6 * file.report.tie_flips / codes:.1f}" if codes else ""
            print(
                f"{file.title:40} {1e3 * seconds:6.2f} {seconds / taken[0]:6.2f} {file.report.differences:12} "
                f"{file.report.tie_flips:10} {rare:>12} {file.apart:9.1e}"
            )
    print("outputs: how far they are from torch's at most, as a share of their range, over the whole network")
    exact = (file for files, _ in timed for file in files if "fast" not in file.title)
    return int(any(file.report.differences for file in exact))


def _files(images: Tensor, folder: Path) -> list[File]:
    """The float file first."""
    norms = Vgg(quantized=False, folded=False)
    with torch.no_grad():
        for _ in range(20):  # so that BatchNorm has statistics to fold
            norms(torch.randn(4, 3, 64, 64))
    state, folded = copy.deepcopy(norms.state_dict()), fold_batch_norm(norms)
    files = [File.of("float", export_onnx_qdq, norms.eval(), images, folder / "float.onnx")]
    for title, is_folded in (
        ("W8A8, BatchNorm kept, float biases", False),
        ("W8A8, BatchNorm folded, Int32Bias", True),
    ):
        model = Vgg(quantized=True, folded=is_folded)
        model.load_state_dict(folded if is_folded else state)
        with torch.no_grad():
            for _ in range(CALIBRATION):
                model(torch.randn(4, 3, 64, 64))
        for dialect, export in (("QCDQ", export_onnx_qcdq), ("QDQ", export_onnx_qdq)):
            path = folder / f"{dialect}{is_folded}.onnx"
            files.append(File.of(f"{title}, {dialect}", export, model.eval(), images, path))
        path = folder / f"fast{is_folded}.onnx"
        files.append(File.of(f"{title}, fast", export_onnx_qdq, model, images, path, fast=True))
        if is_folded:
            path = folder / "integer.onnx"
            files.append(File.of("W8A8, integer operators", export_onnx_integer, model, images, path))
    return files


def _weights_alone(count: int, folder: Path) -> tuple[list[File], Tensor]:
    """Three linear layers of 1024 with weights of 8 and 4 bits, and their inputs; the float file first."""
    inputs, floats = torch.randn(count, 1024), nn.Sequential(*(nn.Linear(1024, 1024) for _ in range(3))).eval()
    files = [File.of("3 linear layers, float", export_onnx_qdq, floats, inputs, folder / "linear.onnx")]
    for title, quantizer in (("W8", Int8WeightPerChannel), ("W4, groups of 32", Int4WeightPerGroup)):
        model = nn.Sequential(*(qnn.QuantLinear(1024, 1024, weight_quant=quantizer) for _ in range(3))).eval()
        model.load_state_dict(floats.state_dict())
        for name, options in _WAYS.items():
            path = folder / f"{title}{name}.onnx".replace(" ", "")
            files.append(File.of(f"{title}{name}", export_onnx_qdq, model, inputs, path, **options))
    return files, inputs


_WAYS: dict[str, dict[str, Any]] = {
    "": {},
    ", fast": {"fast": True},
    ", fast, level 1": {"fast": True, "accuracy_level": 1},
}


def _latencies(files: list[File], image: Tensor, rounds: int) -> list[float]:
    """Median seconds of each file. They take turns, so that load affects all of them alike."""
    sessions = [_session(file.path) for file in files]
    times: list[list[float]] = [[] for _ in files]
    for _ in range(rounds):
        for session, taken in zip(sessions, times, strict=True):
            begun = time.perf_counter()
            _run(session, image)
            taken.append(time.perf_counter() - begun)
    return [statistics.median(taken) for taken in times]


def _session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options)


def _run(session: onnxruntime.InferenceSession, image: Tensor) -> np.ndarray:
    (logits,) = session.run(None, {"images": image.numpy()})
    return np.asarray(logits)


if __name__ == "__main__":
    sys.exit(main())

"""LeNet-5 with weights in one number format after another, each trained from the same float weights.

Run it with ``python examples/lenet_formats.py``. ``--library brevitas``, in an environment that has Brevitas, trains
the same networks with its layers and quantizers, where it has the format. The table has the accuracy on the test
digits, its mean and range over ``--seeds``, and the size of the ONNX file, which the export has compared with the model
on some of them.
"""

import argparse
import importlib
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from digits import Digits, load_digits
from lenet_models import FloatLeNet, LeNet
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import nn
from training import BATCH, accuracy, train

import bitwright.nn as qnn
from bitwright.export import export_onnx_qdq
from bitwright.quantizers import (
    BinaryConnectWeight,
    BinaryWeightPerChannel,
    Fp8e4m3Act,
    Fp8e4m3WeightPerTensor,
    Int2WeightPerTensor,
    Int4WeightPerGroup,
    MXFloat4e2m1Weight,
    TernaryWeightPerChannel,
)

__all__ = ["FormatLeNet", "main"]

FLOAT_RATE, QUANTIZED_RATE = 5e-3, 2e-3
FORMATS: dict[str, Mapping[str, Any]] = {  # what layers are told of weights, and activations if they aren't uint8
    "FP8 e4m3": {"weight_quant": Fp8e4m3WeightPerTensor, "act_quant": Fp8e4m3Act},
    "MXFP4 e2m1": {"weight_quant": MXFloat4e2m1Weight},
    "int4, groups of 32": {"weight_quant": Int4WeightPerGroup},
    "ternary": {"weight_quant": TernaryWeightPerChannel},
    "ternary, scale 0.1": {"weight_quant": Int2WeightPerTensor(scale=0.1)},
    "binary": {"weight_quant": BinaryWeightPerChannel},
    "binary, scale 0.1": {"weight_quant": BinaryConnectWeight(scale=0.1)},
}


@dataclass
class Row:
    """What networks in one format reached, one for each seed, and the bytes of the last one's file."""

    reached: list[float] = field(default_factory=list)
    size: int = 0


class FormatLeNet(LeNet):
    """LeNet of the quantized layers of a library.

    Args:
        layers: the module that has them.
        weights: what convolutions and linear layers are told.
        acts: what activations are told.
    """

    def __init__(self, layers: Any, weights: Mapping[str, Any], acts: Mapping[str, Any]) -> None:
        super().__init__()
        self.quant_inp = layers.QuantIdentity(**acts)
        self.conv1 = layers.QuantConv2d(1, 6, 5, **weights)
        self.relu1 = layers.QuantReLU(**acts)
        self.conv2 = layers.QuantConv2d(6, 16, 5, **weights)
        self.relu2 = layers.QuantReLU(**acts)
        self.fc1 = layers.QuantLinear(16 * 5 * 5, 120, bias=True, **weights)
        self.relu3 = layers.QuantReLU(**acts)
        self.fc2 = layers.QuantLinear(120, 84, bias=True, **weights)
        self.relu4 = layers.QuantReLU(**acts)
        self.fc3 = layers.QuantLinear(84, 10, bias=True, **weights)


@dataclass(frozen=True)
class Library:
    """What networks are made of.

    Attributes:
        layers: the module that has the layers.
        formats: what they are told, for each row of the table.
        steps: what activations call the steps of their calibration.
    """

    layers: Any
    formats: Mapping[str, Mapping[str, Any]]
    steps: str

    def model(self, name: str, start: FloatLeNet, steps: int) -> LeNet:
        """A network in a format, with the float weights."""
        told = self.formats[name]
        weights = {key: each for key, each in told.items() if not key.startswith("act_")}
        acts = {key: each for key, each in told.items() if key.startswith("act_")} or {"bit_width": 8}
        model = FormatLeNet(self.layers, weights, {**acts, self.steps: steps})
        model.load_state_dict(start.state_dict(), strict=self.layers is qnn)  # Brevitas misses its own state
        return model


def main(arguments: Sequence[str] | None = None) -> int:
    """Train and print the table.

    Args:
        arguments: of the command line.

    Returns:
        The exit status, 0.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    library = _library(options.library)
    names = options.formats or list(library.formats)
    if unknown := [name for name in names if name not in library.formats]:
        parser.error(f"{options.library} has no {unknown[0]!r} here, but {', '.join(map(repr, library.formats))}")
    console = Console()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    rows = {name: Row() for name in ("float", *names)}
    tested = 0
    for seed in range(options.seeds):
        digits = load_digits(seed)
        digits = digits.first(640, 200) if options.fast else digits
        tested = len(digits.test_images)
        with Progress(*columns, TextColumn("{task.fields[note]}"), console=console) as progress:
            _run(seed, options.epochs or (1 if options.fast else 10), digits, library, rows, progress)
    console.print(_table(rows, tested, options.library))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="LeNet-5 with weights in one number format after another.")
    parser.add_argument("--library", choices=("bitwright", "brevitas"), default="bitwright", help="of the layers")
    parser.add_argument("--formats", nargs="+", help="rows of the table (default: all)")
    parser.add_argument("--epochs", type=int, help="of each training (default: 10, or 1 with --fast)")
    parser.add_argument("--seeds", type=int, default=3, help="how many, counted up from 0 (default: 3)")
    parser.add_argument("--fast", action="store_true", help="few digits, to see that everything runs")
    return parser


def _library(name: str) -> Library:
    if name == "bitwright":
        return Library(qnn, FORMATS, "calibration_steps")
    other = importlib.import_module("lenet_formats_brevitas")  # Brevitas has an environment of its own
    return Library(other.layers, other.FORMATS, "act_collect_stats_steps")


def _run(seed: int, epochs: int, digits: Digits, library: Library, rows: Mapping[str, Row], progress: Progress) -> None:
    """Every network of one seed."""
    torch.manual_seed(seed)
    start = FloatLeNet()
    calibration = -(-len(digits.train_images) // BATCH)  # the first epoch
    for name, row in rows.items():
        model = start if name == "float" else library.model(name, start, calibration)
        rate = FLOAT_RATE if name == "float" else QUANTIZED_RATE
        train(model, digits, name=name, epochs=epochs, learning_rate=rate, seed=seed, progress=progress)
        row.reached.append(accuracy(model, digits.test_images, digits.test_labels))
        if name != "float" and library.layers is qnn:
            row.size = _size(model, digits)


def _size(model: nn.Module, digits: Digits) -> int:
    """Of its file, in bytes; the export raises if it differs from the model."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lenet.onnx"
        export_onnx_qdq(model, digits.test_images[:100], export_path=str(path))
        return path.stat().st_size


def _table(rows: Mapping[str, Row], tested: int, library: str) -> Table:
    seeds = len(rows["float"].reached)
    title = f"LeNet-5 by {library}: {tested} test digits, {seeds} seed{'' if seeds == 1 else 's'}"
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("weights", no_wrap=True)
    for header in ("mean", "lowest", "highest", "kB"):
        table.add_column(header, justify="right", no_wrap=True)
    for name, row in rows.items():
        shares = (statistics.mean(row.reached), min(row.reached), max(row.reached))
        table.add_row(name, *(f"{share:.1%}" for share in shares), f"{row.size / 1000:.1f}" if row.size else "")
    return table


if __name__ == "__main__":
    raise SystemExit(main())

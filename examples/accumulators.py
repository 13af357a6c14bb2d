"""LeNet-5 with 4-bit weights and activations, trained for narrow accumulators with A2Q and A2Q+.

Run it with ``python examples/accumulators.py --bits 12 --seeds 3``. Every model starts from the same float weights; a
row of the table has its accuracy before and after training, the accumulators that it needs for any input
(`accumulator_report`), and what the test digits needed; `run_integers` runs them in accumulators of ``--bits`` bits.
"""

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from digits import Digits, load_digits
from lenet_models import FloatLeNet, LeNet
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import Tensor, nn
from training import accuracy, train

import bitwright.nn as qnn
from bitwright.export import ExportError, accumulator_report, run_integers
from bitwright.nn import accumulator_penalty, finish_calibration
from bitwright.qcore import QuantizerType
from bitwright.quantizers import (
    Int8WeightPerChannelA2Q,
    Int8WeightPerChannelA2QPlus,
    Int8WeightPerChannelLearned,
    Int32Bias,
)

__all__ = ["NarrowLeNet", "main"]

FLOAT_RATE, QUANTIZED_RATE, PENALTY = 5e-3, 2e-3, 1e-3


class NarrowLeNet(LeNet):
    """Weights and activations at 4 bits, biases at the scale of the products; any quantizer for the weights."""

    def __init__(self, weight_quant: QuantizerType, in_channels: int = 1) -> None:
        super().__init__()
        given = {"weight_quant": weight_quant(bit_width=4), "bias_quant": Int32Bias}
        self.quant_inp = qnn.QuantIdentity(bit_width=4, return_quant_tensor=True)
        self.conv1 = qnn.QuantConv2d(in_channels, 6, 5, **given)
        self.relu1 = qnn.QuantReLU(bit_width=4, return_quant_tensor=True)
        self.conv2 = qnn.QuantConv2d(6, 16, 5, **given)
        self.relu2 = qnn.QuantReLU(bit_width=4, return_quant_tensor=True)
        self.fc1 = qnn.QuantLinear(16 * 5 * 5, 120, **given)
        self.relu3 = qnn.QuantReLU(bit_width=4, return_quant_tensor=True)
        self.fc2 = qnn.QuantLinear(120, 84, **given)
        self.relu4 = qnn.QuantReLU(bit_width=4, return_quant_tensor=True)
        self.fc3 = qnn.QuantLinear(84, 10, **given)


@dataclass
class Row:
    """What one kind of weights reached, for each seed."""

    name: str
    start: list[float] = field(default_factory=list)
    trained: list[float] = field(default_factory=list)
    worst: list[int] = field(default_factory=list)
    needed: list[int] = field(default_factory=list)
    overflows: int = 0
    zeros: list[float] = field(default_factory=list)

    def add(self, model: LeNet, start: float, digits: Digits, bits: int) -> None:
        """One more seed."""
        self.start.append(start)
        self.trained.append(accuracy(model, digits.test_images, digits.test_labels))
        report = accumulator_report(model, digits.test_images)
        self.worst.append(report.bits)
        self.needed.append(max(row.actual_bits or 0 for row in report.rows))
        layers: list[qnn.WeightLayer] = [each for each in model.modules() if isinstance(each, qnn.WeightLayer)]
        codes = torch.cat([each.int_weight().reshape(-1) for each in layers])
        self.zeros.append((codes == 0).float().mean().item())
        try:
            run_integers(model, digits.test_images, accumulator_bits=bits)
        except ExportError:
            self.overflows += 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, certify and print the table.

    Args:
        arguments: of the command line.

    Returns:
        The exit status: 1 if a model that was trained for the accumulators overflows them.
    """
    options = _parser().parse_args(arguments)
    torch.set_num_threads(1)
    bits = options.bits
    kinds = {
        "unconstrained": Int8WeightPerChannelLearned,
        f"A2Q, {bits} bits": Int8WeightPerChannelA2Q(accumulator_bit_width=bits),
        f"A2Q+, {bits} bits": Int8WeightPerChannelA2QPlus(accumulator_bit_width=bits),
        f"A2Q+ centred, {bits} bits": Int8WeightPerChannelA2QPlus(accumulator_bit_width=bits, centred=True),
    }
    rows = {name: Row(name) for name in ("float", *kinds)}
    console = Console(width=110)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    tested = 0
    for seed in range(options.seeds):
        digits = load_digits(seed)
        digits = digits.first(640, 200) if options.fast else digits
        tested = len(digits.test_images)
        with Progress(*columns, TextColumn("{task.fields[note]}"), console=console) as progress:
            _run(seed, options.epochs or (1 if options.fast else 20), digits, kinds, rows, bits, progress)
    console.print(_table(list(rows.values()), tested, bits))
    constrained = [row for name, row in rows.items() if name not in ("float", "unconstrained")]
    return int(any(row.overflows or max(row.worst) > bits for row in constrained))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="LeNet-5 at 4 bits, trained for narrow accumulators.")
    parser.add_argument("--bits", type=int, default=12, help="of the accumulators (default: 12)")
    parser.add_argument("--epochs", type=int, help="of each training (default: 20, or 1 with --fast)")
    parser.add_argument("--seeds", type=int, default=3, help="how many, counted up from 0 (default: 3)")
    parser.add_argument("--fast", action="store_true", help="few digits, to see that everything runs")
    return parser


def _run(
    seed: int,
    epochs: int,
    digits: Digits,
    kinds: dict[str, QuantizerType],
    rows: dict[str, Row],
    bits: int,
    progress: Progress,
) -> None:
    """Every model of one seed."""
    torch.manual_seed(seed)
    start = train(
        FloatLeNet(), digits, name="float", epochs=epochs, learning_rate=FLOAT_RATE, seed=seed, progress=progress
    )
    rows["float"].trained.append(accuracy(start, digits.test_images, digits.test_labels))
    for name, kind in kinds.items():
        model = NarrowLeNet(kind)
        model.load_state_dict(start.state_dict())
        before = _untrained(model, digits)
        train(
            model,
            digits,
            name=name,
            epochs=epochs,
            learning_rate=QUANTIZED_RATE,
            seed=seed,
            progress=progress,
            penalty=_penalty,
        )
        finish_calibration(model)
        rows[name].add(model, before, digits, bits)


def _untrained(model: nn.Module, digits: Digits) -> float:
    """The accuracy before training, with activations calibrated on a few batches."""
    state = {key: each.clone() for key, each in model.state_dict().items()}
    with torch.no_grad(), qnn.calibrating(model):
        for batch in digits.train_images[:640].split(64):
            model(batch)
    reached = accuracy(model.eval(), digits.test_images, digits.test_labels)
    model.load_state_dict(state)
    return reached


def _penalty(model: nn.Module) -> Tensor:
    return PENALTY * accumulator_penalty(model)


def _table(rows: list[Row], tested: int, bits: int) -> Table:
    title = f"LeNet-5 on {tested} test digits, 4-bit weights and activations"
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("weights", no_wrap=True)
    for header in ("start", "trained", "any input\nneeds", "digits\nneeded", f"{bits} bits\noverflow", "zeros"):
        table.add_column(header, justify="right", no_wrap=True)
    for row in rows:
        worst, needed = (f"{max(each)} bits" if each else "" for each in (row.worst, row.needed))
        overflows = f"{row.overflows} of {len(row.worst)}" if row.worst else ""
        table.add_row(row.name, _mean(row.start), _mean(row.trained), worst, needed, overflows, _mean(row.zeros))
    return table


def _mean(numbers: list[float]) -> str:
    """Mean and standard deviation, in percent."""
    if not numbers:
        return ""
    spread = f" ± {100 * statistics.stdev(numbers):.1f}" if len(numbers) > 1 else ""
    return f"{statistics.mean(numbers):.1%}{spread}"


if __name__ == "__main__":
    raise SystemExit(main())

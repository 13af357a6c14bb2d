"""LeNet-5 on real digits: trained in float, quantized three ways, exported, and compared with onnxruntime.

Run it with ``make demo``, or ``python examples/lenet.py --help``. It takes a few minutes and writes to ``out/``: the
float checkpoint, an ONNX file of each model in each dialect, the table, and a figure. With ``--seeds 5`` it repeats
everything with five seeds and reports mean and standard deviation.
"""

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from digits import Digits, load_digits
from lenet_figure import Bar, draw, draw_sizes
from lenet_files import File, latencies
from lenet_models import FloatLeNet, LeNet, WeightActBiasLeNet, WeightActLeNet, WeightLeNet
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from training import accuracy, train

__all__ = ["main"]

QUANTIZED = (WeightLeNet, WeightActLeNet, WeightActBiasLeNet)
FLOAT_RATE, QUANTIZED_RATE = 5e-3, 2e-3


@dataclass(frozen=True)
class Run:
    """Everything made with one seed.

    Attributes:
        digits: the split of this seed.
        models: the float model first.
        accuracies: of each model, on the test digits.
        files: of each model.
    """

    digits: Digits
    models: list[LeNet]
    accuracies: list[float]
    files: list[list[File]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo.

    Args:
        arguments: of the command line.

    Returns:
        The exit status: 1 if a file differs from its model.
    """
    options = _parser().parse_args(arguments)
    torch.set_num_threads(1)  # reproducible sums; so small a network gains nothing from more
    epochs = options.epochs or (1 if options.fast else 20)
    console = Console()
    runs: list[Run] = []
    for seed in range(options.seed, options.seed + options.seeds):
        folder = options.out if options.seeds == 1 else options.out / f"seed{seed}"
        runs.append(_run(seed, epochs, options.fast, folder, console))
    table = _table(runs)
    console.print(table)
    with open(options.out / "lenet.txt", "w", encoding="utf-8") as text:
        Console(file=text, width=100).print(table)
    first = runs[0]
    draw(first.models[-1], first.digits.test_images, options.out / "lenet.png")
    draw_sizes(first.models[-1], _bars(runs), options.out / "lenet_sizes.png")
    console.print(f"Checkpoint, ONNX files, table and figures (lenet.png, lenet_sizes.png) are in {options.out}.")
    return int(any(sum(file.differences) for run in runs for each in run.files for file in each))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="LeNet-5 on real digits: trained, quantized three ways, exported.")
    parser.add_argument("--epochs", type=_count, help="of each training (default: 20, or 1 with --fast)")
    parser.add_argument("--seed", type=int, default=0, help="of the split, the weights and the order (default: 0)")
    parser.add_argument("--seeds", type=_count, default=1, help="how many, counted up from --seed (default: 1)")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder to write to (default: out)")
    parser.add_argument("--fast", action="store_true", help="few digits, to see that everything runs")
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number, 1 or more")
    return int(text)


def _run(seed: int, epochs: int, fast: bool, folder: Path, console: Console) -> Run:
    """Train, export and compare, with one seed."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    digits = load_digits(seed)
    if fast:
        digits = digits.first(640, 200)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("{task.fields[note]}"), console=console) as progress:
        models = _trained(digits, epochs, seed, folder / "FloatLeNet.pt", progress)
        files = _exported(models, digits, folder, progress)
    accuracies = [accuracy(model, digits.test_images, digits.test_labels) for model in models]
    return Run(digits, models, accuracies, files)


def _trained(digits: Digits, epochs: int, seed: int, checkpoint: Path, progress: Progress) -> list[LeNet]:
    """The float model, and the quantized ones, which start from its checkpoint."""

    def trained(model: LeNet, rate: float) -> LeNet:
        name = type(model).__name__
        return train(model, digits, name=name, epochs=epochs, learning_rate=rate, seed=seed, progress=progress)

    start = trained(FloatLeNet(), FLOAT_RATE)
    torch.save(start.state_dict(), checkpoint)
    models = [start]
    for quantized in QUANTIZED:
        model = quantized()
        model.load_state_dict(torch.load(checkpoint))
        models.append(trained(model, QUANTIZED_RATE))
    return models


def _exported(models: list[LeNet], digits: Digits, folder: Path, progress: Progress) -> list[list[File]]:
    """The files of each model, compared with it on all digits."""
    images = torch.cat([digits.train_images, digits.test_images])
    dialects = [("qcdq", "qdq") if isinstance(model, QUANTIZED) else ("float",) for model in models]
    bar = progress.add_task("export, compare", total=sum(map(len, dialects)), note="")
    files: list[list[File]] = []
    for model, each in zip(models, dialects, strict=True):
        files.append([])
        for dialect in each:
            files[-1].append(File.of(model, dialect, images, folder))
            progress.update(bar, advance=1, note=f"on {len(images)} digits")
    return files


def _table(runs: list[Run]) -> Table:
    """One row per file: means over the seeds; differences and tie flips are summed."""
    digits = runs[0].digits
    seeds = f", {len(runs)} seeds" if len(runs) > 1 else ""
    table = Table(
        title=f"LeNet-5 on {len(digits.test_images)} test digits{seeds}; files compared with torch on "
        f"{len(digits.train_images) + len(digits.test_images)}",
        caption="off / on: the runtime's optimizations; latency: one digit, one thread, median",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        show_edge=False,
    )
    table.add_column("model", no_wrap=True)
    for header in ("accuracy", "file", "kB", "differences\noff / on", "tie flips\noff / on", "latency"):
        table.add_column(header, justify="right")
    taken = iter(latencies([file for each in runs[0].files for file in each], digits.test_images[:1]))
    for place, model in enumerate(runs[0].models):
        name, reached = type(model).__name__, _reached(runs, place)
        for copies in zip(*(run.files[place] for run in runs), strict=True):  # the same file for each seed
            table.add_row(
                name,
                reached,
                copies[0].dialect,
                f"{statistics.mean(file.path.stat().st_size for file in copies) / 1000:.1f}",
                " / ".join(str(sum(counts)) for counts in zip(*(file.differences for file in copies), strict=True)),
                " / ".join(str(sum(counts)) for counts in zip(*(file.tie_flips for file in copies), strict=True)),
                f"{1e6 * next(taken):.0f} µs",
            )
            name = reached = ""
    return table


def _reached(runs: list[Run], place: int) -> str:
    """The accuracy of a model, with its distance from float or, for several seeds, with its spread."""
    reached = [run.accuracies[place] for run in runs]
    if len(runs) > 1:
        return f"{statistics.mean(reached):.1%} ± {100 * statistics.stdev(reached):.1f}"
    return f"{reached[0]:.1%} ({100 * (reached[0] - runs[0].accuracies[0]):+.1f})"


def _bars(runs: list[Run]) -> list[Bar]:
    """The smallest file of each model, for the figure."""
    labels = ("float", "4-bit weights", "4-bit weights, activations", "4-bit weights, activations,\ninteger biases")
    bars = []
    for place, label in enumerate(labels):
        smallest = min((file.path.stat().st_size, file.dialect) for file in runs[0].files[place])[0]
        bars.append(Bar(label, smallest / 1000, [100 * run.accuracies[place] for run in runs]))
    return bars


if __name__ == "__main__":
    raise SystemExit(main())

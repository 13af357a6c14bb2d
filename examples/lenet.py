"""LeNet-5 on real digits: trained in float, quantized three ways, exported, and compared with onnxruntime.

Run it with ``make demo``, or ``python examples/lenet.py --help``. It takes a few minutes and writes to ``out/``: the
float checkpoint, an ONNX file of each model in each dialect, the table, and a figure.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from digits import Digits, load_digits
from lenet_figure import draw
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo.

    Args:
        arguments: of the command line.

    Returns:
        The exit status: 1 if a file differs from its model.
    """
    options = _parser().parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # so small a network gains nothing from more, and its sums come out alike each time
    torch.manual_seed(options.seed)
    digits = load_digits(options.seed)
    if options.fast:
        digits = digits.first(640, 200)
    epochs = options.epochs or (1 if options.fast else 20)
    console = Console()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("{task.fields[note]}"), console=console) as progress:
        models = _trained(digits, epochs, options.seed, options.out / "FloatLeNet.pt", progress)
        files = _exported(models, digits, options.out, progress)
    table = _table(models, files, digits)
    console.print(table)
    with open(options.out / "lenet.txt", "w", encoding="utf-8") as text:
        Console(file=text, width=100).print(table)
    draw(models[-1], digits.test_images, options.out / "lenet.png")
    console.print(f"Checkpoint, ONNX files, table and figure (lenet.png) are in {options.out}.")
    return int(any(sum(file.differences) for each in files for file in each))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="LeNet-5 on real digits: trained, quantized three ways, exported.")
    parser.add_argument("--epochs", type=_count, help="of each training (default: 20, or 1 with --fast)")
    parser.add_argument("--seed", type=int, default=0, help="of the split, the weights and the order (default: 0)")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder to write to (default: out)")
    parser.add_argument("--fast", action="store_true", help="few digits, to see that everything runs")
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number, 1 or more")
    return int(text)


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


def _table(models: list[LeNet], files: list[list[File]], digits: Digits) -> Table:
    """One row for each file."""
    table = Table(
        title=f"LeNet-5 on {len(digits.test_images)} test digits; files compared with torch on "
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
    taken = iter(latencies([file for each in files for file in each], digits.test_images[:1]))
    baseline = 0.0
    for model, each in zip(models, files, strict=True):
        share = accuracy(model, digits.test_images, digits.test_labels)
        baseline = baseline or share  # the float model is the first
        name, reached = type(model).__name__, f"{share:.1%} ({100 * (share - baseline):+.1f})"
        for file in each:
            table.add_row(
                name,
                reached,
                file.dialect,
                f"{file.path.stat().st_size / 1000:.1f}",
                "{} / {}".format(*file.differences),
                "{} / {}".format(*file.tie_flips),
                f"{1e6 * next(taken):.0f} µs",
            )
            name = reached = ""
    return table


if __name__ == "__main__":
    raise SystemExit(main())

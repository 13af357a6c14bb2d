"""What post-training quantization leaves of real networks, by library: same weights, same data, same scheme.

    make bench-ptq                             # both libraries, each in its own environment
    python -m benchmarks.ptq bitwright         # one of them

Networks and data come inside packages, see ``tests/graph/models/packages.txt``. Nothing here is timed.
"""

import argparse
import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tests.graph.models import real
from tests.graph.models.metrics import agreement, sqnr, top

__all__ = ["TASKS", "Scheme", "main"]

Batches = list[tuple[Tensor, ...]]

# How a library quantizes is in a module of its own, as no environment has all of them: `WAYS` holds its functions of
# model, scheme and data by name. None is what they return for a scheme that they don't have.
LIBRARIES = {"bitwright": "ptq_bitwright", "brevitas": "ptq_brevitas"}


@dataclass(frozen=True)
class Scheme:
    """Weights per channel, activations per tensor at the inputs of convolutions and linear layers, biases float.

    Attributes:
        weight_bits: of the weights.
        act_bits: of the activations; None leaves them float.
        mse: scales of weights with the least squared error, in place of the largest magnitude.
        correct: biases are corrected on the data that gives the ranges.
    """

    weight_bits: int
    act_bits: int | None = None
    mse: bool = False
    correct: bool = False

    def __str__(self) -> str:
        name = f"W{self.weight_bits}" + (f"A{self.act_bits}" if self.act_bits else "")
        return name + (", MSE scales" if self.mse else "") + (", biases corrected" if self.correct else "")


@dataclass(frozen=True)
class Task:
    """A network, what it is calibrated on, and figures of its output."""

    name: str
    model: nn.Module
    calibration: Batches
    inputs: Batches
    schemes: tuple[Scheme, ...]
    figures: Callable[[Tensor, Tensor], dict[str, float]]  # of the float output and of another


def _mobilenet() -> Task:
    images, labels = real.photos()
    crops = real.photo_crops()

    def figures(reference: Tensor, logits: Tensor) -> dict[str, float]:
        photos = slice(len(images))
        return {
            "top-1": top(1, logits[photos], labels),
            "SQNR": sqnr(reference[photos], logits[photos]),
            "agreement on crops": agreement(reference[len(images) :], logits[len(images) :]),
        }

    schemes = tuple(Scheme(bits, 8, correct=correct) for bits in (8, 4) for correct in (False, True))
    calibration = [(batch,) for batch in images[:8].split(4)]
    inputs = [(batch,) for batch in (*images.split(20), *crops.split(26))]
    return Task("MobileNetV2", real.mobilenet_v2(), calibration, inputs, schemes, figures)


def _minilm() -> Task:
    documents = real.lee_documents()

    def figures(reference: Tensor, vectors: Tensor) -> dict[str, float]:
        return {"Pearson": real.lee_pearson(vectors), "SQNR": sqnr(reference, vectors)}

    schemes = (Scheme(8, 8), Scheme(4), Scheme(4, 8))
    return Task("all-MiniLM-L6-v2", real.minilm(), documents[:2], documents, schemes, figures)


def _digits() -> Task:
    images, labels = real.mnist()

    def figures(reference: Tensor, logits: Tensor) -> dict[str, float]:
        return {"top-1": top(1, logits, labels), "SQNR": sqnr(reference, logits)}

    schemes = (Scheme(4), Scheme(3), Scheme(2), Scheme(2, mse=True))
    inputs = [(batch,) for batch in images.split(500)]
    return Task("digit CNN", real.digit_cnn(), inputs[:1], inputs, schemes, figures)


TASKS = {"mobilenet": _mobilenet, "minilm": _minilm, "digits": _digits}


@torch.no_grad()
def output(model: nn.Module, batches: Batches) -> Tensor:
    """Of all batches."""
    return torch.cat([model(*batch) for batch in batches])


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table of each task.

    Args:
        arguments: of the command line.
    """
    parser = argparse.ArgumentParser(description="Accuracy of real networks after post-training quantization.")
    parser.add_argument("library", choices=LIBRARIES)
    parser.add_argument("tasks", nargs="*", help="of " + ", ".join(TASKS) + "; all by default")
    options = parser.parse_args(arguments)
    library: Any = importlib.import_module(f"{__package__}.{LIBRARIES[options.library]}")
    torch.set_num_threads(1)
    for name in options.tasks or TASKS:
        task = TASKS[name]()
        reference = output(task.model, task.inputs)
        rows = [("float", task.figures(reference, reference))]
        for scheme in task.schemes:
            for way, quantized in library.WAYS.items():
                try:
                    model = quantized(task.model, scheme, task.calibration)
                    if model is not None:
                        rows.append((f"{way}: {scheme}", task.figures(reference, output(model, task.inputs))))
                except Exception as error:
                    rows.append((f"{way}: {scheme}: {type(error).__name__}: {str(error)[:80]}", {}))
        print(f"\n| {task.name} | {' | '.join(rows[0][1])} |\n|{' --- |' * (1 + len(rows[0][1]))}")
        for row, figures in rows:
            print(f"| {row} | {' | '.join(f'{figure:.4g}' for figure in figures.values())} |", flush=True)


if __name__ == "__main__":
    main()

"""What post-training quantization leaves of real networks, by library: same weights, same data, same scheme.

    make bench-ptq                             # both libraries, each in its own environment
    python -m benchmarks.ptq bitwright         # one of them

Networks and data come inside packages, see ``tests/graph/models/packages.txt``. The seconds are those that a processor
spent on one thread.
"""

import argparse
import importlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tests.graph.models import real
from tests.graph.models.metrics import agreement, cosine, sqnr, top

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
        repair: what chooses the weights layer by layer: "GPTQ", "GPFQ", "Qronos", "AutoRound", "AdaRound" or "LQER"; ""
            rounds them to nearest.
        rotate: the inputs of all layers are rotated by Hadamard matrices.
    """

    weight_bits: int
    act_bits: int | None = None
    mse: bool = False
    correct: bool = False
    repair: str = ""
    rotate: bool = False

    def __str__(self) -> str:
        name = f"W{self.weight_bits}" + (f"A{self.act_bits}" if self.act_bits else "")
        parts = {"MSE scales": self.mse, "rotated": self.rotate, self.repair: self.repair}
        said = [name, *(part for part, here in parts.items() if here)]
        return ", ".join([*said, "biases corrected"] if self.correct else said)


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


def _mobilenet_layerwise() -> Task:
    """Calibrated on crops of every second photo; judged on those of the others, and on all with the labelled ones."""
    images, labels = real.photos()
    each = 4
    crops = real.photo_crops(each)
    other = torch.arange(len(crops)) // each % 2 == 1
    known = crops[~other]

    def figures(reference: Tensor, logits: Tensor) -> dict[str, float]:
        photos = slice(len(images))
        of_crops = reference[len(images) :], logits[len(images) :]
        return {
            "SQNR": sqnr(*(part[other] for part in of_crops)),
            "agreement": agreement(*(part[other] for part in of_crops)),
            "SQNR on all": sqnr(*of_crops),
            "agreement on all": agreement(*of_crops),
            "top-1": top(1, logits[photos], labels),
        }

    plain = [Scheme(4, mse=mse, correct=correct) for mse in (False, True) for correct in (False, True)]
    repairs = ("GPTQ", "GPFQ", "Qronos", "AutoRound", "AdaRound")
    largest = [Scheme(4, repair=name) for name in repairs[:3]]
    repaired = [Scheme(4, mse=True, repair=name, correct=correct) for name in repairs for correct in (False, True)]
    acts = [Scheme(4, 8, mse=True, repair=name, correct=True) for name in ("", *repairs[2:])]
    calibration = [(known[torch.linspace(0, len(known) - 1, 24).long()],)]
    inputs = [(batch,) for batch in (*images.split(20), *crops.split(26))]
    schemes = (*plain, *largest, *repaired, *acts)
    return Task("MobileNetV2, layer by layer", real.mobilenet_v2(), calibration, inputs, schemes, figures)


def _minilm_layerwise() -> Task:
    """Calibrated on a dozen texts, judged on fifty others."""
    documents = real.lee_documents()

    def figures(reference: Tensor, vectors: Tensor) -> dict[str, float]:
        return {
            "SQNR": sqnr(reference, vectors),
            "cosine": cosine(reference, vectors),
            "Pearson": real.lee_pearson(vectors),
        }

    repairs = ("", "GPTQ", "Qronos", "LQER")
    schemes = (
        Scheme(4),
        *(Scheme(4, mse=True, repair=name) for name in repairs),
        *(Scheme(4, mse=True, repair=name, rotate=True) for name in ("", "GPTQ")),
    )
    calibration = real.lee_background(12, 64)
    return Task("all-MiniLM-L6-v2, layer by layer", real.minilm(), calibration, documents, schemes, figures)


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


TASKS = {
    "mobilenet": _mobilenet,
    "mobilenet-layerwise": _mobilenet_layerwise,
    "minilm": _minilm,
    "minilm-layerwise": _minilm_layerwise,
    "digits": _digits,
}


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
        columns = [*task.figures(reference, reference), "CPU s"]
        print(f"\n| {task.name} | {' | '.join(columns)} |\n|{' --- |' * (1 + len(columns))}")
        _show("float", [*task.figures(reference, reference).values(), 0.0])
        for scheme in task.schemes:
            for way, quantized in library.WAYS.items():
                begun = time.process_time()
                try:
                    model = quantized(task.model, scheme, task.calibration)
                    seconds = time.process_time() - begun
                    if model is not None:
                        found = task.figures(reference, output(model, task.inputs))
                        _show(f"{way}: {scheme}", [*found.values(), seconds])
                except Exception as error:
                    _show(f"{way}: {scheme}: {type(error).__name__}: {str(error)[:80]}", [])


def _show(name: str, figures: Sequence[float]) -> None:
    """Print a row at once: the next may take minutes."""
    print(f"| {name} | {' | '.join(f'{figure:.4g}' for figure in figures)} |", flush=True)


if __name__ == "__main__":
    main()

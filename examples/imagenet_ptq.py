"""Quantize a pretrained image classifier, say what every step is worth, and export it: a script to copy and change.

    python examples/imagenet_ptq.py --model mobilenet_v2 --data imagenet/val --calibration-data imagenet/train \
        --fold --correct-biases --weight-bits 4

The model is one of torchvision or timm, where they are installed, or comes from a function of yours:
``--factory package.module:function --weights file.pt``. Images lie in one folder for each class. A table, a plot and a
page about every layer, the quantized weights, and an ONNX file that has been compared with torch number by number go to
``--out``. It needs ``pip install bitwright[onnx,demo]``.
"""

import argparse
import importlib
import importlib.util
import math
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from matplotlib.figure import Figure
from PIL import Image
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

import bitwright.nn as qnn
from bitwright import quantizers
from bitwright.export import VerificationReport, export_onnx_qcdq, export_onnx_qdq, verify_onnx
from bitwright.graph import (
    calibrate,
    correct_biases,
    equalize,
    explain,
    first,
    fold_batch_norms,
    last,
    load_rules,
    quantize,
)
from bitwright.qcore import BitwrightError

__all__ = ["ImageFolder", "main", "post_training"]

DIALECTS = {"qcdq": export_onnx_qcdq, "qdq": export_onnx_qdq}


def post_training(
    model: nn.Module, rules: Any, batches: list[Tensor], options: argparse.Namespace
) -> tuple[nn.Module, nn.Module]:
    """A quantized model, and the float one it was made from, without training: all that a program of yours needs."""
    example = batches[0][:1]
    model = fold_batch_norms(model, example) if options.fold else model
    model = equalize(model, example, relu6=options.relu6) if options.equalize else model
    quantized = quantize(model, rules, examples=example)
    calibrate(quantized, batches, statistic=options.calibrate)
    if options.correct_biases:
        correct_biases(quantized, batches, model)
    return quantized, model


def finetune(quantized: nn.Module, model: nn.Module, images: DataLoader[Any], options: argparse.Namespace) -> None:
    """Quantization-aware training: the quantized model learns to say what the float model says."""
    optimizer = torch.optim.Adam(quantized.parameters(), options.learning_rate)
    for module in quantized.train().modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()  # few steps of small batches would only spoil its statistics
    for epoch in range(options.finetune):
        for batch, _ in track(images, f"fine-tune, epoch {epoch + 1} of {options.finetune}"):
            batch = batch.to(options.device)
            with torch.no_grad():
                wanted = model(batch).softmax(1)
            optimizer.zero_grad()
            F.cross_entropy(quantized(batch), wanted).backward()
            optimizer.step()
    quantized.eval()


# Data


class ImageFolder(Dataset[tuple[Tensor, int]]):
    """Photos in one folder for each class: normalized, cropped from the middle, (3, size, size).

    Folders that are named by numbers are the classes of these numbers; others are counted in the order of their names.
    """

    SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
    MEAN, DEVIATION = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])

    def __init__(self, folder: Path, size: int = 224, resize: int = 232) -> None:
        self.size, self.resize = size, resize
        classes = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
        numbered = all(name.isdecimal() for name in classes)
        self.files = [
            (path, int(name) if numbered else place)
            for place, name in enumerate(classes)
            for path in sorted((folder / name).iterdir())
            if path.suffix.lower() in self.SUFFIXES
        ]
        if not self.files:
            raise SystemExit(f"{folder} holds no images in folders, one for each class: {folder}/n01440764/a.jpg")

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, place: int) -> tuple[Tensor, int]:
        path, label = self.files[place]
        image = Image.open(path).convert("RGB")
        scale = self.resize / min(image.size)
        image = image.resize((round(scale * image.width), round(scale * image.height)), Image.Resampling.BILINEAR)
        left, top = (image.width - self.size) // 2, (image.height - self.size) // 2
        pixels = numpy.asarray(image.crop((left, top, left + self.size, top + self.size)), dtype=numpy.float32)
        return ((torch.from_numpy(pixels / 255) - self.MEAN) / self.DEVIATION).permute(2, 0, 1), label


def some(images: ImageFolder, count: int, options: argparse.Namespace) -> list[Tensor]:
    """Batches of images chosen at random, for calibration: nobody looks at their labels."""
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(options.seed))[:count].tolist()
    return [
        torch.stack([images[place][0] for place in chosen[start : start + options.batch_size]]).to(options.device)
        for start in range(0, len(chosen), options.batch_size)
    ]


# Model and rules


def float_model(options: argparse.Namespace) -> nn.Module:
    """The classifier to quantize, in evaluation mode."""
    if options.factory:
        module, _, function = options.factory.partition(":")
        sys.path.insert(0, "")  # a file of yours, beside you
        model = getattr(importlib.import_module(module), function)()
    elif importlib.util.find_spec("torchvision") is not None:
        model = importlib.import_module("torchvision.models").get_model(
            options.model, weights=None if options.weights else "DEFAULT"
        )
    elif importlib.util.find_spec("timm") is not None:
        model = importlib.import_module("timm").create_model(options.model, pretrained=not options.weights)
    else:
        raise SystemExit("--model needs torchvision or timm. Install one, or write --factory package.module:function.")
    if options.weights:
        state = torch.load(options.weights, map_location="cpu", weights_only=True)
        model.load_state_dict(state.get("state_dict", state))
    return model.to(options.device).eval()


def rules_of(options: argparse.Namespace) -> Any:
    """What is to be quantized, and how: from a file, or from the flags."""
    if options.rules:
        return load_rules(options.rules)
    weight = quantizers.Int8WeightPerChannel if options.per_channel else quantizers.Int8WeightPerTensor
    layers: dict[Any, Any] = {"weight_quant": weight, "weight_bit_width": options.weight_bits}
    ends: dict[str, Any] = {"weight_bit_width": options.end_bits}
    if options.act_bits:
        layers |= {"input_quant": quantizers.Int8Act, "input_bit_width": options.act_bits}
        ends |= {"input_bit_width": options.end_bits}
    return {**layers, first(): ends, last(): ends} if options.end_bits else layers


# Figures


@dataclass(frozen=True)
class Score:
    """How good a model is, and how near to the float model."""

    name: str
    top1: float
    top5: float
    agreement: float
    sqnr: float

    @classmethod
    def of(cls, name: str, logits: Tensor, labels: Tensor, reference: Tensor) -> "Score":
        """From the logits of a model and of the float one."""
        right = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
        signal, noise = reference.double().square().sum(), (reference - logits).double().square().sum()
        return cls(
            name,
            right[:, 0].double().mean().item(),
            right.any(1).double().mean().item(),
            (logits.argmax(1) == reference.argmax(1)).double().mean().item(),
            10 * math.log10(signal / noise) if noise else math.inf,
        )


@torch.no_grad()
def evaluate(model: nn.Module, images: DataLoader[Any], name: str, device: str) -> tuple[Tensor, Tensor]:
    """Logits and labels of all images."""
    logits, labels = [], []
    with qnn.frozen(model) if any(isinstance(each, qnn.QuantLayer) for each in model.modules()) else nullcontext():
        for batch, label in track(images, f"evaluate {name}"):
            logits.append(model(batch.to(device)).cpu())
            labels.append(label)
    return torch.cat(logits), torch.cat(labels)


def table_of(scores: list[Score]) -> Table:
    """One row for each step."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("model", no_wrap=True)
    for header in ("top-1", "top-5", "as float", "SQNR"):
        table.add_column(header, justify="right")
    for each in scores:
        sqnr = f"{each.sqnr:.1f} dB" if math.isfinite(each.sqnr) else ""
        table.add_row(each.name, f"{each.top1:.1%}", f"{each.top5:.1%}", f"{each.agreement:.1%}", sqnr)
    return table


def draw(sqnrs: dict[str, float], path: Path) -> None:
    """A bar for each layer: short ones are the ones that hurt, and where nothing is lost there is none."""
    sqnrs = {name: each for name, each in sqnrs.items() if math.isfinite(each)}
    figure = Figure(figsize=(max(4.0, 0.22 * len(sqnrs)), 4), layout="constrained")
    axes = figure.subplots()
    axes.bar(range(len(sqnrs)), list(sqnrs.values()), color="#2563eb", alpha=0.6)
    axes.set_xticks(range(len(sqnrs)), list(sqnrs), rotation=90, fontsize=6)
    axes.set_ylabel("dB")
    axes.set_title("Signal to quantization noise at the output of each layer", loc="left", weight="bold")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


# The command


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it.

    Args:
        arguments: of the command line.

    Returns:
        The exit status: 1 if the file differs from the model.
    """
    options = _parser().parse_args(arguments)
    if not options.model and not options.factory:
        raise SystemExit("Which model? Write --model mobilenet_v2, or --factory package.module:function.")
    try:
        return _run(options, Console())
    except BitwrightError as error:
        raise SystemExit(str(error)) from None


def _run(options: argparse.Namespace, console: Console) -> int:
    torch.manual_seed(options.seed)
    options.out.mkdir(parents=True, exist_ok=True)
    model = float_model(options)
    images = ImageFolder(options.data, options.size, options.resize)
    others = ImageFolder(options.calibration_data or options.data, options.size, options.resize)
    loader = DataLoader(images, options.batch_size, num_workers=options.workers)
    reference, labels = evaluate(model, loader, "float", options.device)
    scores = [Score.of("float", reference, labels, reference)]

    batches = some(others, options.calibration_images, options)
    quantized, model = post_training(model, rules_of(options), batches, options)
    logits, _ = evaluate(quantized, loader, "quantized", options.device)
    scores.append(Score.of("quantized", logits, labels, reference))
    explanation = explain(quantized, batches[:4], model)
    if options.finetune:
        training = DataLoader(others, options.batch_size, shuffle=True, num_workers=options.workers)
        finetune(quantized, model, training, options)
        logits, _ = evaluate(quantized, loader, "fine-tuned", options.device)
        scores.append(Score.of("fine-tuned", logits, labels, reference))

    table = table_of(scores)
    console.print(f"{options.model or options.factory} on {len(images)} images", table)
    with open(options.out / "report.txt", "w", encoding="utf-8") as text:
        Console(file=text, width=120).print(table)
        text.write(f"\n{explanation}\n")
    explanation.save(options.out / "layers.html")
    draw({each.path: each.sqnr for each in explanation if each.sqnr is not None}, options.out / "layers.png")
    torch.save(quantized.state_dict(), options.out / "quantized.pt")
    if options.export == "none":
        return 0
    report = _exported(quantized.cpu(), batches[0].cpu(), options)
    console.print(
        f"{report.compared} numbers compared with onnxruntime's: {report.differences} differences, "
        f"{report.tie_flips} tie flips. Everything is in {options.out}."
    )
    return int(not report.ok)


def _exported(quantized: nn.Module, images: Tensor, options: argparse.Namespace) -> VerificationReport:
    """An ONNX file for batches of any size, and what comes of comparing it with the model."""
    path = options.out / f"model.{options.export}.onnx"
    names = {"input_names": ["images"], "output_names": ["logits"]}
    DIALECTS[options.export](quantized, images, path, verify=False, dynamic_shapes=({0: "batch"},), **names)
    return verify_onnx(quantized, path, images)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Quantize a pretrained image classifier, and export it.")
    model = parser.add_argument_group("model")
    model.add_argument("--model", help="name of a classifier of torchvision, or else of timm")
    model.add_argument("--factory", metavar="MODULE:FUNCTION", help="a function that makes the float model")
    model.add_argument("--weights", type=Path, help="state dict to load (default: the published one)")
    data = parser.add_argument_group("data")
    data.add_argument("--data", type=Path, required=True, help="images to evaluate on, one folder for each class")
    data.add_argument("--calibration-data", type=Path, help="images to calibrate and train on (default: --data)")
    data.add_argument("--calibration-images", type=int, default=256, help="how many of them (default: 256)")
    data.add_argument("--size", type=int, default=224, help="of the crop in the middle (default: 224)")
    data.add_argument("--resize", type=int, default=232, help="of the shorter side, before (default: 232)")
    data.add_argument("--batch-size", type=int, default=32)
    data.add_argument("--workers", type=int, default=0, help="processes that read images (default: 0)")
    rules = parser.add_argument_group("rules")
    rules.add_argument("--weight-bits", type=int, default=8)
    rules.add_argument("--act-bits", type=int, default=8, help="0: only weights are quantized")
    rules.add_argument("--end-bits", type=int, help="of the first and the last layer (default: as the others)")
    rules.add_argument("--per-channel", action=argparse.BooleanOptionalAction, default=True, help="scales of weights")
    rules.add_argument("--rules", type=Path, help="a .json or .toml file of rules, instead of the flags")
    steps = parser.add_argument_group("steps")
    steps.add_argument("--fold", action="store_true", help="fold BatchNorms into the layers before them")
    steps.add_argument("--equalize", action="store_true", help="even out the ranges of channels across layers")
    steps.add_argument("--relu6", choices=["keep", "replace"], default="keep", help="equalizing must not cross a ReLU6")
    steps.add_argument("--calibrate", metavar="STATISTIC", help="of the activations (default: the quantizer's own)")
    steps.add_argument("--correct-biases", action="store_true", help="make up for the shift of every channel's mean")
    steps.add_argument("--finetune", type=int, default=0, metavar="EPOCHS", help="quantization-aware training")
    steps.add_argument("--learning-rate", type=float, default=1e-5, help="of the training (default: 1e-5)")
    steps.add_argument("--export", choices=[*DIALECTS, "none"], default="qcdq", help="dialect of the file")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder to write to (default: out)")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())

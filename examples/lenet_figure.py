"""Pictures of a quantized LeNet-5: its weights on their grid, the ranges of its activations, the sizes of its files."""

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lenet_models import LeNet
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from bitwright.qcore import Grid, QuantTensor

__all__ = ["Bar", "draw", "draw_sizes"]

INK, BLUE, RED, GREY = "#1f2933", "#2563eb", "#dc2626", "#9aa5b1"


@dataclass(frozen=True)
class Bar:
    """A model as a bar of the figure.

    Attributes:
        label: what it is.
        kilobytes: the size of its file.
        accuracies: in percent, one for each seed.
    """

    label: str
    kilobytes: float
    accuracies: list[float]


def draw(
    model: LeNet,
    images: Tensor,  # (N, C, 32, 32)
    path: Path,
) -> None:
    """Save the figure.

    Args:
        model: a LeNet-5 whose weights are quantized, and whose activations are returned as `QuantTensor`.
        images: the inputs for the distributions of activations.
        path: the file; its suffix sets the format.
    """
    figure = Figure(figsize=(12.5, 5.4), layout="constrained")
    weights, activations = figure.subplots(1, 2, width_ratios=(1, 1.15))
    _draw_weights(weights, "fc1", model.fc1)
    _draw_activations(activations, _activations(model, images))
    for axes in (weights, activations):
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
    figure.savefig(path, dpi=150)


def draw_sizes(model: LeNet, bars: list[Bar], path: Path) -> None:
    """Save a figure for the front page: weights on their grid, and files with their size and accuracy.

    Args:
        model: a LeNet-5 whose weights are quantized.
        bars: the models to show, the float one first.
        path: the file; its suffix sets the format.
    """
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    weights, files = figure.subplots(1, 2, width_ratios=(1, 1.05))
    _draw_weights(weights, "fc1", model.fc1)
    weights.margins(y=0.34)  # room for the legend
    places = range(len(bars))
    sizes = [bar.kilobytes for bar in bars]
    files.barh(places, sizes, color=[GREY, *[BLUE] * (len(bars) - 1)], alpha=0.6, height=0.62)
    for place, bar in zip(places, bars, strict=True):
        mean = statistics.mean(bar.accuracies)
        spread = f" ± {statistics.stdev(bar.accuracies):.1f}" if len(bar.accuracies) > 1 else ""
        said = f"{bar.kilobytes:.0f} kB,  {mean:.1f}{spread} % correct"
        inside = bar.kilobytes > 0.6 * max(sizes)
        files.text(
            bar.kilobytes + (-3 if inside else 3), place, said, ha="right" if inside else "left", va="center", color=INK
        )
    files.set_yticks(places, [bar.label for bar in bars])
    files.set_xticks([])
    files.invert_yaxis()
    files.set_title("LeNet-5 as an ONNX file: size and accuracy", loc="left", weight="bold")
    weights.spines[["top", "right", "left"]].set_visible(False)
    files.spines[["top", "right", "bottom"]].set_visible(False)
    for axes in (weights, files):
        axes.tick_params(axis="y", length=0)
    figure.savefig(path, dpi=110)


def _draw_weights(axes: Axes, name: str, layer: Any) -> None:
    """The weights before quantization as a fine histogram, and after it as one bar per level."""
    codes = layer.int_weight().flatten().numpy()
    grid = layer.quant_weight().grid
    low, high = grid.bounds
    levels = np.arange(low, high + 1)
    shares = [np.mean(codes == level) for level in levels]
    steps = (layer.weight / grid.scale).detach().flatten().numpy()
    density, edges = np.histogram(steps, np.linspace(low - 0.5, high + 0.5, 10 * len(levels) + 1), density=True)
    axes.bar(levels, shares, width=0.84, color=BLUE, alpha=0.3, label="on the grid: share of each level")
    axes.stairs(density, edges, color=INK, linewidth=0.9, label="as trained: density")
    axes.set_xticks(levels)
    axes.set_yticks([])
    axes.margins(y=0.16)
    axes.set_xlabel(f"integer  (one step is {grid.scale.item():.4f})")
    axes.set_title(f"Weights: {len(codes):,} of {name} at {grid.bit_width} bits", loc="left", weight="bold")
    axes.legend(frameon=False, loc="upper right")


@dataclass(frozen=True)
class _Activation:
    """The input of an activation quantizer, and the grid of its output."""

    name: str
    values: np.ndarray
    grid: Grid


def _activations(model: nn.Module, images: Tensor) -> list[_Activation]:
    found: list[_Activation] = []

    def look(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(output, QuantTensor) and output.grid is not None:
            values = args[0].relu() if isinstance(module, nn.ReLU) else args[0]
            found.append(_Activation(names[module], values.flatten().numpy(), output.grid))

    names = {module: name for name, module in model.named_children()}
    handles = [module.register_forward_hook(look) for module in names]
    with torch.no_grad():
        model(images)
    for handle in handles:
        handle.remove()
    return found


def _draw_activations(axes: Axes, activations: list[_Activation]) -> None:
    """One row per activation, from its lowest level (0) to its highest (1); clipped values are red."""
    for row, each in enumerate(activations):
        low, high = each.grid.bounds
        scale = each.grid.scale.item()
        place = (each.values[each.values != 0] / scale - low) / (high - low)
        counts, edges = np.histogram(place, np.arange(-10, 146) / 100)
        tops = row - 0.8 * np.log1p(counts) / np.log1p(counts.max())  # rows run down
        clips = (edges[:-1] < 0) | (edges[1:] > 1)
        axes.stairs(np.where(clips, row, tops), edges, baseline=row, fill=True, color=BLUE, alpha=0.3)
        axes.stairs(np.where(clips, tops, row), edges, baseline=row, fill=True, color=RED, alpha=0.6)
        axes.vlines(np.linspace(0, 1, high - low + 1), row, row + 0.09, color=INK, linewidth=1)
        axes.hlines(row, 0, 1, color=INK, linewidth=1.5)
        share = ((place < 0) | (place > 1)).sum() / each.values.size
        axes.text(1.75, row - 0.24, f"{low * scale:.2f} to {high * scale:.2f}", ha="right", weight="bold", color=INK)
        axes.text(1.75, row - 0.03, f"{share:.2%} beyond", ha="right", size="small", color=RED)
    kinds = [f"{'' if each.grid.signed else 'u'}int{each.grid.bit_width}" for each in activations]
    axes.set_yticks(range(len(kinds)), [f"{each.name}\n{kind}" for each, kind in zip(activations, kinds, strict=True)])
    axes.set_ylim(len(kinds) - 0.7, -1)
    axes.set_xlim(-0.05, 1.75)
    axes.set_xticks([0, 1], ["lowest level", "highest level"])
    axes.set_xlabel("frequencies on a log scale, zeros left out")
    axes.set_title(f"Activations: learned ranges at {activations[0].grid.bit_width} bits", loc="left", weight="bold")

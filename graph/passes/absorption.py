"""Biases absorbed into the layers behind: ranges of activations that begin near zero."""

from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from ..errors import GraphError
from ..recording.examples import calls_of
from ..recording.kinds import kind_of
from ..recording.nodes import Graph, Node
from ..recording.recorder import record
from ..regions.ownership import FORWARDS
from ..regions.regions import Regions
from ..regions.weights import WeightedLayer, per_channel, weighted
from .models import Examples, difference, float_copy, untouched, with_report
from .reports import Entry, Report, listed

__all__ = ["absorb_biases"]

Model = TypeVar("Model", bound=nn.Module)


def absorb_biases(model: Model, examples: Examples, *, sigmas: float = 3.0, padded: bool = False) -> Model:
    """Move the part of a bias that a ReLU always passes into the layers behind the ReLU.

    A channel whose values before the ReLU lie around ``mean`` with a deviation of ``std`` is almost never below
    ``c = mean - sigmas * std``. Where that is positive, the layer's bias takes ``c`` less, and the biases of the layers
    that read it take what their weights make of ``c``: activations are as wide as before, but begin near zero.
    Equalization makes such biases. Mean and deviation are those of the BatchNorm that `fold_batch_norms` folded.

    The result is that of the model where values stay above ``c``; the report says by how much it moved on the examples.
    A convolution that pads with zeros would see 0 in the place of ``-c``, and is wrong at the borders by as much as its
    weights make of ``c``: layers in front of such ones are left.

    Args:
        model: a float model with folded BatchNorms, mostly an equalized one; it stays as it is.
        examples: inputs for the recording: a tensor, a tuple of arguments, a dict of keyword arguments, or a list of
            these.
        sigmas: standard deviations below the mean that must stay positive.
        padded: absorb into convolutions that pad with zeros, too.

    Returns:
        A new model. Its ``report`` says for each layer where its bias went, or why it was left.

    Raises:
        GraphError: no bias can be absorbed, for the reasons that the message lists; or the model is quantized.

    References:
        Nagel et al., "Data-Free Quantization through Weight Equalization and Bias Correction", 2019.

    Example:
        >>> from bitwright.graph import fold_batch_norms
        >>> model = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1), nn.ReLU(), nn.Linear(1, 1)).eval()
        >>> _ = model[1].bias.data.fill_(5.0)
        >>> absorbed = absorb_biases(fold_batch_norms(model, torch.zeros(1, 1)), torch.zeros(1, 1))
        >>> absorbed[0].folded_mean.item()
        3.0
        >>> absorbed.report["0"].action, absorbed.report["0"].figures
        ('absorbed into 3', {'channels': 1, 'largest': 2.0})
    """
    absorbed = float_copy("absorb_biases", model)
    graph = record(model, examples)
    regions = Regions(graph, model)
    entries: list[Entry] = []
    for path, module in model.named_modules():
        if isinstance(module, (nn.Linear, _ConvNd)):
            entries.append(_absorb(absorbed, path, regions, sigmas, padded))
    if all(not entry.changed for entry in entries):
        said = listed(entries) or "The model has no convolution or linear layer."
        raise GraphError(f"absorb_biases: nothing to absorb. {said}")
    moved = 0.0
    calls = calls_of(examples)
    with untouched(calls, model, absorbed):
        for args, kwargs in calls:
            moved = max(moved, difference(model(*args, **kwargs), absorbed(*args, **kwargs))[0])
    return with_report(absorbed, Report("absorb_biases", tuple(entries), figures={"output moved": moved}))


def _absorb(model: nn.Module, path: str, regions: Regions, sigmas: float, padded: bool) -> Entry:
    layer = weighted(model, path)
    constant = _constant(layer, sigmas)
    if constant is None:
        return Entry(path, "left", "no BatchNorm was folded into it")
    if not bool((constant > 0).any()):
        return Entry(path, "left", f"no channel lies {sigmas:g} standard deviations above zero")
    why, readers, pads = _why_not(regions, path, padded)
    if why is not None:
        return Entry(path, "left", why)
    _move(model, layer, readers, constant, regions, path)
    figures = {"channels": int((constant > 0).sum()), "largest": float(constant.max())}
    said = f"wrong at the borders, as {', '.join(pads)} pads with zeros" if pads else ""
    return Entry(path, f"absorbed into {', '.join(readers)}", said, figures)


def _constant(layer: WeightedLayer, sigmas: float) -> Tensor | None:
    """What all values of each channel exceed; None if it is not known."""
    mean, std = layer._buffers.get("folded_mean"), layer._buffers.get("folded_std")
    if mean is None or std is None or layer.bias is None:
        return None
    return (mean.double() - sigmas * std.double()).clamp(min=0)


@torch.no_grad()
def _move(
    model: nn.Module, layer: WeightedLayer, readers: list[str], constant: Tensor, regions: Regions, path: str
) -> None:
    assert layer.bias is not None
    layer.bias.copy_(layer.bias.double() - constant)
    mean = layer.get_buffer("folded_mean")
    mean.copy_(mean.double() - constant)
    numbers = torch.zeros(regions.classes.count, dtype=torch.float64)
    numbers[regions.sources[path]] = constant.cpu()
    for reader in readers:
        other = weighted(model, reader)
        weight = other.weight.double()
        read = per_channel(other, "inputs", numbers[regions.sinks[reader]].to(weight))
        sums = (weight * read).flatten(1).sum(1)
        if other.bias is None:
            bias = nn.Parameter(
                torch.zeros_like(other.weight[:, 0].reshape(-1)[: len(sums)]), other.weight.requires_grad
            )
            other.register_parameter("bias", bias)
        assert other.bias is not None
        other.bias.copy_(other.bias.double() + sums)


# What lies between


def _why_not(regions: Regions, path: str, padded: bool) -> tuple[str | None, list[str], list[str]]:
    """Why a constant can't be taken from a layer's outputs; who reads them, and who of these pads with zeros."""
    why = regions.why_held(path)
    classes = regions.sources[path]
    if why is None and len(classes.unique()) != len(classes):
        why = "several of its channels share a scale"
    if why is None:
        others = [other for other, held in regions.sources.items() if other != path and _meet(held, classes)]
        why = f"its output meets that of {others[0]}" if others else None
    if why is None:
        why = _blocked(regions.graph, regions.graph.calls(path)[0], regions)
    if why is not None:
        return why, [], []
    readers = [reader for reader, held in regions.sinks.items() if _meet(held, classes)]
    pads: list[str] = []
    for reader in readers:
        refusal = _refusal(regions.modules[reader], reader)
        if refusal is not None:
            return refusal, [], []
        if _pads(regions.modules[reader]):
            pads.append(reader)
    if pads and not padded:
        return f"{pads[0]} pads with zeros; pass padded=True to accept errors at the borders", [], []
    return None, readers, pads


def _meet(one: Tensor, other: Tensor) -> bool:
    return bool(torch.isin(one, other).any())


def _refusal(layer: nn.Module, path: str) -> str | None:
    if isinstance(layer, _ConvTransposeNd):
        return f"{path} is transposed: a constant is none behind it"
    return None if type(layer).forward in FORWARDS else f"{path} has a forward of its own"


def _pads(layer: nn.Module) -> bool:
    if not isinstance(layer, _ConvNd) or layer.padding_mode != "zeros":
        return False
    if layer.padding == "same":
        return any(size > 1 for size in layer.kernel_size)
    return layer.padding != "valid" and any(bool(each) for each in layer.padding)


TRANSPARENT = {"relu", "leaky_relu", "prelu", "identity", "dropout", "contiguous", "max_pool", "interpolate", "mean"}
TRANSPARENT |= {"reshape", "permute", "squeeze", "unsqueeze", "expand", "getitem"}


def _blocked(graph: Graph, start: Node, regions: Regions) -> str | None:
    """The first operation behind a layer that a constant doesn't pass."""
    waiting, seen = list(start.users), {start}
    while waiting:
        node = waiting.pop(0)
        if node in seen:
            continue
        seen.add(node)
        if node.module in regions.layers:
            continue
        if not _passes(node, regions):
            return f"its output reaches {node.path} ({node.kind})"
        waiting += node.users
    return None


def _passes(node: Node, regions: Regions) -> bool:
    """Whether less of a constant is less of it behind an operation."""
    if kind_of(node.function) != "avg_pool":
        return kind_of(node.function) in TRANSPARENT
    if node.module is None:
        return getattr(node.function, "__name__", "").startswith("adaptive")
    padding = getattr(regions.modules[node.module], "padding", 0)
    return not any(padding) if isinstance(padding, tuple) else not padding

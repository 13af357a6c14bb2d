"""SmoothQuant: outliers of activations moved into weights."""

from collections import OrderedDict
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TypeVar

import torch
from torch import Tensor, nn

from ...qcore.scaling.pooling import distributed, highest
from ..errors import GraphError
from ..measuring.batches import batches_of
from ..recording.examples import Call
from ..recording.nodes import Graph
from ..recording.recorder import record
from ..regions.divisions import (
    Readers,
    divide,
    mean_numbers,
    readers_of,
    why_not_divided,
    why_not_multiplied,
    writers_of,
)
from ..regions.ownership import channel_axis
from ..regions.regions import Regions
from ..regions.weights import WeightedLayer, channel_maxima, channels_of, magnitudes, scale_channels, weighted
from .models import check_same, example_of, float_copy, replace_module, untouched, with_report
from .reports import Entry, Report, listed

__all__ = ["ChannelScale", "smooth"]

Model = TypeVar("Model", bound=nn.Module)
LARGEST = 1e5  # scales lie between this and its inverse


class ChannelScale(nn.Module):
    """Multiplies each channel by a number.

    Args:
        scale: one number a channel.
        axis: the dimension of the input that runs over channels, counted from the end.

    Example:
        >>> ChannelScale(torch.tensor([2.0, 3.0]))(torch.ones(1, 2))
        tensor([[2., 3.]])
    """

    scale: Tensor

    def __init__(self, scale: Tensor, axis: int = -1) -> None:
        super().__init__()
        self.register_buffer("scale", scale.reshape(-1, *[1] * (-1 - axis)))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale

    def extra_repr(self) -> str:
        return f"{self.scale.numel()}"


def smooth(
    model: Model,
    data: object,
    *,
    alpha: float = 0.5,
    layers: tuple[type[WeightedLayer], ...] = (nn.Linear,),
    skip: Iterable[str] = (),
    multipliers: bool = True,
) -> Model:
    """SmoothQuant: divide channels of activations that are large, and multiply the weights that read them.

    A channel is divided by ``a ** alpha / w ** (1 - alpha)``, where ``a`` is its largest magnitude in the input, and
    ``w`` that in the weights of all layers that read it. Layers that read the same tensor (q, k, v; gate and up) share
    these scales. Who writes the tensor takes the division:

    - the gain and bias of a norm before the layers, of torch's or one written by hand;
    - the rows of a layer before, where only what passes scales on lies between: the values of attention for the output
      projection, averaged over the query heads that share a head; the ungated half of a gated MLP;
    - else a `ChannelScale` of its own: the layer ``fc`` becomes the two modules ``fc.scale`` and ``fc.layer``.

    The result computes what the model does. A channel that is zero, in the data or in the weights, keeps its scale.

    Args:
        model: a float model, which stays as it is.
        data: for the ranges of activations: a tensor, a tuple of arguments, a dict of keyword arguments, or a list or
            loader of these, which may give labels, too. The first batch is recorded.
        alpha: how much of the range moves into weights: 0 none of an activation's, 1 all of it. 0.5 balances; models
            with strong outliers need 0.75 or more.
        layers: the types of layers to smooth.
        skip: paths of layers to leave, as globs: ``["*.o_proj"]``.
        multipliers: whether to add multipliers where nothing before can take the division.

    Returns:
        A new model. Its ``report`` says for each layer where its division went, with the spread of its input, the
        largest channel relative to the mean of all; or why it was left.

    Raises:
        GraphError: nothing can be smoothed, an ``alpha`` outside of 0 to 1, a glob in ``skip`` that matches nothing,
            or a quantized model.

    References:
        Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models", 2022.

    Example:
        >>> model = nn.Sequential(nn.LayerNorm(2, eps=0), nn.Linear(2, 1, bias=False))
        >>> _ = model[1].weight.data.copy_(torch.tensor([[0.25, 4.0]]))
        >>> smoothed = smooth(model, torch.tensor([[1.0, -1.0]]))
        >>> print(smoothed.report)
        smooth: 1 changed, 0 left
          1  smoothed into 0 (spread before 1, spread after 1.6)
        >>> smoothed[1].weight.tolist(), smoothed[0].weight.tolist()
        ([[0.5, 2.0]], [0.5, 2.0])
    """
    smoothed = float_copy("smooth", model)
    if not 0 <= alpha <= 1:
        raise GraphError(f"smooth: alpha={alpha!r} is not between 0 and 1.")
    calls = batches_of("smooth", model, data)
    wanted = _wanted(model, layers, list(skip))
    graph = record(model, example_of(calls[0]))
    regions = Regions(graph, model, norms=True)
    entries = {path: Entry(path, "left", why_not_multiplied(path, regions)) for path in wanted}
    suited = {path: weighted(model, path) for path in wanted if not entries[path].reason}
    measured = _measured(model, graph, suited, calls)
    groups = [_Group.of(readers, suited, ranges, alpha) for readers, ranges in measured]
    reasons = why_not_divided([group.readers for group in groups], regions)
    held = {group.readers: reasons[group.readers.paths] for group in groups}
    scales = mean_numbers({group.readers: group.numbers for group in groups if held[group.readers] is None}, regions)
    divide(smoothed, regions, scales)
    for group in groups:
        why = held[group.readers]
        numbers = group.numbers if why is not None else scales[regions.sinks[group.readers.paths[0]]]
        for path in group.readers.paths:
            if why is None:
                into = f"smoothed into {', '.join(writers_of(group.readers, regions))}"
                entries[path] = Entry(path, into, "", group.spreads(numbers))
            elif multipliers:
                _multiply(smoothed, path, numbers)
                entries[path] = Entry(path, f"smoothed by {path}.scale", why, group.spreads(numbers))
            else:
                entries[path] = Entry(path, "left", why)
    report = Report("smooth", tuple(entries.values()))
    if not report.changed:
        raise GraphError(f"smooth: nothing to smooth. {listed(report.left) or _none_of(layers)}")
    check_same("smooth", model, smoothed, example_of(calls[0]))
    return with_report(smoothed, report)


def _none_of(layers: tuple[type[nn.Module], ...]) -> str:
    return f"The model has no layer of type {' or '.join(each.__name__ for each in layers)} that is not skipped."


def _wanted(model: nn.Module, layers: tuple[type[WeightedLayer], ...], skip: list[str]) -> list[str]:
    """The paths of the layers to smooth."""
    found = [path for path, module in model.named_modules() if isinstance(module, layers)]
    for glob in skip:
        if not any(fnmatchcase(path, glob) for path in found):
            raise GraphError(f"smooth: skip={glob!r} matches no layer. The layers are {', '.join(found) or 'none'}.")
    return [path for path in found if not any(fnmatchcase(path, glob) for glob in skip)]


# What is read


def _measured(
    model: nn.Module, graph: Graph, layers: dict[str, WeightedLayer], calls: list[Call]
) -> list[tuple[Readers, Tensor]]:
    """The layers that share an input, and the largest magnitude of each of its channels over the data."""
    ranges = {path: torch.zeros(channels_of(layer, "inputs"), dtype=torch.float64) for path, layer in layers.items()}

    def measure(path: str, x: Tensor) -> None:
        axis = channel_axis(layers[path], x.ndim)
        if not x.numel():
            return
        largest = x.detach().abs().amax([dim for dim in range(x.ndim) if dim != axis]).double().cpu()
        ranges[path] = torch.maximum(ranges[path], largest)

    with ExitStack() as handles, untouched(calls, model):
        for path, layer in layers.items():
            handle = layer.register_forward_pre_hook(
                lambda _, args, kwargs, path=path: measure(path, args[0] if args else kwargs["input"]), with_kwargs=True
            )
            handles.callback(handle.remove)
        for args, kwargs in calls:
            model(*args, **kwargs)
    if distributed():
        ranges = {path: highest(each.to(layers[path].weight.device)).cpu() for path, each in ranges.items()}
    groups = readers_of(graph, list(layers))
    return [(group, torch.stack([ranges[path] for path in group.paths]).amax(0)) for group in groups]


@dataclass(frozen=True)
class _Group:
    """Layers that read the same tensor, and what divides it.

    Attributes:
        readers: the layers.
        ranges: the largest magnitude of each channel of the tensor.
        numbers: what divides each channel.
    """

    readers: Readers
    ranges: Tensor
    numbers: Tensor

    @classmethod
    def of(cls, readers: Readers, layers: dict[str, WeightedLayer], ranges: Tensor, alpha: float) -> "_Group":
        of_weights = [channel_maxima(layers[path], "inputs", magnitudes(layers[path])) for path in readers.paths]
        weights = torch.stack(of_weights).amax(0)
        numbers = ranges**alpha / weights ** (1 - alpha)
        usable = (ranges > 0) & (weights > 0) & numbers.isfinite()
        return cls(readers, ranges, numbers.where(usable, 1).clamp(1 / LARGEST, LARGEST))

    def spreads(self, numbers: Tensor) -> dict[str, float]:
        """The largest channel relative to the mean of all, before and after the division."""
        ranges = (self.ranges, self.ranges / numbers)
        before, after = (float(each.max() / each.mean()) if each.max() > 0 else 1.0 for each in ranges)
        return {"spread before": before, "spread after": after}


def _multiply(model: nn.Module, path: str, numbers: Tensor) -> None:
    """Put a multiplier before a layer."""
    layer = weighted(model, path)
    axis = channel_axis(layer, 10) - 10
    scale = ChannelScale((1 / numbers).to(layer.weight.device, layer.weight.dtype), axis).train(layer.training)
    scale_channels(layer, inputs=1 / scale.scale.double().flatten())
    parts = nn.Sequential(OrderedDict(scale=scale, layer=layer)).train(layer.training)
    for parent in list(model.modules()):
        if isinstance(parent, nn.TransformerEncoderLayer) and any(child is layer for child in parent.children()):
            parent.activation_relu_or_gelu = 0  # its fused path reads the weights and calls no layer
    replace_module(model, layer, parts)

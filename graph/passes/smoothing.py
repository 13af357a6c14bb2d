"""SmoothQuant: outliers of activations moved into weights."""

from collections import OrderedDict
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..errors import GraphError
from ..measuring.batches import batches_of
from ..recording.examples import Call
from ..recording.nodes import Graph, Node, Source
from ..recording.recorder import record
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
    entries = {path: Entry(path, "left", _why_left(path, regions)) for path in wanted}
    suited = {path: weighted(model, path) for path in wanted if not entries[path].reason}
    groups = [
        _Group.of(paths, node, suited, ranges, alpha) for paths, node, ranges in _measured(model, graph, suited, calls)
    ]
    reasons = _why_not_divided(groups, regions)
    scales = _scales([group for group in groups if reasons[group.paths] is None], regions)
    _rescale(smoothed, regions, scales)
    for group in groups:
        why = reasons[group.paths]
        numbers = group.numbers if why is not None else scales[regions.sinks[group.paths[0]]]
        writers = [path for path in regions.sources if why is None and group.reads(regions.sources[path], regions)]
        for path in group.paths:
            if why is None:
                entries[path] = Entry(path, f"smoothed into {', '.join(writers)}", "", group.spreads(numbers))
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


def _why_left(path: str, regions: Regions) -> str:
    """Why the columns of a layer can't be multiplied; empty if they can."""
    calls = regions.graph.calls(path)
    if not calls:
        return "no example reaches it"
    if any(not call.inputs or call.inputs[0] is None for call in calls):
        return "it reads a constant"
    why_not = regions.ownership.why_not(path)
    return "" if why_not is None else f"it {why_not}"


# What is read


def _measured(
    model: nn.Module, graph: Graph, layers: dict[str, WeightedLayer], calls: list[Call]
) -> list[tuple[tuple[str, ...], Node, Tensor]]:
    """The layers that share an input, what that comes from, and the largest magnitude of each channel over the data."""
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
    groups = _sharing(graph, list(layers))
    return [(paths, node, torch.stack([ranges[path] for path in paths]).amax(0)) for paths, node in groups]


def _sharing(graph: Graph, paths: list[str]) -> list[tuple[tuple[str, ...], Node]]:
    """The layers in groups that read the same tensor, and what that comes from."""
    groups: list[tuple[set[str], set[Source]]] = []
    for path in paths:
        members, edges = {path}, {source for call in graph.calls(path) for source in call.sources[:1]}
        for group in [each for each in groups if each[1] & edges]:
            groups.remove(group)
            members, edges = members | group[0], edges | group[1]
        groups.append((members, edges))
    first = [min((node for node, _ in edges), key=lambda node: node.index) for _, edges in groups]
    found = [tuple(path for path in paths if path in members) for members, _ in groups]
    return sorted(zip(found, first, strict=True), key=lambda each: paths.index(each[0][0]))


@dataclass(frozen=True)
class _Group:
    """Layers that read the same tensor.

    Attributes:
        paths: the layers.
        source: what the tensor comes from.
        ranges: the largest magnitude of each channel of the tensor.
        numbers: what divides each channel.
    """

    paths: tuple[str, ...]
    source: Node
    ranges: Tensor
    numbers: Tensor

    @classmethod
    def of(
        cls, paths: tuple[str, ...], source: Node, layers: dict[str, WeightedLayer], ranges: Tensor, alpha: float
    ) -> "_Group":
        weights = torch.stack([channel_maxima(layers[path], "inputs", magnitudes(layers[path])) for path in paths])
        numbers = ranges**alpha / weights.amax(0) ** (1 - alpha)
        usable = (ranges > 0) & (weights.amax(0) > 0) & numbers.isfinite()
        return cls(paths, source, ranges, numbers.where(usable, 1).clamp(1 / LARGEST, LARGEST))

    def reads(self, classes: Tensor, regions: Regions) -> bool:
        """Whether any of some scales is of a channel that the layers read."""
        return bool(torch.isin(classes, regions.sinks[self.paths[0]]).any())

    def spreads(self, numbers: Tensor) -> dict[str, float]:
        """The largest channel relative to the mean of all, before and after the division."""
        ranges = (self.ranges, self.ranges / numbers)
        before, after = (float(each.max() / each.mean()) if each.max() > 0 else 1.0 for each in ranges)
        return {"spread before": before, "spread after": after}


# Who divides


def _why_not_divided(groups: list[_Group], regions: Regions) -> dict[tuple[str, ...], str | None]:
    """For the layers of each group why what writes their input can't divide it; None if it can."""
    reasons = {group.paths: _why_held(group, regions) for group in groups}
    while True:
        smoothed = {path for paths, why in reasons.items() if why is None for path in paths}
        others = {path: regions.sinks[path] for path in regions.sinks if path not in smoothed}
        before = dict(reasons)
        for group in groups:
            if reasons[group.paths] is None:
                readers = [path for path, classes in others.items() if group.reads(classes, regions)]
                reasons[group.paths] = f"{readers[0]} reads its input, too" if readers else None
        if reasons == before:
            return reasons


def _why_held(group: _Group, regions: Regions) -> str | None:
    """Why no scale of the input of a group is free."""
    if any(path not in regions.layers for path in group.paths):
        return "its input is a part of a tensor"
    for number in regions.sinks[group.paths[0]].unique().tolist():
        why = regions.classes.why_held(number)
        if why is not None:
            writers = [path for path, classes in regions.sources.items() if number in classes.tolist()]
            came = f"its input comes from {group.source.path} ({group.source.kind})"
            return f"{writers[0]} can't divide, as {why}" if writers else came
    return None


def _scales(groups: list[_Group], regions: Regions) -> Tensor:
    """What divides the channels of each scale: the mean over the channels that have it."""
    sums = torch.zeros(regions.classes.count, dtype=torch.float64)
    counts = torch.zeros_like(sums)
    for group in groups:
        classes = regions.sinks[group.paths[0]]
        sums.index_add_(0, classes, group.numbers)
        counts.index_add_(0, classes, torch.ones_like(group.numbers))
    return torch.where(counts > 0, sums / counts.clamp(min=1), 1)


@torch.no_grad()
def _rescale(model: nn.Module, regions: Regions, scales: Tensor) -> None:
    """Divide what layers, norms and gains write, and multiply the columns of layers that read it."""
    for path in regions.layers:
        outputs, inputs = 1 / scales[regions.sources[path]], scales[regions.sinks[path]]
        if bool((outputs != 1).any() | (inputs != 1).any()):
            scale_channels(weighted(model, path), outputs, inputs)
    for path, classes in regions.sources.items():
        if path in regions.layers or not bool((scales[classes] != 1).any()):
            continue
        gains = (
            [model.get_parameter(path)] if path in regions.parameters else model.get_submodule(path).parameters(False)
        )
        for gain in gains:
            gain.copy_(gain.double() / scales[classes].to(gain.device))


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

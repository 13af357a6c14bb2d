"""Layers that read the same tensor, and who may divide it for them: what smoothing methods have in common."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..recording.nodes import Graph, Node, Source
from .regions import Regions
from .weights import scale_channels, weighted

__all__ = ["Readers", "divide", "mean_numbers", "readers_of", "why_not_divided", "why_not_multiplied", "writers_of"]


@dataclass(frozen=True)
class Readers:
    """Layers that read the same tensor.

    Attributes:
        paths: the layers.
        source: what the tensor comes from.

    Example:
        >>> from bitwright.graph.recording.recorder import record
        >>> model = nn.Sequential(nn.LayerNorm(2), nn.Linear(2, 2))
        >>> [(each.paths, each.source.path) for each in readers_of(record(model, torch.ones(1, 2)), ["1"])]
        [(('1',), '0')]
    """

    paths: tuple[str, ...]
    source: Node

    def read(self, classes: Tensor, regions: Regions) -> bool:
        """Whether any of some scales is of a channel that the layers read."""
        return bool(torch.isin(classes, regions.sinks[self.paths[0]]).any())


def readers_of(graph: Graph, paths: Sequence[str]) -> list[Readers]:
    """The layers in groups that read the same tensor, in the order of the paths."""
    groups: list[tuple[set[str], set[Source]]] = []
    for path in paths:
        members, edges = {path}, {source for call in graph.calls(path) for source in call.sources[:1]}
        for group in [each for each in groups if each[1] & edges]:
            groups.remove(group)
            members, edges = members | group[0], edges | group[1]
        groups.append((members, edges))
    found = [
        Readers(
            tuple(path for path in paths if path in members),
            min((node for node, _ in edges), key=lambda node: node.index),
        )
        for members, edges in groups
    ]
    return sorted(found, key=lambda each: paths.index(each.paths[0]))


def why_not_multiplied(path: str, regions: Regions) -> str:
    """Why the columns of a layer can't be multiplied; empty if they can."""
    calls = regions.graph.calls(path)
    if not calls:
        return "no example reaches it"
    if any(not call.inputs or call.inputs[0] is None for call in calls):
        return "it reads a constant"
    why_not = regions.ownership.why_not(path)
    return "" if why_not is None else f"it {why_not}"


def why_not_divided(groups: Sequence[Readers], regions: Regions) -> dict[tuple[str, ...], str | None]:
    """For the layers of each group why what writes their input can't divide it; None if it can."""
    reasons = {group.paths: _why_held(group, regions) for group in groups}
    while True:
        divided = {path for paths, why in reasons.items() if why is None for path in paths}
        others = {path: regions.sinks[path] for path in regions.sinks if path not in divided}
        before = dict(reasons)
        for group in groups:
            if reasons[group.paths] is None:
                readers = [path for path, classes in others.items() if group.read(classes, regions)]
                reasons[group.paths] = f"{readers[0]} reads its input, too" if readers else None
        if reasons == before:
            return reasons


def _why_held(group: Readers, regions: Regions) -> str | None:
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


def writers_of(group: Readers, regions: Regions) -> list[str]:
    """The paths of what writes the input of a group: layers, norms, and parameters that are gains."""
    return [path for path, classes in regions.sources.items() if group.read(classes, regions)]


def mean_numbers(numbers: Mapping[Readers, Tensor], regions: Regions) -> Tensor:
    """What divides the channels of each scale: the mean of the numbers of all channels that have it."""
    sums = torch.zeros(regions.classes.count, dtype=torch.float64)
    counts = torch.zeros_like(sums)
    for group, each in numbers.items():
        classes = regions.sinks[group.paths[0]]
        sums.index_add_(0, classes, each)
        counts.index_add_(0, classes, torch.ones_like(each))
    return torch.where(counts > 0, sums / counts.clamp(min=1), 1)


@torch.no_grad()
def divide(model: nn.Module, regions: Regions, scales: Tensor) -> None:
    """Divide what layers, norms and gains write, and multiply the columns of layers that read it, in place.

    Args:
        model: with the paths of the recorded model.
        regions: of the recorded model.
        scales: a number for each scale.
    """
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

"""Cross-layer equalization: ranges of channels made alike without changing what a model computes."""

from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from ..errors import GraphError
from ..recording.recorder import record
from ..regions.regions import Region, Regions
from ..regions.weights import Side, channel_maxima, magnitudes, per_channel, scale_channels, weighted
from .models import Examples, check_same, float_copy, replace_module, with_report
from .reports import Entry, Report, listed

__all__ = ["equalize"]

Model = TypeVar("Model", bound=nn.Module)


def equalize(
    model: Model,
    examples: Examples,
    *,
    relu6: Literal["keep", "replace"] = "keep",
    sweeps: int = 100,
    tolerance: float = 1e-6,
) -> Model:
    """Cross-layer equalization: scale channels between layers so that the ranges of their weights are alike.

    A channel that one layer writes and others read can be divided by a number on one side and multiplied by it on the
    other. The numbers are chosen so that the largest magnitude of each channel is the same on both sides, over
    all writers and all readers of the channel: pairs, convolutions with a depthwise one between (solved at once),
    chains, residual sums, concatenations. Regions that share layers are solved in turn, until no number moves.

    The result computes what the model does. Scales pass through ReLU, leaky ReLU and PReLU, pooling, resizing, dropout,
    reshaping; not through GELU, SiLU, ReLU6. It helps weights with one scale for a whole tensor. Fold BatchNorms first;
    choose the grids of weights after it.

    Args:
        model: a float model, which stays as it is.
        examples: inputs for the recording: a tensor, a tuple of arguments, a dict of keyword arguments, or a list of
            these.
        relu6: "replace" puts an ``nn.ReLU`` in the place of each ``nn.ReLU6`` between layers that are equalized. This
            changes what the model computes where activations exceed 6.
        sweeps: passes over all regions at most.
        tolerance: the largest relative change of a scale at which sweeps end.

    Returns:
        A new model. Its ``report`` says for each layer what it was equalized with, or why its output was left; with the
        balance of its output channels, the mean of their ranges relative to the largest.

    Raises:
        GraphError: nothing can be equalized, for the reasons that the message lists; or the model is quantized.

    References:
        Nagel et al., "Data-Free Quantization through Weight Equalization and Bias Correction", 2019.

    Example:
        >>> model = nn.Sequential(nn.Linear(1, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False))
        >>> _ = model[0].weight.data.copy_(torch.tensor([[8.0], [1.0]]))
        >>> _ = model[2].weight.data.copy_(torch.tensor([[2.0, 1.0]]))
        >>> equalized = equalize(model, torch.ones(1, 1))
        >>> equalized[0].weight.flatten().tolist(), equalized[2].weight.flatten().tolist()
        ([4.0, 1.0], [4.0, 1.0])
        >>> print(equalized.report)
        equalize: 2 changed, 0 left
          0  equalized outputs with 2 (balance before 0.5625, balance after 0.625)
          2  equalized inputs with 0: the model returns its output
    """
    if relu6 not in ("keep", "replace"):
        raise GraphError(f'equalize: relu6={relu6!r} is neither "keep" nor "replace".')
    equalized = float_copy("equalize", model)
    regions = Regions(record(model, examples), model, relu6=relu6 == "replace")
    free = regions.free()
    if not free:
        said = listed(_entries(model, regions, [], None)) or "The model has no convolution or linear layer."
        raise GraphError(f"equalize: nothing to equalize. {said}")
    solver = _Solver(regions, free)
    solver.solve(sweeps, tolerance)
    reference = float_copy("equalize", model)
    replaced = _replace_relu6(regions, free, reference, equalized)
    entries = [*_entries(model, regions, free, solver), *(Entry(path, "replaced by ReLU") for path in replaced)]
    for path in regions.layers:
        outputs, inputs = 1 / solver.scales[regions.sources[path]], solver.scales[regions.sinks[path]]
        scale_channels(weighted(equalized, path), outputs, inputs)
    check_same("equalize", reference, equalized, examples)
    return with_report(equalized, Report("equalize", tuple(entries)))


def _replace_relu6(regions: Regions, free: list[Region], *models: nn.Module) -> list[str]:
    """Put a ReLU in the place of each ReLU6 that scales pass through; their paths."""
    numbers = {each for region in free for each in region.classes.tolist()}
    paths = [node.path for node, classes in regions.relu6 if numbers & set(classes.tolist())]
    for model in models:
        for path in dict.fromkeys(paths):
            module = model.get_submodule(path)
            assert isinstance(module, nn.ReLU6)
            replace_module(model, module, nn.ReLU(module.inplace).train(module.training))
    return list(dict.fromkeys(paths))


def _entries(model: nn.Module, regions: Regions, free: list[Region], solver: "_Solver | None") -> list[Entry]:
    entries: list[Entry] = []
    for path, module in model.named_modules():
        if not isinstance(module, (nn.Linear, _ConvNd)):
            continue
        if path not in regions.sources:
            entries.append(Entry(path, "left", "no example reaches it"))
            continue
        readers = dict.fromkeys(sink for region in free if path in region.sources for sink in region.sinks)
        writers = dict.fromkeys(source for region in free if path in region.sinks for source in region.sources)
        parts = [f"outputs with {', '.join(readers)}"] if readers else []
        parts += [f"inputs with {', '.join(writers)}"] if writers else []
        why = regions.why_held(path) or ""
        if not parts or solver is None:
            entries.append(Entry(path, "left", why))
            continue
        figures = {"balance before": solver.before[path], "balance after": solver.balance(path)} if readers else {}
        entries.append(Entry(path, f"equalized {', '.join(parts)}", why, figures))
    return entries


@dataclass(frozen=True)
class _Chain:
    """Regions one after the other with a depthwise convolution between each two; mostly a single region.

    Attributes:
        regions: in order.
        numbers: for each region the scales of its channels, in the order of the depthwise convolutions' channels.
        between: the paths of the depthwise convolutions.
    """

    regions: tuple[Region, ...]
    numbers: tuple[Tensor, ...]
    between: tuple[str, ...]


class _Solver:
    """Chooses scales: outputs of a layer are divided by them, inputs multiplied."""

    def __init__(self, regions: Regions, free: list[Region]) -> None:
        self.regions = regions
        self.layers = regions.layers
        self.matrices = {path: magnitudes(layer) for path, layer in self.layers.items()}
        self.scales = torch.ones(regions.classes.count, dtype=torch.float64)
        self.chains = _chains(regions, free)
        self.before = {path: self.balance(path) for path in self.layers}

    def solve(self, sweeps: int, tolerance: float) -> None:
        """Sweep over all chains until no scale moves by more than the tolerance."""
        for _ in range(sweeps):
            if max(self._equalize(chain) for chain in self.chains) <= tolerance:
                return

    def _equalize(self, chain: _Chain) -> float:
        """Solve one chain with all else as it is; the largest relative change of a scale."""
        first, last = chain.regions[0], chain.regions[-1]
        ranges = [self._range_of(first.sources, "outputs")[chain.numbers[0]]]
        ranges += [self.range(path, "outputs") for path in chain.between]
        ranges += [self._range_of(last.sinks, "inputs")[chain.numbers[-1]]]
        stacked = torch.stack(ranges)  # (ranges, channels)
        usable = (stacked > SMALLEST * stacked.amax(1, keepdim=True)).all(0)
        target = stacked.where(usable, 1).log().mean(0).exp()
        moved, largest = torch.ones_like(target), 0.0
        for numbers, each in zip(chain.numbers, stacked, strict=False):  # the last range is met by the others
            moved = torch.where(usable, moved * each / target, 1)
            self.scales[numbers] *= moved
            largest = max(largest, float(moved.log().abs().max()))
        return largest

    def _range_of(self, paths: tuple[str, ...], side: Side) -> Tensor:
        """The largest magnitude that the layers have for each scale."""
        held = self.regions.sources if side == "outputs" else self.regions.sinks
        ranges = torch.zeros_like(self.scales)
        for path in paths:
            ranges.scatter_reduce_(0, held[path], self.range(path, side), "amax")
        return ranges

    def range(self, path: str, side: Side) -> Tensor:
        """The largest magnitude of each channel of a layer's weight, with the scales so far."""
        layer, matrix = self.layers[path], self.matrices[path]
        matrix = matrix * per_channel(layer, "outputs", 1 / self.scales[self.regions.sources[path]], 2)
        matrix = matrix * per_channel(layer, "inputs", self.scales[self.regions.sinks[path]], 2)
        return channel_maxima(layer, side, matrix)

    def balance(self, path: str) -> float:
        """The mean range of a layer's output channels, relative to the largest."""
        ranges = self.range(path, "outputs")
        return float(ranges.mean() / ranges.max()) if ranges.max() > 0 else 1.0


SMALLEST = 1e-9  # of the largest range: channels below it are left alone


def _chains(regions: Regions, free: list[Region]) -> list[_Chain]:
    following = {region.sources[0]: region for region in free if len(region.sources) == 1}
    links: dict[int, str] = {}  # from the number of a region to the depthwise convolution behind it
    for number, region in enumerate(free):
        behind = following.get(region.sinks[0])
        if len(region.sinks) == 1 and behind is not None and _joins(regions, region, region.sinks[0], behind):
            links[number] = region.sinks[0]
    numbers = {id(region): number for number, region in enumerate(free)}
    targets = {numbers[id(following[path])] for path in links.values()}
    chains: list[_Chain] = []
    for start in range(len(free)):
        if start in targets:
            continue
        members, between = [start], []
        while members[-1] in links:
            between.append(links[members[-1]])
            members.append(numbers[id(following[between[-1]])])
        scales = [regions.sinks[path] for path in between]
        scales.append(regions.sources[between[-1]] if between else free[start].classes)
        chains.append(_Chain(tuple(free[each] for each in members), tuple(scales), tuple(between)))
    return chains


def _joins(regions: Regions, region: Region, path: str, behind: Region) -> bool:
    """Whether a layer is a depthwise convolution that leads each channel of one region to one of another."""
    layer = regions.modules[path]
    if (
        not isinstance(layer, _ConvNd)
        or not layer.groups == layer.in_channels == layer.out_channels
        or layer.groups == 1
    ):
        return False
    read, written = regions.sinks[path], regions.sources[path]
    return len(region.classes) == len(read) == len(written) == len(behind.classes) and region is not behind

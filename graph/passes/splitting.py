"""Outlier channel splitting: channels with the largest weights are halved and repeated."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from ..errors import GraphError
from ..recording.kinds import kind_of
from ..recording.nodes import Node
from ..recording.recorder import record
from ..regions.regions import Region, Regions
from ..regions.weights import Side, WeightedLayer, channel_maxima, magnitudes, weighted
from .models import Examples, check_same, float_copy, with_report
from .reports import Entry, Report, listed

__all__ = ["split_channels"]

Model = TypeVar("Model", bound=nn.Module)


def split_channels(
    model: Model,
    examples: Examples,
    *,
    ratio: float = 0.05,
    split: Literal["inputs", "outputs"] = "inputs",
    skip: Iterable[str] = (),
) -> Model:
    """Outlier channel splitting: halve the channels with the largest weights, and repeat them.

    A channel that is computed twice can be read with half the weight each. The channel with the largest magnitude is
    split, then the one that is largest now, until there are ``ratio`` more: the range of the weights shrinks, and a
    scale for the whole tensor with it. The layers get wider, and the result stays that of the model.

    Args:
        model: a float model, which stays as it is.
        examples: inputs for the recording: a tensor, a tuple of arguments, a dict of keyword arguments, or a list of
            these.
        ratio: new channels in relation to those there are; rounded up.
        split: whose weights are halved: "inputs" those of the layers that read the channel, for layers with large
            columns; "outputs" those of the layers that write it, which halves activations, too.
        skip: paths of layers to leave, as globs.

    Returns:
        A new model. Its ``report`` says for each layer how many channels were split, and how large its weights were and
        are; or why it was left.

    Raises:
        GraphError: nothing can be split, for the reasons that the message lists; a forward that needs the numbers of
            channels as they were; a glob in ``skip`` that matches nothing; or a quantized model.

    References:
        Zhao et al., "Improving Neural Network Quantization without Retraining using Outlier Channel Splitting", 2019.

    Example:
        >>> model = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1))
        >>> _ = model[2].weight.data.copy_(torch.tensor([[8.0, 1.0]]))
        >>> divided = split_channels(model, torch.ones(1, 1), ratio=0.5)
        >>> divided[2].weight.tolist(), divided[0].out_features
        ([[4.0, 1.0, 4.0]], 3)
        >>> print(divided.report)
        split_channels: 2 changed, 0 left
          0  repeats 1 output
          2  halves 1 input (largest before 8, largest after 4)
    """
    divided = float_copy("split_channels", model)
    if not 0 < ratio <= 1:
        raise GraphError(f"split_channels: ratio={ratio!r} is not between 0 and 1.")
    if split not in ("inputs", "outputs"):
        raise GraphError(f'split_channels: split={split!r} is neither "inputs" nor "outputs".')
    regions = Regions(record(model, examples), model)
    skipped = _skipped(regions, list(skip))
    reasons: dict[str, str] = {}
    plans: list[_Plan] = []
    for region in regions.free():
        why = _why_not(regions, region, skipped)
        if why is None:
            plans.append(_Plan.of(regions, region, ratio, split))
        else:
            reasons |= dict.fromkeys(region.sources, why)
    for plan in plans:
        plan.apply(divided, regions)
    report = Report("split_channels", tuple(_entries(model, divided, regions, plans, reasons)))
    if not plans:
        said = listed(report.left) or "The model has no convolution or linear layer."
        raise GraphError(f"split_channels: nothing to split. {said}")
    try:
        check_same("split_channels", model, divided, examples)
    except (RuntimeError, TypeError) as error:
        raise GraphError(
            f"split_channels: the model does not run with more channels ({error}). "
            'Leave out the layers whose number of channels its forward relies on: skip=["..."].'
        ) from None
    return with_report(divided, report)


def _skipped(regions: Regions, skip: list[str]) -> set[str]:
    paths = list(regions.sources)
    for glob in skip:
        if not any(fnmatchcase(path, glob) for path in paths):
            raise GraphError(
                f"split_channels: skip={glob!r} matches no layer. The layers are {', '.join(paths) or 'none'}."
            )
    return {path for path in paths if any(fnmatchcase(path, glob) for glob in skip)}


WIDENING = {"relu", "leaky_relu", "prelu", "identity", "dropout", "contiguous", "max_pool", "avg_pool", "interpolate"}
WIDENING |= {"pad", "mean", "sum", "add", "sub", "reshape", "permute", "squeeze", "unsqueeze"}


def _why_not(regions: Regions, region: Region, skipped: set[str]) -> str | None:
    """Why the channels of a region can't be split."""
    for path in (*region.sources, *region.sinks):
        if path in skipped:
            return f"{path} is skipped"
        if getattr(regions.modules[path], "groups", 1) > 1:
            return f"{path} is grouped"
    order = regions.sources[region.sources[0]]
    if sorted(order.tolist()) != region.classes.tolist():
        return "only some of its channels are free, or several share a scale"
    for path in region.sources:
        if not torch.equal(regions.sources[path], order):
            return f"its channels are in another order than those of {path}"
    for path in region.sinks:
        if not torch.equal(regions.sinks[path], _repeated(order, len(regions.sinks[path]))):
            return f"{path} reads its channels in another order, or others, too"
    narrow = next((node for node in regions.within(region) if not _widens(node, regions)), None)
    return None if narrow is None else f"its output reaches {narrow.path} ({narrow.kind})"


def _repeated(order: Tensor, size: int) -> Tensor:
    """Each channel at as many positions as flattening gives it."""
    return order.repeat_interleave(size // len(order)) if size % len(order) == 0 else order


def _widens(node: Node, regions: Regions) -> bool:
    """Whether an operation takes any number of channels."""
    kind = kind_of(node.function)
    if kind == "mul":
        return len(node.inputs) == 1 and not node.parameters
    slopes = getattr(regions.modules.get(node.module or ""), "num_parameters", 1)
    return kind in WIDENING and slopes == 1 and not (kind == "prelu" and node.module is None)


@dataclass(frozen=True)
class _Plan:
    """How the channels of a region are split.

    Attributes:
        region: the region.
        split: whose weights are halved.
        origins: for each new channel, the channel that it was.
        shares: for each new channel, its part of that channel's weight.
    """

    region: Region
    split: Literal["inputs", "outputs"]
    origins: Tensor
    shares: Tensor

    @classmethod
    def of(cls, regions: Regions, region: Region, ratio: float, split: Literal["inputs", "outputs"]) -> "_Plan":
        """Split the channel with the largest weights as often as asked for."""
        channels = len(region.classes)
        ranges = torch.zeros(channels, dtype=torch.float64)
        for path in region.sources if split == "outputs" else region.sinks:
            layer = regions.layers[path]
            ranges = torch.maximum(
                ranges, channel_maxima(layer, split, magnitudes(layer)).reshape(channels, -1).amax(1)
            )
        sizes, origins, shares = ranges.tolist(), list(range(channels)), [1.0] * channels
        for _ in range(math.ceil(ratio * channels)):
            largest = max(range(len(sizes)), key=sizes.__getitem__)
            for halved in (sizes, shares):
                halved[largest] /= 2
                halved.append(halved[largest])
            origins.append(origins[largest])
        return cls(region, split, torch.tensor(origins), torch.tensor(shares, dtype=torch.float64))

    @property
    def added(self) -> int:
        """The number of new channels."""
        return len(self.origins) - len(self.region.classes)

    def apply(self, model: nn.Module, regions: Regions) -> None:
        """Widen the layers of the region."""
        for path in self.region.sources:
            _widen(weighted(model, path), "outputs", self.origins, self.shares if self.split == "outputs" else None)
        for path in self.region.sinks:
            times = len(regions.sinks[path]) // len(self.region.classes)
            positions = (self.origins[:, None] * times + torch.arange(times)).flatten()
            shares = self.shares.repeat_interleave(times) if self.split == "inputs" else None
            _widen(weighted(model, path), "inputs", positions, shares)


@torch.no_grad()
def _widen(layer: WeightedLayer, side: Side, origins: Tensor, shares: Tensor | None) -> None:
    """Give a layer the channels of an index, each with a share of its weight."""
    axis = int((side == "inputs") != isinstance(layer, _ConvTransposeNd))
    for name, parameter in list(layer._parameters.items()):
        if parameter is None or (name == "bias" and side == "inputs"):
            continue
        dim = axis if name == "weight" else 0
        wide = parameter.detach().index_select(dim, origins.to(parameter.device))
        if shares is not None:
            wide = wide * shares.to(wide).reshape([-1 if each == dim else 1 for each in range(wide.ndim)])
        layer.register_parameter(name, nn.Parameter(wide, parameter.requires_grad))
    if side == "outputs":
        for name in ("folded_mean", "folded_std"):
            kept = layer._buffers.get(name)
            if kept is not None:
                wide = kept[origins.to(kept.device)]
                layer.register_buffer(name, wide if shares is None else wide * shares.to(wide), persistent=False)
    counted = "features" if isinstance(layer, nn.Linear) else "channels"
    setattr(layer, f"{'out' if side == 'outputs' else 'in'}_{counted}", len(origins))


def _entries(
    model: nn.Module, divided: nn.Module, regions: Regions, plans: list[_Plan], reasons: dict[str, str]
) -> list[Entry]:
    entries: list[Entry] = []
    for path, module in model.named_modules():
        if not isinstance(module, (nn.Linear, _ConvNd)):
            continue
        done: list[str] = []
        halved = False
        for plan in plans:
            for side, paths in (("output", plan.region.sources), ("input", plan.region.sinks)):
                if path in paths:
                    halves = plan.split == f"{side}s"
                    halved |= halves
                    done.append(
                        f"{'halves' if halves else 'repeats'} {plan.added} {side}{'s' if plan.added > 1 else ''}"
                    )
        if done:
            before, after = (float(magnitudes(weighted(each, path)).max()) for each in (model, divided))
            figures = {"largest before": before, "largest after": after} if halved else {}
            entries.append(Entry(path, ", ".join(done), "", figures))
        elif path not in regions.sources:
            entries.append(Entry(path, "left", "no example reaches it"))
        else:
            entries.append(Entry(path, "left", reasons.get(path) or regions.why_held(path) or ""))
    return entries

"""The search of AWQ: scales of channels and thresholds for weights, and what becomes of them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from ....nn.contexts.intercepting import quantizers_of
from ....nn.contexts.switching import unquantized
from ...errors import GraphError
from ...passes.models import difference, untouched
from ...passes.reports import Entry
from ...recording.examples import Call
from ...regions.divisions import Readers, divide
from ...regions.weights import WeightedLayer, channels_of, per_channel
from ..problem import Problem
from ..solvers.activation_aware import CANDIDATES, channel_scales, clipping_thresholds, importance, scaled_loss
from .channel_groups import ChannelGroups, Together
from .trials import Trial

__all__ = ["ChannelSearch"]


@dataclass
class Found:
    """What was found for one layer.

    Attributes:
        figures: for the report.
        limits: the thresholds at which its scaled weights are clipped, by scale; None for no clipping.
        index: the scale that each weight has, as matrices.
    """

    figures: dict[str, float] = field(default_factory=dict)
    limits: Tensor | None = None
    index: Tensor | None = None


class ChannelSearch:
    """Scales and thresholds, found as the walk gives the problems."""

    def __init__(self, groups: ChannelGroups, clip: bool, duo_scaling: bool) -> None:
        self.groups, self.clip, self.duo_scaling = groups, clip, duo_scaling
        self.modules = groups.modules
        self.waiting: dict[str, tuple[Problem, Trial]] = {}
        self.found: dict[str, Found] = {}
        self.into: dict[str, tuple[str, ...]] = {}  # the writers that divide, for the layers that are scaled
        self.scales = torch.ones(groups.regions.classes.count, dtype=torch.float64)

    def solve(self, path: str, problem: Problem) -> None:
        """Take a problem, and do what can be done now."""
        if path not in self.groups.sites or path in self.groups.unchanged:
            return
        self.waiting[path] = problem, Trial(self.groups.sites[path])
        together = next((each for each in self.groups.together if path in each.paths), None)
        if together is None:
            self._finish(path, None)
            return
        members = [each for each in together.paths if each in self.groups.sites]
        if all(each in self.waiting for each in members):
            self._scale(together, members)
            for each in members:
                self._finish(each, self._columns(each, self.scales))

    def _scale(self, together: Together, members: Sequence[str]) -> None:
        """Find the scales of layers that are scaled together."""
        tried = {group: self._tried(group) for group in together.groups}
        powers = {path: _power(self.waiting[path][0]) for path in members}
        losses = []
        for number in range(len(next(iter(tried.values())))):
            scales = self.groups.numbers(together, {group: each[number] for group, each in tried.items()})
            loss = 0.0
            for path in members:
                problem, trial = self.waiting[path]
                loss += scaled_loss(problem, self._columns(path, scales), trial.quantized) / powers[path]
            losses.append(loss)
        best = min(range(len(losses)), key=losses.__getitem__)
        for path in members:
            self.found[path] = Found({"exponent": (best - self.duo_scaling) / CANDIDATES if best else 0.0})
        if not best:
            return
        scales = self.groups.numbers(together, {group: each[best] for group, each in tried.items()})
        self.scales = torch.where(scales != 1, scales, self.scales)
        self.into |= dict.fromkeys(members, together.writers)

    def _tried(self, group: Readers) -> Tensor:
        """The sets of scales for the channels of a tensor."""
        members = [path for path in group.paths if path in self.waiting]
        sizes = torch.stack([self._per_channel(path, self.waiting[path][0].diagonal) for path in members])
        weights = None
        if self.duo_scaling:
            shares = [self._per_channel(path, importance([self.waiting[path][0]])) for path in members]
            weights = torch.stack(shares).mean(0)
        return channel_scales(sizes.amax(0).clamp(min=0).sqrt(), weights)

    def _per_channel(self, path: str, columns: Tensor) -> Tensor:
        """The mean of numbers of columns, (G, n), over those of a channel: (channels,), in float64 on the CPU."""
        channels = channels_of(_weighted(self.modules, path), "inputs")
        return columns.double().cpu().reshape(channels, -1).mean(1)

    def _columns(self, path: str, scales: Tensor) -> Tensor:
        """For each column of a layer's matrices what multiplies it: (G, 1, n)."""
        layer = _weighted(self.modules, path)
        numbers = per_channel(layer, "inputs", scales[self.groups.regions.sinks[path]].to(layer.weight.device))
        return self.waiting[path][1].matrix(numbers)[:, :1]

    def _finish(self, path: str, columns: Tensor | None) -> None:
        """Clip a layer, and say how its error has changed."""
        problem, trial = self.waiting.pop(path)
        layer = self.found.setdefault(path, Found())
        power = _power(problem)
        before = float(problem.loss(trial.quantized(problem.weight)).sum())
        scaled = problem
        if columns is not None:
            gram = problem.gram / (columns.mT * columns)
            scaled = replace(problem, weight=problem.weight * columns, gram=gram)
        after = float(scaled.loss(trial.quantized(scaled.weight)).sum())
        if self.clip and not self.groups.is_for_scores(path):
            limits = clipping_thresholds(scaled, trial.quantized)
            bound = scaled.grid.spread(limits)
            clipped = scaled.weight.clamp(-bound, bound)
            loss = float(scaled.loss(trial.quantized(clipped)).sum())
            if loss < after:
                layer.limits, layer.index, after = limits, scaled.grid.index, loss
                layer.figures["clipped"] = float((clipped != scaled.weight).double().mean())
        layer.figures |= {"before": before / power, "after": after / power, "rows": float(problem.rows)}

    def explained(self, entry: Entry, reasons: Mapping[str, str]) -> Entry:
        """What was done to a layer, or why nothing was."""
        path = entry.path
        layer = self.found.get(path)
        if layer is None:
            why = reasons.get(path) or self.groups.reasons.get(path) or self._lacking(path) or entry.reason
            return replace(entry, action="left", reason=why, figures={})
        into, clipped = self.into.get(path), layer.limits is not None
        why = "" if into else self.groups.reasons.get(path, "no scales are better than none")
        done = [f"scaled into {', '.join(into)}"] if into else []
        return Entry(path, ", ".join([*done, "clipped"] if clipped else done) or "left", why, layer.figures)

    def _lacking(self, path: str) -> str:
        """Why a layer still waits for others."""
        members = next((each.paths for each in self.groups.together if path in each.paths), ())
        lacking = [each for each in members if each in self.groups.sites and each not in self.waiting]
        return f"{lacking[0]} reads its input, too, and is left" if path in self.waiting and lacking else ""

    @torch.no_grad()
    def apply(self, model: nn.Module, calls: Sequence[Call]) -> None:
        """Write what was found into the model.

        Args:
            model: to change.
            calls: what the float model must still give the same for: the first of them, or all where the recording of
                the first has not seen all layers, any of which may read what is divided.

        Raises:
            GraphError: with its scales, the float model would no longer compute what it did.
        """
        regions = self.groups.regions
        limited = {path: layer for path, layer in self.found.items() if layer.limits is not None}
        touched = {path for path in (*regions.layers, *regions.sources) if self._changes(path)} | set(limited)
        checked = calls if self.groups.unreached else calls[:1]
        expected = [_floats(model, call) for call in checked]
        with _restored_on_failure(model, touched):
            divide(model, regions, self.scales)
            apart, tolerance = difference(expected, [_floats(model, call) for call in checked])
            if apart > tolerance:
                raise GraphError(
                    f"awq: with scales, the float model is no longer the same: it differs by {apart:.2g} of the "
                    "largest output. The model was not changed. A layer reads weights in a way that recording does "
                    "not see, or the first batch, which is recorded, does not reach it; leave it out: skip."
                )
            for path, layer in limited.items():
                self._clip(path, layer)
            for path in touched:
                for each in quantizers_of(model.get_submodule(path)).values() if path in self.modules else ():
                    if each.of_parameter:
                        each.rederive()

    def _changes(self, path: str) -> bool:
        regions = self.groups.regions
        classes = [held[path] for held in (regions.sources, regions.sinks) if path in held]
        return any(bool((self.scales[each] != 1).any()) for each in classes)

    def _clip(self, path: str, layer: Found) -> None:
        module, trial = _weighted(self.modules, path), Trial(self.groups.sites[path])
        assert layer.limits is not None
        assert layer.index is not None
        bound = trial.stored(layer.limits[layer.index].expand(trial.weight.shape).double())
        if path in self.groups.regions.layers:
            rows = self.scales[self.groups.regions.sources[path]].to(bound.device)
            bound = bound / per_channel(module, "outputs", rows)
        bound = bound.to(module.weight.dtype)
        module.weight.clamp_(-bound, bound)


def _weighted(modules: Mapping[str, nn.Module], path: str) -> WeightedLayer:
    found = modules[path]
    assert isinstance(found, nn.Linear | _ConvNd)
    return found


def _power(problem: Problem) -> float:
    """The power of the outputs; 1 where there is none."""
    return float(problem.loss(torch.zeros_like(problem.weight)).sum()) or 1.0


def _floats(model: nn.Module, call: Call) -> object:
    """What the model computes with its quantizers off."""
    with untouched([call], model), unquantized(model):
        return model(*call[0], **call[1])


@contextmanager
def _restored_on_failure(model: nn.Module, paths: Iterable[str]) -> Iterator[None]:
    """The parameters and buffers of modules, or parameters by themselves, are as before if the block raises."""
    parameters, modules = dict(model.named_parameters()), dict(model.named_modules())
    held = [
        tensor
        for path in paths
        for tensor in (
            [*modules[path].parameters(False), *modules[path].buffers(False)] if path in modules else [parameters[path]]
        )
    ]
    before = [(tensor, tensor.detach().clone()) for tensor in held]
    try:
        yield
    except BaseException:
        with torch.no_grad():
            for tensor, former in before:
                tensor.copy_(former)
        raise

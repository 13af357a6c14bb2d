"""AWQ: channels that see large activations get finer weights, by scales that the layers before undo."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from ....nn.contexts.intercepting import intercepted, quantizers_of
from ....nn.contexts.switching import unquantized
from ....qcore import Grid, TensorQuant
from ....qcore.models import require_model
from ....qcore.tensor_quant import Intercept
from ...errors import GraphError
from ...measuring.batches import batches_of
from ...passes.models import difference, example_of, untouched
from ...passes.reports import Entry, listed
from ...recording.examples import Call
from ...regions.divisions import Readers, divide
from ...regions.weights import WeightedLayer, channels_of, per_channel
from ..problem import Problem
from ..reports import LayerwiseReport
from ..solvers.activation_aware import channel_scales, clipping_thresholds, importance, scaled_loss
from ..walking.sites import Site, sites_of
from ..walking.walk import walk_blocks
from .channel_groups import ChannelGroups, Together
from .layers import why_no_product
from .trials import Trial

__all__ = ["awq"]


def awq(
    model: nn.Module,
    data: object,
    *,
    clip: bool = True,
    duo_scaling: bool = False,
    skip: Iterable[str] = (),
    blocks: Sequence[str] | None = None,
    mask: str | None = "attention_mask",
    rows: int | None = None,
    wait_on: str | Path = "device",
    progress: bool = True,
) -> LayerwiseReport:
    """AWQ: multiply the weights of input channels that see large activations, which quantizes them more finely.

    What writes these channels is divided by the same scales: a norm before the layers, or the rows of a layer before,
    as `smooth` does; so the float model computes what it did. Layers that read one tensor (q, k, v; gate and up) have
    scales in common. The scales are ``m ** a``, where m is the root mean square of a channel's activations, with the a
    of 0, 0.05 ... 0.95 that brings the outputs of these layers nearest to the float ones, each relative to its power.
    a = 0 is no scaling: in its own loss, AWQ is never worse than rounding.

    Then the largest weights of each group, or row, are clipped where that brings the output of the layer nearer; not
    for layers whose output goes into attention scores (q, k). MiniLM at 4 bits gains 3.2 dB with a scale for each row,
    6.7 to 9.9, and 1.9 with one for each 32 weights, 10.0 to 11.9, nearly all of it by clipping, as its norms come last
    and can't be divided.

    AWQ chooses no codes: weights stay floats, and grids follow them, fixed ones too; `gptq` may round them afterwards.
    From then on scaled and clipped weights are the model's float weights: call what comes next without ``reference``.
    Calibrated ranges of activations don't survive a division; where there are some, layers are only clipped. Call
    `smooth` on the float model instead.

    The model is changed in place, and it is as it was if anything fails.

    Args:
        model: a quantized model.
        data: one batch, or an iterable of batches, as for `walk_blocks`; the inputs that count are those in the float
            model. The first batch is recorded.
        clip: whether weights are clipped.
        duo_scaling: divide the scales by ``w ** (1 - a)`` besides, where w is the mean magnitude of a channel's weights
            relative to the largest of their group.
        skip: paths of layers to leave, as globs: ``["*.o_proj"]``.
        blocks: paths of the blocks that the walk goes through, see `walk_blocks`.
        mask: the keyword argument that says which tokens count.
        rows: how many inputs of a layer are used at most.
        wait_on: where the inputs of a block wait while others run.
        progress: whether a bar shows how far it has come.

    Returns:
        An entry for every weight with a quantizer: where its scales went, or why it has none; the error of its layer's
        output before and after, as a share of its power; the exponent; and the share of weights ``clipped``.

    Raises:
        GraphError: what `walk_blocks` raises, a glob in ``skip`` that matches nothing, or a model in which nothing was
            changed.

    References:
        Lin et al., "AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration", 2023.

    Example:
        >>> import bitwright.nn as qnn
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.LayerNorm(8), qnn.QuantLinear(8, 8, weight_bit_width=3)).eval()
        >>> _ = model[0].weight.data.copy_(torch.tensor([20.0, 1, 1, 1, 1, 1, 1, 1]))
        >>> report = awq(model, torch.randn(64, 8))
        >>> report["1"].action, report["1"].figures["after"] < 0.5 * report["1"].figures["before"]
        ('scaled into 0, clipped', True)
    """
    require_model("awq", model, GraphError)
    calls = batches_of("awq", model, data)
    sites = {site.path: site for site in sites_of(model)}
    reasons = {path: why for path, site in sites.items() if (why := _why_not(site)) is not None}
    reasons |= dict.fromkeys(_skipped(sites, list(skip)), "skipped")
    suited = {path: site for path, site in sites.items() if path not in reasons}
    groups = ChannelGroups(model, example_of(calls[0]), suited, [path for path in reasons if path in sites])
    search = _Search(groups, clip, duo_scaling)
    known = {site.quant for site in sites.values() if site.why_not() is None}
    with intercepted(quantizers_of(model), lambda path: _floats_on(known)):
        walked = walk_blocks(
            model,
            [example_of(call) for call in calls],
            search.solve,
            float_inputs=False,
            blocks=blocks,
            mask=mask,
            rows=rows,
            wait_on=wait_on,
            progress=progress,
            name="awq",
        )
    report = LayerwiseReport("awq", tuple(search.explained(entry, reasons) for entry in walked))
    if not report.changed:
        raise GraphError(f"awq: nothing to change. {listed(report.left)}")
    search.apply(model, calls[0])
    return report


def _why_not(site: Site) -> str | None:
    """Why a layer can't be worked on; None if it can."""
    if site.layer._modules.get("correction") is not None:
        return "it has a correction, which fits its weight as it is; remove it first, del layer.correction"
    return site.why_not() or why_no_product(site)


def _skipped(paths: Iterable[str], skip: Sequence[str]) -> list[str]:
    paths = list(paths)
    for glob in skip:
        if not any(fnmatchcase(path, glob) for path in paths):
            raise GraphError(f"awq: skip={glob!r} matches no layer. The layers are {', '.join(paths) or 'none'}.")
    return [path for path in paths if any(fnmatchcase(path, glob) for glob in skip)]


def _floats_on(known: set[TensorQuant]) -> Intercept:
    """What stands in for quantizers: values pass, and weights say their grid besides."""

    def passing(quant: TensorQuant, x: Tensor, *context: object) -> tuple[Tensor, Grid | None]:
        return x, quant._quantize(x, *context)[1] if quant in known else None

    return passing


@dataclass
class _Layer:
    """What was found for one layer.

    Attributes:
        figures: for the report.
        limits: the thresholds at which its scaled weights are clipped, by scale; None for no clipping.
        index: the scale that each weight has, as matrices.
    """

    figures: dict[str, float] = field(default_factory=dict)
    limits: Tensor | None = None
    index: Tensor | None = None


class _Search:
    """Scales and thresholds, found as the walk gives the problems."""

    def __init__(self, groups: ChannelGroups, clip: bool, duo_scaling: bool) -> None:
        self.groups, self.clip, self.duo_scaling = groups, clip, duo_scaling
        self.modules = groups.modules
        self.waiting: dict[str, tuple[Problem, Trial]] = {}
        self.found: dict[str, _Layer] = {}
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
            self.found[path] = _Layer({"exponent": (best - self.duo_scaling) / 20 if best else 0.0})
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
        channels = channels_of(_layer(self.modules, path), "inputs")
        return columns.double().cpu().reshape(channels, -1).mean(1)

    def _columns(self, path: str, scales: Tensor) -> Tensor:
        """For each column of a layer's matrices what multiplies it: (G, 1, n)."""
        layer = _layer(self.modules, path)
        numbers = per_channel(layer, "inputs", scales[self.groups.regions.sinks[path]].to(layer.weight.device))
        return self.waiting[path][1].matrix(numbers)[:, :1]

    def _finish(self, path: str, columns: Tensor | None) -> None:
        """Clip a layer, and say how its error has changed."""
        problem, trial = self.waiting.pop(path)
        layer = self.found.setdefault(path, _Layer())
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
            why = reasons.get(path) or self.groups.reasons.get(path) or entry.reason
            return replace(entry, action="left", reason=why, figures={})
        into, clipped = self.into.get(path), layer.limits is not None
        why = "" if into else self.groups.reasons.get(path, "no scales are better than none")
        done = [f"scaled into {', '.join(into)}"] if into else []
        return Entry(path, ", ".join([*done, "clipped"] if clipped else done) or "left", why, layer.figures)

    @torch.no_grad()
    def apply(self, model: nn.Module, call: Call) -> None:
        """Write what was found into the model.

        Raises:
            GraphError: with its scales, the float model would no longer compute what it did.
        """
        regions = self.groups.regions
        limited = {path: layer for path, layer in self.found.items() if layer.limits is not None}
        touched = {path for path in (*regions.layers, *regions.sources) if self._changes(path)} | set(limited)
        expected = _floats(model, call)
        with _restored_on_failure(model, touched):
            divide(model, regions, self.scales)
            apart, tolerance = difference(expected, _floats(model, call))
            if apart > tolerance:
                raise GraphError(
                    f"awq: with scales, the float model is no longer the same: it differs by {apart:.2g} of the "
                    "largest output. The model was not changed. A layer reads weights in a way that recording does "
                    "not see; leave it out: skip."
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

    def _clip(self, path: str, layer: _Layer) -> None:
        module, trial = _layer(self.modules, path), Trial(self.groups.sites[path])
        assert layer.limits is not None
        assert layer.index is not None
        bound = trial.stored(layer.limits[layer.index].expand(trial.weight.shape).double())
        if path in self.groups.regions.layers:
            rows = self.scales[self.groups.regions.sources[path]].to(bound.device)
            bound = bound / per_channel(module, "outputs", rows)
        bound = bound.to(module.weight.dtype)
        module.weight.clamp_(-bound, bound)


def _layer(modules: Mapping[str, nn.Module], path: str) -> WeightedLayer:
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

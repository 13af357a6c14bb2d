"""Bias correction: what quantization adds to the mean of each output channel is taken off the bias again."""

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from ...nn.contexts.freezing import frozen
from ...nn.contexts.intercepting import quantizers_of
from ...nn.contexts.switching import unquantized
from ...nn.layer import QuantLayer
from ...nn.weight_layer import WeightLayer
from ...qcore import GridQuant
from ...qcore.models import require_model
from ..errors import GraphError
from ..layers.table import has_weights
from ..measuring.batches import batches_of
from ..measuring.channel_means import ChannelMeans
from ..measuring.evaluation import evaluating, numbers_in, observed
from ..measuring.layer_outputs import Computed, Run, Wanted, computed
from ..measuring.samples import Dealt, deal
from ..measuring.signal import SignalToNoise
from ..recording.examples import Call
from ..regions.ownership import channel_axis
from .biases import Biases
from .reports import Entry, Report

__all__ = ["BiasReport", "correct_biases"]


@dataclass(frozen=True)
class BiasReport(Report):
    """What `correct_biases` did to each layer, and what it brought to the outputs of the model.

    The figures of an entry say how far the means of the output channels were off on the samples that judge, with all
    layers before it corrected: their root mean square as a share of that of the float outputs, before and after.

    Attributes:
        sqnr_before: signal-to-quantization-noise ratio of the model's outputs in dB, on the samples that judge; NaN
            where it returns no floating numbers.
        sqnr_after: the same with the corrections, whether they were kept or not.

    Example:
        >>> print(BiasReport("correct_biases", (Entry("0", "corrected", "", {"before": 0.25, "after": 0.01}),), 5, 9.5))
        correct_biases: 1 changed, 0 left; SQNR of the outputs 5.0 dB before, 9.5 dB after
          0  corrected (before 0.25, after 0.01)
    """

    sqnr_before: float = math.nan
    sqnr_after: float = math.nan

    def as_dict(self) -> dict[str, Any]:
        """The report as plain dicts and lists, for JSON."""
        return super().as_dict() | {"sqnr_before": self.sqnr_before, "sqnr_after": self.sqnr_after}

    def __str__(self) -> str:
        first, *rest = super().__str__().splitlines()
        if math.isnan(self.sqnr_before):
            return "\n".join([first, *rest])
        gain = f"SQNR of the outputs {self.sqnr_before:.1f} dB before, {self.sqnr_after:.1f} dB after"
        return "\n".join([f"{first}; {gain}", *rest])


_NOISE = 1e-6  # of the root mean square of the outputs: means that agree so closely differ by float32's rounding


def correct_biases(
    model: nn.Module,
    data: object,
    reference: nn.Module | None = None,
    *,
    held_out: bool = True,
    add_biases: bool = False,
) -> BiasReport:
    """Shift the biases of a quantized model, so that quantization leaves the mean of every output channel unchanged.

    For each linear layer and convolution, in the order in which they are called, ``bias += E[float output] -
    E[quantized output]`` per output channel, over samples and positions. The float output is that of the whole float
    model and the quantized one is that of the model with all layers before it quantized and corrected: a shift that
    arises upstream is repaired, too (Nagel et al., "A White Paper on Neural Network Quantization", 2021, section 3.3).
    Outputs are compared before ``output_quant``. A quantized bias follows: its integers are those of the new bias.

    Every other sample estimates the means and the rest judge. A layer keeps its correction if the mean squared error
    of its output falls over the samples held out, and in more than half of them: a few large errors move a mean, too.
    Then the outputs of the model decide: if their error on the samples held out rises, all is undone. What works on
    MobileNetV2 at 4 bits can hurt a transformer, whose means are estimated from too few tokens. At the end, the layers
    that keep their correction have it estimated anew from all samples.

    The model is changed in place, and it is as it was if anything fails. A second call finds next to nothing to
    correct.

    Args:
        model: a quantized model with calibrated activations. It evaluates, whatever its mode.
        data: one batch, or an iterable of batches, such as a loader. A batch is a tensor, a dict of keyword arguments,
            or a tuple of positional arguments; of these, as many count as forward takes: labels are left out. Some tens
            of images or a few thousand tokens will do. Batches of one shape go through in one, so that one forward
            corrects all layers: memory grows with the number of samples. Batches that don't fit together take a forward
            for each layer.
        reference: the float model, with the same paths; by default the model itself with its quantizers off, and with
            the biases that it had before it was first corrected, unless it was loaded from a file since. Needed after
            an algorithm that rounds weights, such as `gptq`.
        held_out: whether to judge on other samples. False: all samples estimate, and every correction is kept.
        add_biases: whether layers without a bias get one. The state dict has a key more for each.

    Returns:
        What was done to each layer. ``print`` it.

    Raises:
        GraphError: nothing to correct, no data, activations without a range, rounded weights without a reference, or a
            reference with other layers.

    Example:
        >>> import torch
        >>> import bitwright.nn as qnn
        >>> model = nn.Sequential(qnn.QuantLinear(8, 4, weight_bit_width=2), nn.ReLU(), qnn.QuantLinear(4, 2)).eval()
        >>> x = torch.rand(32, 8)
        >>> with qnn.unquantized(model):
        ...     float_mean = model[0](x).mean(0)
        >>> report = correct_biases(model, x, held_out=False)
        >>> bool((model[0](x).mean(0) - float_mean).abs().max() < 1e-6)
        True
        >>> report["0"].action
        'corrected'
    """
    require_model("correct_biases", model, GraphError)
    original = model if reference is None else reference
    require_model("correct_biases", original, GraphError)
    layers, left = _candidates(model, add_biases)
    if reference is None:
        _check_floats(layers)
    counterparts = _counterparts(original, layers)
    calls = batches_of("correct_biases", model, data)
    _check_ranges(model)
    biases = Biases(layers)
    with evaluating(model, original), biases.changing():
        with unquantized(original), biases.as_floats():
            dealt = deal("correct_biases", original, counterparts, calls, held_out)
            floats = Run(original, counterparts, dealt)
        left |= {path: why for path in layers if (why := _unfit(path, biases[path], floats))}
        order = [path for path in floats.estimated if path not in left]
        if not order:
            raise GraphError(_nothing_to_correct(left))
        wanted = floats.wanted()
        before = _signal_to_noise(floats, model, dealt)
        entries = _correct(model, biases, wanted, dealt, order)
        after = _signal_to_noise(floats, model, dealt)
        if dealt.held_out and not after.noise <= before.noise:
            entries = {path: _overruled(entry) for path, entry in entries.items()}
        kept = [path for path in order if entries[path].changed]
        if dealt.held_out and kept:  # what proves right with half of the samples is done with all of them
            biases.reset(kept)
            again = _correct(model, biases, wanted.pooled(), dealt.all_estimate(), kept)
            entries |= {path: entry for path, entry in again.items() if not entry.changed}
        biases.keep([path for path in kept if entries[path].changed])
    entries |= {path: Entry(path, "left", why) for path, why in left.items()}
    in_order = tuple(entries[path] for path, _ in model.named_modules() if path in entries)
    return BiasReport("correct_biases", in_order, before.decibels, after.decibels)


def _check_floats(layers: Mapping[str, WeightLayer]) -> None:
    """Refuse weights that an algorithm has rounded: with quantizers off, they are no float model's."""
    rounded = []
    for path, layer in layers.items():
        quant = layer.weight_quant
        if isinstance(quant, GridQuant) and quant.fixed:
            weight = layer.tensor_of("weight")
            if torch.equal(quant._quantize(weight)[0], weight):
                rounded.append(path)
    if rounded:
        raise GraphError(
            f"correct_biases: the weights of {_listed(rounded)} were rounded by an algorithm, so the model no longer "
            "knows what the float model computes. Pass that: correct_biases(model, data, reference=float_model)."
        )


# Which layers


def _candidates(model: nn.Module, add_biases: bool) -> tuple[dict[str, WeightLayer], dict[str, str]]:
    """The layers whose bias can be corrected, and why others can't; by path."""
    projections = {each.out_proj for each in model.modules() if isinstance(each, nn.MultiheadAttention)}
    named = [(path, each) for path, each in model.named_modules() if each not in projections]  # floats never call them
    found = {path: each for path, each in named if isinstance(each, WeightLayer)}
    weighted = [path for path, each in named if isinstance(each, QuantLayer) and has_weights(type(each))]
    if not found:
        raise GraphError(
            f"correct_biases: this {type(model).__name__} has no quantized linear layer or convolution. Quantize it "
            "first: quantize(model, {nn.Conv2d: W8A8, nn.Linear: W8A8})."
        )
    owners: dict[int, list[str]] = {}
    for path, module in model.named_modules():
        for each in module._parameters.values():
            owners.setdefault(id(each), []).append(path)
    skipped = {path: "is neither a linear layer nor a convolution" for path in weighted if path not in found}
    for path, layer in found.items():
        others = [each for each in owners.get(id(layer._parameters.get("bias")), []) if each != path]
        why = _unsuited(layer, add_biases)
        if why is None and layer.bias is not None and others:
            why = f"shares its bias with {', '.join(others)}"
        if why is not None:
            skipped[path] = why
    layers = {path: layer for path, layer in found.items() if path not in skipped}
    if not layers:
        raise GraphError(_nothing_to_correct(skipped))
    return layers, skipped


def _unsuited(layer: WeightLayer, add_biases: bool) -> str | None:
    if not isinstance(layer, nn.Linear | _ConvNd):
        return "is neither a linear layer nor a convolution"
    if layer.bias is not None:
        return None if isinstance(layer._parameters.get("bias"), nn.Parameter) else "has a parametrized bias"
    if not add_biases:
        return "has no bias; add_biases=True gives it one"
    if layer.return_quant_tensor and layer.output_quant is None:
        return "has no bias, and returns sums of products, on whose grid a new one would not lie"
    return None


def _nothing_to_correct(left: Mapping[str, str]) -> str:
    reasons: dict[str, list[str]] = {}
    for path, why in left.items():
        reasons.setdefault(why, []).append(path or "the model")
    said = "; ".join(f"{_listed(paths)}: {why}" for why, paths in reasons.items())
    return f"correct_biases: nothing to correct. {said}."


def _listed(paths: Sequence[str]) -> str:
    more = f" and {len(paths) - 8} more" if len(paths) > 8 else ""
    return ", ".join(paths[:8]) + more


def _counterparts(reference: nn.Module, layers: Mapping[str, WeightLayer]) -> dict[str, nn.Module]:
    """The layers of the reference at the same paths."""
    named = dict(reference.named_modules())
    for path, layer in layers.items():
        weight = getattr(named.get(path), "weight", None)
        if not isinstance(weight, Tensor) or weight.shape != layer.weight.shape:
            lacks = "no layer" if path not in named else "another layer at"
            raise GraphError(
                f"correct_biases: the reference has {lacks} {path}. Pass the float model that this one was made from, "
                "with the same paths."
            )
    return {path: named[path] for path in layers}


def _check_ranges(model: nn.Module) -> None:
    lacking = [path for path, each in quantizers_of(model).items() if not each.calibrated]
    if lacking:
        has = "has" if len(lacking) == 1 else "have"
        raise GraphError(
            f"correct_biases: {_listed(lacking)} saw no data and {has} no range yet, so there is nothing to compare "
            "with. Calibrate first: with calibrate(model): model(batch)."
        )


def _unfit(path: str, bias: Tensor, run: Run) -> str | None:
    """Why a layer can't be corrected after all."""
    calls = run.most_calls.get(path, 0)
    if calls > 1:
        return f"is called {calls} times in one forward"
    if path not in run.estimated or path not in run.judged:
        return "mixes samples, or counts them in no dimension of its output" if calls else "saw no data"
    means = [run.estimated[path], run.judged[path]]
    if means[0].shape != bias.shape:
        return f"has {means[0].numel()} output channels where its bias has {bias.numel()}"
    if not all(bool(each.isfinite().all()) for each in means):
        return "computes outputs that are not finite"
    return None


# Estimating and judging


def _correct(model: nn.Module, biases: Biases, wanted: Wanted, dealt: Dealt, order: Sequence[str]) -> dict[str, Entry]:
    """Correct layers one after the other, each for inputs that come from the corrected ones before it.

    Args:
        model: the quantized model.
        biases: of its layers.
        wanted: what the float model computes from the samples.
        dealt: the samples.
        order: the layers in the order in which they are called.

    Returns:
        What was done to each layer.
    """
    correction = _Correction(biases, wanted, dealt)
    layers = {path: biases.layers[path] for path in order}
    with computed(layers) as of:
        if dealt.both is not None:
            correction.in_one_forward(model, layers, dealt.both, of)
        else:
            correction.layer_by_layer(model, layers, of)
    for path in order:
        correction.entries.setdefault(path, Entry(path, "left", "is not called by the quantized model"))
    return correction.entries


class _Correction:
    """What `_correct` knows in between."""

    def __init__(self, biases: Biases, wanted: Wanted, dealt: Dealt) -> None:
        self.biases = biases
        self.wanted = wanted
        self.dealt = dealt
        self.entries: dict[str, Entry] = {}

    def in_one_forward(self, model: nn.Module, layers: Mapping[str, WeightLayer], call: Call, of: Computed) -> None:
        """What comes after a layer sees its corrected outputs at once."""

        def see(path: str, layer: nn.Module, args: Any, kwargs: Any, out: Any) -> Any:
            if path in self.entries:
                return None
            values = of(layer, out)
            estimated, judged = ChannelMeans(), ChannelMeans()
            axis, dim = channel_axis(layer, values.ndim), self.dealt.dimensions[path]
            parts = self.dealt.parts(values, dim)
            estimated.add(path, parts[0], axis)
            if self.dealt.held_out:
                judged.add(path, parts[1], axis, dim, self.dealt.judges)
            corrected = self._correct(path, estimated, judged if self.dealt.held_out else estimated)
            return layer.forward(*args, **kwargs) if corrected else None

        with observed(layers, see):
            model(*call[0], **call[1])

    def layer_by_layer(self, model: nn.Module, layers: Mapping[str, WeightLayer], of: Computed) -> None:
        """For each layer, all batches go through the model up to there."""

        def see(path: str, layer: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
            values = of(layer, out)
            means.add(path, values, channel_axis(layer, values.ndim))
            raise _Reached

        for path in layers:
            found = []
            for calls in (self.dealt.estimating, self.dealt.judging)[: 1 + self.dealt.held_out]:
                means = ChannelMeans()
                with observed({path: layers[path]}, see), frozen(model):
                    for args, kwargs in calls:
                        with suppress(_Reached):
                            model(*args, **kwargs)
                found.append(means)
            if all(path in means for means in found):
                self._correct(path, found[0], found[-1])

    def _correct(self, path: str, estimated: ChannelMeans, judged: ChannelMeans) -> bool:
        """Correct the bias of a layer, where that brings its outputs closer to the float ones; returns whether it did.

        A bias adds the same to all outputs of a channel, so that their mean squared error falls by as much as the
        square of the difference of means does. It has to fall in most samples, too: a mean that a few large errors have
        moved, clipped outliers, is right for none of the others.
        """
        difference = self.wanted.estimated[path] - estimated[path]
        unit = self.wanted.magnitudes[path] or 1.0
        before = self.wanted.judged[path] - judged[path]
        figures = {"before": _root_mean_square(before) / unit}
        if not bool(difference.isfinite().all()):
            return self._left(path, "computes outputs that are not finite")
        if _root_mean_square(difference) <= _NOISE * unit:
            return self._left(path, "its means are right", figures)
        shift = self.biases.add(path, difference)
        figures["after"] = _root_mean_square(before - shift) / unit
        if not bool(shift.any()):  # less than a step of a quantized bias
            return self._left(path, "its means are right", figures)
        if self.dealt.held_out and figures["after"] >= figures["before"]:
            return self._left(path, "no gain on the samples held out", figures)
        if self.dealt.held_out and not self._most_gain(path, judged, shift):
            return self._left(path, "most of the samples held out lose by it", figures)
        self.entries[path] = Entry(path, "corrected", "", figures)
        return True

    def _most_gain(self, path: str, judged: ChannelMeans, shift: Tensor) -> bool:
        """Whether the error falls in more than half of the samples that judge."""
        wanted, found = self.wanted.judged.of_samples(path), judged.of_samples(path)
        if wanted.shape != found.shape:  # the quantized model took another way
            return True
        gains = (wanted - found).square().sum(1) > (wanted - found - shift).square().sum(1)
        return int(gains.sum()) * 2 > len(gains)

    def _left(self, path: str, reason: str, figures: Mapping[str, float] | None = None) -> bool:
        self.biases.reset([path])
        self.entries[path] = Entry(path, "left", reason, figures or {})
        return False


class _Reached(BaseException):
    """Ends a forward at the layer that is looked at; no `Exception`, which models may catch."""


def _overruled(entry: Entry) -> Entry:
    """A layer that would have been corrected, had the model gained."""
    reason = "the outputs of the model get worse on the samples held out"
    return replace(entry, action="left", reason=reason) if entry.changed else entry


def _signal_to_noise(run: Run, model: nn.Module, dealt: Dealt) -> SignalToNoise:
    """How far the outputs of the quantized model are from those of the float one, for the samples that judge."""
    ratio = SignalToNoise()
    with frozen(model):
        for (args, kwargs), floats in zip(_outputs_from(dealt), run.outputs, strict=True):
            ratio.add(floats, numbers_in(model(*args, **kwargs)))
    return ratio


def _outputs_from(dealt: Dealt) -> Sequence[Call]:
    return [dealt.both] if dealt.both is not None and not dealt.held_out else dealt.judging


def _root_mean_square(x: Tensor) -> float:
    return float(x.square().mean().sqrt())

"""Bias correction: what quantization adds to the mean of each output channel is taken off the bias again."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from ...nn.contexts.freezing import frozen
from ...nn.contexts.intercepting import quantizers_of
from ...nn.contexts.switching import unquantized
from ...nn.weight_layer import WeightLayer
from ...qcore.models import require_model, shown
from ..errors import GraphError
from ..recording.examples import calls_of
from .bias_report import BiasCorrectionReport, CorrectedLayer
from .biases import Biases
from .channel_means import ChannelMeans
from .evaluation import Call, evaluating, observed
from .layer_outputs import Run, channel_axis, computed
from .samples import deal, together

__all__ = ["correct_biases"]

_NOISE = 1e-6  # of the root mean square of the outputs: means that agree so closely differ by float32's rounding


def correct_biases(
    model: nn.Module,
    data: object,
    reference: nn.Module | None = None,
    *,
    held_out: bool = True,
    add_biases: bool = False,
) -> BiasCorrectionReport:
    """Shift the biases of a quantized model, so that quantization leaves the mean of every output channel unchanged.

    For each linear layer and convolution, in the order in which they are called, ``bias += E[float output] -
    E[quantized output]`` per output channel, over samples and positions. The float output is that of the whole float
    model and the quantized one is that of the model with all layers before it quantized and corrected: a shift that
    arises upstream is repaired, too (Nagel et al., "A White Paper on Neural Network Quantization", 2021, section 3.3).
    Outputs are compared before ``output_quant``. A quantized bias follows: its integers are those of the new bias.

    Every other sample estimates the means and the rest judge. A layer keeps its correction if the mean squared error
    of its output falls on the samples held out. At the end the outputs of the model decide: if their error on the held
    out samples rises, all is undone. What works on MobileNetV2 at 4 bits can hurt a transformer, whose means are
    estimated from too few tokens.

    The model is changed in place, and it is as it was if anything fails. A second call finds nothing left to correct.

    Args:
        model: a quantized model with calibrated activations. It evaluates, whatever its mode.
        data: one batch or an iterable of batches; a batch is a tensor, a tuple of positional arguments or a dict of
            keyword arguments. Some tens of images, or a few thousand tokens. Batches of one shape go through in one, so
            that one forward corrects all layers: memory grows with the number of samples. Batches that don't fit
            together take a forward for each layer.
        reference: the float model, with the same paths; by default the model itself with its quantizers off, and with
            the biases that it had before it was first corrected, unless it was loaded from a file since.
        held_out: whether to judge on other samples. False: all samples estimate, and every correction is kept.
        add_biases: whether layers without a bias get one. The state dict has a key more for each.

    Returns:
        What was done to each layer. ``print`` it.

    Raises:
        GraphError: nothing to correct, no data, activations without a range, or a reference with other layers.

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
        >>> report["0"].outcome
        'corrected'
    """
    require_model("correct_biases", model, GraphError)
    require_model("correct_biases", model if reference is None else reference, GraphError)
    original = model if reference is None else reference
    layers, skipped = _candidates(model, add_biases)
    counterparts = _counterparts(original, layers)
    calls = _batches(data)
    _check_ranges(model)
    biases = Biases(layers)
    with evaluating(model, original), _seen_as_before(model), biases.changing():
        with unquantized(original), biases.as_floats():
            estimating, judging = deal("correct_biases", original, calls) if held_out else _all(original, calls)
            target = Run(original, counterparts, estimating, magnitudes=True)
            wanted = Run(original, counterparts, judging) if held_out else target
        for path in layers:
            why = _unfit(path, biases[path], target, wanted)
            skipped |= {} if why is None else {path: why}
        order = [path for path in target.means if path not in skipped]
        if not order:
            raise GraphError(_nothing_to_correct(skipped))
        before = Run(model, {}, judging).beside(wanted)
        rows: dict[str, CorrectedLayer] = {}
        while True:
            tried = [path for path in order if path not in rows]
            biases.reset(order)
            shifts = _estimate(model, biases, tried, estimating, target.means)
            found = Run(model, {path: layers[path] for path in tried}, judging)
            judged = [_judged(path, shifts.get(path), wanted.means, found.means, target.means) for path in tried]
            undone = [row for row in judged if row.outcome == "undone"] if held_out else []
            rows |= {row.path: row for row in undone or judged}
            if not undone:
                break
        after = found.beside(wanted)
        if held_out and not after.noise <= before.noise:
            rows = {path: _overruled(row) for path, row in rows.items()}
        biases.keep([path for path, row in rows.items() if row.outcome == "corrected"])
    rows |= {path: CorrectedLayer(path, "skipped", why) for path, why in skipped.items()}
    in_order = tuple(rows[path] for path, _ in model.named_modules() if path in rows)
    return BiasCorrectionReport(in_order, before.decibels, after.decibels, held_out)


# Which layers


def _candidates(model: nn.Module, add_biases: bool) -> tuple[dict[str, WeightLayer], dict[str, str]]:
    """The layers whose bias can be corrected, and why others can't; by path."""
    found = {path: each for path, each in model.named_modules() if isinstance(each, WeightLayer)}
    if not found:
        raise GraphError(
            f"correct_biases: this {type(model).__name__} has no quantized linear layer or convolution. Quantize it "
            "first: quantize(model, {nn.Conv2d: W8A8, nn.Linear: W8A8})."
        )
    owners: dict[int, list[str]] = {}
    for path, module in model.named_modules():
        for each in module._parameters.values():
            owners.setdefault(id(each), []).append(path)
    skipped = {}
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


def _nothing_to_correct(skipped: Mapping[str, str]) -> str:
    paths: dict[str, list[str]] = {}
    for path, why in skipped.items():
        paths.setdefault(why, []).append(path or "the model")
    said = "; ".join(f"{', '.join(each[:8])}{' ...' * (len(each) > 8)} {why}" for why, each in paths.items())
    return f"correct_biases: nothing to correct: {said}."


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
        named = ", ".join(lacking[:8]) + (f" and {len(lacking) - 8} more" if len(lacking) > 8 else "")
        raise GraphError(
            f"correct_biases: {named} saw no data and ha{'s' if len(lacking) == 1 else 've'} no range yet, so there is "
            "nothing to compare with. Calibrate first: with calibrate(model): model(batch)."
        )


def _unfit(path: str, bias: Tensor, *runs: Run) -> str | None:
    """Why a layer can't be corrected after all."""
    if any(path not in run.means for run in runs):
        return "saw no data"
    calls = max(run.most_calls[path] for run in runs)
    if calls > 1:
        return f"is called {calls} times in one forward"
    means = [run.means[path] for run in runs]
    if means[0].shape != bias.shape:
        return f"has {means[0].numel()} output channels where its bias has {bias.numel()}"
    if not all(bool(each.isfinite().all()) for each in means):
        return "computes outputs that are not finite"
    return None


def _overruled(row: CorrectedLayer) -> CorrectedLayer:
    """A layer that would have been corrected, had the model gained."""
    if row.outcome != "corrected":
        return row
    return replace(row, outcome="undone", reason="the outputs of the model got worse on the samples held out")


def _batches(data: object) -> list[Call]:
    if isinstance(data, Tensor | tuple | Mapping):
        return calls_of(data)
    if not isinstance(data, Iterable) or isinstance(data, str | bytes):
        raise GraphError(
            f"correct_biases: data={shown(data)} is no batch. Pass a tensor, or a list or loader of batches."
        )
    calls = [call for batch in data for call in calls_of(tuple(batch) if isinstance(batch, list) else batch)]
    if not calls:
        raise GraphError("correct_biases: data holds no batch. Pass a tensor, or a list or loader of batches.")
    return calls


def _all(model: nn.Module, calls: list[Call]) -> tuple[list[Call], list[Call]]:
    found = together(model, calls)
    return found, found


@contextmanager
def _seen_as_before(model: nn.Module) -> Iterator[None]:
    """A block after which, if it fails, layers know the input that they have seen before it."""
    seen = [(each, each._seen) for each in model.modules() if isinstance(each, WeightLayer)]
    try:
        yield
    except BaseException:
        for layer, grid in seen:
            vars(layer)["_seen"] = grid
        raise


# Estimating and judging


def _estimate(
    model: nn.Module, biases: Biases, order: Sequence[str], calls: Sequence[Call], target: ChannelMeans
) -> dict[str, Tensor]:
    """Correct layers one after the other, each for inputs that come from the corrected ones before it.

    Returns:
        By how much each output channel moves, for each layer that was off.
    """
    shifts: dict[str, Tensor] = {}
    layers = {path: biases.layers[path] for path in order}
    with computed(layers) as of:

        def correct(path: str, means: ChannelMeans) -> bool:
            difference = target[path] - means[path]
            off = _root_mean_square(difference)
            if off <= _NOISE * target.magnitude(path) or not math.isfinite(off):
                return False
            shifts[path] = biases.add(path, difference)
            return True

        def at_once(path: str, layer: nn.Module, args: Any, kwargs: Any, out: Any) -> Any:
            """What comes after a layer sees its corrected outputs."""
            if path in means:
                return None
            values = of(layer, out)
            means.add(path, values, channel_axis(layer, values))
            return layer.forward(*args, **kwargs) if correct(path, means) else None

        def up_to_here(path: str, layer: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
            values = of(layer, out)
            means.add(path, values, channel_axis(layer, values))
            raise _Reached

        means = ChannelMeans()
        if len(calls) == 1:
            with observed(layers, at_once):
                model(*calls[0][0], **calls[0][1])
            return shifts
        for path in order:
            with observed({path: layers[path]}, up_to_here), frozen(model):
                for args, kwargs in calls:
                    with suppress(_Reached):
                        model(*args, **kwargs)
            if path in means:
                correct(path, means)
    return shifts


class _Reached(BaseException):
    """Ends a forward at the layer that is looked at; no `Exception`, which models may catch."""


def _judged(
    path: str, shift: Tensor | None, wanted: ChannelMeans, found: ChannelMeans, target: ChannelMeans
) -> CorrectedLayer:
    """Whether the correction of a layer brings its outputs closer to the float ones, all others being what they are.

    A bias adds the same to all outputs of a channel, so that the mean squared error falls by as much as the square of
    the difference of means does.
    """
    unit = target.magnitude(path) or 1.0
    if path not in found:
        return CorrectedLayer(path, "undone", "was not called")
    after = wanted[path] - found[path]
    before = after if shift is None else after + shift
    errors = [_root_mean_square(each) / unit for each in (before, after)]
    if shift is None:
        return CorrectedLayer(path, "unchanged", "", *errors)
    if errors[1] < errors[0]:
        return CorrectedLayer(path, "corrected", "", *errors)
    return CorrectedLayer(path, "undone", "no gain on the samples held out", *errors)


def _root_mean_square(x: Tensor) -> float:
    return float(x.square().mean().sqrt())

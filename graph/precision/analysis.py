"""sensitivity: every layer under every setting, and what each does to the outputs."""

import math
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from ...nn import QuantLayer
from ...nn.contexts.switching import unquantized
from ...qcore.models import require_model, shown
from ..errors import GraphError
from ..measuring.batches import batches_of
from ..passes.models import example_of
from ..recording.recorder import record
from .costs import feeds_of, products_in, sizes_of
from .gradients import gradient_ratios
from .grouping import groups_of
from .scores import SCORES, measured
from .settings import Settings, read_settings
from .study import Cell, Loss, Outputs, Scored, Study, listed_batches
from .table import Candidate, SensitivityTable
from .trials import Trial, outermost, rows_of, rule_of, sharing_copy

__all__ = ["sensitivity"]


def sensitivity(
    q: nn.Module,
    data: object,
    widths: Iterable[int] | Mapping[Any, Settings | int],
    *,
    score: str | Callable[[nn.Module], float] = "sqnr",
    layers: str | Iterable[str] = "*",
    loss: Loss | None = None,
    outputs: Outputs | None = None,
    gradients: bool = False,
    seed: int = 0,
    progress: bool = True,
) -> SensitivityTable:
    """How much the outputs of a model suffer when one layer is quantized and everything else is float.

    Each layer with a quantized weight is tried under each setting: its quantizers get the setting, those that the
    setting is about are switched on, and all others are off. All of that happens on copies that share the weights: the
    model stays as it is, bit by bit.

    The damage of a layer under a setting is a number that adds up over layers, which `allocate_bits` counts on:

    - ``"sqnr"``: the noise at the outputs relative to the signal; shown in dB. The noise of several layers is about the
      sum of theirs as long as it is small: to about 1 dB where the SQNR of each is above 20 dB.
    - ``"kl"``: the mean divergence KL(float || quantized) of the softmaxed outputs, along their last dimension, in
      nats.
    - ``"fisher"``: the sum of (gradient x error)**2 over the outputs of the layer. One forward and backward for each
      setting and batch, however many layers there are.
    - ``"hessian"``: the trace of the Hessian by the layer's weight, divided by its size, times the squared error of the
      weight (HAWQ-V2, Dong et al. 2020). Hutchinson's estimate, until the traces change by less than 0.1 %, or 300
      probes; a negative trace counts as 0. For settings of weights only.
    - A function: a measure of the model such as ``lambda model: 1 - accuracy(model)``, **higher for worse**. The damage
      is how much it rises above that of the float model.

    ``"sqnr"``, ``"kl"`` and a function cost a pass over the data for each layer and setting.

    Args:
        q: a quantized model. What a setting does not name is as it is declared there.
        data: one batch, or an iterable of batches, such as a loader. A batch is a tensor, a dict of keyword arguments,
            or a tuple of positional arguments; of these, as many count as forward takes: labels are left out.
        widths: bit widths of weights, ``[2, 4, 8]``; or settings by name, each the keywords that a rule of `quantize`
            has, a bit width, or None for a float layer: ``{"w4a8": dict(weight_bit_width=4, input_bit_width=8),
            "nf4": dict(weight_quant=NF4Weight), "float": None}``. Ranges of activations are calibrated on ``data``.
        score: see above.
        layers: which layers are tried: a glob on paths, or several.
        loss: for ``"fisher"``, ``"hessian"`` and ``gradients``: what the model is trained with, called with what the
            model returned and the batch as given, labels included. None scores the squared error of the outputs.
        outputs: takes the tensors that count from what the model returns: ``lambda result: result.logits``. None
            counts all of them.
        gradients: measure the gradients that come through the quantizers, too; see `gradient_noise`.
        seed: of random signs.
        progress: show a bar where standard error is a terminal.

    Returns:
        A `SensitivityTable`: print it, plot it, or hand it to `allocate_bits` and `pareto`.

    Raises:
        GraphError: not a quantized model, impossible settings, layers that no batch reaches, or a score that is not
            finite.

    Example:
        >>> import torch
        >>> import bitwright.nn as qnn
        >>> model = nn.Sequential(qnn.QuantLinear(8, 8), nn.ReLU(), qnn.QuantLinear(8, 2))
        >>> table = sensitivity(model, torch.randn(32, 8), [2, 4, 8])
        >>> table.layers, table["0", 8].score > table["0", 4].score > table["0", 2].score
        (('0', '2'), True)
    """
    require_model("sensitivity", q, GraphError)
    settings = read_settings(widths)
    _check_options(score, loss, gradients)
    batches = listed_batches(data)
    calls = batches_of("sensitivity", q, data if batches is None else batches)
    paths = _chosen(q, layers)
    trials = {name: Trial(q, paths, name, setting) for name, setting in settings.items()}
    measure = None if isinstance(score, str) else score
    study = Study(
        sharing_copy("sensitivity", q), trials, calls, batches or [data], outputs, loss, measure, seed, progress
    )
    study.check_reached()
    study.calibrate()
    scored = SCORES[score](study) if isinstance(score, str) else measured(study)
    _check_finite(scored)
    return _table(q, study, scored, score if isinstance(score, str) else _named(score), gradients)


def _table(q: nn.Module, study: Study, scored: Scored, measure: str, gradients: bool) -> SensitivityTable:
    with unquantized(study.base):
        graph = record(study.base, example_of(study.calls[0]))
    products = products_in(study.base, study.paths, study.calls[0])
    feeds = feeds_of(study.base, study.paths, graph)
    sizes = {name: sizes_of(trial, products, feeds) for name, trial in study.trials.items()}
    noise = _gradients(study) if gradients else {}
    candidates = [
        Candidate(
            path,
            name,
            *scored[path, name],
            **vars(sizes[name][path]),
            rule=None if _is_float(layer := study.trials[name].layers[path]) else rule_of(layer),
            gradient=noise.get((path, name)),
        )
        for path, name in study.cells
    ]
    rows = {path: study.base.get_submodule(path) for path in study.paths}
    declared = {path: rule_of(layer) for path, layer in outermost(q).items()}
    return SensitivityTable(
        type(q).__name__,
        measure,
        tuple(study.paths),
        tuple(study.trials),
        tuple(candidates),
        groups_of(rows, graph),
        declared,
    )


def _is_float(layer: QuantLayer) -> bool:
    return all(getattr(layer, f"{slot.name}_quant") is None for slot in layer.slots)


def _gradients(study: Study) -> dict[Cell, float]:
    found: dict[Cell, float] = {}
    for name, trial in study.trials.items():
        for path, ratio in gradient_ratios(study, trial.model, trial.tried).items():
            found[path, name] = ratio.decibels if trial.tried[path] else math.inf
    return found


def _check_options(score: object, loss: object, gradients: object) -> None:
    if not isinstance(score, str) and (not callable(score) or isinstance(score, nn.Module)):
        raise GraphError(_no_score(score))
    if isinstance(score, str) and score not in SCORES:
        raise GraphError(_no_score(score))
    if not isinstance(gradients, bool):
        raise GraphError(f"sensitivity: gradients={shown(gradients)} is not possible: expected True or False.")
    if callable(loss) and not gradients and score not in ("fisher", "hessian"):
        raise GraphError(
            "sensitivity: loss= is given, and nothing is differentiated. Write score='fisher', score='hessian' or "
            "gradients=True too, or leave loss out."
        )


def _no_score(score: object) -> str:
    names = ", ".join(map(repr, SCORES))
    return (
        f"sensitivity: score={shown(score)} is not possible: expected one of {names}, or a function that measures a "
        "model, higher for worse."
    )


def _named(score: object) -> str:
    return getattr(score, "__name__", type(score).__name__)


def _chosen(q: nn.Module, layers: str | Iterable[str]) -> list[str]:
    """The paths of the layers that are tried."""
    rows = list(rows_of(q))
    if not rows:
        raise GraphError(
            f"sensitivity: this {type(q).__name__} has no layer with a quantized weight. Pass a quantized model: "
            "sensitivity(quantize(model, W8), data, [2, 4, 8])."
        )
    globs = [layers] if isinstance(layers, str) else list(layers)
    for glob in globs:
        if not isinstance(glob, str) or not any(fnmatchcase(path, glob) for path in rows):
            more = f" and {len(rows) - 4} more" if len(rows) > 4 else ""
            raise GraphError(
                f"sensitivity: {shown(glob)} among layers= matches no layer with a quantized weight. They are "
                f"{', '.join(rows[:4])}{more}."
            )
    found = [path for path in rows if any(fnmatchcase(path, glob) for glob in globs)]
    if not found:
        raise GraphError(
            'sensitivity: layers= names no layer. Leave it out for all of them, or write layers=["block1.*"].'
        )
    return found


def _check_finite(scored: Scored) -> None:
    for (path, name), (damage, _) in scored.items():
        if not math.isfinite(damage):
            raise GraphError(
                f"sensitivity: the score of {path or 'the model'} under {name!r} is {damage}. Look for values that are "
                "not finite in the batches, in the weights, and in what score= returns."
            )

"""Scores of a layer under a setting, from the outputs of the model with everything else float."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ...nn.contexts.switching import unquantized
from ..errors import GraphError
from ..measuring.evaluation import evaluating
from ..measuring.signal import SignalToNoise
from .curvature import fisher, hessian
from .study import Scored, Study

__all__ = ["SCORES", "divergence", "divergence_of", "measured", "noise"]


def noise(study: Study) -> Scored:
    """The noise that each layer alone adds to the outputs, relative to the signal; shown as SQNR in dB.

    Raises:
        GraphError: the outputs of the float model are all zero.
    """
    found = {cell: SignalToNoise() for cell in study.cells}
    for each in study.tried():
        found[each.cell].add(each.floats, each.outputs)
    if any(ratio.signal == 0 for ratio in found.values()):
        raise GraphError(
            "sensitivity: all outputs of the float model are 0, and score='sqnr' compares noise with them. Write "
            "score='fisher', or a measure of yours."
        )
    return {cell: (ratio.noise / ratio.signal, ratio.decibels) for cell, ratio in found.items()}


def divergence(study: Study) -> Scored:
    """The mean KL divergence of the softmaxed outputs from those of the float model, in nats."""
    sums = dict.fromkeys(study.cells, 0.0)
    rows = dict.fromkeys(study.cells, 0)
    for each in study.tried():
        for wanted, found in zip(each.floats, each.outputs, strict=True):
            of_rows = divergence_of(wanted, found)
            sums[each.cell] += float(of_rows.sum())
            rows[each.cell] += of_rows.numel()
    means = {cell: total / max(rows[cell], 1) for cell, total in sums.items()}
    return {cell: (mean, mean) for cell, mean in means.items()}


def divergence_of(wanted: Tensor, found: Tensor) -> Tensor:
    """KL(wanted || found) of the distributions that logits along the last dimension stand for, in nats; never negative.

    Example:
        >>> import math
        >>> wanted = torch.tensor([[0.0, 0.0], [5.0, 1.0]])
        >>> found = torch.tensor([[math.log(3.0), 0.0], [7.0, 3.0]])
        >>> divergence_of(wanted, found)
        tensor([0.1438, 0.0000], dtype=torch.float64)
    """
    log_p, log_q = (torch.log_softmax(each.double(), -1) for each in (wanted, found))
    return (log_p.exp() * (log_p - log_q)).sum(-1).clamp_min(0)


def measured(study: Study) -> Scored:
    """How much a measure of the user's rises above that of the float model; the measure itself is shown.

    Raises:
        GraphError: the measure returns no number.
    """
    assert study.measure is not None
    measure: Callable[..., object] = study.measure

    def number(model: nn.Module) -> float:
        value = measure(model)
        if isinstance(value, Tensor) and value.numel() == 1:
            value = value.item()
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise GraphError(
                f"sensitivity: score= returned {value!r}, which is no number. A measure takes the model and returns "
                "one, higher for worse: score=lambda model: 1 - accuracy(model)."
            )
        return float(value)

    with evaluating(study.base), unquantized(study.base) as model:
        floats = number(model)
    found: Scored = {}
    for cell in study.tracked(study.cells, "measures"):
        path, name = cell
        trial = study.trials[name]
        with evaluating(trial.model), trial.only(path) as model:
            value = number(model)
        found[cell] = (value - floats, value)
    return found


SCORES: dict[str, Callable[[Study], Scored]] = {
    "sqnr": noise,
    "kl": divergence,
    "fisher": fisher,
    "hessian": hessian,
}

"""Scores from derivatives: what a layer's error costs, without a forward for every layer."""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from ...nn import QuantLayer
from ...nn.contexts.intercepting import intercepted
from ...nn.contexts.switching import unquantized
from ...qcore import Grid, TensorQuant
from ...qcore.tensor_quant import Intercept
from ..errors import GraphError
from ..measuring.evaluation import numbers_in
from .study import Scored, Study, differentiable, signs
from .trials import Trial, sharing_copy, working

__all__ = ["fisher", "hessian", "traces"]

LEAST_PROBES, MOST_PROBES = 8, 300
Key = tuple[str, str]  # a layer, by its path, and a slot
CHANGE = 1e-3  # of a trace, relative, from one probe to the next: where to stop


# Fisher


def fisher(study: Study) -> Scored:
    """``sum (gradient of the loss * error)**2`` over the outputs of a layer, where the error is that of this layer."""
    found = dict.fromkeys(study.cells, 0.0)
    steps = [(trial, number) for trial in study.trials.values() for number in range(len(study.calls))]
    for trial, number in study.tracked(steps, "batches"):
        for path, value in _fisher(study, trial, number).items():
            found[path, trial.name] += value
    return {cell: (value, value) for cell, value in found.items()}


def _fisher(study: Study, trial: Trial, number: int) -> dict[str, float]:
    """Of one batch, for all layers."""
    args, kwargs = study.calls[number]
    probes: list[tuple[str, Tensor, Tensor]] = []  # layer, what its output has on top, the error of the output

    def see(path: str, layer: nn.Module, args: Any, kwargs: Any, out: Any) -> Any:
        with torch.no_grad(), working(trial.tried[path]):
            errors = [a - b for a, b in zip(numbers_in(layer.forward(*args, **kwargs)), numbers_in(out), strict=True)]
        left = iter(errors)

        def probed(each: object) -> object:
            if not isinstance(each, Tensor) or not each.is_floating_point():
                return each
            probe = torch.zeros_like(each).requires_grad_()
            probes.append((path, probe, next(left)))
            return each + probe

        return _pytree.tree_map(probed, out)

    with differentiable(trial.model), trial.off() as model, _replaced_outputs(trial, see):
        loss = study.loss_of(model(*args, **kwargs), number)
    gradients = torch.autograd.grad(loss, [probe for _, probe, _ in probes], allow_unused=True)
    found = dict.fromkeys(trial.layers, 0.0)
    for (path, _, error), gradient in zip(probes, gradients, strict=True):
        if gradient is not None:
            found[path] += float((gradient * error).square().sum(dtype=torch.float64))
    return found


@contextmanager
def _replaced_outputs(trial: Trial, see: Callable[..., Any]) -> Iterator[None]:
    """Hooks on the layers; layers that a layer itself calls are not seen."""
    within: list[str] = []

    def hook(path: str) -> Callable[..., Any]:
        def after(module: nn.Module, args: Any, kwargs: Any, out: Any) -> Any:
            if within:
                return None
            within.append(path)
            try:
                return see(path, module, args, kwargs, out)
            finally:
                within.pop()

        return after

    handles = [
        layer.register_forward_hook(hook(path), prepend=True, with_kwargs=True) for path, layer in trial.layers.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


# Hessian


def hessian(study: Study) -> Scored:
    """``trace / weights * sum (error of a weight)**2`` for each layer, with the trace of the Hessian by its weight.

    Raises:
        GraphError: a setting is about more than weights.
    """
    _refuse_activations(study)
    known = traces(study)
    found: Scored = dict.fromkeys(study.cells, (0.0, 0.0))
    for (path, slot), (trace, weights) in known.items():
        for name, trial in study.trials.items():
            quant = trial.tried[path].get(slot)
            value = found[path, name][0]
            if quant is not None:
                with torch.no_grad():
                    weight = trial.layers[path].tensor_of(slot)
                    error = float((quant._quantize(weight)[0] - weight).square().sum(dtype=torch.float64))
                value += max(trace, 0.0) / weights * error
            found[path, name] = (value, value)
    return found


def _refuse_activations(study: Study) -> None:
    for trial in study.trials.values():
        for path, quantizers in trial.tried.items():
            for name, quant in quantizers.items():
                if not quant.of_parameter:
                    raise GraphError(
                        f"sensitivity: the setting {trial.name!r} quantizes the {name} of {path or 'the model'}, and "
                        "score='hessian' knows errors of weights only. Write score='fisher', or leave it out."
                    )


def traces(study: Study) -> dict[Key, tuple[float, int]]:
    """The trace of the Hessian by each weight, by Hutchinson's estimate, and how many weights there are.

    Without a loss of the user's, it is that of half the squared error of the outputs, which is never negative.
    All weights are probed at once: with independent signs, what one of them has to do with another averages out.
    """
    sums: dict[Key, float] = {}
    sizes: dict[Key, int] = {}
    generator = torch.Generator().manual_seed(study.seed)
    with _weights_as_leaves(study) as (model, leaves), differentiable(model):
        curvature = _Curvature({})
        for batch, probe in study.tracked(
            [(batch, probe) for batch in range(len(study.calls)) for probe in range(MOST_PROBES)], "probes"
        ):
            if probe == 0:
                curvature = _Curvature({})  # lets go of the graph before the next one is made
                loss = _loss(study, model, batch)
                sizes |= {key: leaf.numel() for key, leaf in leaves.items()}
                curvature = _Curvature(leaves, loss)
            if not curvature.settled:
                curvature.probe(generator)
            if probe == MOST_PROBES - 1:
                for key, trace in curvature.traces.items():
                    sums[key] = sums.get(key, 0.0) + trace
    return {key: (sums.get(key, 0.0), size) for key, size in sizes.items()}


def _loss(study: Study, model: nn.Module, batch: int) -> Tensor:
    args, kwargs = study.calls[batch]
    result = model(*args, **kwargs)
    if study.loss is not None:
        return study.scalar(study.loss(result, study.batches[batch]))
    return torch.stack([(each - each.detach()).square().sum() / 2 for each in study.tensors(result)]).sum()


class _Curvature:
    """The traces of the Hessian of one loss, the better the more probes there were.

    Args:
        leaves: what to differentiate by.
        loss: a scalar.

    Attributes:
        traces: by leaf.
        settled: whether another probe would change them by little.
    """

    def __init__(self, leaves: Mapping[Key, Tensor], loss: Tensor | None = None) -> None:
        self.leaves = dict(leaves)
        self.traces = dict.fromkeys(leaves, 0.0)
        self._probes = 0
        self._gradients: list[tuple[Key, Tensor]] = []
        if loss is not None:
            found = torch.autograd.grad(loss, list(leaves.values()), create_graph=True, allow_unused=True)
            pairs = zip(leaves, found, strict=True)
            self._gradients = [(key, each) for key, each in pairs if each is not None and each.requires_grad]
        self.settled = not self._gradients  # by a loss that is linear in the weights

    def probe(self, generator: torch.Generator) -> None:
        """Count ``z' H z`` in, for signs z."""
        directions = {key: signs(leaf, generator) for key, leaf in self.leaves.items()}
        slope = torch.stack([(each * directions[key]).sum() for key, each in self._gradients]).sum()
        curved = torch.autograd.grad(slope, list(self.leaves.values()), retain_graph=True, allow_unused=True)
        self._probes += 1
        before = dict(self.traces)
        for (key, direction), each in zip(directions.items(), curved, strict=True):
            value = 0.0 if each is None else float((each * direction).sum(dtype=torch.float64))
            self.traces[key] += (value - self.traces[key]) / self._probes
        steady = all(abs(self.traces[key] - before[key]) <= CHANGE * abs(self.traces[key]) for key in self.leaves)
        self.settled = steady and self._probes >= LEAST_PROBES


@contextmanager
def _weights_as_leaves(study: Study) -> Iterator[tuple[nn.Module, dict[Key, Tensor]]]:
    """The float model, whose weights are tensors of their own to differentiate by; they are known after a forward."""
    model = sharing_copy(study.asked, study.base)
    leaves: dict[Key, Tensor] = {}
    quantizers: dict[str, TensorQuant] = {}
    keys: dict[str, Key] = {}
    for path in study.paths:
        layer = model.get_submodule(path)
        assert isinstance(layer, QuantLayer)
        for slot in layer.slots:
            quant = getattr(layer, f"{slot.name}_quant")
            if slot.role == "weight" and quant is not None:
                quant = copy.deepcopy(quant)  # layers may share it, and their weights are different ones
                layer._replace(f"{slot.name}_quant", quant)
                quantizers[f"{path}.{slot.name}"] = quant
                keys[f"{path}.{slot.name}"] = (path, slot.name)

    def intercept(name: str) -> Intercept:
        def stand_in(quant: TensorQuant, x: Tensor, *context: object) -> tuple[Tensor, Grid | None]:
            key = keys[name]
            if key not in leaves:
                leaves[key] = x.detach().clone().requires_grad_()
            return leaves[key], None

        return stand_in

    with unquantized(model), intercepted(quantizers, intercept):
        yield model, leaves

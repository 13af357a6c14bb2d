"""Rotations that are learned: Cayley SGD on the loss of the quantized model."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ...nn import quantizers_of
from ...nn.contexts.progress import tracked
from ...qcore import GridQuant
from ...qcore.scaling import StoredScaling
from ..calibration.calibration import calibrate
from ..conversion.conversion import quantize
from ..errors import GraphError
from ..passes.models import example_of, untouched
from ..recording.examples import Call
from ..recording.tensors import tensors_in
from ..rules.rules import RulesLike
from .spaces import Space
from .weights import Weights

__all__ = ["Learned", "cayley_step", "learn", "relative_error"]

Loss = Callable[[Any, Any], Tensor]
CHECKS = 4  # how often the loss over all batches is measured on the way


class _Changes(Protocol):
    spaces: list[Space]
    weights: Weights

    def matrices(self) -> dict[str, Tensor]: ...


@dataclass(frozen=True)
class Learned:
    """How learning went.

    Attributes:
        before: the loss over all batches at the start.
        after: that with the learned rotations, the best of those that were tried on all batches.
        kept: whether they were kept: they are if they are better.
        orthogonality: the largest entry of ``R R' - I`` after any step.
    """

    before: float
    after: float
    kept: bool
    orthogonality: float

    @property
    def figures(self) -> dict[str, float]:
        """For a report."""
        return {"loss before": self.before, "loss after": self.after, "orthogonality": self.orthogonality}


def relative_error(result: object, expected: object) -> Tensor:
    """The squared difference of all floating-point tensors in two results, over the square of the expected.

    Example:
        >>> relative_error(torch.tensor([1.0, 1.0]), {"logits": torch.tensor([1.0, 3.0])})
        tensor(0.4000, dtype=torch.float64)
    """
    found = torch.zeros((), dtype=torch.float64)
    size = torch.zeros((), dtype=torch.float64)
    for one, other in zip(tensors_in(result), tensors_in(expected), strict=True):
        if other.is_floating_point():
            found = found.to(one.device) + (one.double() - other.double()).square().sum()
            size = size.to(one.device) + other.double().square().sum()
    return found / size.clamp(min=1e-300)


def cayley_step(rotation: Tensor, gradient: Tensor, learning_rate: float) -> Tensor:
    """A step against a gradient that stays orthogonal: ``(I + a/2 Y)^-1 (I - a/2 Y) R``, with ``Y = G R' - R G'``.

    Where Y is large, ``a`` is 1 over its Frobenius norm at most.

    Args:
        rotation: R: (n, n).
        gradient: of the loss in R.
        learning_rate: a.

    References:
        Li et al., "Efficient Riemannian Optimization on the Stiefel Manifold via the Cayley Transform", 2020.

    Example:
        >>> rotation = cayley_step(torch.eye(2), torch.tensor([[0.0, 1.0], [0.0, 0.0]]), 1.0)
        >>> rotation
        tensor([[ 0.7778, -0.6285],
                [ 0.6285,  0.7778]])
    """
    skew = gradient @ rotation.mT
    skew = skew - skew.mT
    rate = min(learning_rate, 1 / max(float(torch.linalg.matrix_norm(skew)), 1e-12))
    identity = torch.eye(len(rotation), dtype=rotation.dtype, device=rotation.device)
    return torch.linalg.solve(identity + rate / 2 * skew, (identity - rate / 2 * skew) @ rotation)


def learn(
    model: nn.Module,
    rotated: nn.Module,
    changes: _Changes,
    calls: Sequence[Call],
    rules: RulesLike,
    loss: Loss | None,
    steps: int,
    learning_rate: float,
) -> Learned:
    """Learn the rotations of a model that has its first ones, and write them into it if they are better.

    Args:
        model: the float model.
        rotated: its rotated copy.
        changes: the rotations and the parameters that they multiply.
        calls: the data.
        rules: how the rotated model is quantized.
        loss: of the quantized model's result and the float model's.
        steps: on one batch each.
        learning_rate: falls to 0.

    Raises:
        GraphError: no rotation can be learned, or a loss that is not finite.
    """
    if not changes.spaces:
        raise GraphError(
            "rotate: kind='learned' learns rotations of the stream and of values, and there are none. Write "
            "kind='hadamard'."
        )
    measure = loss or relative_error
    quantized = quantize(rotated, rules, examples=example_of(calls[0])).requires_grad_(False)
    _calibrate(quantized, calls)
    names = {id(each): name for name, each in rotated.named_parameters()}
    names |= {id(each): name for name, each in rotated.named_buffers()}
    parameters = changes.weights.parameters
    paths = {path: names[id(each)] for path, each in parameters.items()}
    bases = {path: changes.weights.base(path) for path in parameters}

    def loss_of(matrices: Mapping[str, Tensor], call: Call) -> Tensor:
        tensors = {path: changes.weights.rotated(path, base, matrices) for path, base in bases.items()}
        state = {paths[path]: each.to(parameters[path].dtype) for path, each in tensors.items()}
        args, kwargs = call
        with torch.no_grad():
            expected = model(*args, **kwargs)
        return measure(functional_call(quantized, state, args, kwargs), expected)

    def mean_loss(matrices: Mapping[str, Tensor]) -> float:
        with torch.no_grad():
            return float(torch.stack([loss_of(matrices, call).double().cpu() for call in calls]).mean())

    def goal(matrices: Mapping[str, Tensor], number: int) -> Tensor:
        with torch.enable_grad():
            value = loss_of(matrices, calls[number % len(calls)])
            if not bool(torch.isfinite(value.detach())):
                raise GraphError(
                    f"rotate: the loss is {float(value.detach())} in step {number}. Lower the learning_rate."
                )
            return value if loss is not None else value.log()  # so that a rate serves errors of any size

    with untouched(list(calls), model, quantized):
        matrices = best = changes.matrices()
        before = least = mean_loss(matrices)
        worst, last = 0.0, before
        with closing(tracked(range(steps), "rotate", unit="steps")) as numbers:
            for number in numbers:
                leaves = {name: each.clone().requires_grad_() for name, each in matrices.items()}
                gradients = torch.autograd.grad(goal(leaves, number), list(leaves.values()))
                rate = learning_rate * (1 - number / steps)
                matrices = {
                    name: cayley_step(matrices[name], gradient, rate)
                    for name, gradient in zip(leaves, gradients, strict=True)
                }
                worst = max(worst, *(_orthogonality(each) for each in matrices.values()))
                if (number + 1) % max(steps // CHECKS, 1) == 0 or number + 1 == steps:
                    last = mean_loss(matrices)
                    if last < least:
                        best, least = matrices, last
    if least < before:
        changes.weights.write(best)
    return Learned(before, least if least < before else last, least < before, worst)


def _calibrate(model: nn.Module, calls: Sequence[Call]) -> None:
    """Ranges of activations that are measured."""
    quantizers = quantizers_of(model).values()
    if any(
        not q.of_parameter and isinstance(q, GridQuant) and isinstance(q.scaling, StoredScaling) for q in quantizers
    ):
        with calibrate(model):
            for args, kwargs in calls:
                model(*args, **kwargs)


def _orthogonality(rotation: Tensor) -> float:
    identity = torch.eye(len(rotation), dtype=rotation.dtype, device=rotation.device)
    return float((rotation @ rotation.mT - identity).abs().max())

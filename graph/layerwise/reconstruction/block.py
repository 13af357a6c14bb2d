"""A block whose output is to be that of the float model, batch by batch."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils import _pytree

from ....qcore import QuantTensor, grid_of, values_of
from ...recording.examples import Call
from ...recording.tensors import tensors_in
from ..walking.chain import Reached
from ..walking.stages import Kept, Stage
from .stand_ins import kept_apart

__all__ = ["Block", "Errors", "outputs_of"]


def outputs_of(result: object, taken: int | None = None) -> list[Tensor]:
    """The floating numbers in what a stage returned.

    Args:
        result: its output, or a `Reached` with the arguments of what comes next.
        taken: which of the tensors in there counts; None for all.

    Example:
        >>> outputs_of((torch.ones(1), torch.zeros(1, dtype=torch.int64), torch.zeros(1)), taken=2)
        [tensor([0.])]
    """
    found = tensors_in(result.call if isinstance(result, Reached) else result)
    found = found if taken is None else [found[taken]]
    return [values_of(each) for each in found if each.is_floating_point()]


@dataclass(frozen=True)
class Errors:
    """How far the output of a block is from that of the float model, over all batches.

    Attributes:
        total: the sum of squared differences, weighted.
        power: the sum of squares of the float output, weighted alike.

    Example:
        >>> Errors(1.0, 4.0).share
        0.25
    """

    total: float
    power: float

    @property
    def share(self) -> float:
        """The error as a share of the power."""
        return self.total / self.power if self.power > 0 else (0.0 if self.total == 0 else math.inf)


@dataclass(frozen=True)
class Block:
    """A part of a quantized model with its inputs, and the outputs of the same part of the float model.

    Attributes:
        name: what the report calls it.
        stage: what runs.
        kept: its arguments, batch by batch.
        floats: the same in the float model; None where they are the same.
        targets: the outputs of the float model, as ``((tensors,), {})``.
        weights: called with the number of a batch and numbers shaped like an output: how much each of them counts,
            or None for all alike.
        taken: which tensor of the output counts; None for all.
    """

    name: str
    stage: Stage
    kept: Kept
    floats: Kept | None
    targets: Kept
    weights: Callable[[int, Tensor], Tensor | None]
    taken: int | None = None

    def __len__(self) -> int:
        return len(self.kept)

    def loss(self, number: int, drop: float = 0.0, generator: torch.Generator | None = None) -> Tensor:
        """The sum of squared differences of the outputs for one batch.

        Args:
            number: of the batch.
            drop: the probability that a number of the input is that of the float model.
            generator: decides which.
        """
        call = self.kept[number]
        if drop > 0 and self.floats is not None and generator is not None:
            call = mixed(call, self.floats[number], drop, generator)
        found = outputs_of(self.stage(call, number), self.taken)
        parts = [torch.zeros(())]
        for one, other in zip(found, self._targets(number), strict=True):
            parts.append(self._weighted(number, (one - other.to(one)).float().square()).sum())
        return sum(parts[1:], parts[0].to(parts[-1].device))

    def _targets(self, number: int) -> Sequence[Tensor]:
        return self.targets[number][0][0]

    def _weighted(self, number: int, squares: Tensor) -> Tensor:
        weights = self.weights(number, squares)
        return squares if weights is None else squares * weights

    @torch.no_grad()
    def errors(self) -> Errors:
        """The errors of the block as it stands."""
        total = power = 0.0
        for number in range(len(self)):
            total += float(self.loss(number))
            for each in self._targets(number):
                power += float(self._weighted(number, each.float().square()).sum())
        return Errors(total, power)


def mixed(call: Call, floats: Call, drop: float, generator: torch.Generator) -> Call:
    """The arguments of a block, of which each number is replaced by that of the float model with some probability.

    Example:
        >>> args, _ = mixed(((torch.zeros(8),), {}), ((torch.ones(8),), {}), 0.5, torch.Generator().manual_seed(0))
        >>> args[0].sum()
        tensor(5.)
    """
    leaves, spec = _pytree.tree_flatten(call)
    others = _pytree.tree_leaves(floats)
    return _pytree.tree_unflatten([_mixed(*each, drop, generator) for each in zip(leaves, others, strict=True)], spec)


def _mixed(one: object, other: object, drop: float, generator: torch.Generator) -> object:
    if not isinstance(one, Tensor) or not isinstance(other, Tensor) or not one.is_floating_point():
        return one
    values, grid = values_of(one), grid_of(one)
    both = kept_apart(values, values_of(other).to(values), drop, generator)
    return both if grid is None or both is values else QuantTensor.wrap(both, grid)  # later layers ask for its scale

"""Learning the rounding of a block's weights, and the ranges of its activations."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ....nn.contexts.freezing import frozen
from ....qcore import GridQuant, TensorQuant
from ...errors import GraphError, check_count, check_number
from ..walking.sites import Site
from .block import Block, Errors
from .learned_ranges import LearnedRange
from .soft_weights import SoftWeight
from .stand_ins import StandIns

__all__ = ["Learned", "Settings", "learn"]

_LOOKS = 5  # how often the rounded block is compared with the best so far


@dataclass(frozen=True)
class Settings:
    """How weights are learned; see `reconstruct_blocks`.

    Example:
        >>> Settings().exponent(0), Settings(iterations=10).exponent(9)
        (None, 5.6)
    """

    iterations: int = 300
    batch_size: int = 16
    learning_rate: float = 0.2
    penalty: float = 10.0
    beta: tuple[float, float] = (20.0, 2.0)
    warm_up: float = 0.5
    drop: float = 0.0
    activation_scales: bool = False
    scale_learning_rate: float = 0.001
    seed: int = 0

    def check(self, name: str) -> None:
        """Raise a `GraphError` where a setting is none."""
        check_count(name, "iterations", self.iterations)
        check_count(name, "batch_size", self.batch_size, least=1)
        check_count(name, "seed", self.seed)
        for setting, high in (
            ("learning_rate", None),
            ("penalty", None),
            ("warm_up", 1.0),
            ("drop", 1.0),
            ("scale_learning_rate", None),
        ):
            usual, limit = getattr(Settings, setting), float("inf") if high is None else high
            check_number(name, setting, getattr(self, setting), high=limit, usual=usual)
        if len(self.beta) != 2 or not min(self.beta) >= 1:
            raise GraphError(f"{name}: beta={self.beta!r} is not two exponents, 1 or more; (20, 2) is usual.")
        if not isinstance(self.activation_scales, bool):
            raise GraphError(f"{name}: activation_scales={self.activation_scales!r} is neither True nor False.")

    def exponent(self, step: int) -> float | None:
        """That of the penalty of undecided weights; None for no penalty."""
        free = self.warm_up * self.iterations
        if step < free:
            return None
        return self.beta[1] + (self.beta[0] - self.beta[1]) * (self.iterations - step) / (self.iterations - free)


@dataclass
class Learned:
    """What was learned for a block.

    Attributes:
        before: its errors as it was.
        after: those with what was chosen.
        values: what was chosen for its weights, as their quantizers see them; empty where nothing was better.
        soft: the weights.
        ranges: the ranges that were learned.
    """

    before: Errors
    after: Errors
    values: dict[Site, Tensor] = field(default_factory=dict)
    soft: dict[Site, SoftWeight] = field(default_factory=dict)
    ranges: list[LearnedRange] = field(default_factory=list)


def learn(
    model: nn.Module,
    block: Block,
    stand_ins: StandIns,
    sites: Sequence[Site],
    ranges: list[LearnedRange],
    before: Errors,
    settings: Settings,
    steps: Iterable[int],
) -> Learned:
    """Learn a block, and keep the best of what was seen.

    Args:
        model: that the block is a part of.
        block: the block.
        stand_ins: what stands in for the model's quantizers, in force.
        sites: the weights to be learned.
        ranges: the ranges of activations to be learned.
        before: the errors of the block as it is.
        settings: how.
        steps: the numbers of the steps, which may show a bar.
    """
    soft = {site: SoftWeight(site, stand_ins.grids[site], settings.learning_rate) for site in sites}
    found = Learned(before, before, {}, soft, ranges)
    count = sum(each.between for each in soft.values())
    if not (count or ranges) or not before.total > 0:
        return found
    unit = before.total / len(block)  # so that the error is 1 at the start, whatever the block
    order = _Order(len(block), settings.seed)
    best = [each.start for each in ranges]
    looks = {settings.iterations - round(number * settings.iterations / 2 / _LOOKS) for number in range(_LOOKS)}
    for step in steps:
        exponent = settings.exponent(step)
        stand_ins.soft, stand_ins.drop = soft, settings.drop
        leaves = [each.values for each in soft.values()]
        moving = [parameter for each in ranges for parameter in each.parameters]
        try:
            with torch.enable_grad():
                loss = block.loss(next(order), settings.drop, stand_ins.generator) / unit
                gradients = list(torch.autograd.grad(loss, [*leaves, *moving], allow_unused=True))
        finally:
            stand_ins.soft, stand_ins.drop = {}, 0.0
        for each, gradient in zip(soft.values(), gradients, strict=False):
            each.step(gradient, settings.penalty / max(count, 1), exponent)
        rest = gradients[len(leaves) :]
        for each in ranges:
            each.step(rest[: len(each.parameters)], 1 - step / settings.iterations)
            rest = rest[len(each.parameters) :]
        if step + 1 in looks:
            errors, values = _rounded(model, block, stand_ins, soft)
            if errors.total < found.after.total:
                found.after, found.values = errors, values
                best = [each.state() for each in ranges]
    for each, state in zip(ranges, best, strict=True):
        each.set(state)
    return found


def _rounded(
    model: nn.Module, block: Block, stand_ins: StandIns, soft: dict[Site, SoftWeight]
) -> tuple[Errors, dict[Site, Tensor]]:
    """The errors of a block whose weights lie on their grids, and these weights."""
    values = {site: each.rounded() for site, each in soft.items()}
    stand_ins.chosen |= values
    try:
        with frozen(model):
            return block.errors(), values
    finally:
        for site in values:
            del stand_ins.chosen[site]


class _Order:
    """The numbers of batches in an order that is drawn anew each time all had their turn.

    Example:
        >>> order = _Order(3, seed=0)
        >>> sorted(next(order) for _ in range(3))
        [0, 1, 2]
    """

    def __init__(self, count: int, seed: int) -> None:
        self._count, self._generator = count, torch.Generator().manual_seed(seed)
        self._left: list[int] = []

    def __next__(self) -> int:
        self._left = self._left or torch.randperm(self._count, generator=self._generator).tolist()
        return self._left.pop()


def ranges_of(quantizers: Iterable[TensorQuant], settings: Settings) -> list[LearnedRange]:
    """The ranges of activations that are learned."""
    if not settings.activation_scales:
        return []
    found = [each for each in quantizers if isinstance(each, GridQuant) and LearnedRange.learns(each)]
    return [LearnedRange(each, settings.scale_learning_rate) for each in found]

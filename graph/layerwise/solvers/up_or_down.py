"""AdaRound on second moments: whether each weight goes up or down, learned by gradients, without data in the loop."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ....qcore.rounding.learned import stretched_logit, stretched_sigmoid, stretched_slope
from ..problem import Problem, Solution
from .rows import computed, drift, never_worse

__all__ = ["solve_adaround"]

_DECIDED = 0.05  # how near to 0 or 1 a share counts as decided


def solve_adaround(
    problem: Problem,
    *,
    iterations: int = 150,
    learning_rate: float = 0.05,
    penalty: float = 0.01,
    beta: tuple[float, float] = (20.0, 2.0),
    warm_up: float = 0.2,
) -> Solution:
    """Learn for each weight which of the two levels around it is best for the outputs: AdaRound (Nagel et al., 2020).

    A weight moves between its two levels by a share ``h`` from 0 to 1, which starts where the weight is. Adam lowers
    the loss of the outputs plus `penalty` times the sum of ``1 - |2 h - 1|**beta``, which pulls each share to 0 or 1.
    The gradient of the loss is ``2 (Q H - W C)``: it takes no data. At the end a weight goes up where ``h`` is above
    one half, and a row whose loss is not below that of round to nearest keeps the latter.

    Args:
        problem: weights, grid and second moments.
        iterations: steps of Adam; 0 rounds to nearest.
        learning_rate: of Adam.
        penalty: what an undecided weight costs, in units of the loss.
        beta: the exponent after the warm-up and at the end; between them it falls linearly.
        warm_up: share of the iterations without penalty.

    Returns:
        The solution. Its figures: ``undecided``, the share of weights whose ``h`` ended between .05 and .95, and
        ``kept``, the share of rows that keep round to nearest.

    Example:
        >>> from bitwright.graph.layerwise.problem import WeightGrid
        >>> from bitwright.qcore import Integers
        >>> grid = WeightGrid(torch.tensor([1.0]), torch.zeros(1, 1, 1, dtype=torch.int64), Integers(4))
        >>> gram = torch.tensor([[[1.0, 0.9], [0.9, 1.0]]])  # inputs that say nearly the same
        >>> problem = Problem(torch.tensor([[[0.4, 1.45]]]), grid, gram)
        >>> problem.nearest(), solve_adaround(problem).weight
        (tensor([[[0., 1.]]]), tensor([[[0., 2.]]]))
    """
    between = _Between.of(problem)
    parameter, share = between.learned(problem, iterations, learning_rate, penalty, beta, warm_up)
    weight, better = never_worse(problem, between.hard(parameter, share) * problem.grid.spread(between.scales))
    undecided = between.undecided(share)
    note = f"{undecided:.1%} of the weights were undecided at the end" if undecided >= 0.01 else ""
    return Solution(weight, figures={"undecided": undecided, "kept": 1 - better.double().mean().item()}, note=note)


class _Between(NamedTuple):
    """The levels around each weight, and the parameter that stands for the weight itself."""

    lower: Tensor
    upper: Tensor
    nearest: Tensor
    start: Tensor
    scales: Tensor

    @classmethod
    def of(cls, problem: Problem) -> "_Between":
        weight, grid = computed(problem), problem.grid
        scales = grid.scales.to(weight)
        steps = weight / grid.spread(scales)
        lower, upper = grid.rounded(steps, torch.floor), grid.rounded(steps, torch.ceil)
        gap = upper - lower
        fraction = ((steps - lower) / torch.where(gap > 0, gap, 1)).clamp_(0, 1).masked_fill_(gap == 0, 0)
        return cls(lower, upper, grid.rounded(steps), stretched_logit(fraction), scales)

    def learned(
        self,
        problem: Problem,
        iterations: int,
        learning_rate: float,
        penalty: float,
        beta: tuple[float, float],
        warm_up: float,
    ) -> tuple[Tensor, Tensor]:
        """The parameter after Adam's steps, and the shares that it stands for."""
        spread = problem.grid.spread(self.scales)
        loss = _OutputLoss(self.lower * spread - computed(problem), (self.upper - self.lower) * spread, problem)
        parameter, share = self.start.clone(), torch.empty_like(self.start)
        adam = _Adam(parameter, learning_rate)
        free = warm_up * iterations
        for step in range(iterations):
            gradient = loss.gradient(stretched_sigmoid(parameter, out=share))
            if penalty and step >= free:
                exponent = beta[1] + (beta[0] - beta[1]) * (iterations - step) / (iterations - free)
                gradient.sub_(_pull(share, exponent), alpha=penalty)
            adam.step(gradient.mul_(stretched_slope(share)))
        return parameter, stretched_sigmoid(parameter, out=share)

    def hard(self, parameter: Tensor, share: Tensor) -> Tensor:
        """The levels that shares lead to: the nearest where nothing was learned."""
        return torch.where(parameter == self.start, self.nearest, torch.where(share > 0.5, self.upper, self.lower))

    def undecided(self, share: Tensor) -> float:
        """The part of the weights whose share is neither near 0 nor near 1, of those that have two levels."""
        free = self.upper > self.lower
        open_ = (share > _DECIDED) & (share < 1 - _DECIDED) & free
        return open_.sum().item() / max(1, int(free.sum()))


class _OutputLoss:
    """The loss of the outputs as a function of the shares."""

    def __init__(self, base: Tensor, gap: Tensor, problem: Problem) -> None:
        self.base, self.gap = base, gap
        self.gram, self.drift = problem.gram.to(base), drift(problem)
        self.error, self.slope = torch.empty_like(base), torch.empty_like(base)

    def gradient(self, share: Tensor) -> Tensor:
        """By the shares; its memory is used again."""
        torch.addcmul(self.base, self.gap, share, out=self.error)
        if self.drift is None:
            torch.matmul(self.error, self.gram, out=self.slope)
        else:
            torch.baddbmm(self.drift, self.error, self.gram, beta=-1, out=self.slope)
        return self.slope.mul_(self.gap).mul_(2)


class _Adam:
    """Adam (Kingma and Ba, 2014) with the customary constants, in place and without autograd."""

    def __init__(self, parameter: Tensor, learning_rate: float) -> None:
        self.parameter, self.learning_rate = parameter, learning_rate
        self.mean, self.square, self.root = (torch.zeros_like(parameter) for _ in range(3))
        self.steps = 0

    def step(self, gradient: Tensor) -> None:
        self.steps += 1
        self.mean.lerp_(gradient, 0.1)
        self.square.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
        unbiased = math.sqrt(1 - 0.999**self.steps)
        root = torch.sqrt(self.square, out=self.root).add_(1e-8 * unbiased)
        self.parameter.addcdiv_(self.mean, root, value=-self.learning_rate * unbiased / (1 - 0.9**self.steps))


def _pull(share: Tensor, exponent: float) -> Tensor:
    """How much faster the sum of ``1 - |2 h - 1|**exponent`` falls as each share grows: its negative derivative."""
    centered = torch.mul(share, 2).sub_(1)
    return centered.abs().pow_(exponent - 1).copysign_(centered).mul_(2 * exponent)

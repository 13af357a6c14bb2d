"""AdaRound on second moments: whether each weight goes up or down, learned by gradients, without data in the loop."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ....qcore.rounding.learned import stretched_logit, stretched_sigmoid, stretched_slope
from ...errors import GraphError, check_count, check_number
from ..problem import Problem, Solution
from .rows import computed, drift, never_worse

__all__ = ["Shares", "solve_adaround"]

_DECIDED = 0.05  # how near to 0 or 1 a share counts as decided
_MANY = 0.01  # of weights that were undecided: the note says so


def solve_adaround(
    problem: Problem,
    *,
    iterations: int = 150,
    learning_rate: float = 0.1,
    penalty: float = 30.0,
    beta: tuple[float, float] = (20.0, 2.0),
    warm_up: float = 0.2,
) -> Solution:
    """AdaRound: learn for each weight which of the two levels around it is best for the outputs.

    A weight moves from the lower level to the upper one by a share ``h`` from 0 to 1, which starts where the weight is.
    Adam lowers the loss of the outputs plus ``penalty`` times the sum of ``1 - |2 h - 1|**beta``, which pulls each
    share to 0 or 1. The gradient of the loss is ``2 (Q H - W C)``: it takes no data. At the end a weight goes up where
    ``h`` is above one half, and a row whose loss is not below that of round-to-nearest keeps the latter.

    Args:
        problem: the layer.
        iterations: steps of Adam; 0 rounds to nearest.
        learning_rate: of Adam.
        penalty: what an undecided weight costs, in units of the mean loss of a row when one of its weights goes from
            one level to the other. It is no number of the paper's, whose losses are in units of the outputs: where
            these are large, its 0.01 decides nothing.
        beta: the exponent after the warm-up and at the end; between them it falls linearly.
        warm_up: share of the iterations without penalty.

    Returns:
        The weights, on the grid of the problem. The figure "undecided" is the share of weights whose ``h`` ended
        between 0.05 and 0.95, with a note where there are many; "kept" is the share of rows rounded to nearest.

    Raises:
        GraphError: invalid settings.

    References:
        Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization", 2020.

    Example:
        >>> from bitwright.graph.layerwise.problem import WeightGrid
        >>> from bitwright.qcore import Integers
        >>> grid = WeightGrid(torch.tensor([1.0]), torch.zeros(1, 1, 1, dtype=torch.int64), Integers(4))
        >>> gram = torch.tensor([[[1.0, 0.9], [0.9, 1.0]]])  # inputs that say nearly the same
        >>> problem = Problem(torch.tensor([[[0.4, 1.45]]]), grid, gram)
        >>> problem.nearest(), solve_adaround(problem).weight
        (tensor([[[0., 1.]]]), tensor([[[0., 2.]]]))
    """
    check_count("adaround", "iterations", iterations)
    check_number("adaround", "learning_rate", learning_rate, usual=0.1)
    check_number("adaround", "penalty", penalty, usual=30)
    check_number("adaround", "warm_up", warm_up, high=1.0, usual=0.2)
    pair = isinstance(beta, Sequence) and len(beta) == 2 and all(isinstance(each, int | float) for each in beta)
    if not pair or not min(beta) >= 1:
        raise GraphError(f"adaround: beta={beta!r} is not two exponents, 1 or more; (20, 2) is usual.")
    shares = Shares(problem)
    parameter, share = shares.start.clone(), torch.empty_like(shares.start)
    adam = _Adam(parameter, learning_rate)
    free = warm_up * iterations
    for step in range(iterations):
        exponent = None
        if step >= free:
            exponent = beta[1] + (beta[0] - beta[1]) * (iterations - step) / (iterations - free)
        stretched_sigmoid(parameter, out=share)
        adam.step(shares.gradient(share, penalty, exponent))
    stretched_sigmoid(parameter, out=share)
    weight, better = never_worse(problem, shares.rounded(share, parameter == shares.start))
    undecided = shares.undecided(share)
    note = f"{undecided:.1%} of the weights were undecided between up and down at the end" if undecided >= _MANY else ""
    return Solution(weight, figures={"undecided": undecided, "kept": 1 - better.double().mean().item()}, note=note)


class Shares:
    """Weights between the two levels around them, as shares of the way up; and the loss that they have there.

    Attributes:
        start: AdaRound's parameter where the weights are.

    Args:
        problem: the layer.

    Example:
        >>> from bitwright.graph.layerwise.problem import WeightGrid
        >>> from bitwright.qcore import Integers
        >>> grid = WeightGrid(torch.tensor([1.0]), torch.zeros(1, 1, 1, dtype=torch.int64), Integers(4))
        >>> shares = Shares(Problem(torch.tensor([[[0.25, 1.75]]]), grid, torch.ones(1, 2, 2)))
        >>> stretched_sigmoid(shares.start)
        tensor([[[0.2500, 0.7500]]])
        >>> shares.rounded(torch.tensor([[[0.9, 0.9]]]), torch.tensor([[[False, False]]]))
        tensor([[[1., 2.]]])
    """

    def __init__(self, problem: Problem) -> None:
        weight, grid = computed(problem), problem.grid
        self.spread = grid.spread(grid.scales.to(weight))
        steps = weight / self.spread
        self.nearest = grid.rounded(steps)
        self.lower, self.upper = grid.rounded(steps, torch.floor), grid.rounded(steps, torch.ceil)
        gap = self.upper - self.lower  # 0 at a level and beyond the ends
        fraction = ((steps - self.lower) / torch.where(gap > 0, gap, 1)).clamp_(0, 1).masked_fill_(gap == 0, 0)
        self.start = stretched_logit(fraction)
        self.gram, self.drift = problem.gram.to(weight), drift(problem)
        self.offset, self.gap = self.lower * self.spread - weight, gap * self.spread
        unit = (self.gap.square() * self.gram.diagonal(dim1=-2, dim2=-1).unsqueeze(1)).mean(-1, keepdim=True)
        self.slope = self.gap * 2 / torch.where(unit > 0, unit, 1)
        self._error, self._gradient = torch.empty_like(weight), torch.empty_like(weight)

    def gradient(self, share: Tensor, penalty: float, exponent: float | None) -> Tensor:
        """Of the loss, in units of each row, and the penalty by AdaRound's parameter; the next call overwrites it.

        Args:
            share: where the weights are.
            penalty: of undecided weights.
            exponent: of the penalty; None for no penalty.
        """
        torch.addcmul(self.offset, self.gap, share, out=self._error)
        if self.drift is None:
            torch.matmul(self._error, self.gram, out=self._gradient)
        else:
            torch.baddbmm(self.drift, self._error, self.gram, beta=-1, out=self._gradient)
        self._gradient.mul_(self.slope)
        if penalty and exponent is not None:
            centered = torch.mul(share, 2, out=self._error).sub_(1)
            steepness = centered.abs().pow_(exponent - 1).copysign_(centered)
            self._gradient.sub_(steepness, alpha=2 * exponent * penalty)
        return self._gradient.mul_(stretched_slope(share, out=self._error))

    def rounded(self, share: Tensor, untouched: Tensor) -> Tensor:
        """The weights on the grid: up where a share is above one half, to nearest where nothing was learned."""
        levels = torch.where(share > 0.5, self.upper, self.lower)
        return torch.where(untouched, self.nearest, levels) * self.spread

    def undecided(self, share: Tensor) -> float:
        """The part of the weights whose share is neither near 0 nor near 1, of those between two levels."""
        free = self.gap != 0
        between = (share > _DECIDED) & (share < 1 - _DECIDED) & free
        return int(between.sum()) / max(1, int(free.sum()))


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

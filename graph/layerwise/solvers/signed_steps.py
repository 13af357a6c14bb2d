"""AutoRound on second moments: offsets before rounding and scales, by steps of a fixed size, the best iterate kept."""

import torch
from torch import Tensor

from ...errors import check_count, check_number
from ..problem import Problem, Solution, WeightGrid
from .rows import Sets, computed, drift, never_worse, per_scale

__all__ = ["Search", "solve_autoround"]

_LEAST = 0.5  # of a scale, in units of the one that it starts from


def solve_autoround(
    problem: Problem, *, iterations: int = 60, learning_rate: float | None = None, tune_scales: bool = True
) -> Solution:
    """AutoRound: tune an offset for each weight and a factor for each scale by the signs of their gradients.

    A weight goes to ``round(W / scale + V)``, V from -0.5 to 0.5 in units of the step between the two levels around it;
    a scale is the problem's times a factor from 0.5 to 1. Both move against the sign of their gradient by a step that
    falls linearly to 0; the gradient of the loss is ``2 (Q H - W C)`` and takes no data. Each row keeps its best
    iterate, or all rows that share a scale together; the first is round-to-nearest, so that none is worse than that.

    Args:
        problem: the layer.
        iterations: steps; 0 rounds to nearest.
        learning_rate: the first step; by default 1 / ``iterations``, so that V can just reach its ends.
        tune_scales: whether scales are tuned, too, where the grid allows others.

    Returns:
        The weights, on a grid with scales of its own where these were tuned. The figure "kept" is the share of rows
        that are rounded to nearest, "factor" the mean factor of tuned scales.

    Raises:
        GraphError: invalid settings.

    References:
        Cheng et al., "Optimize Weight Rounding via Signed Gradient Descent for the Quantization of LLMs", 2023.

    Example:
        >>> from bitwright.graph.layerwise.problem import WeightGrid
        >>> from bitwright.qcore import Integers
        >>> grid = WeightGrid(torch.tensor([1.0]), torch.zeros(1, 1, 1, dtype=torch.int64), Integers(4))
        >>> gram = torch.tensor([[[1.0, 0.9], [0.9, 1.0]]])  # inputs that say nearly the same
        >>> problem = Problem(torch.tensor([[[0.4, 1.45]]]), grid, gram)
        >>> problem.nearest(), solve_autoround(problem).weight
        (tensor([[[0., 1.]]]), tensor([[[0., 2.]]]))
    """
    check_count("autoround", "iterations", iterations)
    usual = 1 / max(1, iterations)
    first = usual if learning_rate is None else learning_rate
    check_number("autoround", "learning_rate", first, usual=usual)
    tuned = tune_scales and problem.grid.allowed is not None
    sets = Sets.of(problem.grid, *problem.weight.shape[:2]) if tuned else None
    search = Search(problem, sets)
    for step in range(iterations):
        search.step(first * (1 - step / iterations))
    weight, better = never_worse(problem, search.best, sets)
    figures = {"kept": 1 - better.double().mean().item()}
    if sets is None:
        return Solution(weight, figures=figures)
    scales = torch.where(sets.any(better)[sets.of_scale], search.scales, problem.grid.scales)
    figures["factor"] = (scales.double() / problem.grid.scales.double()).mean().item()
    return Solution(weight, problem.grid._replace(scales=scales), figures=figures)


class Search:
    """Offsets and factors, where they are, what they lead to, and the best that they have led to.

    Args:
        problem: weights, grid and second moments.
        sets: of rows that share scales; None where scales stay as they are.

    Example:
        >>> from bitwright.graph.layerwise.problem import WeightGrid
        >>> from bitwright.qcore import Integers
        >>> grid = WeightGrid(torch.tensor([1.0]), torch.zeros(1, 1, 1, dtype=torch.int64), Integers(4))
        >>> search = Search(Problem(torch.tensor([[[0.25, 1.25]]]), grid, torch.ones(1, 2, 2)), None)
        >>> search.levels, search.gradient
        (tensor([[[0., 1.]]]), tensor([[[-0.5000, -0.5000]]]))
        >>> search.step(0.5)
        >>> search.offset, search.levels
        (tensor([[[0.5000, 0.5000]]]), tensor([[[1., 2.]]]))
    """

    def __init__(self, problem: Problem, sets: Sets | None) -> None:
        self.start, self.sets = problem.grid, sets
        self.weight = computed(problem)
        self.gram, self.drift = problem.gram.to(self.weight), drift(problem)
        self.offset, self.gradient = torch.zeros_like(self.weight), torch.empty_like(self.weight)
        self.factor = torch.ones_like(problem.grid.scales)
        self.grid = problem.grid
        self.steps = self.weight / self.spread()
        self.levels = self.grid.rounded(self.steps)
        self.best, self.scales = self.levels * self.spread(), self.grid.scales
        self.least = self._loss()

    def spread(self) -> Tensor:
        """The scale of each weight."""
        return self.grid.spread(self.grid.scales.to(self.weight))

    def step(self, size: float) -> None:
        """Move against the signs of the gradients; keep what is better."""
        grid = self.start
        if self.sets is not None:
            self.factor.sub_(self.slope().sign_(), alpha=size).clamp_(_LEAST, 1)
            grid = self.start.scaled(self.factor)
        signed = self.grid.spread(self.grid.scales.to(self.weight).sign() * size)
        self.offset.addcmul_(self.gradient.sign_(), signed, value=-1).clamp_(-0.5, 0.5)
        self.round(grid)
        loss = self._loss()
        better = loss < self.least
        self.least = torch.where(better, loss, self.least)
        rows = better if self.sets is None else better[self.sets.of_row]
        self.best = torch.where(rows.unsqueeze(-1), self.levels * self.spread(), self.best)
        if self.sets is not None:
            self.scales = torch.where(better[self.sets.of_scale], self.grid.scales, self.scales)

    def round(self, grid: WeightGrid) -> None:
        """Go to the levels of a grid that the offsets lead to."""
        self.grid = grid
        torch.div(self.weight, self.spread(), out=self.steps)
        self.levels = grid.rounded(self.steps, self._rounding)

    def _rounding(self, steps: Tensor) -> Tensor:
        """Up where the fraction of a step and the offset are above one half together."""
        below = torch.floor(steps)
        return below.add_((steps - below).add_(self.offset) > 0.5)

    def slope(self) -> Tensor:
        """Half the gradient by the factors: a weight inside moves by its rounding error, a clipped one by its level."""
        moved = (self.levels - self.steps * self.grid.inside(self.steps)).mul_(self.gradient)
        return per_scale(self.grid, moved).to(self.factor).mul_(self.start.scales)

    def _loss(self) -> Tensor:
        """The loss of each row but for a constant, or of each set of rows; half its gradient by the weights as well."""
        error = self.levels * self.spread() - self.weight
        if self.drift is None:
            loss = (torch.matmul(error, self.gram, out=self.gradient) * error).sum(-1)
        else:
            torch.baddbmm(self.drift, error, self.gram, beta=-1, out=self.gradient)
            loss = ((self.gradient - self.drift) * error).sum(-1)
        return loss if self.sets is None else self.sets.total(loss)

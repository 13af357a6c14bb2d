"""AutoRound on second moments: offsets before rounding and scales, by steps of a fixed size, the best iterate kept."""

import torch
from torch import Tensor

from ..problem import Problem, Solution
from .rows import Sets, computed, drift, never_worse, per_scale

__all__ = ["solve_autoround"]

_LEAST = 0.5  # of a scale, in units of the one that it starts from


def solve_autoround(
    problem: Problem, *, iterations: int = 60, learning_rate: float | None = None, tune_scales: bool = True
) -> Solution:
    """Tune an offset for each weight and a factor for each scale by signs of gradients: AutoRound (Cheng et al., 2023).

    A weight is rounded to ``round(W / scale + V)``, V from -0.5 to 0.5 of the step between the two levels around it; a
    scale is that of the problem times a factor from 0.5 to 1. Both move against the sign of their gradient by a step
    that falls linearly to 0. Each row keeps its best iterate, or all rows that share a scale together; the first one is
    round to nearest, so that no row is worse than that.

    Args:
        problem: weights, grid and second moments.
        iterations: steps; 0 rounds to nearest.
        learning_rate: the first step; by default one divided by ``iterations``, so that V can just reach its ends.
        tune_scales: whether scales are tuned too, where the grid allows others.

    Returns:
        The solution, on a grid of its own where scales were tuned. Its figures: ``kept``, the share of rows that keep
        round to nearest, and ``factor``, the mean factor of scales.

    Example:
        >>> from bitwright.graph.layerwise.problem import WeightGrid
        >>> from bitwright.qcore import Integers
        >>> grid = WeightGrid(torch.tensor([1.0]), torch.zeros(1, 1, 1, dtype=torch.int64), Integers(4))
        >>> gram = torch.tensor([[[1.0, 0.9], [0.9, 1.0]]])  # inputs that say nearly the same
        >>> problem = Problem(torch.tensor([[[0.4, 1.45]]]), grid, gram)
        >>> problem.nearest(), solve_autoround(problem).weight
        (tensor([[[0., 1.]]]), tensor([[[0., 2.]]]))
    """
    tuned = tune_scales and problem.grid.allowed is not None
    sets = Sets.of(problem.grid, *problem.weight.shape[:2]) if tuned else None
    search = _Search(problem, sets)
    first = (1 / max(1, iterations)) if learning_rate is None else learning_rate
    for step in range(iterations):
        search.step(first * (1 - step / iterations))
    weight, better = never_worse(problem, search.best, sets)
    figures = {"kept": 1 - better.double().mean().item()}
    if sets is None:
        return Solution(weight, figures=figures)
    scales = torch.where(sets.any(better)[sets.of_scale], search.best_scales, problem.grid.scales)
    figures["factor"] = (scales.double() / problem.grid.scales.double()).mean().item()
    return Solution(weight, problem.grid._replace(scales=scales), figures=figures)


class _Search:
    """Offsets and factors, where they are and where they were best."""

    def __init__(self, problem: Problem, sets: Sets | None) -> None:
        self.grid, self.start, self.sets = problem.grid, problem.grid, sets
        self.weight = computed(problem)
        self.gram, self.drift = problem.gram.to(self.weight), drift(problem)
        self.offset = torch.zeros_like(self.weight)
        self.factor = torch.ones_like(problem.grid.scales)
        self.steps = self.weight / self._spread()
        self.levels = self.grid.rounded(self.steps)
        self.best = self.levels * self._spread()
        self.best_scales = problem.grid.scales
        self.gradient = torch.empty_like(self.weight)
        self.least = self._loss()

    def _spread(self) -> Tensor:
        return self.grid.spread(self.grid.scales.to(self.weight))

    def _loss(self) -> Tensor:
        """The loss of each row but for a constant, or of each set of rows; its gradient by the weights on the way."""
        error = self.levels * self._spread() - self.weight
        if self.drift is None:
            loss = (torch.matmul(error, self.gram, out=self.gradient) * error).sum(-1)
        else:
            torch.baddbmm(self.drift, error, self.gram, beta=-1, out=self.gradient)
            loss = ((self.gradient - self.drift) * error).sum(-1)
        return loss if self.sets is None else self.sets.total(loss)

    def step(self, size: float) -> None:
        """Move against the signs of the gradients; keep what is better."""
        if self.sets is not None:
            self._move_scales(size)
        signed = self.grid.scales.to(self.weight).sign() * size
        self.offset.addcmul_(self.gradient.sign_(), self.grid.spread(signed), value=-1).clamp_(-0.5, 0.5)
        torch.div(self.weight, self._spread(), out=self.steps)
        self.levels = self.grid.rounded(self.steps, self._rounding)
        loss = self._loss()
        better = loss < self.least
        self.least = torch.where(better, loss, self.least)
        rows = better if self.sets is None else better[self.sets.of_row]
        self.best = torch.where(rows.unsqueeze(-1), self.levels * self._spread(), self.best)
        if self.sets is not None:
            self.best_scales = torch.where(better[self.sets.of_scale], self.grid.scales, self.best_scales)

    def _rounding(self, steps: Tensor) -> Tensor:
        """Up where the fraction of a step and the offset are above one half together."""
        below = torch.floor(steps)
        return below.add_((steps - below).add_(self.offset) > 0.5)

    def _move_scales(self, size: float) -> None:
        """A weight inside follows its scale by its rounding error, a clipped one by its level."""
        followed = self.levels.sub_(self.steps * self.grid.inside(self.steps)).mul_(self.gradient)
        slope = per_scale(self.grid, followed).to(self.factor) * self.start.scales
        self.factor.sub_(slope.sign_(), alpha=size).clamp_(_LEAST, 1)
        self.grid = self.start.scaled(self.factor)

"""MagR: the largest weights of rows made smaller at next to no cost for the output."""

import torch
from torch import Tensor

from ...errors import GraphError
from ..problem import Problem, Solution
from .column_by_column import working_dtype
from .factors import exact_dtype, is_finite, unusable
from .ordering import in_order, restored

__all__ = ["solve_magr"]


def solve_magr(problem: Problem, *, alpha: float = 0.001, steps: int = 200) -> Solution:
    """MagR, weight magnitude reduction: shrink the largest weights that share a scale, to make the scale smaller.

    Proximal gradient descent on ``tr((V - W) Hn (V - W)') / 2 + alpha * (sum over scales of max |V|)``, where Hn is H
    over its largest eigenvalue. It prepares float weights for an algorithm that rounds, before scales are chosen.
    The largest weight of a row never grows. Rows are taken by themselves even where they share a scale.

    Args:
        problem: the layer; of its grid only what shares a scale counts.
        alpha: how much a smaller maximum is worth; 0.001 for one scale for each row, 0.0001 for groups of 128 (paper).
        steps: of the descent.

    Returns:
        Float weights (`Solution.on_grid` is False). The figure "shrunk" says by what part maxima decreased on average.

    Raises:
        GraphError: invalid settings, or rows that have different groups.

    References:
        Zhang et al., "MagR: Weight Magnitude Reduction for Enhancing Post-Training Quantization", 2024.

    Example:
        >>> from bitwright.qcore import Integers
        >>> from bitwright.graph.layerwise.problem import WeightGrid
        >>> grid = WeightGrid(torch.tensor([1.0]), torch.zeros(1, 1, 1, dtype=torch.int64), Integers(4))
        >>> problem = Problem(torch.tensor([[[1.0, 0.5]]]), grid, torch.ones(1, 2, 2))
        >>> solve_magr(problem, alpha=0.01).weight
        tensor([[[0.7450, 0.7450]]])
    """
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not 0 <= alpha < float("inf"):
        raise GraphError(f"magr: alpha={alpha!r} is not a finite number, 0 or more; 0.001 is usual.")
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
        raise GraphError(f"magr: steps={steps!r} is not a whole number, 0 or more; 200 is usual.")
    sharing = problem.grid.sharing(problem.weight.shape[2])
    order = torch.argsort(sharing, stable=True).expand(len(problem.weight), -1)
    ordered = in_order(problem, order)
    working = working_dtype(problem.weight)
    weight, segments = ordered.weight.to(working), _Segments(torch.bincount(sharing))
    gram, finite = ordered.gram.to(exact_dtype(weight.shape[2])), is_finite(ordered.gram)
    gram = gram.masked_fill(~finite.view(-1, 1, 1), 0)
    largest = torch.linalg.eigvalsh(gram)[:, -1]
    moves = (largest > 0).view(-1, 1, 1)
    normed = torch.where(moves, gram / largest.view(-1, 1, 1), 0).to(working)
    found, limits = weight, segments.cut(weight).abs().amax(-1, keepdim=True)
    before = limits
    for _ in range(steps):
        found = segments.cut(torch.baddbmm(found, found - weight, normed, alpha=-1))
        limits = _limits(found.abs(), alpha, limits)
        found = segments.joined(found.clamp(-limits, limits))
    found = torch.where(moves, found, weight)
    after = segments.cut(found).abs().amax(-1, keepdim=True)
    shrunk = 1 - torch.where(before > 0, after / before, 1).double().mean()
    figures = {"shrunk": float(shrunk)} if shrunk.isfinite() else {}
    note = "".join(unusable(finite, "left as it was"))
    return Solution(restored(found, order), on_grid=False, figures=figures, note=note)


class _Segments:
    """Rows cut into the columns that share a scale: (G, O, n) as (G, O, k, width), the shorter ones filled with 0.

    Args:
        widths: how many columns each has, one segment after the other: (k,).
    """

    def __init__(self, widths: Tensor) -> None:
        stops = widths.cumsum(0)
        self.places = (stops - widths).unsqueeze(1) + torch.arange(int(widths.max()), device=widths.device)
        self.inside = self.places < stops.unsqueeze(1)
        self.even = bool(self.inside.all())
        self.places.clamp_max_(int(widths.sum()) - 1)

    def cut(self, matrix: Tensor) -> Tensor:
        if self.even:
            return matrix.unflatten(2, self.places.shape)
        return torch.where(self.inside, matrix[:, :, self.places], 0)

    def joined(self, cut: Tensor) -> Tensor:
        return cut.flatten(2) if self.even else cut[:, :, self.inside]


def _limits(magnitudes: Tensor, alpha: float, start: Tensor) -> Tensor:
    """What to clip segments at so that they lose ``alpha`` in all; 0 where there is less than that.

    Clipping is the proximal map of ``alpha * max``: what it takes away is the projection on the l1 ball of that radius.
    The sum of what exceeds a limit is convex and falls with the limit, so that Newton's method comes from below after
    the first step, and ends at the exact limit when the set of larger numbers stays.

    Args:
        magnitudes: (..., width).
        alpha: the radius of the ball.
        start: where to begin: (..., 1).
    """
    limits = torch.where(magnitudes.amax(-1, keepdim=True) > start, start, 0)
    limits = _newton(magnitudes, alpha, limits)
    while True:
        better = _newton(magnitudes, alpha, limits)
        if not bool((better > limits).any()):
            return limits
        limits = torch.maximum(limits, better)


def _newton(magnitudes: Tensor, alpha: float, limits: Tensor) -> Tensor:
    larger = magnitudes > limits
    count = larger.sum(-1, keepdim=True)
    total = torch.where(larger, magnitudes, 0).sum(-1, keepdim=True)
    return torch.where(count > 0, (total - alpha) / count, limits).clamp_min(0)

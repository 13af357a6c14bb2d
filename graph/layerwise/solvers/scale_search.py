"""Scales by search: the factor of each that makes the rounding error smallest."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from ...errors import GraphError, check_count
from ..problem import Problem, Solution, WeightGrid
from .rows import computed, drift, per_scale

__all__ = ["solve_scales"]


def solve_scales(
    problem: Problem,
    *,
    candidates: int = 40,
    lowest: float = 0.2,
    exponent: float = 2.0,
    weighting: Literal["diagonal", "none", "full"] = "diagonal",
) -> Solution:
    """Search for each scale the factor with the smallest error of the weights rounded to nearest.

    The first half of the candidates are factors from 1 down to ``lowest``, the second half lie around the best of
    these. Factor 1 wins ties: no scale is worse than before in the measure that is searched. It is one of
    - ``"diagonal"``: the sum of ``|Q - W|**exponent`` times the power of the input, the diagonal of H;
    - ``"none"``: the sum of ``|Q - W|**exponent``;
    - ``"full"``: the squared error of the output, as far as weights of one scale cause it.

    Args:
        problem: weights, grid and second moments.
        candidates: how many factors are tried, at least 2.
        lowest: the smallest factor: above 0 and below 1.
        exponent: above 0; 2 for ``"full"``.
        weighting: the measure.

    Returns:
        The weights rounded to nearest on a grid with the scales found. Its figures: ``factor``, the mean factor.

    Raises:
        GraphError: an argument is out of its range.

    Example:
        >>> from bitwright.qcore import Integers
        >>> grid = WeightGrid(torch.tensor([1.0]), torch.zeros(1, 1, 1, dtype=torch.int64), Integers(2), None, abs)
        >>> problem = Problem(torch.tensor([[[0.5, -0.5, 1.0, 0.4]]]), grid, torch.eye(4).unsqueeze(0))
        >>> solve_scales(problem).grid.scales
        tensor([0.6000])
    """
    _check(candidates, lowest, exponent, weighting)
    grid = problem.grid
    if grid.allowed is None:
        return Solution(problem.nearest(), note="its quantizer can have no other scales")
    search = _Search(problem, _MEASURES[weighting](problem, exponent))
    coarse = candidates // 2
    step = (1 - lowest) / coarse
    for place in range(1, coarse + 1):
        search.attempt(torch.full_like(search.factor, 1 - place * step))
    middle, fine = search.factor, candidates - coarse
    for place in range(fine):
        search.attempt((middle + step * (2 * (place + 1) / (fine + 1) - 1)).clamp(lowest, 1))
    found = grid._replace(scales=search.scales)
    return Solution(found.nearest(problem.weight), found, figures={"factor": search.factor.double().mean().item()})


class _Search:
    """The best factor of each scale so far."""

    def __init__(self, problem: Problem, measure: Callable[[Tensor], Tensor]) -> None:
        self.grid, self.weight, self.measure = problem.grid, computed(problem), measure
        self.factor, self.scales = torch.ones_like(problem.grid.scales), problem.grid.scales
        self.least = self._error(problem.grid)

    def _error(self, grid: WeightGrid) -> Tensor:
        return per_scale(grid, self.measure(grid.nearest(self.weight).sub_(self.weight)))

    def attempt(self, factor: Tensor) -> None:
        """Take the factors that are better."""
        grid = self.grid.scaled(factor)
        error = self._error(grid)
        better = error < self.least
        self.least = torch.where(better, error, self.least)
        self.factor = torch.where(better, factor, self.factor)
        self.scales = torch.where(better, grid.scales, self.scales)


def _unweighted(problem: Problem, exponent: float) -> Callable[[Tensor], Tensor]:
    return lambda error: error.square_() if exponent == 2 else error.abs_().pow_(exponent)


def _by_power(problem: Problem, exponent: float) -> Callable[[Tensor], Tensor]:
    power = problem.diagonal.unsqueeze(-2).to(computed(problem))
    plain = _unweighted(problem, exponent)
    return lambda error: plain(error).mul_(power)


def _by_output(problem: Problem, exponent: float) -> Callable[[Tensor], Tensor]:
    index = problem.grid.index[:, :1, :]
    gram = problem.gram.to(computed(problem))
    if index.shape[2] > 1:
        gram = gram * (index.transpose(1, 2) == index)
    other = drift(problem)
    if other is None:
        return lambda error: (error @ gram).mul_(error)
    return lambda error: (error @ gram).sub_(other, alpha=2).mul_(error)


_MEASURES = {"diagonal": _by_power, "none": _unweighted, "full": _by_output}


def _check(candidates: int, lowest: float, exponent: float, weighting: str) -> None:
    check_count("search_scales", "candidates", candidates, 2)
    if not isinstance(lowest, int | float) or not 0 < lowest < 1:
        raise GraphError(f"search_scales: lowest={lowest!r} is not a factor above 0 and below 1; 0.2 is usual.")
    if not isinstance(exponent, int | float) or not exponent > 0:
        raise GraphError(f"search_scales: exponent={exponent!r} is not a number above 0; 2 is usual.")
    if weighting not in _MEASURES:
        raise GraphError(f"search_scales: weighting={weighting!r} is not one of {', '.join(map(repr, _MEASURES))}.")
    if weighting == "full" and exponent != 2:
        raise GraphError(
            f"search_scales: exponent={exponent!r}, but weighting='full' measures squared errors of outputs. Write "
            "exponent=2, or weighting='diagonal'."
        )

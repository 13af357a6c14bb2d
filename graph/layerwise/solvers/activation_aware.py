"""AWQ: scales of input channels that follow how large the activations are, and clipped weights."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..problem import Problem
from .ranges import largest_of

__all__ = ["CANDIDATES", "channel_scales", "clipping_thresholds", "importance", "scaled_loss"]

CANDIDATES = 20  # exponents, 0 to 0.95
SMALLEST = 1e-4  # scale
CLIPPED = 0.5  # the share of a group's largest weight that is left at the most
STEPS = 20  # of the search for it


def channel_scales(magnitudes: Tensor, weights: Tensor | None = None) -> Tensor:
    """The scales that AWQ tries: the mean magnitude of each channel to the power of 0, 1/20 ... 19/20.

    Each set is divided by the root of its largest times its smallest. A channel that is always zero has scale 1. The
    first set is all ones.

    Args:
        magnitudes: the mean of ``|x|`` of each input channel: (n,).
        weights: duo scaling: what `importance` says of each channel of the weights that read it, (n,); scales are
            divided by its power of 1 - a besides.

    Returns:
        (21, n) with ``weights``, as these change the set of exponent 0, too; (20, n) without.

    Example:
        >>> channel_scales(torch.tensor([16.0, 1.0, 0.0]))[10]  # sqrt(16) = 4 and 1
        tensor([2.0000, 0.5000, 1.0000], dtype=torch.float64)
    """
    exponents = torch.arange(CANDIDATES, dtype=torch.float64, device=magnitudes.device).unsqueeze(1) / CANDIDATES
    usable = magnitudes > 0 if weights is None else (magnitudes > 0) & (weights > 0)
    found = torch.where(usable, magnitudes.double(), 1) ** exponents
    if weights is not None:
        found = found / torch.where(usable, weights.double(), 1) ** (1 - exponents)
    largest = found.where(usable, 0).amax(1, keepdim=True)
    smallest = found.where(usable, torch.inf).amin(1, keepdim=True)
    middle = (largest * smallest).sqrt()
    found = torch.where(usable & middle.isfinite() & (middle > 0), found / middle, 1).clamp(SMALLEST, 1 / SMALLEST)
    return found if weights is None else torch.cat([torch.ones_like(found[:1]), found])


def importance(problems: Sequence[Problem]) -> Tensor:
    """For each column the mean of ``|w|`` over the outputs of all layers, as a share of the largest that has its scale.

    Example:
        >>> from bitwright.graph.layerwise.problem import WeightGrid
        >>> grid = WeightGrid(torch.ones(2), torch.tensor([[[0], [1]]]), None)
        >>> importance([Problem(torch.tensor([[[4.0, 1.0], [1.0, -2.0]]]), grid, torch.eye(2).unsqueeze(0))])
        tensor([[0.7500, 0.6250]], dtype=torch.float64)
    """
    total, count = torch.zeros(()), 0
    for problem in problems:
        largest = problem.grid.spread(largest_of(problem.grid, problem.weight))
        shares = (problem.weight.abs() / largest.clamp(min=torch.finfo(largest.dtype).tiny)).double()
        total, count = total + shares.sum(1), count + shares.shape[1]
    return total / count


def scaled_loss(problem: Problem, scales: Tensor, quantized: Callable[[Tensor], Tensor]) -> float:
    """The error of the outputs where weights are multiplied before quantization, and inputs divided, by scales.

    Args:
        problem: the weight and its inputs.
        scales: one for each column: (G, 1, n), or (n,).
        quantized: what a weight becomes, on a grid that follows it: (G, O, n).

    Returns:
        The mean squared error of all outputs together.

    Example:
        >>> problem = Problem(torch.tensor([[[0.5, 1.5]]]), None, torch.eye(2).unsqueeze(0))
        >>> scaled_loss(problem, torch.tensor([2.0, 1.0]), torch.round)  # 0.5 and 2
        0.25
    """
    return float(problem.loss(quantized(problem.weight * scales) / scales).sum())


def clipping_thresholds(problem: Problem, quantized: Callable[[Tensor], Tensor]) -> Tensor:
    """The magnitudes at which the weights of each scale are best clipped before they are quantized.

    Tried are shares of the largest, 1 to 0.5 in 20 steps. The error is that of the part of the outputs that comes from
    the weights with a common scale: of a whole row, or of a group in it.

    Args:
        problem: the weight, its grid, for which weights share a scale, and its inputs.
        quantized: what a weight becomes, on a grid that follows it: (G, O, n).

    Returns:
        One for each scale: (S,).

    Example:
        >>> from bitwright.graph.layerwise.problem import WeightGrid
        >>> grid = WeightGrid(torch.ones(1), torch.zeros(1, 1, 1, dtype=torch.int64), None)
        >>> problem = Problem(torch.tensor([[[10.0, 4.0]]]), grid, torch.diag(torch.tensor([0.1, 9.0])).unsqueeze(0))
        >>> clipping_thresholds(problem, lambda w: (w / w.abs().max() * 3).round() / 3 * w.abs().max())  # not 10 / 3
        tensor([6.])
    """
    largest = largest_of(problem.grid, problem.weight)
    best, least = largest.clone(), torch.full(largest.shape, torch.inf, dtype=torch.float64, device=largest.device)
    for step in range(STEPS + 1):
        limit = largest * (1 - (1 - CLIPPED) * step / STEPS)
        bound = problem.grid.spread(limit)
        error = quantized(problem.weight.clamp(-bound, bound)).double() - problem.weight.double()
        loss = problem.grid.gathered(_by_runs(problem, error) * error)
        better = loss < least
        best, least = torch.where(better, limit, best), torch.where(better, loss, least)
    return best


def _by_runs(problem: Problem, error: Tensor) -> Tensor:
    """``error @ gram`` without what lies between columns of different scales."""
    gram = problem.gram.double()
    if problem.grid.index.shape[2] == 1:
        return error @ gram
    parts, start = [], 0
    for size in torch.unique_consecutive(problem.grid.index[0, 0], return_counts=True)[1].tolist():
        run = slice(start, start + size)
        parts.append(error[..., run] @ gram[:, run, run])
        start += size
    return torch.cat(parts, -1)

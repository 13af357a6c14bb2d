"""The order in which columns are rounded."""

from dataclasses import replace

import torch
from torch import Tensor

from ..problem import Problem

__all__ = ["by_power", "columns_of", "grouped", "in_order", "restored"]


def by_power(problem: Problem) -> Tensor:
    """Columns in the order of their inputs' power, the most powerful first; of equals, the first: (G, n).

    Errors of the first columns are made up for by all others, so that what matters most comes first ("act-order").

    Example:
        >>> from bitwright.qcore import Integers
        >>> from bitwright.graph.layerwise.problem import WeightGrid
        >>> grid = WeightGrid(torch.ones(1), torch.zeros(1, 1, 1, dtype=torch.int64), Integers(4))
        >>> by_power(Problem(torch.ones(1, 1, 3), grid, torch.diag(torch.tensor([1.0, 3.0, 1.0])).unsqueeze(0)))
        tensor([[1, 0, 2]])
    """
    return torch.argsort(problem.diagonal, dim=-1, descending=True, stable=True)


def grouped(problem: Problem, sharing: Tensor, *, act_order: bool) -> Tensor:
    """An order in which columns that share scales are neighbours, as they can be stored: (G, n).

    With ``act_order`` the groups come in the order of their most powerful input, and so do the columns of each
    (GPTQModel's group-aware order). The groups of a convolution have one order of the groups of columns.

    Args:
        problem: what is solved.
        sharing: `WeightGrid.sharing`.
        act_order: whether to sort by the power of inputs.
    """
    if not act_order:
        return torch.argsort(sharing, stable=True).expand(len(problem.gram), -1)
    powers = problem.diagonal.new_zeros(len(problem.gram), int(sharing.max()) + 1)
    powers = powers.scatter_reduce_(1, sharing.expand_as(problem.diagonal), problem.diagonal, "amax").mean(0)
    rank = torch.argsort(torch.argsort(powers, descending=True, stable=True))
    order = by_power(problem)
    return order.gather(1, torch.argsort(rank[sharing][order], dim=1, stable=True))


def in_order(problem: Problem, order: Tensor | None) -> Problem:
    """The problem with its columns in another order."""
    if order is None:
        return problem
    cross = None if problem.cross is None else _both(problem.cross, order)
    weight, grid = columns_of(problem.weight, order), problem.grid.permuted(order)
    return replace(problem, weight=weight, grid=grid, gram=_both(problem.gram, order), cross=cross)


def columns_of(matrix: Tensor, order: Tensor) -> Tensor:
    """The columns of matrices in another order."""
    return matrix.gather(2, order.unsqueeze(1).expand(-1, matrix.shape[1], -1))


def restored(matrix: Tensor, order: Tensor | None) -> Tensor:
    """The columns of matrices in the order they had before `in_order`."""
    return matrix if order is None else columns_of(matrix, torch.argsort(order, dim=1))


def _both(matrix: Tensor, order: Tensor) -> Tensor:
    """Rows and columns in another order."""
    return columns_of(columns_of(matrix, order).mT, order).mT

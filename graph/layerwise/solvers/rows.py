"""Which rows of the weights must decide together, and which are better off with round to nearest."""

from typing import NamedTuple

import torch
from torch import Tensor

from ..problem import Problem, WeightGrid

__all__ = ["Sets", "computed", "drift", "never_worse", "per_scale"]


class Sets(NamedTuple):
    """Rows in sets: those that share a scale must take it from the same iterate.

    Args:
        of_row: the set of each row: (G, O).
        of_scale: the set of each scale: (S,).
        number: of sets.

    Example:
        >>> from bitwright.qcore import Integers
        >>> index = torch.tensor([[[0], [1], [1]]])
        >>> Sets.of(WeightGrid(torch.ones(2), index, Integers(4)), 1, 3)
        Sets(of_row=tensor([[0, 1, 1]]), of_scale=tensor([0, 1]), number=2)
    """

    of_row: Tensor
    of_scale: Tensor
    number: int

    @classmethod
    def of(cls, grid: WeightGrid, groups: int, outputs: int) -> "Sets":
        """The sets of the rows of (G, O, n) matrices, as few rows in each as the scales let."""
        index = grid.index.expand(groups, outputs, -1).reshape(groups * outputs, -1)
        rows = torch.arange(len(index), device=index.device)
        of_scale = torch.zeros(grid.scales.shape, dtype=torch.int64, device=index.device)
        while True:  # a label wanders from row to row through the scales that they share
            labels = rows[:, None].expand_as(index).flatten()
            of_scale.scatter_reduce_(0, index.flatten(), labels, "amin", include_self=False)
            found = of_scale[index].amin(1)
            if torch.equal(found, rows):
                break
            rows = found
        known, of_row = torch.unique(rows, return_inverse=True)
        return cls(of_row.view(groups, outputs), torch.searchsorted(known, of_scale), len(known))

    def total(self, rows: Tensor) -> Tensor:
        """The sum of (G, O) numbers over each set."""
        sums = torch.zeros(self.number, dtype=rows.dtype, device=rows.device)
        return sums.index_add_(0, self.of_row.flatten(), rows.flatten())

    def any(self, rows: Tensor) -> Tensor:
        """Which sets hold a true one of (G, O) rows."""
        return self.total(rows.float()) > 0


def computed(problem: Problem) -> Tensor:
    """The weights in the type that a solver computes in: float64 where they have it, else float32.

    Example:
        >>> from bitwright.qcore import Integers
        >>> grid = WeightGrid(torch.ones(1), torch.zeros(1, 1, 1, dtype=torch.int64), Integers(4))
        >>> computed(Problem(torch.ones(1, 1, 2).half(), grid, torch.eye(2).unsqueeze(0)))
        tensor([[[1., 1.]]])
    """
    return problem.weight if problem.weight.dtype == torch.float64 else problem.weight.float()


def drift(problem: Problem) -> Tensor | None:
    """``W (C - H)``: what other inputs than the float model's add to the outputs, seen by each input; None for 0.

    With ``D = Q - W`` the gradient of the loss is ``2 (D H - drift)``, and the loss ``D . (D H - 2 drift)`` but for a
    constant: sums of small numbers, where ``Q H - W C`` is a small difference of large ones.

    Example:
        >>> from bitwright.qcore import Integers
        >>> grid = WeightGrid(torch.ones(1), torch.zeros(1, 1, 1, dtype=torch.int64), Integers(4))
        >>> eye = torch.eye(2).unsqueeze(0)
        >>> drift(Problem(torch.ones(1, 1, 2), grid, eye, cross=3 * eye))
        tensor([[[2., 2.]]])
    """
    if problem.cross is None:
        return None
    weight = computed(problem)
    return weight @ (problem.cross.to(weight) - problem.gram.to(weight))


def per_scale(grid: WeightGrid, x: Tensor) -> Tensor:
    """`WeightGrid.gathered`, where the sums along rows of one scale come first.

    Example:
        >>> from bitwright.qcore import Integers
        >>> per_scale(WeightGrid(torch.ones(2), torch.tensor([[[0], [1]]]), Integers(4)), torch.ones(1, 2, 3))
        tensor([3., 3.])
    """
    return grid.gathered(x.sum_to_size(grid.index.shape))


def never_worse(problem: Problem, weight: Tensor, sets: Sets | None = None) -> tuple[Tensor, Tensor]:
    """What a solver found, but for rows whose loss is not below that of round to nearest: they keep the latter.

    Args:
        problem: what it worked on.
        weight: what it found: (G, O, n).
        sets: of rows that must decide together.

    Returns:
        The weights, and which rows are the solver's: (G, O).

    Example:
        >>> from bitwright.qcore import Integers
        >>> grid = WeightGrid(torch.ones(1), torch.zeros(1, 1, 1, dtype=torch.int64), Integers(4))
        >>> problem = Problem(torch.tensor([[[0.4], [0.4]]]), grid, torch.ones(1, 1, 1))
        >>> never_worse(problem, torch.tensor([[[1.0], [0.4]]]))
        (tensor([[[0.0000],
                 [0.4000]]]), tensor([[False,  True]]))
    """
    nearest, target = problem.nearest(), computed(problem)
    found, before = (weight.to(target) - target).double(), (nearest.to(target) - target).double()
    slope = (found + before) @ problem.gram.double()
    other = drift(problem)
    change = ((slope if other is None else slope.sub_(other, alpha=2)) * (found - before)).sum(-1)
    better = (change if sets is None else sets.total(change)[sets.of_row]) < 0
    return torch.where(better.unsqueeze(-1), weight.to(nearest), nearest), better

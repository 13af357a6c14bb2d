"""Columns rounded one after the other, each after it took in the errors of those before."""

import torch
from torch import Tensor

from ...errors import GraphError
from ..problem import WeightGrid

__all__ = ["ColumnRounder", "check_block_size", "working_dtype"]


class ColumnRounder:
    """Rounds column j of ``start[:, j] + sum over i < j of feedback[j, i] * (reference[:, i] - rounded[:, i])``.

    What the algorithms that go through a layer's columns once have in common.

    Args:
        start: (G, O, n), in float32 or float64.
        feedback: (G, n, n); only what is below the diagonal counts.
        reference: like ``start``; None for ``start`` itself.

    Example:
        >>> from bitwright.qcore import Integers
        >>> grid = WeightGrid(torch.ones(1), torch.zeros(1, 1, 1, dtype=torch.int64), Integers(4))
        >>> rounder = ColumnRounder(torch.tensor([[[0.4, 0.4]]]), torch.tensor([[[0.0, 0.0], [0.5, 0.0]]]))
        >>> rounder.round(0, 2, grid)
        >>> rounder.result()
        tensor([[[0., 1.]]])
    """

    def __init__(self, start: Tensor, feedback: Tensor, reference: Tensor | None = None) -> None:
        self.start = start.mT.contiguous()  # (G, n, O), as all here: a column is contiguous
        self.reference = self.start if reference is None else reference.mT.contiguous()
        self.feedback = feedback
        self.rounded = torch.zeros_like(self.start)
        self.errors = torch.zeros_like(self.start)

    def round(self, first: int, stop: int, grid: WeightGrid, block_size: int = 128) -> None:
        """Round the columns from ``first`` to ``stop``; those before are rounded.

        Args:
            first: the first column.
            stop: the one after the last.
            grid: of these columns.
            block_size: columns that take in earlier errors at once; it decides nothing but the time.
        """
        columns = grid.by_column(self.start.dtype)
        for low in range(first, stop, block_size):
            high = min(low + block_size, stop)
            block = self._taken_in(low, high)
            for column in range(low, high):
                target = block[:, column - low]
                if column > low:
                    weights = self.feedback[:, column : column + 1, low:column]
                    target = torch.baddbmm(target.unsqueeze(1), weights, self.errors[:, low:column]).squeeze(1)
                rounded = columns.nearest(target, column - first)
                self.rounded[:, column] = rounded
                torch.sub(self.reference[:, column], rounded, out=self.errors[:, column])

    def _taken_in(self, low: int, high: int) -> Tensor:
        """Columns with the errors of all that are before the first of them."""
        return torch.baddbmm(self.start[:, low:high], self.feedback[:, low:high, :low], self.errors[:, :low])

    def current(self, first: int, stop: int) -> Tensor:
        """The weights that columns had if they all were free to make up for the errors so far: (G, O, width).

        `feedback` must be that of a Cholesky factor.
        """
        moved = self._taken_in(first, stop) - self.start[:, first:stop]
        own = self.feedback[:, first:stop, first:stop]
        moved = torch.linalg.solve_triangular(own, moved, upper=False, unitriangular=True)
        return (self.start[:, first:stop] + moved).mT

    def result(self) -> Tensor:
        """The rounded weights: (G, O, n)."""
        return self.rounded.mT.contiguous()


def working_dtype(weight: Tensor) -> torch.dtype:
    """What columns are rounded in: the dtype of the weights, float32 at least."""
    return torch.promote_types(weight.dtype, torch.float32)


def check_block_size(algorithm: str, block_size: int) -> None:
    """Raise a `GraphError` where a block size is no whole number from 1 on."""
    if isinstance(block_size, bool) or not isinstance(block_size, int) or block_size < 1:
        raise GraphError(
            f"{algorithm}: block_size={block_size!r} is not a whole number of columns, 1 or more; it decides nothing "
            "but the time."
        )

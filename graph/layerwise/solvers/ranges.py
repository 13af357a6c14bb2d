"""Ranges of weights that share a scale."""

import torch
from torch import Tensor

from ..problem import WeightGrid

__all__ = ["largest_of"]


def largest_of(grid: WeightGrid, weight: Tensor) -> Tensor:
    """The largest magnitude of the weights that share a scale: (S,).

    Example:
        >>> grid = WeightGrid(torch.ones(2), torch.tensor([[[0], [1]]]), None)
        >>> largest_of(grid, torch.tensor([[[4.0, 1.0], [1.0, -2.0]]]))
        tensor([4., 2.])
    """
    index = grid.index.expand(weight.shape).reshape(-1)
    found = torch.zeros(grid.scales.shape, dtype=weight.dtype, device=weight.device)
    return found.scatter_reduce_(0, index, weight.abs().reshape(-1), "amax")

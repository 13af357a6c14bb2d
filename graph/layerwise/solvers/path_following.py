"""GPFQ: columns rounded so that the sum over the columns so far follows what it is in the float model."""

import torch

from ..problem import Problem, Solution
from .column_by_column import ColumnRounder, check_block_size, working_dtype
from .factors import exact_dtype, is_dead, is_finite, unusable
from .ordering import by_power, in_order, restored

__all__ = ["solve_gpfq"]


def solve_gpfq(problem: Problem, *, act_order: bool = True, block_size: int = 128) -> Solution:
    """GPFQ, greedy path-following quantization: each column is chosen for what the output is to be up to it.

    Column t becomes the number on the grid next to the one that makes ``sum over s <= t of w_s xf_s - q_s xq_s``
    smallest: it makes up for earlier columns, of rounding and of the inputs' errors, and never moves a later one. It
    needs no factor, and no damping. Weights of inputs that are always 0 become 0 (or what the grid has next to it).

    Args:
        problem: the layer.
        act_order: begin with the inputs of most power.
        block_size: columns that take in earlier errors at once; it decides nothing but the time.

    Returns:
        The weights, on the grid of the problem. What has second moments that aren't finite is rounded to nearest, and
        the note says so.

    Raises:
        GraphError: invalid settings.

    References:
        Lybrand, Saab, "A Greedy Algorithm for Quantizing Neural Networks", 2021.
        Zhang, Zhou, Saab, "Post-training Quantization for Neural Networks with Provable Guarantees", 2023.

    Example:
        >>> from bitwright.qcore import Integers
        >>> from bitwright.graph.layerwise.problem import WeightGrid
        >>> grid = WeightGrid(torch.tensor([1.0]), torch.zeros(1, 1, 1, dtype=torch.int64), Integers(4))
        >>> problem = Problem(torch.tensor([[[0.4, 0.4]]]), grid, torch.tensor([[[1.0, 0.9], [0.9, 1.0]]]))
        >>> problem.nearest(), solve_gpfq(problem).weight
        (tensor([[[0., 0.]]]), tensor([[[0., 1.]]]))
    """
    check_block_size("gpfq", block_size)
    order = by_power(problem) if act_order else None
    ordered = in_order(problem, order)
    exact, working = exact_dtype(ordered.weight.shape[2]), working_dtype(problem.weight)
    gram, finite = ordered.gram.to(exact), is_finite(ordered.gram, ordered.cross)
    failed = ~finite.view(-1, 1, 1)
    dead = is_dead(gram).unsqueeze(1) & ~failed
    powers = torch.diagonal(gram, dim1=-2, dim2=-1).unsqueeze(1)
    powers = powers.masked_fill(dead, 1)

    # the sum over s <= t of w_s C[s, t] less that over s < t of q_s H[s, t] is worked out as w_t H[t, t], with the sums
    # of w_s (C - H)[s, t] and of (w_s - q_s) H[s, t]: no large numbers cancel
    start = ordered.weight.to(exact)
    if ordered.cross is not None:
        missing = start @ torch.triu(ordered.cross.to(exact) - gram) / powers
        start = start + missing.masked_fill(failed, 0)
    reference = ordered.weight.to(working).masked_fill(dead, 0)
    feedback = (gram / powers).masked_fill(failed, 0).to(working).mT.contiguous()
    rounder = ColumnRounder(start.to(working).masked_fill(dead, 0), feedback, reference)
    rounder.round(0, reference.shape[2], ordered.grid, block_size)
    return Solution(restored(rounder.result(), order), note="".join(unusable(finite, "rounded to nearest")))

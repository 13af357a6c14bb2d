"""Qronos: GPTQ's column by column, after the weights were made to make up for the errors of the inputs."""

import torch

from ..problem import Problem, Solution
from .column_by_column import ColumnRounder, check_block_size, working_dtype
from .factors import check_damping, factorize, is_dead, is_finite
from .ordering import by_power, in_order, restored

__all__ = ["solve_qronos"]


def solve_qronos(problem: Problem, *, act_order: bool = True, damping: float = 0.01, block_size: int = 128) -> Solution:
    """Qronos: round column by column, and refit the columns to come to the output that the float model has.

    It looks for a small error ``W xf - Q xq`` of the output, where xf is what the float model has for xq. The first
    column is rounded to what is best with the others as they are; the others are then the least-squares solution of
    what is left, and columns go on making up for each other's errors as with GPTQ. With ``xf = xq`` it is GPTQ.
    Weights of inputs that are always 0 become 0 (or what the grid has next to it).

    Args:
        problem: the layer.
        act_order: begin with the inputs of most power.
        damping: what is added to the diagonals of H and C, in units of the mean of H's: it pulls to the float weights.
            The paper's, 1e-6 of the largest eigenvalue, fits noise where inputs are few. Ten times as much, and
            again up to 1, where there is no Cholesky factor.
        block_size: columns that take in earlier errors at once; it decides nothing but the time.

    Returns:
        The weights, on the grid of the problem. The figure "damping" says what was added. What has no Cholesky factor
        is rounded to nearest, and the note says so.

    Raises:
        GraphError: invalid settings.

    References:
        Zhang, Zhang, Colbert, Saab, "Qronos: Correcting the Past by Shaping the Future... in Post-Training
        Quantization", 2025.

    Example:
        >>> from bitwright.qcore import Integers
        >>> from bitwright.graph.layerwise.problem import WeightGrid
        >>> grid = WeightGrid(torch.tensor([1.0]), torch.zeros(1, 1, 1, dtype=torch.int64), Integers(4))
        >>> gram = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
        >>> problem = Problem(torch.tensor([[[0.4, 0.4]]]), grid, gram, cross=2 * gram)  # xf = 2 xq
        >>> problem.nearest(), solve_qronos(problem).weight
        (tensor([[[0., 0.]]]), tensor([[[1., 1.]]]))
    """
    check_damping("qronos", damping)
    check_block_size("qronos", block_size)
    order = by_power(problem) if act_order else None
    ordered = in_order(problem, order)
    inputs = ordered.weight.shape[2]
    factor = factorize(ordered.gram, damping, is_finite(ordered.gram, ordered.cross))
    failed = factor.failed.view(-1, 1, 1)
    dead = is_dead(ordered.gram).unsqueeze(1) & ~failed
    exact, working = factor.upper.dtype, working_dtype(problem.weight)
    weight, gram = ordered.weight.to(exact), ordered.gram.to(exact).masked_fill(failed, 0)

    # w C - q H, what is left for the columns to come, is worked out as w (C - H) + (w - q) H: no large numbers cancel
    missing = torch.zeros_like(weight)
    if ordered.cross is not None:
        missing = (weight @ (ordered.cross.to(exact) - gram)).masked_fill(failed, 0)
    weight = weight.masked_fill(dead, 0)
    power = torch.where(gram[:, :1, :1] == 0, 1.0, gram[:, :1, :1])
    first = (weight[:, :, :1] + missing[:, :, :1] / power).masked_fill(dead[:, :, :1], 0)
    rounded = ordered.grid.columns(0, 1).nearest(first.to(working))
    missing = missing[:, :, 1:] + (weight[:, :, :1] - rounded.to(exact)) @ gram[:, :1, 1:]
    trailing = factor.trailing()
    refit = (weight[:, :, 1:] + trailing.solved(missing)).masked_fill(dead[:, :, 1:], 0)
    rounder = ColumnRounder(refit.to(working), trailing.feedback(working))
    rounder.round(0, inputs - 1, ordered.grid.columns(1, inputs), block_size)
    found = restored(torch.cat([rounded, rounder.result()], 2), order)
    return Solution(found, figures=factor.figures(), note=factor.note(damping))

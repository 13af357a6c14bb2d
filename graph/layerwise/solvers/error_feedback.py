"""GPTQ: columns rounded one after the other, the later ones made to make up for the errors of the earlier."""

from collections.abc import Callable

import torch
from torch import Tensor

from ..problem import Problem, Solution, WeightGrid
from .column_by_column import ColumnRounder, check_block_size, working_dtype
from .factors import check_damping, factorize, is_dead
from .ordering import by_power, grouped, in_order, restored

__all__ = ["Rescale", "solve_gptq"]

Rescale = Callable[[Tensor, int], Tensor | tuple[Tensor, Tensor]]
"""Called with some columns of a weight and the number of the first: their scales, or these and their zero points."""


def solve_gptq(
    problem: Problem,
    *,
    act_order: bool = True,
    damping: float = 0.01,
    block_size: int = 128,
    rescale: Rescale | None = None,
) -> Solution:
    """GPTQ, also known as OPTQ: round column by column, and let the columns to come make up for each error.

    It looks for a small ``(W - Q) H (W - Q)'``, of the inputs that the quantized model has; it takes no notice of what
    the float model had instead. It is implemented in the feedback form (LDLQ of QuIP), which gives GPTQ's codes with
    one Cholesky factor and no inverse. Weights of inputs that are always 0 become 0 (or what the grid has next to it).

    Args:
        problem: the layer.
        act_order: begin with the inputs of most power.
        damping: what is added to the diagonal of H, in units of its mean; ten times as much, and again up to 1, where
            there is no Cholesky factor.
        block_size: columns that take in earlier errors at once; it decides nothing but the time.
        rescale: "dynamic groups": new scales for columns that share theirs, taken from the weights as they have become
            when the first of the columns comes up. It is called with these weights, (G, O, columns) in the order of
            the layer, and the number of the first column. It returns scales the grid allows, as many as there are in
            ``grid.index[:, :, first]``, or a pair of these and new zero points. The columns of a group are rounded
            one after the other, see `grouped`. None keeps the grid ("static groups").

    Returns:
        The weights, on the grid of the problem or, with ``rescale``, on the `Solution.grid`. The figure "damping" says
        what was added. What has no Cholesky factor is rounded to nearest, and the note says so.

    Raises:
        GraphError: invalid settings, or ``rescale`` where rows have different groups.

    References:
        Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", 2022.
        Chee et al., "QuIP: 2-Bit Quantization of Large Language Models With Guarantees", 2023.

    Example:
        >>> from bitwright.qcore import Integers
        >>> grid = WeightGrid(torch.tensor([1.0]), torch.zeros(1, 1, 1, dtype=torch.int64), Integers(4))
        >>> problem = Problem(torch.tensor([[[0.4, 0.4]]]), grid, torch.tensor([[[1.0, 0.9], [0.9, 1.0]]]))
        >>> problem.nearest(), solve_gptq(problem).weight
        (tensor([[[0., 0.]]]), tensor([[[0., 1.]]]))
    """
    check_damping("gptq", damping)
    check_block_size("gptq", block_size)
    inputs = problem.weight.shape[2]
    if rescale is not None:
        order = grouped(problem, problem.grid.sharing(inputs), act_order=act_order)
    else:
        order = by_power(problem) if act_order else None
    ordered = in_order(problem, order)
    factor = factorize(ordered.gram, damping)
    dead = is_dead(ordered.gram).unsqueeze(1) & ~factor.failed.view(-1, 1, 1)
    weight = ordered.weight.to(working_dtype(problem.weight)).masked_fill(dead, 0)
    rounder = ColumnRounder(weight, factor.feedback(weight.dtype))
    grid = None
    if rescale is None or order is None:
        rounder.round(0, inputs, ordered.grid, block_size)
    else:
        grid = _round_groups(rounder, problem.grid, order, rescale, block_size)
    return Solution(restored(rounder.result(), order), grid, figures=factor.figures(), note=factor.note(damping))


def _round_groups(
    rounder: ColumnRounder, grid: WeightGrid, order: Tensor, rescale: Rescale, block_size: int
) -> WeightGrid:
    """Round with scales that follow the weights; the grid with them.

    Args:
        rounder: of columns in their order.
        grid: of columns as the layer has them.
        order: in which all columns of a group are neighbours.
        rescale: see `solve_gptq`.
        block_size: see `solve_gptq`.
    """
    first, sharing = 0, grid.sharing(order.shape[1])[order[0]]
    for width in torch.unique_consecutive(sharing, return_counts=True)[1].tolist():
        stop = first + width
        own = order[:, first:stop]
        place = torch.argsort(own, dim=1).unsqueeze(1).expand(-1, rounder.start.shape[2], -1)
        column = int(own.min())
        found = rescale(rounder.current(first, stop).gather(2, place), column)
        scales, zero_points = found if isinstance(found, tuple) else (found, None)
        numbers = grid.index[:, :, column if grid.index.shape[2] > 1 else 0]
        grid = grid._replace(scales=_with(grid.scales, numbers, scales))
        if zero_points is not None and grid.zero_points is not None:
            grid = grid._replace(zero_points=_with(grid.zero_points, numbers, zero_points))
        rounder.round(first, stop, grid._replace(index=numbers.unsqueeze(2)), block_size)
        first = stop
    return grid


def _with(numbers: Tensor, places: Tensor, values: Tensor) -> Tensor:
    """The numbers with others in some places."""
    return numbers.index_put((places,), values.to(numbers).reshape(places.shape))

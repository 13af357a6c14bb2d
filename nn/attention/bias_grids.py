"""The grids that biases of projections follow, where several inputs meet one bias."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ...qcore import BiasQuant, Grid, IntQuant, PerAxis, PerTensor, TensorQuant

__all__ = ["floor_of", "joined", "products"]

Pair = tuple[Grid | None, Grid | None]


def joined(grids: Sequence[Grid | None], width: int) -> Grid | None:
    """One grid of several inputs, each of which is multiplied by as many rows of a matrix: a scale for each row.

    Args:
        grids: of the inputs.
        width: how many rows each has.

    Example:
        >>> one, other = Grid(torch.tensor(0.5)), Grid(torch.tensor(0.25))
        >>> joined([one, one, other], 2).scale
        tensor([0.5000, 0.5000, 0.5000, 0.5000, 0.2500, 0.2500])
    """
    for grid in grids:
        if grid is None or grid.scale.numel() != 1:
            return grid  # which is refused where it is used
    scales = [grid.scale.reshape(1).expand(width) for grid in grids if grid is not None]
    first = grids[0]
    return None if first is None else first.replace(scale=torch.cat(scales), granularity=PerAxis(0), source=None)


def products(inputs: Grid | None, weights: Sequence[Grid | None], width: int) -> Pair:
    """The grids whose scales multiply: of the input, and of the weight, with one scale each or one for each output.

    Args:
        inputs: of the input, with one scale, or one for each output.
        weights: of the matrices.
        width: how many outputs each matrix has.

    Example:
        >>> inputs = joined([Grid(torch.tensor(0.5)), Grid(torch.tensor(0.25))], 1)
        >>> ones, scales = products(inputs, [Grid(torch.tensor(2.0)), Grid(torch.tensor(4.0))], 1)
        >>> ones.scale, scales.scale
        (tensor(1.), tensor([1., 1.]))
    """
    found = [grid for grid in weights if grid is not None]
    if inputs is None or len(found) < len(weights):
        return inputs, None
    each = found[0]
    if len(found) > 1:
        scales = torch.cat([grid.scale.reshape(-1).expand(width) for grid in found])
        each = each.replace(scale=scales, granularity=PerAxis(0))
    if inputs.axis != 0 or inputs.scale.ndim != 1:
        return inputs, each
    ones = inputs.replace(scale=inputs.scale.new_ones(()), granularity=PerTensor())
    return ones, each.replace(scale=inputs.scale * each.scale.reshape(-1), granularity=PerAxis(0))


def floor_of(
    quant: TensorQuant, follower: TensorQuant | None, bias: Tensor | None, inputs: Grid | None
) -> tuple[object, ...]:
    """What a weight's quantizer is told besides: the scales below which the bias would be clipped.

    Args:
        quant: of the weight.
        follower: of the bias, if its scale is that of the products.
        bias: the part of it that is added to the products of this weight.
        inputs: grid of the input, with one scale or one for each entry of the bias.
    """
    if inputs is None or bias is None or not isinstance(follower, BiasQuant):
        return ()
    if inputs.scale.numel() not in (1, bias.numel()):  # refused by the bias's quantizer
        return ()
    if not isinstance(quant, IntQuant) or type(quant)._quantize is not IntQuant._quantize:
        return ()
    floor = follower.floor(bias, inputs, not quant.granularity.single)
    return () if floor is None else (False, floor)

"""Stored integers of a file beside those that the model has, a piece at a time."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from ....qcore import Grid, TensorQuant
from ....qcore.aliases import Arguments
from ....qcore.grid_quant import FLOAT_BITS
from ...capture.grid import IntegerGrid, QuantizedTensor
from ...capture.record import codes_of
from ...comparing.agreement import compare_exactly, compare_grids, pieces
from ...comparing.report import VerificationRow

__all__ = ["compare_stored"]


def compare_stored(
    name: str,
    where: str,
    quantizer: TensorQuant,
    x: Tensor,
    context: Arguments,
    quantized: tuple[Tensor, Grid],
    held: QuantizedTensor,
) -> VerificationRow:
    """What a file holds of a weight or bias, beside what the model makes of it.

    Args:
        name: of the quantizer's call.
        where: for the row.
        quantizer: the quantizer.
        x: the weight or bias.
        context: what else the quantizer was given.
        quantized: what it answered with: values and their grid.
        held: what the file holds.
    """
    values, grid = quantized
    assert held.codes is not None
    if values.shape != held.codes.shape:
        row = compare_exactly(name, "stored", where, values, held.codes)
    else:
        row = VerificationRow(name, "stored", where)
        for ours, theirs in _levels(quantizer, x, context, values, grid, held.codes):
            row.add(compare_exactly(name, "stored", where, ours, theirs))
    compare_grids(row, _in_blocks(IntegerGrid.of(name, grid, values.shape), held.grid, values), held.grid)
    return row


def _in_blocks(own: IntegerGrid, file: IntegerGrid, values: Tensor) -> IntegerGrid:
    """A grid with the blocks of the file, where each of these repeats the scale of its index, as in MatMulNBits."""
    if file.block is None or file.axis is None or own.block is not None or own.axis == file.axis:
        return own
    index = tuple(slice(None, None, file.block if dim == file.axis else 1) for dim in range(values.ndim))
    scale, zero_point = (each.expand(values.shape)[index].cpu() for each in own.spread(values))
    return replace(own, scale=scale, zero_point=zero_point)


def _levels(
    quantizer: TensorQuant, x: Tensor, context: Arguments, values: Tensor, grid: Grid, held: Tensor
) -> Iterator[tuple[Tensor, Tensor]]:
    """The levels of both sides, float64."""
    form, held = grid.number_format, held.to(values.device)
    if form.whole and int(grid.bit_width) > FLOAT_BITS:
        for codes, theirs in pieces(codes_of(quantizer, x, context, values, grid), held):
            yield form.decode(codes, torch.float64), theirs
        return
    zero_point = torch.zeros_like(grid.scale) if grid.zero_point is None else grid.zero_point
    scales, zeros = (grid.along(each, values.shape) for each in (grid.scale, zero_point))
    for part, scale, zero, theirs in pieces(values.detach(), scales, zeros, held):
        plain = Grid(scale, None if grid.zero_point is None else zero, form)
        yield form.decode(plain.to_int(part), torch.float64), theirs

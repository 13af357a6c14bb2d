"""Truncating average pools in a run on integers: their own arithmetic, on the integers that the run has."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ....nn.pooling.truncated import TruncatedAverage
from ....qcore import Grid
from ...capture.grid import IntegerGrid
from .tensor import IntegerTensor
from .terms import Term

__all__ = ["averaging_integers"]


@contextmanager
def averaging_integers(model: nn.Module) -> Iterator[None]:
    """Have the truncating pools of a model take and give `IntegerTensor` for the length of the block."""
    layers = [each for each in model.modules() if isinstance(each, TruncatedAverage)]
    try:
        for each in layers:
            vars(each)["intercept"] = _average  # no setting, so nothing to be checked
        yield
    finally:
        for each in layers:
            vars(each).pop("intercept", None)


def _average(layer: TruncatedAverage, given: Tensor) -> Tensor:
    x = given if layer.input_quant is None else layer.input_quant.quantize(given)[0]
    grid, term = layer.seen, x.single if isinstance(x, IntegerTensor) else None
    if not isinstance(x, IntegerTensor):
        return _values(layer, x, grid)
    journal = x.journal
    if grid is None or term is None:  # on no grid in the model, a sum on several scales, or bounds to be applied yet
        journal.compute_in_float("avg_pool2d")
        return _values(layer, x.value, grid)
    layer.check(term.codes, grid)
    sums = layer.sums(term.codes.double(), grid)
    journal.note_sums(sums.to(torch.int64), None)
    codes = layer.rounded(sums, grid, x.shape).to(torch.int64)
    after = layer.grid_after(grid, x.shape)
    if after is grid:
        return IntegerTensor((Term(codes, term.scale),), journal, x.grid_)
    return IntegerTensor((Term(codes, after.scale),), journal, IntegerGrid.of(journal.call, after, codes.shape))


def _values(layer: TruncatedAverage, x: Tensor, grid: Grid | None) -> Tensor:
    """What the layer makes of values."""
    return super(TruncatedAverage, layer).forward(x) if grid is None else layer.averaged(x, grid)[0]

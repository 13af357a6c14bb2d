"""How two sides agree on one tensor: its codes from the same input, stored integers, or outputs."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..capture.grid import IntegerGrid
from .report import VerificationRow

__all__ = ["compare_codes", "compare_exactly", "compare_outputs"]

TIE = 1e-3  # of a step: as close to a rounding boundary as this, the order of summation decides
RESOLUTION = 2.0**-20  # of a grid's range: float32 resolves 2**-24; more than TIE from 11 bits on
FLOAT = 1e-5  # of the range of an output


def compare_codes(
    name: str,
    where: str,
    values: Tensor,
    ours: Tensor,
    theirs: Tensor,
    grid: IntegerGrid,
    rounding: Callable[[Tensor], Tensor],
) -> tuple[VerificationRow, Tensor]:
    """Two sets of codes of one tensor, from the same input.

    Args:
        name: of the quantizer's call.
        where: for the row.
        values: the input, before rounding.
        ours: codes, int64.
        theirs: the other codes, int64.
        grid: where both stand.
        rounding: of the quantizer.

    Returns:
        The row, and for each code whether the value lies on a rounding boundary.

    Example:
        >>> grid = IntegerGrid("act", torch.tensor(0.5), torch.tensor(0), 4, signed=True)
        >>> x, ours, theirs = torch.tensor([0.25001, 0.3, 1.0]), torch.tensor([1, 1, 2]), torch.tensor([0, 0, 2])
        >>> row, ties = compare_codes("act", "on", x, ours, theirs, grid, torch.round)
        >>> row.compared, row.differences, row.tie_flips, ties
        (3, 1, 1, tensor([ True, False, False]))
    """
    low, high = grid.bounds
    scale, zero_point = grid.spread(values)
    steps, near = values.double() / scale, max(TIE, RESOLUTION * (high - low))
    below, above = ((rounding(steps + each) + zero_point).clamp(low, high) for each in (-near, near))
    off = (ours - theirs).abs()
    tie = (off == 1) & (below <= torch.minimum(ours, theirs)) & (torch.maximum(ours, theirs) <= above)
    differences = int(((off > 0) & ~tie).sum())
    return VerificationRow(
        name, "activation", where, off.numel(), differences, int(tie.sum()), _largest(off)
    ), below != above


def compare_exactly(name: str, kind: str, where: str, ours: Tensor, theirs: Tensor) -> VerificationRow:
    """Two tensors whose every number is to be the same.

    Example:
        >>> compare_exactly("fc.weight_quant", "stored", "off", torch.tensor([1, 2]), torch.tensor([1, 5])).differences
        1
    """
    row = VerificationRow(name, kind, where, ours.numel())
    if ours.shape != theirs.shape:
        row.differences, row.note = ours.numel(), f"shape {tuple(theirs.shape)} in the file"
    else:
        off = (ours.detach().cpu().double() - theirs.detach().cpu().double()).abs()
        row.differences, row.largest = int((~(off == 0)).sum()), _largest(off)
    return row


def compare_outputs(
    name: str, where: str, ours: Tensor, theirs: Tensor, ties: Sequence[Tensor] = ()
) -> VerificationRow:
    """Outputs of a model: floats agree to 1e-5 of their range, the largest finite magnitude.

    Args:
        name: of the output.
        where: for the row.
        ours: torch's.
        theirs: the runtime's.
        ties: for each activation, where the value lies on a rounding boundary: outputs of such a sample may differ.

    Example:
        >>> compare_outputs("y", "on", torch.tensor([100.0, 1.0]), torch.tensor([100.0, 1.01])).differences
        1
    """
    row = VerificationRow(name, "output", where, compared=ours.numel())
    if ours.shape != theirs.shape:
        row.differences = max(ours.numel(), 1)
        row.note = f"shape {tuple(theirs.shape)} in onnxruntime, {tuple(ours.shape)} in torch"
    elif ours.numel():
        one, other = ours.detach().cpu().double(), theirs.detach().cpu().double()
        finite = one[one.isfinite()].abs()
        reach = float(finite.max()) if ours.dtype.is_floating_point and finite.numel() else 1.0
        apart = torch.where(one.isnan() & other.isnan() | (one == other), 0.0, (one - other).abs())
        off = apart / (reach or 1.0)
        differing = ~(off <= FLOAT)
        tied = differing & _explained(differing, ties)
        row.differences, row.tie_flips = int((differing & ~tied).sum()), int(tied.sum())
        row.largest, row.absolute = float(off.max()), float(apart.max())
    return row


def _explained(differing: Tensor, ties: Sequence[Tensor]) -> Tensor:
    """Where a tie in the same sample may be the cause; samples run along the first dimension."""
    explained = torch.zeros_like(differing)
    for each in ties:
        if each.ndim and differing.ndim and each.shape[0] == differing.shape[0]:
            samples = each.reshape(each.shape[0], -1).any(1)
            explained |= samples.reshape([-1] + [1] * (differing.ndim - 1))
        else:
            explained |= each.any()
    return explained


def _largest(off: Tensor) -> float:
    return float(off.max()) if off.numel() else 0.0

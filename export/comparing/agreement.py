"""How two sides agree on one tensor: its codes from the same input, stored integers, or outputs."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from ...qcore import quantize_to_int
from ..capture.grid import IntegerGrid
from .report import VerificationRow

__all__ = ["compare_codes", "compare_exactly", "compare_grids", "compare_outputs", "pieces"]

TIE = 1e-3  # of a step: as close to a rounding boundary as this, the order of summation decides
RESOLUTION = 2.0**-20  # of a grid's range: float32 resolves 2**-24; more than TIE from 11 bits on
FLOAT = 1e-5  # of the range of an output
PIECE = 2**17  # numbers compared at a time: a few tensors of as many stay in a processor's cache
EXACT = 16  # bits of a code up to which float32 resolves far less than RESOLUTION


def pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Tensors, broadcast against each other, in parts of at most `PIECE` numbers: views that belong together.

    Example:
        >>> [part.shape for part, _ in pieces(torch.zeros(3, 2**16), torch.zeros(()))]
        [torch.Size([2, 65536]), torch.Size([1, 65536])]
    """
    wide = torch.broadcast_tensors(*tensors)
    shape, numbers = wide[0].shape, wide[0].numel()
    if numbers <= PIECE:
        yield wide
        return
    dim = next(dim for dim, size in enumerate(shape) if size > 1)
    size = max(1, PIECE * shape[dim] // numbers)
    for part in zip(*(each.split(size, dim) for each in wide), strict=True):
        yield from pieces(*part)


def compare_codes(
    name: str,
    where: str,
    values: Tensor,
    ours: Tensor | None,
    theirs: Tensor,
    grid: IntegerGrid,
    rounding: Callable[[Tensor], Tensor],
) -> tuple[VerificationRow, Tensor]:
    """Two sets of codes of one tensor, from the same input.

    Args:
        name: of the quantizer's call.
        where: for the row.
        values: the input, before rounding.
        ours: codes; None for those that ``QuantizeLinear`` computes of the values.
        theirs: the other codes.
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
    near = max(TIE, RESOLUTION * (high - low))
    wide = values.dtype == torch.float64 or grid.bit_width > EXACT
    number = torch.float64 if wide else torch.float32
    row = VerificationRow(name, "activation", where)
    ties = torch.empty(values.shape, dtype=torch.bool, device=values.device)
    given = theirs if ours is None else ours
    for x, mine, other, scales, zeros, tied in pieces(values, given, theirs, scale, zero_point, ties):
        one = quantize_to_int(x, scales, low, high, zeros, rounding) if ours is None else mine
        steps = x.to(number) / scales
        below, above = (rounding(steps + each).add_(zeros).clamp_(low, high) for each in (-near, near))
        torch.ne(below, above, out=tied)
        off = (one.to(number) - other.to(number)).abs_()
        part = VerificationRow(name, "activation", where, off.numel())
        if bool(off.any()):
            lower, upper = torch.minimum(one, other), torch.maximum(one, other)
            tie = (off == 1) & (below <= lower) & (upper <= above)
            part.tie_flips, part.largest = int(tie.sum()), _largest(off)
            part.differences = int(torch.count_nonzero(off)) - part.tie_flips
        row.add(part)
    return row, ties


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
        for one, other in pieces(ours.detach().cpu(), theirs.detach().cpu()):
            off = (one.double() - other.double()).abs_()
            row.differences += int((~(off == 0)).sum())
            row.largest = max(row.largest, _largest(off))
    return row


def compare_grids(row: VerificationRow, own: IntegerGrid, file: IntegerGrid) -> None:
    """Note in a row where the scales or zero points of a file are others: it is another model, whatever its codes."""
    for what in ("scale", "zero_point"):
        if not torch.equal(getattr(own, what).reshape(-1), getattr(file, what).reshape(-1)):
            row.differences = row.compared
            row.note = f"the file has another {what.replace('_', ' ')}"


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
        return row
    if not ours.numel():
        return row
    ours, theirs = ours.detach().cpu(), theirs.detach().cpu()
    floats = ours.dtype.is_floating_point
    reach = (_reach(ours) if floats else 1.0) or 1.0
    row.compared, row.absolute, row.mean_absolute = 0, 0.0, 0.0
    for one, other, behind in pieces(ours, theirs, _explained(ours.shape, ties)):
        one, other = one.double(), other.double()
        apart = torch.where(one.isnan() & other.isnan() | (one == other), 0.0, (one - other).abs())
        off = apart / reach
        differing = ~(off <= FLOAT)
        tied = int((differing & behind).sum())
        part = VerificationRow(name, "output", where, off.numel(), int(differing.sum()) - tied, tied, _largest(off))
        part.mean, part.absolute, part.mean_absolute = float(off.mean()), _largest(apart), float(apart.mean())
        row.add(part)
    if floats and ours.ndim == 2 and ours.shape[1] > 1:
        row.samples, row.alike = ours.shape[0], int((ours.argmax(1) == theirs.argmax(1)).sum())
    return row


def _reach(numbers: Tensor) -> float:
    """The largest finite magnitude."""
    return max(float(torch.where(each.isfinite(), each.abs(), 0.0).max()) for (each,) in pieces(numbers))


def _explained(shape: Sequence[int], ties: Sequence[Tensor]) -> Tensor:
    """Where a tie in the same sample may be the cause, broadcastable; samples run along the first dimension."""
    samples = torch.zeros(shape[:1], dtype=torch.bool)
    for each in ties:
        alike = each.ndim and shape and each.shape[0] == shape[0]
        samples = samples | (each.reshape(each.shape[0], -1).any(1) if alike else each.any()).cpu()
    return samples.reshape([*shape[:1], *[1] * (len(shape) - 1)])


def _largest(off: Tensor) -> float:
    return float(off.max()) if off.numel() else 0.0

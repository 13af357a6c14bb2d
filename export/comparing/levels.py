"""Activations of a file beside torch's: codes of any format on their sorted levels, scales that follow the input."""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ...qcore import Grid, TensorQuant
from ...qcore.aliases import Arguments
from ...qcore.formats.number_format import NumberFormat
from ..capture.record import quantized
from .agreement import RESOLUTION, TIE, pieces
from .report import VerificationRow

__all__ = ["Compared", "RunTime", "compare_levels", "compare_run_time", "run_time_of"]


class RunTime(NamedTuple):
    """What one run of a file found of one activation.

    Args:
        levels: what it was moved to, in units of the scale; of integers their codes.
        scale: the scale that was worked out, None where it is stored.
        zero_point: the same of the zero point.
    """

    levels: Tensor
    scale: Tensor | None = None
    zero_point: Tensor | None = None

    def step(self, number: int) -> "RunTime":
        """One step of a loop, where all steps were put out."""
        return RunTime(*(None if each is None else each[number] for each in self))  # type: ignore[arg-type]


def run_time_of(found: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, RunTime]:
    """What a run found of each activation, by the name of the quantizer's call.

    Args:
        found: the outputs of the run.
        names: for each tensor of a quantizer, such as ``act.codes`` and ``act.scale``, the output that it is.
    """
    tensors: dict[str, dict[str, Tensor]] = {}
    for name, output in names.items():
        call, _, role = name.rpartition(".")
        tensors.setdefault(call, {})[role] = found[output]
    return {call: _run_time(parts) for call, parts in tensors.items()}


def _run_time(parts: Mapping[str, Tensor]) -> RunTime:
    levels = parts["codes"] if "codes" in parts else parts["levels"]
    scale, zero_point = parts.get("scale"), parts.get("zero_point")
    if "codes" not in parts and zero_point is not None:
        levels = levels + zero_point.reshape(_beside(zero_point, levels))
    return RunTime(levels, scale, zero_point)


class Compared(NamedTuple):
    """What came of one comparison.

    Args:
        row: the counts.
        ties: which values lie on a rounding boundary, or have a scale that does.
        values: what the file goes on with.
        grid: where these lie.
    """

    row: VerificationRow
    ties: Tensor
    values: Tensor
    grid: Grid


def compare_run_time(
    name: str,
    where: str,
    quantizer: TensorQuant,
    x: Tensor,
    context: Arguments,
    grids: tuple[Grid, Grid],
    held: tuple[Tensor, Tensor] | None,
    found: RunTime,
) -> Compared:
    """What a file worked out of an activation, beside what a quantizer works out of the same input.

    A scale that follows the input counts as the same where it lies among those of inputs that differ by 2**-20 of
    their range: the order of summation before it decides as much. Where tokens or groups have scales, this is the range
    of the whole tensor. Codes are compared on the file's scale.

    Args:
        name: of the quantizer's call.
        where: for the row.
        quantizer: the quantizer.
        x: its input.
        context: what else it was given.
        grids: where the quantizer moves this input; and the one that the model has on the inputs at hand.
        held: the scale and the zero point in the file; None where they are worked out.
        found: what the run found.
    """
    grid, own = grids
    scale, zero_point = (found.scale, found.zero_point) if held is None else held
    assert scale is not None
    note, jumps = "", torch.zeros((), dtype=torch.bool)
    if scale.numel() != own.scale.numel():
        note, scale, zero_point = "the file has another scale", grid.scale, grid.zero_point
    elif held is None:
        note, jumps = _among(quantizer, x, context, grid, scale, zero_point)
    else:
        note = _other(own, scale, zero_point)
    file = grid.replace(
        scale=scale.to(grid.scale.dtype).reshape(grid.scale.shape),
        zero_point=None
        if grid.zero_point is None or zero_point is None
        else zero_point.to(grid.scale.dtype).reshape(grid.scale.shape),
    )
    theirs, rounding = found.levels, getattr(quantizer, "rounding", torch.round)
    slack = _slack(x) if held is None else 0.0
    row, ties = compare_levels(name, where, x, theirs, file, rounding, slack)
    if note:
        row.differences, row.note = row.compared, note
    levels = theirs.to(file.scale.dtype)
    if file.zero_point is not None:
        levels = levels - file.along(file.zero_point, x.shape)
    values = levels * file.along(file.scale, x.shape)
    return Compared(row, ties | file.along(jumps, x.shape) if jumps.ndim else ties | jumps, values, file)


def _other(own: Grid, scale: Tensor, zero_point: Tensor | None) -> str:
    """What the file has another one of than the model."""
    if not torch.equal(own.scale.reshape(-1), scale.reshape(-1)):
        return "the file has another scale"
    if own.zero_point is None or zero_point is None:
        return ""
    same = torch.equal(own.zero_point.reshape(-1).double(), zero_point.reshape(-1).double())
    return "" if same else "the file has another zero point"


def _among(
    quantizer: TensorQuant, x: Tensor, context: Arguments, grid: Grid, scale: Tensor, zero_point: Tensor | None
) -> tuple[str, Tensor]:
    """Whether a scale and a zero point are those of nearly the same input; and where they may jump."""
    levels = grid.number_format
    shift = grid.along(grid.scale, x.shape) * (RESOLUTION * (levels.high - levels.low))
    near = [grid]
    for other in (x * (1 + RESOLUTION), x * (1 - RESOLUTION), x + shift, x - shift):
        near.append(quantized(quantizer, other, context)[1])
    scales = torch.stack([each.scale for each in near])
    jumps = scales.amax(0) > scales.amin(0) * (1 + _JUMP)
    if grid.zero_point is not None:
        known = torch.stack([each.zero_point for each in near if each.zero_point is not None])
        jumps = jumps | (known.amin(0) < known.amax(0))
    note = _outside(near, scale, zero_point)
    if note and grid.scale.numel() > 1:  # tokens and groups that are small beside the others, as sums that cancel
        slack = _slack(x)
        for other in (x + x.sign() * slack, F.softshrink(x, slack), x + slack, x - slack):
            near.append(quantized(quantizer, other, context)[1])
        note = _outside(near, scale, zero_point)
        jumps = jumps | ((scale.reshape(grid.scale.shape) - grid.scale).abs() > _JUMP * grid.scale)
    return note, jumps


def _outside(near: list[Grid], scale: Tensor, zero_point: Tensor | None) -> str:
    """Whether a scale or a zero point lies outside of those of several grids."""
    known = torch.stack([each.scale for each in near])
    asked = scale.reshape(near[0].scale.shape)
    if not bool(((asked >= known.amin(0) * (1 - RESOLUTION)) & (asked <= known.amax(0) * (1 + RESOLUTION))).all()):
        return "the file works out another scale"
    if near[0].zero_point is None or zero_point is None:
        return ""
    known = torch.stack([each.zero_point for each in near if each.zero_point is not None])
    asked = zero_point.reshape(near[0].scale.shape)
    return (
        ""
        if bool(((asked >= known.amin(0)) & (asked <= known.amax(0))).all())
        else ("the file works out another zero point")
    )


def _slack(x: Tensor) -> float:
    """By how much numbers may be off that were summed in another order: 2**-20 of the largest of the tensor."""
    return RESOLUTION * float(torch.where(x.isfinite(), x, 0).abs().max()) if x.numel() else 0.0


_JUMP = 1e-5  # of a scale: more than the tolerance of its input moves one that may be any number


def _beside(scales: Tensor, x: Tensor) -> list[int]:
    """The shape of zero points beside a tensor of as many dimensions; one of all is 0-d."""
    return list(scales.shape) if scales.numel() > 1 else []


def compare_levels(
    name: str,
    where: str,
    values: Tensor,
    theirs: Tensor,
    grid: Grid,
    rounding: Callable[[Tensor], Tensor],
    slack: float = 0.0,
) -> tuple[VerificationRow, Tensor]:
    """What two sides moved one tensor to, from the same input, in any number format.

    Levels count by their place in ascending order. One is a tie flip where the value, moved by the tolerance, goes to
    it, too: by 1e-3 of the gap between levels around it, or by 2**-20 of the range or the slack if that is more.

    Args:
        name: of the quantizer's call.
        where: for the row.
        values: the input, before rounding.
        theirs: what the other side moved it to, in units of the scale; of integers the codes.
        grid: where both stand.
        rounding: of the quantizer.
        slack: by how much the values may be off.

    Returns:
        The row, and for each value whether it lies on a rounding boundary.

    Example:
        >>> from bitwright.qcore import E2M1
        >>> grid, x = Grid(torch.tensor(1.0), number_format=E2M1), torch.tensor([2.50001, 2.6, 9.0])
        >>> row, ties = compare_levels("act", "on", x, torch.tensor([2.0, 3.0, 4.0]), grid, torch.round)
        >>> row.compared, row.differences, row.tie_flips, ties
        (3, 1, 1, tensor([ True, False, False]))
    """
    ladder, row = _Ladder(grid.number_format, rounding), VerificationRow(name, "activation", where)
    ties = torch.empty(values.shape, dtype=torch.bool, device=values.device)
    zero_point = torch.zeros_like(grid.scale) if grid.zero_point is None else grid.zero_point
    scale, zero_point = (grid.along(each, values.shape) for each in (grid.scale, zero_point))
    for x, other, scales, zeros, tied in pieces(values, theirs, scale, zero_point, ties):
        zeros = zeros.double()
        ours = ladder.place_of_number(x / scales, zeros)
        below, above = ladder.around(x.double() / scales, zeros, slack / scales.double())
        torch.ne(below, above, out=tied)
        found = ladder.place(other)
        off = (ours - found).abs_()
        tie = (off > 0) & (torch.minimum(ours, below) <= found) & (found <= torch.maximum(ours, above))
        largest, flips = float(off.max()) if off.numel() else 0.0, int(tie.sum())
        differences = int(torch.count_nonzero(off)) - flips
        row.add(VerificationRow(name, "activation", where, off.numel(), differences, flips, largest))
    return row, ties


class _Ladder:
    """The levels of a format in ascending order; of integers, whose codes are such, nothing is listed."""

    def __init__(self, number_format: NumberFormat, rounding: Callable[[Tensor], Tensor]) -> None:
        self.number_format, self.rounding = number_format, rounding
        self.whole = number_format.whole
        if not self.whole:
            known = sorted({level + 0.0 for level in self.number_format.levels if math.isfinite(level)})
            self.levels = torch.tensor(known, dtype=torch.float64)

    def place(self, levels: Tensor) -> Tensor:
        """Where levels stand; what is none stands beyond all, and so do infinities and NaN."""
        if self.whole:
            return levels.to(torch.int64)
        wide = levels.double()
        at = torch.searchsorted(self.levels, wide.contiguous()).clamp_max(len(self.levels) - 1)
        special = torch.where(wide.isnan(), -5, torch.where(wide.isposinf(), -6, torch.where(wide.isneginf(), -7, -9)))
        return torch.where(self.levels[at] == wide, at, special)

    def place_of_number(self, steps: Tensor, zero_point: Tensor) -> Tensor:
        """Where the level stands that numbers are moved to."""
        if not self.whole:
            return self.place(self.number_format.nearest(steps, self.rounding))
        low, high = self.number_format.low, self.number_format.high
        return (self.rounding(steps) + zero_point).clamp(low, high).to(torch.int64)

    def around(self, steps: Tensor, zero_point: Tensor, slack: Tensor) -> tuple[Tensor, Tensor]:
        """Where the numbers go that lie below and above by the tolerance, which is at least the slack, in steps."""
        range_ = slack.clamp_min(RESOLUTION * (self.number_format.high - self.number_format.low))
        if self.whole:
            one = two = range_.clamp_min(TIE)
        else:
            at = self.place_of_number(steps, zero_point).clamp_min(0)
            gaps = self.levels.diff()
            one = (TIE * gaps[(at - 1).clamp_min(0)]).maximum(range_)
            two = (TIE * gaps[at.clamp_max(len(gaps) - 1)]).maximum(range_)
        return self.place_of_number(steps - one, zero_point), self.place_of_number(steps + two, zero_point)

"""Torch's side of a verification: what quantizers do while a model runs beside the codes of its file."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ....qcore import Grid, TensorQuant
from ....qcore.aliases import Arguments
from ....qcore.tensor_quant import Intercept
from ....qcore.tracing import current_step
from ...capture.grid import IntegerGrid, QuantizedTensor
from ...capture.numbering import Counts, counted
from ...capture.record import quantized
from ...comparing.agreement import compare_codes, compare_grids, pieces
from ...comparing.levels import RunTime, compare_run_time
from ...comparing.report import VerificationRow
from ..stored.comparison import compare_stored
from ..stored.reading import FileReader

__all__ = ["Comparison", "Evaluation", "same_grids"]


@dataclass
class Evaluation:
    """The model as it evaluates, worked out from its parameters: the grids of its quantizers' calls, by name."""

    grids: dict[str, Grid] = field(default_factory=dict)
    counts: Counts = field(default_factory=Counts)

    def intercept(self, path: str) -> Intercept:
        """What a quantizer does: the same as ever, but nothing that was kept is used, and its grid is noted."""

        def call(quantizer: TensorQuant, x: Tensor, *context: object) -> tuple[Tensor, Grid]:
            values, grid = quantized(quantizer, x, context)
            self.grids[counted(self.counts, path)] = grid
            return values, grid

        return call


@dataclass
class Comparison:
    """One run of the runtime, against which torch's quantizers compare themselves.

    Args:
        file: what the file holds.
        own: by name of the call, the grid that the model has on the same inputs; where there is none, that of the call.
        found: by name of the call, what the run found.
        optimizations: ``off`` or ``on``, for the rows.
        with_stored: whether integers in the file are compared, too: once is enough.
        stored: what an earlier run found of these, by name of the call: they are the same in every run.
        rows: what was compared.
        ties: for each activation, the samples with a code that hangs on the order of a sum.
        counts: how often each quantizer was called.
        grids: of the calls, from the codes of the run.
        moved: whether the run has other values than the model at any quantizer. If not, this forward was the model's
            own, from end to end.
    """

    file: FileReader
    own: Mapping[str, Grid]
    found: Mapping[str, RunTime]
    optimizations: str
    with_stored: bool
    stored: Mapping[str, VerificationRow] = field(default_factory=dict)
    rows: list[VerificationRow] = field(default_factory=list)
    ties: list[Tensor] = field(default_factory=list)
    counts: Counts = field(default_factory=Counts)
    grids: dict[str, Grid] = field(default_factory=dict)
    moved: bool = False

    def intercept(self, path: str) -> Intercept:
        """What a quantizer does during the comparison: compare, and go on from the runtime's codes."""

        def call(quantizer: TensorQuant, x: Tensor, *context: object) -> tuple[Tensor, Grid]:
            values, grid = quantized(quantizer, x, context)
            name = counted(self.counts, path)
            self.grids[name] = grid
            if name in self.found:
                theirs, file = self._activation(name, quantizer, x, context, values, grid)
                if torch.equal(theirs, values) and same_grids({name: file}, {name: grid}):
                    return values, grid
                self.moved = True
                return theirs, file
            held = self._held(path, name) if self.with_stored else []
            if name in self.stored and not context:
                self.rows.append(replace(self.stored[name], optimizations=self.optimizations))
            elif held:
                rows = [
                    compare_stored(name, self.optimizations, quantizer, x, context, (values, grid), each)
                    for each in map(self.file.tensor, held)
                ]
                self.rows.append(min(rows, key=lambda row: row.differences))
            return values, grid

        return call

    def _held(self, path: str, name: str) -> list[str]:
        """What the file holds for a call: integers of its own, or those of an earlier call that were the same."""
        places = self.file.places
        known = [name] if name in places else [key for key in places if key == path or _call_of(key) == path]
        return [each for each in known if places[each].codes is not None]

    def _activation(
        self, name: str, quantizer: TensorQuant, x: Tensor, context: Arguments, values: Tensor, grid: Grid
    ) -> tuple[Tensor, Grid]:
        held, step = self.file.tensor(name) if name in self.file.places else None, current_step()
        found = self.found[name] if step is None else self.found[name].step(step.number)
        if held is None or not grid.number_format.whole:
            return self._levels(name, quantizer, x, context, grid, held, found)
        plain = IntegerGrid.of(name, self.own.get(name, grid), x.shape)
        kept = held.grid
        file = replace(plain, scale=kept.scale, zero_point=kept.zero_point, axis=kept.axis)
        rounding: Callable[[Tensor], Tensor] = getattr(quantizer, "rounding", torch.round)
        row, ties = compare_codes(name, self.optimizations, x, None, found.levels, file, rounding)
        compare_grids(row, plain, kept)
        self._add(row, ties, quantizer)
        # what comes next starts from the file's grid, too: before any data, a quantizer would answer with another
        scale, zero_point = file.spread(x)
        going_on = torch.empty(values.shape, dtype=torch.float32)
        for part, codes, scales, zeros in pieces(going_on, found.levels, scale, zero_point):
            torch.mul((codes.to(torch.int64) - zeros).to(torch.float32), scales, out=part)
        grid = grid.replace(scale=scale, zero_point=None if grid.zero_point is None else zero_point.to(scale.dtype))
        return going_on.to(values.dtype), grid

    def _levels(
        self,
        name: str,
        quantizer: TensorQuant,
        x: Tensor,
        context: Arguments,
        grid: Grid,
        held: QuantizedTensor | None,
        found: RunTime,
    ) -> tuple[Tensor, Grid]:
        """Levels that are no integers, or that have a scale which follows the input."""
        compared = compare_run_time(
            name,
            self.optimizations,
            quantizer,
            x,
            context,
            (grid, self.own.get(name, grid)),
            None if held is None else (held.grid.scale, held.grid.zero_point),
            found,
        )
        self._add(compared.row, compared.ties, quantizer)
        return compared.values.to(x.dtype), compared.grid

    def _add(self, row: VerificationRow, ties: Tensor, quantizer: TensorQuant) -> None:
        if row.note and not quantizer.calibrated:
            row.note += _NO_DATA
        self.rows.append(row)
        whole = current_step() is not None or ties.ndim == 0  # a step decides all that follow
        self.ties.append(ties.any() if whole else ties.reshape(ties.shape[0], -1).any(1))


_NO_DATA = ": the quantizer saw no data, and takes the range of the input at hand"


def same_grids(one: Mapping[str, Grid], other: Mapping[str, Grid]) -> bool:
    """Whether calls have the same scales and zero points, as numbers."""
    return one.keys() == other.keys() and all(
        _same(grid.scale, other[name].scale) and _same(grid.zero_point, other[name].zero_point)
        for name, grid in one.items()
    )


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return torch.equal(one.reshape(-1).double(), other.reshape(-1).double())


def _call_of(name: str) -> str | None:
    """The path of a quantizer by the name of a later call of it."""
    path, _, number = name.rpartition(".")
    return path if number.isdigit() else None

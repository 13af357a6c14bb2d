"""Comparing a model with its program, code by code."""

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils._pytree import tree_map

from ...nn.contexts.intercepting import intercepted, quantizers_of
from ...qcore import Grid, TensorQuant, values_of
from ...qcore.aliases import Arguments
from ...qcore.models import require_model
from ...qcore.tensor_quant import Intercept
from ..arguments import checked_inputs, checks_keywords, require_count
from ..capture.caveats import silent_quantizers, warn_of_caveats
from ..capture.grid import IntegerGrid
from ..capture.model_state import evaluating, unchanged
from ..capture.numbering import Counts, numbered
from ..capture.record import Call, codes_of, quantized
from ..comparing.agreement import compare_codes, compare_exactly, compare_outputs
from ..comparing.levels import RunTime, compare_run_time
from ..comparing.portion import Portion, tensors_in
from ..comparing.report import VerificationReport, VerificationRow
from ..errors import ExportError
from .names import Names
from .running import ProgramRun, loaded_program
from .stored import stored_codes

__all__ = ["compare_with_program", "verify_program"]


@checks_keywords
def verify_program(
    module: nn.Module,
    program: ExportedProgram | str | os.PathLike[str],
    inputs: Tensor | tuple[object, ...],
    *,
    kwargs: Mapping[str, object] | None = None,
    batch_size: int = 256,
) -> VerificationReport:
    """Run a model and its exported program, and compare every quantized tensor.

    Compared are the codes, at each quantizer from the program's values of the tensors before it; the values that they
    stand for, which tell the scales; and at last the outputs, once from the same codes, and once from end to end. A
    code that is off by one next to a rounding boundary is a *tie flip*; any other one is a *difference*. The tolerances
    are those of `verify_onnx`.

    Args:
        module: the model that was exported; evaluated, and left as it was.
        program: what `export_program` returned, or the path of its file.
        inputs: one tensor, or a tuple of the positional arguments; many samples if you like.
        kwargs: keyword arguments.
        batch_size: how many samples (entries of the first dimension) run at a time, where the program leaves that open.

    Returns:
        A `VerificationReport`: ``report.ok``, ``report.differences``, ``report.tie_flips``, ``print(report.table())``.

    Raises:
        ExportError: not a model, not a program, or not the program of that model.

    Example:
        >>> import bitwright.nn as qnn
        >>> from bitwright.export import export_program
        >>> layer = qnn.QuantLinear(8, 4, weight_bit_width=4)
        >>> program = export_program(layer, torch.randn(2, 8), dynamic_shapes=({0: torch.export.Dim("batch")},))
        >>> verify_program(layer, program, torch.randn(100, 8)).ok
        True
    """
    require_model("verify_program", module, ExportError)
    found = loaded_program("verify_program", program)
    require_count("verify_program", batch_size=batch_size)
    arguments = checked_inputs("verify_program", "inputs", inputs, kwargs, module)
    quantizers = quantizers_of(module)
    with unchanged(module), evaluating(module):
        if not all(each.calibrated for each in quantizers.values()):
            batch_size = sys.maxsize  # their ranges are those of all samples
        report, called = compare_with_program(
            "verify_program", module, quantizers, found, arguments, kwargs, batch_size
        )
        warn_of_caveats("verify_program", module, quantizers, called)
    return report


def compare_with_program(
    call: str,
    module: nn.Module,
    quantizers: dict[str, TensorQuant],
    program: ExportedProgram,
    args: tuple[object, ...],
    kwargs: Mapping[str, object] | None,
    batch_size: int = sys.maxsize,
) -> tuple[VerificationReport, set[str]]:
    """`verify_program` for a model in evaluation mode; and the quantizers that were called."""
    run, report, called = ProgramRun(program), VerificationReport(), set[str]()
    names = Names(quantizers)
    with torch.no_grad(), silent_quantizers():
        plain = tree_map(lambda each: values_of(each) if isinstance(each, Tensor) else each, (args, dict(kwargs or {})))
        for number, part in enumerate(_parts(call, run, Portion(*plain), batch_size)):
            own = _Grids()
            with intercepted(quantizers, own.intercept):
                expected = part.through(module)
            found, tensors = run(part.args, part.kwargs)
            comparison = _Comparison(call, names, program.state_dict, own.grids, run.names, tensors, number == 0)
            with intercepted(quantizers, comparison.intercept):
                following = part.through(module)
            called |= comparison.counts.keys()
            report.add(comparison.rows)
            report.add(_outputs(following, found, "off"))
            report.add(_outputs(expected, found, "plain", comparison.ties))
    return report, called


@dataclass
class _Grids:
    """The grids that a model has on the inputs at hand, by call and step."""

    grids: dict[tuple[str, int, int], Grid] = field(default_factory=dict)
    counts: Counts = field(default_factory=Counts)
    seen: dict[tuple[str, int], int] = field(default_factory=dict)

    def key(self, path: str) -> tuple[str, int, int]:
        """Which call, and which step of a loop."""
        index = self.counts.next(path)
        step = self.seen.get((path, index), 0)
        self.seen[path, index] = step + 1
        return path, index, step

    def intercept(self, path: str) -> Intercept:
        """The quantizer's own work, and its grid noted."""

        def call(quantizer: TensorQuant, x: Tensor, *context: object) -> tuple[Tensor, Grid]:
            values, grid = quantized(quantizer, x, context)
            self.grids[self.key(path)] = grid
            return values, grid

        return call


@dataclass
class _Comparison:
    """One run of a program, against which a model's quantizers compare themselves.

    Args:
        call: the function that the user called.
        names: of nodes.
        state: what the program stores.
        own: the grids that the model has on the same inputs.
        known: the names of all tensors that the program tells.
        found: what it told.
        with_stored: whether stored integers are compared, too: once is enough.
    """

    call: str
    names: Names
    state: Mapping[str, Tensor]
    own: dict[tuple[str, int, int], Grid]
    known: set[str]
    found: dict[str, Tensor]
    with_stored: bool
    rows: list[VerificationRow] = field(default_factory=list)
    ties: list[Tensor] = field(default_factory=list)
    grids: _Grids = field(default_factory=_Grids)

    @property
    def counts(self) -> Counts:
        """How often each quantizer was called."""
        return self.grids.counts

    def intercept(self, path: str) -> Intercept:
        """Compare, and go on from the program's values."""

        def call(quantizer: TensorQuant, x: Tensor, *context: object) -> tuple[Tensor, Grid]:
            values, grid = quantized(quantizer, x, context)
            key = self.grids.key(path)
            theirs = self.found.get(self.names.node("values", path, key[1]))
            if theirs is None:
                raise ExportError(
                    f"{self.call}: the program has no tensor for {numbered(path, key[1])}. Pass the program as "
                    "export_program made it, of this model, and inputs like those it was made with."
                )
            if quantizer.follows_input or self._buffer("codes", path, key[1]) is not None:
                self._stored(path, key[1], quantizer, x, context, values, grid, theirs)
                return theirs, grid
            return self._activation(key, quantizer, x, context, values, grid, theirs)

        return call

    def _buffer(self, role: str, path: str, index: int) -> Tensor | None:
        """What the program stores for a call, itself or in an earlier call that was the same."""
        for each in range(index, -1, -1):
            found = self.state.get(Names.buffer(role, path, each))
            if found is not None:
                return found
        return None

    def _stored(
        self,
        path: str,
        index: int,
        quantizer: TensorQuant,
        x: Tensor,
        context: Arguments,
        values: Tensor,
        grid: Grid,
        theirs: Tensor,
    ) -> None:
        if not self.with_stored:
            return
        codes = codes_of(quantizer, x, context, values, grid)
        call = Call(path, index, quantizer, grid, codes, x.dtype, True)
        candidates = (self.state.get(Names.buffer("codes", path, each)) for each in range(index, -1, -1))
        ours, name = stored_codes(call), numbered(path, index)
        rows = [
            compare_exactly(name, "stored", "off", ours.double(), held.double())
            for held in candidates
            if held is not None
        ]
        row = min(rows, key=lambda each: each.differences)
        _compare_values(row, values, theirs)
        self.rows.append(row)

    def _activation(
        self,
        key: tuple[str, int, int],
        quantizer: TensorQuant,
        x: Tensor,
        context: Arguments,
        values: Tensor,
        grid: Grid,
        theirs: Tensor,
    ) -> tuple[Tensor, Grid]:
        path, index, _ = key
        own, name = self.own.get(key, grid), numbered(path, index)
        scale, zero_point = self._told("scale", path, index), self._told("zero_point", path, index)
        codes = self._told("codes", path, index)
        if scale is None and codes is not None and own.number_format.whole:
            plain = IntegerGrid.of(name, own, x.shape)
            rounding: Callable[[Tensor], Tensor] = getattr(quantizer, "rounding", torch.round)
            ints = codes.reshape(x.shape).to(torch.int64)
            row, ties = compare_codes(name, "off", x, plain.codes(x, rounding), ints, plain, rounding)
            _compare_values(row, plain.values(ints), theirs)
            self.rows.append(row)
            self.ties.append(ties)
            return theirs.to(values.dtype), own
        told = codes if codes is not None else self._told("levels", path, index)
        assert told is not None
        levels = told.reshape(x.shape)
        if codes is None and zero_point is not None:
            levels = levels + grid.along(zero_point.reshape(grid.scale.shape), x.shape)
        held = None
        if scale is None:
            held = (own.scale, torch.zeros_like(own.scale) if own.zero_point is None else own.zero_point)
        run = RunTime(levels, scale, zero_point)
        compared = compare_run_time(name, "off", quantizer, x, context, (grid, own), held, run)
        _compare_values(compared.row, compared.values, theirs)
        self.rows.append(compared.row)
        self.ties.append(compared.ties)
        return theirs.to(values.dtype), compared.grid

    def _told(self, role: str, path: str, index: int) -> Tensor | None:
        return self.found.get(self.names.node(role, path, index))


_DIGITS = 2.0**-21  # of a value: a product that is rounded once more


def _compare_values(row: VerificationRow, ours: Tensor, theirs: Tensor) -> None:
    """A program of other scales is another model, whatever its codes."""
    if ours.shape != theirs.shape:
        row.differences, row.note = max(row.compared, 1), f"shape {tuple(theirs.shape)} in the program"
        return
    one, other = ours.detach().double(), theirs.detach().double()
    same = (one == other) | (one.isnan() & other.isnan()) | ((one - other).abs() <= _DIGITS * one.abs())
    if row.differences == 0 and not bool(same.all()):
        row.differences, row.note = int((~same).sum()), "the program has another scale or zero point"


def _outputs(
    expected: list[Tensor], found: object, where: str, ties: list[Tensor] | None = None
) -> Iterator[VerificationRow]:
    pairs = zip(expected, tensors_in(found), strict=True)
    for number, (ours, theirs) in enumerate(pairs):
        row = compare_outputs(f"output_{number}", where, ours, theirs, ties or ())
        row.note = row.note.replace("onnxruntime", "the program")
        yield row


def _parts(call: str, run: ProgramRun, whole: Portion, batch_size: int) -> Iterator[Portion]:
    """The samples in portions that the program takes: as many as its fixed first dimension says, or ``batch_size``."""
    tensors = whole.tensors
    if len(tensors) != len(run.sizes):
        raise ExportError(
            f"{call}: the inputs hold {len(tensors)} tensors, and the program takes {len(run.sizes)}. Pass what the "
            "model was exported with."
        )
    samples, sizes = {each.shape[0] if each.ndim else 0 for each in tensors}, set(run.sizes)
    if len(samples) != 1 or len(sizes) != 1 or 0 in sizes:
        yield whole
        return
    count, fixed = samples.pop(), sizes.pop()
    portion = batch_size if fixed is None else fixed
    if fixed is not None and count % fixed:
        raise ExportError(
            f"{call}: the inputs have {count} samples, and the program takes {fixed} at a time. Pass a multiple, or "
            "export with dynamic_shapes."
        )
    for start in range(0, max(count, 1), max(portion, 1)):
        yield whole.cut(start, start + portion)

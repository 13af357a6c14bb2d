"""Comparing a model with its ONNX file in onnxruntime, code by code."""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from ...nn.contexts.intercepting import intercepted, quantizers_of
from ...qcore import Grid, TensorQuant
from ...qcore.aliases import Arguments
from ...qcore.models import require_model
from ...qcore.tensor_quant import Intercept
from ...qcore.tracing import current_step
from ..capture.caveats import silent_quantizers, warn_of_caveats
from ..capture.grid import IntegerGrid, QuantizedTensor
from ..capture.model_state import evaluating, unchanged
from ..capture.numbering import Counts, counted
from ..capture.record import codes_of, quantized
from ..errors import ExportError
from .activations.comparison import RunTime, compare_run_time, run_time_of
from .agreement import compare_codes, compare_exactly, compare_outputs
from .report import VerificationReport, VerificationRow
from .session import Session, loaded, tensors_in, with_activations
from .stored.reading import FileReader

if TYPE_CHECKING:
    import onnx

__all__ = ["compare_with_file", "verify_onnx"]


def verify_onnx(
    module: nn.Module,
    program: "torch.onnx.ONNXProgram | onnx.ModelProto | str | os.PathLike[str]",
    inputs: Tensor | tuple[object, ...],
    *,
    kwargs: Mapping[str, object] | None = None,
    batch_size: int = 256,
) -> VerificationReport:
    """Run a model in torch and its exported file in onnxruntime, and compare every quantized tensor.

    Compared are integer codes, with the runtime's optimizations off and on: at each quantizer torch starts from the
    runtime's codes of the tensors before it, so that every tensor is compared from the same input. A code that is off
    by one where the value lay within 1e-3 of a step of a rounding boundary is a *tie flip*, as the order of summation
    decides such values (above 10 bits within 2**-20 of the range: float32 does not resolve 1e-3 of such steps); any
    other differing code is a *difference* (of number formats that are no integers, a level other than the one on the
    other side of that boundary), and so is a scale or zero point that is not the one the model has on these
    inputs, or a float output off by more than 1e-5 of its range. Last, the outputs of the file as it is are compared
    with the model's: ``report.output_error`` says how far apart they are.

    Quantizers that saw no data, or that the model did not call, are named in a `BitwrightWarning`.

    Args:
        module: the model that was exported; evaluated, and left as it was.
        program: what the export returned, the path of a file, or an ``onnx.ModelProto``.
        inputs: one tensor, or a tuple of the positional arguments; many samples if you like.
        kwargs: keyword arguments.
        batch_size: how many samples (entries of the first dimension) run at a time, where the file leaves that open.

    Returns:
        A `VerificationReport`: ``report.ok``, ``report.differences``, ``report.tie_flips``, ``print(report.table())``.

    Raises:
        ExportError: not a model or not a file, onnxruntime is not installed, or the inputs are not the file's.

    Example:
        >>> import bitwright.nn as qnn
        >>> from bitwright.export import export_onnx_qdq
        >>> layer = qnn.QuantLinear(8, 4, weight_bit_width=4)
        >>> program = export_onnx_qdq(layer, torch.randn(2, 8))
        >>> verify_onnx(layer, program, torch.randn(100, 8)).ok
        True
    """
    require_model("verify_onnx", module, ExportError)
    arguments = inputs if isinstance(inputs, tuple) else (inputs,)
    quantizers = quantizers_of(module)
    proto = loaded("verify_onnx", program)
    with unchanged(module), evaluating(module):
        if not all(each.calibrated for each in quantizers.values()):
            batch_size = sys.maxsize  # their ranges are those of all samples
        report, called = compare_with_file("verify_onnx", module, quantizers, proto, arguments, kwargs, batch_size)
        warn_of_caveats("verify_onnx", module, quantizers, called)
    return report


def compare_with_file(
    call: str,
    module: nn.Module,
    quantizers: dict[str, TensorQuant],
    model: "onnx.ModelProto",
    args: tuple[object, ...],
    kwargs: Mapping[str, object] | None,
    batch_size: int,
) -> tuple[VerificationReport, set[str]]:
    """`verify_onnx` for a model in evaluation mode and an ``onnx.ModelProto``; and the quantizers that were called."""
    watched, names = with_activations(model, call)
    plain, stored = Session(model, True, call), FileReader(model, call).tensors()
    report, called = VerificationReport(), set[str]()
    with torch.no_grad(), silent_quantizers():
        for optimizations in ("off", "on"):
            session = Session(watched, optimizations == "on", call)
            for number, part in enumerate(_parts(session, args, kwargs, batch_size)):
                own = Evaluation()
                with intercepted(quantizers, own.intercept):
                    outputs = part.through(module)
                called |= own.counts.keys()
                found = session.run(part.tensors)
                run = run_time_of(found, names)
                comparison = Comparison(stored, own.grids, run, optimizations, with_stored=number == 0)
                with intercepted(quantizers, comparison.intercept):
                    expected = part.through(module)
                report.add(comparison.rows)
                report.add(_outputs(plain.outputs, expected, found, optimizations))
                if optimizations == "on":
                    report.add(_outputs(plain.outputs, outputs, plain.run(part.tensors), "plain", comparison.ties))
    return report, called


@dataclass
class _Part:
    """Some of the samples: as arguments, and as the tensors among them."""

    args: tuple[object, ...]
    kwargs: Mapping[str, object]

    @property
    def tensors(self) -> list[Tensor]:
        return tensors_in((self.args, self.kwargs))

    def through(self, module: nn.Module) -> list[Tensor]:
        return tensors_in(module(*self.args, **self.kwargs))


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
        stored: by name of the call, what the file holds.
        own: by name of the call, what the model has on the same inputs.
        found: by name of the call, what the run found.
        optimizations: ``off`` or ``on``, for the rows.
        with_stored: whether integers in the file are compared, too: once is enough.
        rows: what was compared.
        ties: for each activation, where its code hangs on the order of a sum.
        counts: how often each quantizer was called.
    """

    stored: dict[str, QuantizedTensor]
    own: dict[str, Grid]
    found: dict[str, RunTime]
    optimizations: str
    with_stored: bool
    rows: list[VerificationRow] = field(default_factory=list)
    ties: list[Tensor] = field(default_factory=list)
    counts: Counts = field(default_factory=Counts)

    def intercept(self, path: str) -> Intercept:
        """What a quantizer does during the comparison: compare, and go on from the runtime's codes."""

        def call(quantizer: TensorQuant, x: Tensor, *context: object) -> tuple[Tensor, Grid]:
            values, grid = quantized(quantizer, x, context)
            name = counted(self.counts, path)
            if name in self.found:
                return self._activation(name, quantizer, x, context, values, grid)
            held = self._held(path, name) if self.with_stored else []
            if held:
                codes = codes_of(quantizer, x, context, values, grid)
                rows = [self._stored(name, codes, grid, each) for each in held]
                self.rows.append(min(rows, key=lambda row: row.differences))
            return values, grid

        return call

    def _held(self, path: str, name: str) -> list[QuantizedTensor]:
        """What the file holds for a call: integers of its own, or those of an earlier call that were the same."""
        if name in self.stored:
            held = [self.stored[name]]
        else:
            held = [each for key, each in self.stored.items() if key == path or _call_of(key) == path]
        return [each for each in held if each.codes is not None]

    def _stored(self, name: str, codes: Tensor, grid: Grid, held: QuantizedTensor) -> VerificationRow:
        assert held.codes is not None
        levels = grid.number_format.decode(codes, torch.float64)
        row = compare_exactly(name, "stored", self.optimizations, levels, held.codes)
        _compare_grid(row, IntegerGrid.of(name, grid, codes.shape), held.grid)
        return row

    def _activation(
        self, name: str, quantizer: TensorQuant, x: Tensor, context: Arguments, values: Tensor, grid: Grid
    ) -> tuple[Tensor, Grid]:
        held, found, step = self.stored.get(name), self.found[name], current_step()
        if held is None or not grid.number_format.whole:
            return self._levels(name, quantizer, x, context, grid)
        plain = IntegerGrid.of(name, self.own.get(name, grid), x.shape)
        kept = held.grid
        file = replace(plain, scale=kept.scale, zero_point=kept.zero_point, axis=kept.axis)
        rounding: Callable[[Tensor], Tensor] = getattr(quantizer, "rounding", torch.round)
        theirs = (found.levels if step is None else found.levels[step.number]).to(torch.int64)
        row, ties = compare_codes(name, self.optimizations, x, file.codes(x, rounding), theirs, file, rounding)
        self.ties.append(ties if step is None else ties.any())  # a step decides all that follow
        _compare_grid(row, plain, kept)
        if row.note and not quantizer.calibrated:
            row.note += _NO_DATA
        self.rows.append(row)
        # what comes next starts from the file's grid, too: before any data, a quantizer would answer with another
        scale, zero_point = file.spread(x)
        grid = grid.replace(scale=scale, zero_point=None if grid.zero_point is None else zero_point.to(scale.dtype))
        return file.values(theirs).to(values.dtype), grid

    def _levels(
        self, name: str, quantizer: TensorQuant, x: Tensor, context: Arguments, grid: Grid
    ) -> tuple[Tensor, Grid]:
        """Levels that are no integers, or that have a scale which follows the input."""
        held, found, step = self.stored.get(name), self.found[name], current_step()
        compared = compare_run_time(
            name,
            self.optimizations,
            quantizer,
            x,
            context,
            (grid, self.own.get(name, grid)),
            None if held is None else (held.grid.scale, held.grid.zero_point),
            found if step is None else found.step(step.number),
        )
        if compared.row.note and not quantizer.calibrated:
            compared.row.note += _NO_DATA
        self.rows.append(compared.row)
        self.ties.append(compared.ties if step is None else compared.ties.any())
        return compared.values.to(x.dtype), compared.grid


_NO_DATA = ": the quantizer saw no data, and takes the range of the input at hand"


def _call_of(name: str) -> str | None:
    """The path of a quantizer by the name of a later call of it."""
    path, _, number = name.rpartition(".")
    return path if number.isdigit() else None


def _compare_grid(row: VerificationRow, own: IntegerGrid, file: IntegerGrid) -> None:
    """A file of other scales is another model, whatever its codes."""
    for what in ("scale", "zero_point"):
        if not torch.equal(getattr(own, what).reshape(-1), getattr(file, what).reshape(-1)):
            row.differences = row.compared
            row.note = f"the file has another {what.replace('_', ' ')}"


def _outputs(
    names: Sequence[str], expected: list[Tensor], found: dict[str, Tensor], where: str, ties: Sequence[Tensor] = ()
) -> list[VerificationRow]:
    if len(expected) != len(names):
        raise ExportError(
            f"the model returns {len(expected)} tensors, and the file has {len(names)} outputs: {', '.join(names)}. "
            "Verify with the model that was exported."
        )
    pairs = zip(names, expected, strict=True)
    return [compare_outputs(name, where, each, found[name], ties) for name, each in pairs]


def _parts(
    session: Session, args: tuple[object, ...], kwargs: Mapping[str, object] | None, batch_size: int
) -> list[_Part]:
    """The samples in portions that the file takes: as many as its fixed first dimension says, or ``batch_size``."""
    whole = _Part(args, kwargs or {})
    tensors = whole.tensors
    if len(tensors) != len(session.inputs):
        raise ExportError(
            f"the inputs hold {len(tensors)} tensors, and the file takes {len(session.inputs)}: "
            f"{', '.join(session.inputs)}. Pass what the model was exported with."
        )
    samples = {tensor.shape[0] if tensor.ndim else 0 for tensor in tensors}
    firsts = {shape[0] if shape else 0 for shape in session.shapes}
    first = next(iter(firsts), 0)
    portion = first if isinstance(first, int) else batch_size
    if len(samples) != 1 or len(firsts) != 1 or portion < 1:
        return [whole]
    count = samples.pop()
    if isinstance(first, int) and count % first:
        raise ExportError(
            f"the inputs have {count} samples, and the file takes {first} at a time. Pass a multiple, or export with "
            "dynamic_shapes."
        )
    return [_slice(whole, start, min(start + portion, count)) for start in range(0, count, portion)] or [whole]


def _slice(part: _Part, start: int, stop: int) -> _Part:
    def cut(each: object) -> object:
        return each[start:stop] if isinstance(each, Tensor) else each

    return _Part(*_pytree.tree_map(cut, (part.args, part.kwargs)))

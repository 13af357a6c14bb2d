"""Comparing a model with its ONNX file in onnxruntime, code by code."""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from ..qcore import Grid, TensorQuant, quantize_to_int, values_of
from ..qcore.models import require_model, shown
from .caveats import silent_quantizers, warn_of_caveats
from .errors import ExportError
from .lowering import Lowering, evaluating, lowered, numbered, quantizers_of, unchanged
from .optional import required
from .record import codes_of
from .report import Report, Row
from .session import Session, with_codes

if TYPE_CHECKING:
    import onnx

__all__ = ["compare", "loaded", "verify_onnx"]

TIE = 1e-3  # of a step: as close to a rounding boundary as this, the order of summation decides
RESOLUTION = 2.0**-20  # of a grid's range: float32 resolves 2**-24; more than TIE from 11 bits on
FLOAT = 1e-5  # of the range of an output


def verify_onnx(
    module: nn.Module,
    program: "torch.onnx.ONNXProgram | onnx.ModelProto | str | os.PathLike[str]",
    inputs: Tensor | tuple[object, ...],
    *,
    kwargs: Mapping[str, object] | None = None,
    batch_size: int = 256,
) -> Report:
    """Run a model in torch and its exported file in onnxruntime, and compare every quantized tensor.

    Compared are integer codes, with the runtime's optimizations off and on: at each quantizer torch starts from the
    runtime's codes of the tensors before it, so that every tensor is compared from the same input. A code that is off
    by one where the value lay within 1e-3 of a step of a rounding boundary is a *tie flip*, as the order of summation
    decides such values (above 10 bits within 2**-20 of the range: float32 does not resolve 1e-3 of such steps); any
    other differing code is a *difference*, and so is a scale or zero point that is not the one the model has on these
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
        A `Report`: ``report.ok``, ``report.differences``, ``report.tie_flips``, ``print(report.table())``.

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
        report, called = compare(module, quantizers, proto, arguments, kwargs, batch_size)
        warn_of_caveats("verify_onnx", module, quantizers, called)
    return report


def compare(
    module: nn.Module,
    quantizers: dict[str, TensorQuant],
    model: "onnx.ModelProto",
    args: tuple[object, ...],
    kwargs: Mapping[str, object] | None = None,
    batch_size: int = 256,
) -> tuple[Report, set[str]]:
    """`verify_onnx` for a model in evaluation mode and an ``onnx.ModelProto``; and the quantizers that were called."""
    watched, names = with_codes(model)
    plain, stored = Session(model, optimize=True), _grids(model)
    report, called = Report(), set[str]()
    with torch.no_grad(), silent_quantizers():
        for optimizations in ("off", "on"):
            session = Session(watched, optimize=optimizations == "on")
            for number, part in enumerate(_parts(session, args, kwargs, batch_size)):
                own = Evaluation()
                with lowered(quantizers, own.lowering):
                    outputs = part.through(module)
                called |= own.counts.keys()
                found = session.run(part.tensors)
                comparison = Comparison(stored, own.grids, names, found, optimizations, with_stored=number == 0)
                with lowered(quantizers, comparison.lowering):
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
        return [values_of(each) for each in _tensors((self.args, self.kwargs))]

    def through(self, module: nn.Module) -> list[Tensor]:
        return [values_of(each) for each in _tensors(module(*self.args, **self.kwargs))]


@dataclass
class _Stored:
    """The grid of a quantizer's call as the file has it, and its codes where they are stored."""

    scale: Tensor
    zero_point: Tensor
    axis: int | None
    codes: Tensor | None

    def shaped(self, tensor: Tensor, ndim: int) -> Tensor:
        if self.axis is None:
            return tensor
        return tensor.reshape([-1 if dim == self.axis % ndim else 1 for dim in range(ndim)])


class Evaluation:
    """The model as it evaluates, worked out from its parameters: the grids of its quantizers' calls, by name."""

    def __init__(self) -> None:
        self.grids: dict[str, Grid] = {}
        self.counts: dict[str, int] = {}

    def lowering(self, path: str) -> Lowering:
        """What a quantizer does: the same as ever, but nothing that was kept is used, and its grid is noted."""

        def call(quantizer: TensorQuant, x: Tensor, *context: object) -> tuple[Tensor, Grid]:
            index = self.counts.get(path, 0)
            self.counts[path] = index + 1
            values, grid = quantizer._quantize(x, *context)
            self.grids[numbered(path, index)] = grid
            return values, grid

        return call


class Comparison:
    """One run of the runtime, against which torch's quantizers compare themselves.

    Args:
        grids: by name of the call, what the file holds.
        own: by name of the call, what the model has on the same inputs.
        names: the outputs that are codes.
        found: all outputs of the run.
        optimizations: ``off`` or ``on``, for the rows.
        with_stored: whether integers in the file are compared, too: once is enough.
    """

    def __init__(
        self,
        grids: dict[str, _Stored],
        own: dict[str, Grid],
        names: list[str],
        found: dict[str, Tensor],
        optimizations: str,
        with_stored: bool,
    ) -> None:
        self.grids = grids
        self.own = own
        self.found = {name: found[name if name in found else f"{name}.int32"] for name in names}
        self.optimizations = optimizations
        self.with_stored = with_stored
        self.rows: list[Row] = []
        self.ties: list[Tensor] = []  # for each activation, where its code hangs on the order of a sum
        self.counts: dict[str, int] = {}

    def lowering(self, path: str) -> Lowering:
        """What a quantizer does during the comparison: compare, and go on from the runtime's codes."""

        def call(quantizer: TensorQuant, x: Tensor, *context: object) -> tuple[Tensor, Grid]:
            index = self.counts.get(path, 0)
            self.counts[path] = index + 1
            values, grid = quantizer._quantize(x, *context)
            name = numbered(path, index)
            if f"{name}.codes" in self.found:
                return self._activation(name, quantizer, x, values, grid)
            stored = self.grids.get(name) or self.grids.get(path)
            if self.with_stored and stored is not None and stored.codes is not None:
                self._stored(name, codes_of(quantizer, x, context, values, grid).to(torch.int64), grid, stored)
            return values, grid

        return call

    def _activation(
        self, name: str, quantizer: TensorQuant, x: Tensor, values: Tensor, grid: Grid
    ) -> tuple[Tensor, Grid]:
        stored = self.grids[name]
        theirs = self.found[f"{name}.codes"].to(torch.int64)
        scale, zero_point = (stored.shaped(each, x.ndim) for each in (stored.scale, stored.zero_point))
        low, high = grid.bounds
        rounding: Callable[[Tensor], Tensor] = getattr(quantizer, "rounding", torch.round)
        ours = quantize_to_int(x, scale, low, high, zero_point, rounding)
        steps, near = x / scale, max(TIE, RESOLUTION * (high - low))
        below, above = (
            (rounding(steps + distance) + zero_point).clamp(low, high).to(torch.int64) for distance in (-near, near)
        )
        self.ties.append(below != above)
        off = (theirs - ours.to(torch.int64)).abs()
        differing = off > 0
        tie = differing & (off == 1) & (below <= theirs) & (theirs <= above)
        row = Row(
            name,
            "activation",
            self.optimizations,
            compared=theirs.numel(),
            differences=int((differing & ~tie).sum()),
            tie_flips=int(tie.sum()),
            largest=float(off.max()) if off.numel() else 0.0,
        )
        self._compare_grid(row, self.own.get(name, grid), stored)
        if row.note and not quantizer.calibrated:
            row.note += ": the quantizer saw no data, and takes the range of the input at hand"
        self.rows.append(row)
        # what comes next starts from the file's grid, too: before any data, a quantizer would answer with another
        grid = grid.replace(scale=scale, zero_point=None if grid.zero_point is None else zero_point.to(scale.dtype))
        return (theirs - zero_point).to(values.dtype) * scale, grid

    def _stored(self, name: str, codes: Tensor, grid: Grid, stored: _Stored) -> None:
        assert stored.codes is not None
        row = Row(name, "stored", self.optimizations, compared=codes.numel())
        if codes.shape != stored.codes.shape:
            row.differences, row.note = codes.numel(), f"shape {tuple(stored.codes.shape)} in the file"
        else:
            off = (codes - stored.codes).abs()
            row.differences, row.largest = int((off > 0).sum()), float(off.max()) if off.numel() else 0.0
        self._compare_grid(row, grid, stored)
        self.rows.append(row)

    def _compare_grid(self, row: Row, grid: Grid, stored: _Stored) -> None:
        """A file of other scales is another model, whatever its codes."""
        ours = (grid.scale, torch.zeros_like(grid.scale) if grid.zero_point is None else grid.zero_point)
        for what, own, theirs in zip(("scale", "zero point"), ours, (stored.scale, stored.zero_point), strict=True):
            flat = own.detach().expand(grid.scale.shape).reshape(-1).float()
            if flat.shape != theirs.reshape(-1).shape or not torch.equal(flat, theirs.reshape(-1).float()):
                row.differences = row.compared
                row.note = f"the file has another {what}"


def _outputs(
    names: Sequence[str],
    expected: list[Tensor],
    found: dict[str, Tensor],
    optimizations: str,
    ties: Sequence[Tensor] = (),
) -> list[Row]:
    if len(expected) != len(names):
        raise ExportError(
            f"the model returns {len(expected)} tensors, and the file has {len(names)} outputs: {', '.join(names)}. "
            "Verify with the model that was exported."
        )
    return [_output(name, each, found[name], optimizations, ties) for name, each in zip(names, expected, strict=True)]


def _output(name: str, expected: Tensor, found: Tensor, optimizations: str, ties: Sequence[Tensor]) -> Row:
    row = Row(name, "output", optimizations, compared=expected.numel())
    if expected.shape != found.shape:
        row.differences = max(expected.numel(), 1)
        row.note = f"shape {tuple(found.shape)} in onnxruntime, {tuple(expected.shape)} in torch"
    elif expected.numel():
        ours, theirs = expected.detach().cpu().double(), found.double()
        reach = float(ours.abs().max()) if expected.dtype.is_floating_point else 1.0
        apart = torch.where(ours.isnan() & theirs.isnan() | (ours == theirs), 0.0, (ours - theirs).abs())
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


def _tensors(tree: object) -> list[Tensor]:
    return [each for each in _pytree.tree_leaves(tree) if isinstance(each, Tensor)]


def _grids(model: "onnx.ModelProto") -> dict[str, _Stored]:
    """What the file holds for each call of a quantizer: its DequantizeLinear node is named after it."""
    onnx = required("onnx", "verify_onnx")
    held = {each.name: each for each in model.graph.initializer}
    clipped = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "Clip"}

    def tensor(name: str) -> Tensor:
        array = onnx.numpy_helper.to_array(held[name])
        return torch.from_numpy(array.astype("float32" if array.dtype.kind == "f" else "int64"))

    grids = {}
    for node in model.graph.node:
        if node.op_type != "DequantizeLinear" or not node.name.endswith(".dequantize"):
            continue
        scale = tensor(node.input[1])
        zero_point = tensor(node.input[2]) if len(node.input) > 2 else torch.zeros(scale.shape, dtype=torch.int64)
        axis = next((each.i for each in node.attribute if each.name == "axis"), None)
        codes = clipped.get(node.input[0], node.input[0])
        stored = tensor(codes) if codes in held else None
        grids[node.name.removesuffix(".dequantize")] = _Stored(scale, zero_point, axis, stored)
    return grids


def loaded(call: str, program: Any) -> "onnx.ModelProto":
    """An exported model, however a user names it; ``call`` is the function that errors name."""
    onnx = required("onnx", call)
    if isinstance(program, (str, os.PathLike)):
        return onnx.load(os.fspath(program))
    proto = getattr(program, "model_proto", program)
    if not isinstance(proto, onnx.ModelProto):
        raise ExportError(
            f"{call}: program={shown(program)} is not an exported model. Pass what an export returned, the path of a "
            "file, or an onnx.ModelProto."
        )
    return proto

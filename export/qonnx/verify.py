"""Comparing a model with its QONNX file in the executor of the ``qonnx`` package, code by code."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ...nn.contexts.intercepting import intercepted, quantizers_of
from ...qcore import Grid, Integers, TensorQuant
from ...qcore.grid_quant import FLOAT_BITS
from ...qcore.models import require_model
from ...qcore.tensor_quant import Intercept
from ..arguments import checked_inputs, checks_keywords
from ..capture.caveats import silent_quantizers, warn_of_caveats
from ..capture.model_state import evaluating, unchanged
from ..capture.numbering import Counts, counted
from ..capture.record import quantized
from ..comparing.agreement import compare_exactly, compare_outputs
from ..comparing.levels import compare_levels
from ..comparing.portion import Portion
from ..comparing.report import VerificationReport, VerificationRow
from ..errors import ExportError
from ..onnx.session import loaded
from .executor import Executor, FileNode
from .nodes import QONNX_DOMAIN

if TYPE_CHECKING:
    import onnx

__all__ = ["compare_with_executor", "verify_qonnx"]

_WHERE = "qonnx"


@checks_keywords
def verify_qonnx(
    module: nn.Module,
    program: "torch.onnx.ONNXProgram | onnx.ModelProto | str | os.PathLike[str]",
    inputs: Tensor | tuple[object, ...],
    *,
    kwargs: Mapping[str, object] | None = None,
) -> VerificationReport:
    """Run a model in torch and its QONNX file in the ``qonnx`` executor, and compare every quantized tensor.

    As in `verify_onnx`, torch starts at each quantizer from the executor's codes of the tensors before it; tie flips
    are counted apart from differences, and the outputs are compared from end to end, too. Compared are also the widths
    and scales that the file says. The executor runs as many samples at a time as the file was exported with.

    Args:
        module: the model that was exported; evaluated, and left as it was.
        program: what `export_qonnx` returned, the path of a file, or an ``onnx.ModelProto``.
        inputs: one tensor, or a tuple of the positional arguments, of any multiple of the file's samples.
        kwargs: keyword arguments.

    Returns:
        A `VerificationReport` whose rows have ``optimizations="qonnx"``, and ``"plain"`` for outputs from end to end.

    Raises:
        ExportError: not a model or not such a file, qonnx is not installed, or the inputs are not the file's.

    Example:
        >>> import bitwright.nn as qnn
        >>> from bitwright.export import export_qonnx
        >>> from bitwright.export.optional import installed
        >>> layer = qnn.QuantLinear(8, 4, weight_bit_width=4)
        >>> program = export_qonnx(layer, torch.randn(2, 8))
        >>> not installed("qonnx") or verify_qonnx(layer, program, torch.randn(10, 8)).ok
        True
    """
    require_model("verify_qonnx", module, ExportError)
    arguments = checked_inputs("verify_qonnx", "inputs", inputs, kwargs, module)
    quantizers = quantizers_of(module)
    proto = loaded("verify_qonnx", program)
    with unchanged(module), evaluating(module):
        report, called = compare_with_executor("verify_qonnx", module, quantizers, proto, arguments, kwargs)
        warn_of_caveats("verify_qonnx", module, quantizers, called)
    return report


def compare_with_executor(
    call: str,
    module: nn.Module,
    quantizers: dict[str, TensorQuant],
    model: "onnx.ModelProto",
    args: tuple[object, ...],
    kwargs: Mapping[str, object] | None,
) -> tuple[VerificationReport, set[str]]:
    """`verify_qonnx` for a model in evaluation mode and an ``onnx.ModelProto``; and the quantizers that were called."""
    executor, report, called = Executor(model, call), VerificationReport(), set[str]()
    if quantizers and not executor.nodes:
        raise ExportError(
            f"{call}: the file has no node of {QONNX_DOMAIN} that export_qonnx wrote. Pass what export_qonnx returned, "
            "or the path of its file."
        )
    with torch.no_grad(), silent_quantizers():
        for number, part in enumerate(_portions(executor, Portion(args, kwargs or {}))):
            own = part.through(module)
            found = executor.run(part.tensors)
            comparison = Comparison(executor.nodes, found, with_stored=number == 0)
            with intercepted(quantizers, comparison.intercept):
                expected = part.through(module)
            called |= comparison.counts.keys()
            report.add(comparison.rows)
            for name, one, other in zip(executor.outputs, expected, own, strict=True):
                report.add([compare_outputs(name, _WHERE, one, found[name])])
                report.add([compare_outputs(name, "plain", other, found[name], comparison.ties)])
    return report, called


@dataclass
class Comparison:
    """One run of the executor, against which torch's quantizers compare themselves.

    Args:
        nodes: by name of the call, what the file has.
        found: by name of the tensor, what the executor found.
        with_stored: whether parameters are compared, too: once is enough.
        rows: what was compared.
        ties: for each activation, where its code hangs on the order of a sum.
        counts: how often each quantizer was called.
    """

    nodes: dict[str, FileNode]
    found: dict[str, Tensor]
    with_stored: bool
    rows: list[VerificationRow] = field(default_factory=list)
    ties: list[Tensor] = field(default_factory=list)
    counts: Counts = field(default_factory=Counts)

    def intercept(self, path: str) -> Intercept:
        """What a quantizer does during the comparison: compare, and go on from the executor's codes."""

        def call(quantizer: TensorQuant, x: Tensor, *context: object) -> tuple[Tensor, Grid]:
            values, grid = quantized(quantizer, x, context)
            name = counted(self.counts, path)
            node = self.nodes.get(name)
            if node is None:
                return values, grid
            theirs = node.straight(self.found[node.output]).reshape(values.shape)
            if quantizer.of_parameter or quantizer.follows_input:
                if self.with_stored:
                    self.rows.append(_noted(_compare_values(name, values, theirs, grid), grid, node))
                return values, grid
            scale = grid.along(grid.scale, x.shape)
            levels = torch.round(theirs.double() / scale)
            rounding = getattr(quantizer, "rounding", torch.round)
            row, ties = compare_levels(name, _WHERE, x, levels, grid, rounding)
            self.rows.append(_noted(row, grid, node))
            self.ties.append(ties)
            return theirs.to(values.dtype), grid

        return call


def _compare_values(name: str, values: Tensor, theirs: Tensor, grid: Grid) -> VerificationRow:
    """Quantized parameters: equal values, which tell integers apart up to 22 bits, or to 2**-22 beyond."""
    if int(grid.bit_width) > FLOAT_BITS:
        near = (theirs - values).abs() <= values.abs() * 2.0**-FLOAT_BITS
        theirs = torch.where(near, values, theirs)
    return compare_exactly(name, "stored", _WHERE, values, theirs)


def _noted(row: VerificationRow, grid: Grid, node: FileNode) -> VerificationRow:
    """A file of other scales or widths is another model, whatever its codes."""
    form, levels = node.form, grid.number_format
    other = ""
    if not torch.equal(node.scale.reshape(-1).double(), grid.scale.reshape(-1).double()):
        other = "scale"
    elif isinstance(levels, Integers) and form.bit_width != int(grid.bit_width):
        other = "bit width"
    elif form.op_type == "Quant" and levels.whole and (form.signed, form.narrow) != (grid.signed, grid.narrow_range):
        other = "range"
    if other:
        row.differences, row.note = row.compared, f"the file has another {other}"
    return row


def _portions(executor: Executor, whole: Portion) -> list[Portion]:
    """The samples in portions of as many as the file takes."""
    tensors, asked = whole.tensors, ", ".join(executor.inputs)
    shapes = [list(each.shape) for each in tensors]
    if len(tensors) != len(executor.inputs):
        raise ExportError(
            f"the inputs hold {len(tensors)} tensors, and the file takes {len(executor.inputs)}: {asked}. Pass what "
            "the model was exported with."
        )
    if shapes == executor.shapes:
        return [whole]
    counts = {each[0] for each in shapes if each}
    sizes = {each[0] for each in executor.shapes if each}
    size, count = min(sizes, default=0), min(counts, default=0)
    rest = [each[1:] for each in shapes] == [each[1:] for each in executor.shapes]
    if len(counts) != 1 or len(sizes) != 1 or not rest or size == 0 or count % size or count == 0:
        found = ", ".join(str(tuple(each)) for each in shapes)
        wanted = ", ".join(str(tuple(each)) for each in executor.shapes)
        raise ExportError(
            f"the inputs have the shape {found}, and the file takes {wanted}: QONNX's readers need fixed shapes. Pass "
            "a multiple of its samples, or export with such an input."
        )
    return [whole.cut(start, start + size) for start in range(0, count, size)]

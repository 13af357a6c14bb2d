"""Comparing a model with its ONNX file in onnxruntime, code by code."""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ...nn.contexts.intercepting import intercepted, quantizers_of
from ...qcore import Grid, TensorQuant
from ...qcore.models import require_model
from ..arguments import checked_inputs, checks_keywords, require_count
from ..capture.caveats import silent_quantizers, warn_of_caveats
from ..capture.model_state import evaluating, unchanged
from ..capture.record import Recording
from ..comparing.agreement import compare_outputs
from ..comparing.levels import run_time_of
from ..comparing.portion import Portion, tensors_in
from ..comparing.report import VerificationReport, VerificationRow
from ..errors import ExportError
from .comparing.disk import GraphOnDisk, opened
from .comparing.portions import Largest, per_sample, portions
from .comparing.quantizers import Comparison, Evaluation, same_grids
from .session import Session, with_activations
from .stored.reading import FileReader

if TYPE_CHECKING:
    import onnx

__all__ = ["compare_with_file", "verify_onnx"]


@checks_keywords
def verify_onnx(
    module: nn.Module,
    program: "torch.onnx.ONNXProgram | onnx.ModelProto | str | os.PathLike[str]",
    inputs: Tensor | tuple[object, ...],
    *,
    kwargs: Mapping[str, object] | None = None,
    batch_size: int = 256,
    memory: int = 2**29,
) -> VerificationReport:
    """Run a model in torch and its exported file in onnxruntime, and compare every quantized tensor.

    Compared are integer codes, with the runtime's optimizations off and on: at each quantizer torch starts from the
    runtime's codes of the tensors before it, so that every tensor is compared from the same input. A code that is off
    by one where the value lay within 1e-3 of a step of a rounding boundary is a *tie flip*, as the order of summation
    decides such values (above 10 bits within 2**-20 of the range: float32 does not resolve 1e-3 of such steps); any
    other differing code is a *difference* (of number formats that are no integers, a level other than the one on the
    other side of that boundary), and so is a scale or zero point that is not the one the model has on these
    inputs, or a float output off by more than 1e-5 of its range. Last, the outputs of the file as it is are compared
    with the model's: ``report.output_error`` and ``report.mean_output_error`` say how far apart they are, and
    ``report.top1_agreement`` how often both have the same highest class.

    Weights stay on disk: the runtime maps them, and they are compared one after another. Those of a file that has no
    external data, or of a program, are first written to a temporary folder.

    Quantizers that saw no data, or that the model did not call, are named in a `BitwrightWarning`.

    Args:
        module: the model that was exported; evaluated, and left as it was.
        program: what the export returned, the path of a file, or an ``onnx.ModelProto``.
        inputs: one tensor, or a tuple of the positional arguments; many samples if you like.
        kwargs: keyword arguments.
        batch_size: how many samples (entries of the first dimension) run at a time at most, where the file leaves that
            open.
        memory: about how many bytes the tensors of a batch may take, 512 MiB by default: fewer samples run at a time
            where ``batch_size`` of them take more, down to one. Quantizers that saw no data need all samples at once,
            whatever that takes.

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
    require_count("verify_onnx", batch_size=batch_size, memory=memory)
    arguments = checked_inputs("verify_onnx", "inputs", inputs, kwargs, module)
    quantizers = quantizers_of(module)
    with unchanged(module), evaluating(module):
        calibrated = all(each.calibrated for each in quantizers.values())  # else ranges are those of all samples
        limits = (batch_size, memory) if calibrated else (sys.maxsize, None)
        report, called = compare_with_file("verify_onnx", module, quantizers, program, arguments, kwargs, *limits)
        warn_of_caveats("verify_onnx", module, quantizers, called)
    return report


def compare_with_file(
    call: str,
    module: nn.Module,
    quantizers: dict[str, TensorQuant],
    program: object,
    args: tuple[object, ...],
    kwargs: Mapping[str, object] | None,
    batch_size: int = sys.maxsize,
    memory: int | None = None,
    recording: Recording | None = None,
) -> tuple[VerificationReport, set[str]]:
    """`verify_onnx` for a model in evaluation mode; and the quantizers that were called.

    Args:
        call: the function that errors name.
        module: the model.
        quantizers: of the model, by path.
        program: what `opened` takes.
        args: positional arguments.
        kwargs: keyword arguments, or None.
        batch_size: how many samples run at a time, at most.
        memory: how many bytes these may take; None if as many as they do.
        recording: of the model on these arguments, if there is one: it need not be evaluated once more.
    """
    report, called = VerificationReport(), set[str]()
    with opened(call, program) as file, torch.no_grad(), silent_quantizers():
        work = _Work(call, module, quantizers, file)
        whole = Portion(args, kwargs or {})
        for number, part in enumerate(portions(file.graph.graph, whole, batch_size, memory, work.measured)):
            known = recording if number == 0 and part.last else None
            rows, reached = work.compared(part, number == 0, known)
            report.add(rows)
            called |= reached
        work.sessions.clear()
    return report, called


class _Work:
    """What stays the same while portions of the samples are compared."""

    def __init__(self, call: str, module: nn.Module, quantizers: dict[str, TensorQuant], file: GraphOnDisk) -> None:
        self.call, self.module, self.quantizers = call, module, quantizers
        self.folder, self.reader = file.folder, FileReader(file.graph, call, file.folder)
        watched, self.names = with_activations(file.graph, call)
        self.outputs = [each.name for each in file.graph.graph.output]
        self.files = {"off": watched, "on": watched, "plain": file.graph}
        self.sessions: dict[str, Session] = {}

    def run(self, part: Portion, where: str) -> dict[str, Tensor]:
        """The outputs of the file, for the last time of one session after the other."""
        session = self.sessions.pop(where, None)
        if session is None:
            session = Session(self.files[where], where != "off", self.call, folder=self.folder)
        if not part.last:
            self.sessions[where] = session
        return session.run(part.tensors)

    def measured(self, part: Portion) -> float:
        """The bytes that each sample takes, by a few of them."""
        largest = Largest().of(self.module, self.quantizers, part)
        return per_sample(self.run(part, "off"), largest, part.tensors[0].shape[0])

    def compared(
        self, part: Portion, with_stored: bool, recording: Recording | None
    ) -> tuple[list[VerificationRow], set[str]]:
        """The rows of some samples, and which quantizers were called.

        A forward of the model that would compute the same as one before it is left out. Where the runtime has the
        model's own values at every quantizer, the comparison is the model as it evaluates; and where it has the same
        values with its optimizations on as with these off, so are what goes on from there and the rows.
        """
        on, plain, off = (self.run(part, where) for where in ("on", "plain", "off"))  # loading with them takes most
        first, outputs = self._beside(part, off, "off", with_stored, {})
        own, evaluated = first.grids, outputs
        if first.moved:
            own, evaluated = self._recorded(recording, first.grids) or self._evaluated(part)
            if not same_grids(own, first.grids):
                first, outputs = self._beside(part, off, "off", with_stored, own)
        rows = [*first.rows, *self._outputs(outputs, off, "off")]
        if all(torch.equal(off[name], on[name]) for name in self.names.values()):
            second, again = first, outputs
            rows += [replace(row, optimizations="on") for row in first.rows]
        else:
            stored = {row.name: row for row in first.rows if row.kind == "stored"}
            second, again = self._beside(part, on, "on", with_stored, own, stored)
            rows += second.rows
        rows += self._outputs(again, on, "on")
        rows += self._outputs(evaluated, plain, "plain", second.ties)
        return rows, {*first.counts, *second.counts}

    def _beside(
        self,
        part: Portion,
        found: Mapping[str, Tensor],
        where: str,
        with_stored: bool,
        own: Mapping[str, Grid],
        stored: Mapping[str, VerificationRow] | None = None,
    ) -> tuple[Comparison, list[Tensor]]:
        """A forward of the model that goes on from the codes of a run at each quantizer, and its outputs."""
        comparison = Comparison(self.reader, own, run_time_of(found, self.names), where, with_stored, stored or {})
        with intercepted(self.quantizers, comparison.intercept):
            return comparison, part.through(self.module)

    def _recorded(
        self, recording: Recording | None, grids: Mapping[str, Grid]
    ) -> tuple[dict[str, Grid], list[Tensor]] | None:
        """The same as was recorded before; None where steps of loops are calls of their own, which recordings lack."""
        if recording is None:
            return None
        own = {call.name: call.grid for call in recording}
        return (own, tensors_in(recording.outputs)) if own.keys() == grids.keys() else None

    def _evaluated(self, part: Portion) -> tuple[dict[str, Grid], list[Tensor]]:
        """The model's own grids and outputs."""
        own = Evaluation()
        with intercepted(self.quantizers, own.intercept):
            return own.grids, part.through(self.module)

    def _outputs(
        self, expected: list[Tensor], found: Mapping[str, Tensor], where: str, ties: Sequence[Tensor] = ()
    ) -> list[VerificationRow]:
        if len(expected) != len(self.outputs):
            raise ExportError(
                f"the model returns {len(expected)} tensors, and the file has {len(self.outputs)} outputs: "
                f"{', '.join(self.outputs)}. Verify with the model that was exported."
            )
        pairs = zip(self.outputs, expected, strict=True)
        return [compare_outputs(name, where, each, found[name], ties) for name, each in pairs]

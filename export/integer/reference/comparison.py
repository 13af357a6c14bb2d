"""Integer arithmetic, the fake-quantized model and the exported file, compared code by code."""

import os
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ....nn.contexts.intercepting import intercepted, quantizers_of
from ....qcore import BitwrightWarning, Grid, TensorQuant
from ....qcore.models import require_model
from ....qcore.tensor_quant import Intercept
from ....qcore.tracing import current_step
from ...capture.grid import IntegerGrid, QuantizedTensor
from ...capture.model_state import evaluating, unchanged
from ...capture.numbering import Counts, counted
from ...capture.record import codes_of, quantized
from ...comparing.agreement import compare_codes, compare_exactly, compare_outputs
from ...comparing.portion import tensors_in
from ...comparing.report import VerificationReport, VerificationRow
from ...errors import ExportError
from ...onnx.exporter import export_onnx_qcdq
from ...onnx.session import Session, codes_among, loaded, with_codes
from ...optional import installed
from ..extraction import integers_for
from ..model import Integers
from ..requantize import Requantization, requantization
from .passes import culprits
from .run import IntegerRun, Take, part_of, run_lowered

if TYPE_CHECKING:
    import onnx

__all__ = ["ExportedFile", "IntegerComparison", "compare_integers"]


@dataclass
class IntegerComparison:
    """How integer arithmetic agrees with the fake-quantized model and with the exported file.

    Attributes:
        report: a row for each tensor: against ``torch``, and against onnxruntime with optimizations ``off`` and
            ``on``; ``plain`` compares the outputs of the file as it is with those of the copy that shows its codes.
        run: the integer-only run.
        passes: the runtime's optimization passes that cause differences, if some do: any one of them alone.

    Example:
        >>> one = VerificationRow("conv1", "activation", "torch", 9)
        >>> other = VerificationRow("relu1", "activation", "on", 9, 2, 0, 3.0)
        >>> report = VerificationReport([one, other])
        >>> comparison = IntegerComparison(report, IntegerRun(None), ("WeightBiasQuantization",))
        >>> comparison.ok, comparison.first_difference.name, comparison.passes
        (False, 'relu1', ('WeightBiasQuantization',))
        >>> print(comparison)  # doctest: +NORMALIZE_WHITESPACE
        18 numbers compared: 2 differences, 0 tie flips
        optimizations  tensor           compared  differences  tie flips   largest
        on             relu1                   9            2          0         3
        first difference: relu1, in onnxruntime with optimizations on, caused by its pass WeightBiasQuantization
    """

    report: VerificationReport
    run: IntegerRun
    passes: tuple[str, ...] = field(default=())

    @property
    def ok(self) -> bool:
        """Whether something was compared and nothing differs."""
        return self.report.ok

    @property
    def differences(self) -> int:
        """How many numbers differ; tie flips don't count."""
        return self.report.differences

    @property
    def tie_flips(self) -> int:
        """How many codes are off by one on a rounding boundary."""
        return self.report.tie_flips

    @property
    def first_difference(self) -> VerificationRow | None:
        """The first tensor that differs, in order of execution."""
        return next((row for row in self.report.rows if row.differences), None)

    def table(self) -> str:
        """Every row, as text."""
        return self.report.table()

    def __str__(self) -> str:
        first = self.first_difference
        if first is None:
            return str(self.report)
        where = "in torch" if first.optimizations == "torch" else f"in onnxruntime with optimizations {_said(first)}"
        blamed = f", caused by its pass {' and '.join(self.passes)}" if self.passes else ""
        return f"{self.report}\nfirst difference: {first.name}, {where}{blamed}"


def compare_integers(
    model: nn.Module,
    example: Tensor | tuple[object, ...],
    *,
    program: "torch.onnx.ONNXProgram | onnx.ModelProto | str | os.PathLike[str] | None" = None,
    integers: Integers | None = None,
    requantize: str | Requantization = "scale",
    accumulator_bits: int = 32,
    kwargs: Mapping[str, object] | None = None,
) -> IntegerComparison:
    """Run a model with integers, in torch, and in onnxruntime, and compare every quantized tensor.

    At each quantizer the others start from the same integers as the integer run, so that every tensor is compared from
    the same input. What counts as a tie flip and what as a difference is as in `verify_onnx`.

    Args:
        model: evaluated, and left as it was.
        example: one tensor, or a tuple of all positional arguments.
        program: the exported file: what an export returned, a path, or an ``onnx.ModelProto``; by default the model
            is exported with `export_onnx_qcdq`, where onnxruntime is installed.
        integers: as in `run_integers`.
        requantize: as in `run_integers`.
        accumulator_bits: as in `run_integers`.
        kwargs: keyword arguments.

    Returns:
        An `IntegerComparison`: ``ok``, ``differences``, ``tie_flips``, ``first_difference``, ``passes``.

    Raises:
        ExportError: not a model, not its integers or file, an accumulator overflows, or the model can't be exported.

    Example:
        >>> import bitwright.nn as qnn
        >>> from bitwright.quantizers import Int8Act, Int32Bias
        >>> layer = qnn.QuantLinear(8, 4, bias_quant=Int32Bias, input_quant=Int8Act(scale=0.1))
        >>> print(compare_integers(nn.Sequential(layer, qnn.QuantReLU(scale=0.05)), torch.randn(50, 8)))
        2636 numbers compared: 0 differences, 0 tie flips
    """
    require_model("compare_integers", model, ExportError)
    arguments = example if isinstance(example, tuple) else (example,)
    found = integers_for("compare_integers", model, arguments, kwargs, integers)
    if program is None and installed("onnxruntime"):
        with warnings.catch_warnings():
            if integers is None:
                warnings.simplefilter("ignore", BitwrightWarning)  # taking the integers said the same
            program = export_onnx_qcdq(model, arguments, verify=False, kwargs=kwargs)
    quantizers, parts = quantizers_of(model), found.quantized()
    requantize = requantization(requantize)

    def run(take: Take | None = None) -> IntegerRun:
        return run_lowered(model, quantizers, parts, arguments, kwargs, requantize, accumulator_bits, take)

    with unchanged(model), evaluating(model):
        own = run()
        report = VerificationReport([])
        report.add(_against_torch(model, quantizers, parts, own, arguments, kwargs))
        if program is None:
            return IntegerComparison(report, own)
        proto, inputs = loaded("compare_integers", program), tensors_in((arguments, kwargs or {}))
        file = ExportedFile("compare_integers", proto, inputs)
        report.add(_against_file(file, run, "off"))
        clean = report.ok
        report.add(_against_file(file, run, "on"))

        def differs(disabled: tuple[str, ...]) -> bool:
            return any(row.differences for row in _against_file(file, run, "on", disabled))

        passes = culprits(differs) if clean and not report.ok else ()
    return IntegerComparison(report, own, passes)


class ExportedFile:
    """An exported model on inputs.

    Args:
        call: the function that the user called, which errors name.
        proto: the model.
        inputs: of the runs.
    """

    def __init__(self, call: str, proto: "onnx.ModelProto", inputs: list[Tensor]) -> None:
        self.call, self.proto, self.inputs = call, proto, inputs
        self.watched, self.names = with_codes(proto, call)

    def run(self, model: "onnx.ModelProto", optimizations: str, disabled: tuple[str, ...]) -> dict[str, Tensor]:
        """The outputs of the file, or of a copy that shows codes."""
        return Session(model, optimizations == "on", self.call, disabled).run(self.inputs)

    def codes_and_outputs(
        self, optimizations: str, disabled: tuple[str, ...] = ()
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
        """The codes by quantizer, the outputs beside them, and those of the file as it is (with optimizations only)."""
        found = self.run(self.watched, optimizations, disabled)
        outputs = {each.name: found[each.name] for each in self.proto.graph.output}
        plain = self.run(self.proto, "on", disabled) if optimizations == "on" else {}
        return codes_among(found, self.names), outputs, plain

    def codes_as_it_is(self, plain: dict[str, Tensor], disabled: tuple[str, ...]) -> dict[str, Tensor]:
        """The codes of tensors that can be shown, one in each copy of the file, without changing its outputs."""
        codes = {}
        for name in self.names:
            alone, _ = with_codes(self.proto, self.call, [name])
            found = self.run(alone, "on", disabled)
            if all(torch.equal(found[each], plain[each]) for each in plain):
                codes |= codes_among(found, [name])
        return codes


def _against_file(
    file: ExportedFile, run: Callable[[Take], IntegerRun], optimizations: str, disabled: tuple[str, ...] = ()
) -> list[VerificationRow]:
    """The rows of one way to load a file; with optimizations, of the file as it is, too."""
    codes, outputs, plain = file.codes_and_outputs(optimizations, disabled)
    rows = _going_on(run, optimizations, codes, outputs)
    as_it_is = _outputs("plain", plain, [outputs[name] for name in plain], plain.values())
    if any(row.differences for row in as_it_is):  # showing codes changed what the runtime fuses: show one by one
        as_it_is = _going_on(run, "plain", file.codes_as_it_is(plain, disabled), plain)
    return rows + as_it_is


def _going_on(
    run: Callable[[Take], IntegerRun], where: str, codes: dict[str, Tensor], outputs: dict[str, Tensor]
) -> list[VerificationRow]:
    """The integer run against codes and outputs of a file, going on from its codes."""
    rows: list[VerificationRow] = []

    def take(name: str, x: Tensor, ours: Tensor, grid: IntegerGrid, rounding: Callable[[Tensor], Tensor]) -> Tensor:
        if name not in codes:
            return ours
        theirs, step = codes[name], current_step()
        theirs = (theirs if step is None else theirs[step.number]).reshape(ours.shape)
        rows.append(compare_codes(name, where, x, ours, theirs, grid, rounding)[0])
        return theirs

    ours = tensors_in(run(take).outputs)
    return rows + _outputs(where, outputs, ours, outputs.values())


def _against_torch(
    model: nn.Module,
    quantizers: dict[str, TensorQuant],
    parts: dict[str, QuantizedTensor],
    run: IntegerRun,
    args: tuple[object, ...],
    kwargs: Mapping[str, object] | None,
) -> list[VerificationRow]:
    """The fake-quantized model, which goes on from the integers of the run at each quantizer."""
    rows: list[VerificationRow] = []
    counts = Counts()

    def intercept(path: str) -> Intercept:
        def call(quantizer: TensorQuant, x: Tensor, *context: object) -> tuple[Tensor, Grid | None]:
            name, step = counted(counts, path), current_step()
            part = part_of(parts, name, path)
            assert part is not None
            if quantizer.follows_input and any(each is None for each in context):
                assert part.values is not None
                return part.values.to(x.device), None  # sums as inputs carry no grid here
            values, grid = quantized(quantizer, x, context)
            theirs = codes_of(quantizer, x, context, values, grid).to(torch.int64)
            if part.codes is not None:
                rows.append(compare_exactly(name, "stored", "torch", theirs, part.codes))
                return values, grid
            ours = run.codes[name] if step is None else run.codes[name][step.number]
            rounding = getattr(quantizer, "rounding", torch.round)
            rows.append(compare_codes(name, "torch", x, ours, theirs, part.grid, rounding)[0])
            return part.grid.values(ours), grid

        return call

    with torch.no_grad(), intercepted(quantizers, intercept), warnings.catch_warnings():
        warnings.simplefilter("ignore", BitwrightWarning)  # no data yet: taking the integers said so
        outputs = tensors_in(model(*args, **(kwargs or {})))
    names = ["output"] if len(outputs) == 1 else [f"output.{index}" for index in range(len(outputs))]
    return rows + _outputs("torch", names, tensors_in(run.outputs), outputs)


def _outputs(
    where: str, names: Iterable[str], ours: Iterable[Tensor], theirs: Iterable[Tensor]
) -> list[VerificationRow]:
    """Without the absolute error, which is the model's alone."""
    rows = (compare_outputs(name, where, one, other) for name, one, other in zip(names, ours, theirs, strict=True))
    return [replace(row, absolute=None) for row in rows]


def _said(row: VerificationRow) -> str:
    return "on, as it is" if row.optimizations == "plain" else row.optimizations

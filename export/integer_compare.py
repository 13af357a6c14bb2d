"""Integer arithmetic, the fake-quantized model and the exported file, compared code by code."""

import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from ..qcore import BitwrightWarning, Grid, TensorQuant, values_of
from ..qcore.models import require_model
from .errors import ExportError
from .exporter import export_onnx_qcdq
from .integer_grid import IntegerGrid, Quantized
from .integer_passes import culprits, load
from .integer_requantize import Requantization, requantization
from .integer_run import IntegerRun, Take, run_lowered
from .integer_tensor import IntegerTensor
from .integers import integers_for
from .layer_integers import Integers
from .lowering import Lowering, evaluating, lowered, numbered, quantizers_of, unchanged
from .optional import installed
from .record import codes_of
from .report import Report, Row
from .session import with_codes
from .verify import FLOAT, RESOLUTION, TIE, loaded

if TYPE_CHECKING:
    import onnx

__all__ = ["IntegerComparison", "compare"]


@dataclass
class IntegerComparison:
    """How integer arithmetic agrees with the fake-quantized model and with the exported file.

    Attributes:
        report: a row for each tensor: against ``torch``, and against onnxruntime with optimizations ``off`` and
            ``on``; ``plain`` compares the outputs of the file as it is with those of the copy that shows its codes.
        run: the integer-only run.
        passes: the runtime's optimization passes that cause differences, if some do: any one of them alone.

    Example:
        >>> rows = [Row("conv1", "activation", "torch", 9), Row("relu1", "activation", "on", 9, 2, 0, 3.0)]
        >>> comparison = IntegerComparison(Report(rows), IntegerRun(None), ("WeightBiasQuantization",))
        >>> comparison.ok, comparison.first_difference.name, comparison.passes
        (False, 'relu1', ('WeightBiasQuantization',))
        >>> print(comparison)  # doctest: +NORMALIZE_WHITESPACE
        18 numbers compared: 2 differences, 0 tie flips
        optimizations  tensor           compared  differences  tie flips   largest
        on             relu1                   9            2          0         3
        first difference: relu1, in onnxruntime with optimizations on, caused by its pass WeightBiasQuantization
    """

    report: Report
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
    def first_difference(self) -> Row | None:
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


def compare(
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
        >>> print(compare(nn.Sequential(layer, qnn.QuantReLU(scale=0.05)), torch.randn(50, 8)))
        2636 numbers compared: 0 differences, 0 tie flips
    """
    require_model("compare", model, ExportError)
    arguments = example if isinstance(example, tuple) else (example,)
    if program is None and installed("onnxruntime"):
        with warnings.catch_warnings():
            if integers is None:
                warnings.simplefilter("ignore", BitwrightWarning)  # taking the integers says the same
            program = export_onnx_qcdq(model, arguments, verify=False, kwargs=kwargs)
    found = integers_for("compare", model, arguments, kwargs, integers)
    quantizers, parts = quantizers_of(model), found.quantized()
    requantize = requantization(requantize)

    def run(take: Take | None = None) -> IntegerRun:
        return run_lowered(model, quantizers, parts, arguments, kwargs, requantize, accumulator_bits, take)

    with unchanged(model), evaluating(model):
        own = run()
        report = Report(_against_torch(model, quantizers, parts, own, arguments, kwargs))
        if program is None:
            return IntegerComparison(report, own)
        proto, inputs = loaded("compare", program), _tensors((arguments, kwargs or {}))
        file = _File(proto, inputs, run)
        report.add(file.rows("off"))
        clean = report.ok
        report.add(file.rows("on"))
    blamed = clean and not report.ok
    with unchanged(model), evaluating(model):
        passes = culprits(lambda disabled: any(row.differences for row in file.rows("on", disabled))) if blamed else ()
    return IntegerComparison(report, own, passes)


class _File:
    """An exported model, and the integer run that goes on from its codes."""

    def __init__(self, proto: "onnx.ModelProto", inputs: list[Tensor], run: Callable[..., IntegerRun]) -> None:
        self.proto, self.inputs, self.run = proto, inputs, run
        self.watched, self.names = with_codes(proto)

    def codes_and_outputs(
        self, optimizations: str, disabled: tuple[str, ...] = ()
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
        """The codes by quantizer, the outputs beside them, and those of the file as it is (with optimizations only)."""
        found = load(self.watched, optimizations == "on", disabled)(self.inputs)
        codes = {name.removesuffix(".codes"): found[name if name in found else f"{name}.int32"] for name in self.names}
        outputs = {each.name: found[each.name] for each in self.proto.graph.output}
        plain = load(self.proto, True, disabled)(self.inputs) if optimizations == "on" else {}
        return codes, outputs, plain

    def rows(self, optimizations: str, disabled: tuple[str, ...] = ()) -> list[Row]:
        """The rows of one way to load the file; with optimizations, of the file as it is, too."""
        codes, outputs, plain = self.codes_and_outputs(optimizations, disabled)
        rows = self._rows(optimizations, codes, outputs)
        as_it_is = [_output(name, outputs[name], each, "plain") for name, each in plain.items()]
        if any(row.differences for row in as_it_is):  # showing codes changed what the runtime fuses: show one by one
            as_it_is = self._rows("plain", self._codes_as_it_is(plain, disabled), plain)
        return rows + as_it_is

    def _rows(self, where: str, codes: dict[str, Tensor], outputs: dict[str, Tensor]) -> list[Row]:
        """The integer run against codes and outputs of the file, going on from its codes."""
        rows: list[Row] = []

        def take(name: str, x: Tensor, ours: Tensor, grid: IntegerGrid, rounding: Callable[[Tensor], Tensor]) -> Tensor:
            theirs = codes.get(name)
            if theirs is None:
                return ours
            theirs = theirs.to(torch.int64).reshape(ours.shape)
            rows.append(compared(name, where, x, ours, theirs, grid, rounding))
            return theirs

        ours = _tensors(self.run(take).outputs)
        return rows + [_output(name, each, outputs[name], where) for name, each in zip(outputs, ours, strict=True)]

    def _codes_as_it_is(self, plain: dict[str, Tensor], disabled: tuple[str, ...]) -> dict[str, Tensor]:
        """The codes of tensors that can be shown, one in each copy of the file, without changing its outputs."""
        codes = {}
        for name in self.names:
            found = load(self._showing(name), True, disabled)(self.inputs)
            if all(torch.equal(found[each], plain[each]) for each in plain):
                codes[name.removesuffix(".codes")] = found[name if name in found else f"{name}.int32"]
        return codes

    def _showing(self, name: str) -> "onnx.ModelProto":
        """A copy of the file that shows the codes of one tensor."""
        copy = type(self.watched)()
        copy.CopyFrom(self.watched)
        shown = {name, f"{name}.int32", *(each.name for each in self.proto.graph.output)}
        outputs = [each for each in copy.graph.output if each.name in shown]
        casts = [each for each in copy.graph.node[len(self.proto.graph.node) :] if each.output[0] in shown]
        del copy.graph.output[:]
        del copy.graph.node[len(self.proto.graph.node) :]
        copy.graph.output.extend(outputs)
        copy.graph.node.extend(casts)
        return copy


def _against_torch(
    model: nn.Module,
    quantizers: dict[str, TensorQuant],
    parts: dict[str, Quantized],
    run: IntegerRun,
    args: tuple[object, ...],
    kwargs: Mapping[str, object] | None,
) -> list[Row]:
    """The fake-quantized model, which goes on from the integers of the run at each quantizer."""
    rows: list[Row] = []
    counts: dict[str, int] = {}

    def lowering(path: str) -> Lowering:
        def call(quantizer: TensorQuant, x: Tensor, *context: object) -> tuple[Tensor, Grid | None]:
            index = counts.get(path, 0)
            counts[path] = index + 1
            name = numbered(path, index)
            part = parts[name]
            if quantizer.follows_input and any(each is None for each in context):
                assert part.values is not None
                return part.values.to(x.device), None  # sums as inputs carry no grid here
            values, grid = quantizer._quantize(x, *context)
            theirs = codes_of(quantizer, x, context, values, grid).to(torch.int64)
            if part.codes is not None:
                off = (theirs - part.codes.to(x.device)).abs()
                rows.append(Row(name, "stored", "torch", off.numel(), int((off > 0).sum()), 0, _largest(off)))
                return values, grid
            ours = run.codes[name]
            rounding = getattr(quantizer, "rounding", torch.round)
            rows.append(compared(name, "torch", x, ours, theirs, part.grid, rounding))
            return part.grid.values(ours), grid

        return call

    with torch.no_grad(), lowered(quantizers, lowering), warnings.catch_warnings():
        warnings.simplefilter("ignore", BitwrightWarning)  # no data yet: taking the integers said so
        outputs = _tensors(model(*args, **(kwargs or {})))
    names = ["output"] if len(outputs) == 1 else [f"output.{index}" for index in range(len(outputs))]
    ours = _tensors(run.outputs)
    rows += [_output(*each, "torch") for each in zip(names, ours, outputs, strict=True)]
    return rows


def compared(
    name: str,
    where: str,
    x: Tensor,
    ours: Tensor,
    theirs: Tensor,
    grid: IntegerGrid,
    rounding: Callable[[Tensor], Tensor],
) -> Row:
    """Two sets of codes of one tensor, from the same input, whose values before rounding are ``x``."""
    values = (x.value if isinstance(x, IntegerTensor) else x).double()
    scale, zero_point = (grid.shaped(each, x.ndim).to(values.device) for each in (grid.scale, grid.zero_point))
    low, high = grid.bounds
    steps, near = values / scale, max(TIE, RESOLUTION * (high - low))
    below, above = ((rounding(steps + sign * near) + zero_point).clamp(low, high) for sign in (-1, 1))
    off = (ours - theirs).abs()
    between = (below <= torch.minimum(ours, theirs)) & (torch.maximum(ours, theirs) <= above)
    tie = (off == 1) & between
    differences = int(((off > 0) & ~tie).sum())
    return Row(name, "activation", where, off.numel(), differences, int(tie.sum()), _largest(off))


def _output(name: str, ours: Tensor, theirs: Tensor, where: str) -> Row:
    ours, theirs = ours.detach().cpu().double(), theirs.detach().cpu().double()
    reach = float(ours.abs().max()) if ours.numel() else 0.0
    off = (ours - theirs).abs() / (reach or 1.0)
    return Row(name, "output", where, ours.numel(), int((~(off <= FLOAT)).sum()), 0, _largest(off))


def _largest(off: Tensor) -> float:
    return float(off.max()) if off.numel() else 0.0


def _said(row: Row) -> str:
    return "on, as it is" if row.optimizations == "plain" else row.optimizations


def _tensors(tree: object) -> list[Tensor]:
    return [values_of(each) for each in _pytree.tree_leaves(tree) if isinstance(each, Tensor)]

"""What keeps a model out of a target that only data shows."""

from collections.abc import Callable, Iterator, Sequence

from torch import Tensor, nn

from ...nn.contexts.intercepting import quantizers_of
from ...qcore import TensorQuant
from ..capture.model_state import evaluating, unchanged
from ..capture.record import Call, Recording, record
from ..integer.accumulators import accumulator_report
from ..integer.extraction import integers_of
from ..integer.operators.check import problems_of_layers
from ..onnx import check as onnx
from ..onnx.dialects import INTEGER, QCDQ, QDQ
from ..program import check as program
from ..qonnx import check as qonnx
from .doors import ONNX_INTEGER
from .report import SupportRow
from .target import Target

__all__ = ["shown_by_examples"]

# By the function that exports to a target: what a call of a quantizer shows.
_CALLS: dict[str | None, Callable[[Call], Iterator[str]]] = {
    "export_onnx_qcdq": lambda call: onnx.shown_by_data(call, QCDQ),
    "export_onnx_qdq": lambda call: onnx.shown_by_data(call, QDQ),
    "export_onnx_integer": lambda call: onnx.shown_by_data(call, INTEGER),
    "export_qonnx": qonnx.shown_by_data,
    "export_program": program.shown_by_data,
}


def shown_by_examples(
    model: nn.Module, target: Target, examples: Tensor | tuple[object, ...], known: Sequence[SupportRow]
) -> list[SupportRow]:
    """What an export to a target finds before it traces, beyond what is known without data.

    Args:
        model: the model; evaluated, and left as it was.
        target: the target.
        examples: one tensor, or a tuple of all positional arguments.
        known: what is in the way already.

    Raises:
        ExportError: the example reaches no quantizer, or one that returns no grid.
    """
    arguments = examples if isinstance(examples, tuple) else (examples,)
    quantizers = quantizers_of(model)
    with unchanged(model), evaluating(model):
        recording = record(model, quantizers, arguments, None)
        found = [*_of_calls(recording, target)]
        if target.call == "export_onnx_integer" and not (found or any(row.setting for row in known)):
            rows = [_row(*each) for each in _of_layers(model, quantizers, recording, arguments)]
            found += [row for row in rows if row not in known]
    if target.accumulator_bits is not None:
        found += _accumulators(model, target.accumulator_bits, arguments)
    return found


def _of_layers(
    model: nn.Module, quantizers: dict[str, TensorQuant], recording: Recording, arguments: tuple[object, ...]
) -> Iterator[tuple[str, str]]:
    """What the integer dialect can't take of layers, unless a type of layers stands in the way of taking integers."""
    kinds = tuple(kind for kind, _ in ONNX_INTEGER.refused_layers)
    if not any(isinstance(each, kinds) for each in model.modules()):
        yield from problems_of_layers(model, integers_of("supports", model, quantizers, recording, arguments, None))


def _of_calls(recording: Recording, target: Target) -> Iterator[SupportRow]:
    shown = _CALLS.get(target.call)
    if shown is not None:
        yield from (_row(call.path, said) for call in recording for said in shown(call))


def _row(where: str, said: str) -> SupportRow:
    what, _, remedy = said.partition(". ")
    return SupportRow(where, "", what, "", remedy)


def _accumulators(model: nn.Module, bits: int, examples: tuple[object, ...]) -> Iterator[SupportRow]:
    for row in accumulator_report(model, examples).rows:
        if row.worst_bits is not None and row.worst_bits > bits:
            yield SupportRow(
                row.name,
                "",
                f"its sums may need {row.worst_bits} bits, and accumulators have {bits}",
                "",
                "Use narrower weights or inputs, or weights that are trained for an accumulator: "
                "Int8WeightPerChannelA2Q.",
            )

"""A model as a program of torch.export in which quantizers are operators, and their tensors are marked."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils._pytree import tree_map

from ...nn.contexts.intercepting import intercepted
from ...qcore import TensorQuant, values_of
from ...qcore.tensor_quant import Intercept
from ...qcore.tracing import loops_become
from ..capture.caveats import unreached
from ..capture.numbering import Counts
from ..capture.record import Call, Recording
from ..errors import ExportError
from ..onnx.tracing.trace import grids_of_layers, handing_on
from .activations import RunTimeValue, Tracing, activation_of
from .loops import UnrolledLoops
from .markers import marking
from .names import Names
from .stored import StoredValue, stored_values

__all__ = ["trace"]


def trace(
    module: nn.Module,
    quantizers: dict[str, TensorQuant],
    recording: Recording,
    args: tuple[object, ...],
    kwargs: Mapping[str, object] | None,
    dynamic_shapes: Any,
    exact: bool,
) -> ExportedProgram:
    """Export a model whose quantizers emit operators, each tensor of theirs marked with its name.

    Layers hand on plain tensors. Where that fails, as some module reads the grid of its input, they hand on
    QuantTensors with the grids that they have in torch.

    Args:
        module: the model, in evaluation mode.
        quantizers: by path.
        recording: what they were asked for with the same arguments.
        args: positional arguments.
        kwargs: keyword arguments.
        dynamic_shapes: as torch.export takes them.
        exact: divide by scales first, see `export_program`.
    """
    names = Names(quantizers)
    stored = stored_values(recording, names)
    computed = {call.name: activation_of(call) for call in recording if call.name not in stored}
    plain_args, plain_kwargs = tree_map(_plain, (args, dict(kwargs or {})))
    options = {"kwargs": plain_kwargs or None, "dynamic_shapes": dynamic_shapes, "strict": False}
    traced = _Traced(module, quantizers, recording, names, stored, computed, exact)
    try:
        return traced.program(plain_args, options)
    except ExportError:
        raise
    except Exception as error:  # torch's, or the model's own
        if "Constraints violated" in str(error):
            raise ExportError(_FIXED.format(error)) from None
        failure = error
    grids = grids_of_layers(module, args, kwargs)
    if any(grids.values()):
        try:
            with handing_on(module, grids):
                return traced.program(plain_args, options)
        except Exception as error:
            if type(error) is not type(failure):
                raise  # the first is mended
    raise failure


class _Traced:
    """One model to be traced, perhaps twice."""

    def __init__(
        self,
        module: nn.Module,
        quantizers: dict[str, TensorQuant],
        recording: Recording,
        names: Names,
        stored: dict[str, StoredValue],
        computed: dict[str, RunTimeValue],
        exact: bool,
    ) -> None:
        self.module, self.quantizers, self.recording = module, quantizers, recording
        self.names, self.stored, self.computed, self.exact = names, stored, computed, exact

    def program(self, args: tuple[object, ...], options: dict[str, Any]) -> ExportedProgram:
        counts, surplus = Counts(), list[str]()
        with marking() as mark:
            tracing = Tracing(mark, self.names, self.exact)

            def emitter(path: str) -> Intercept:
                def placed(quantizer: TensorQuant, x: Tensor, *context: object) -> tuple[Tensor, None]:
                    index, calls = counts.next(path), self.recording.calls.get(path, [])
                    if index >= len(calls):
                        surplus.append(path)
                        return x, None
                    return self._emitted(calls[index], tracing, x), None

                return placed

            handle = self.module.register_forward_pre_hook(lambda *_: counts.clear())  # forward may run more than once
            try:
                with intercepted(self.quantizers, emitter), loops_become(UnrolledLoops()), _quiet(), torch.no_grad():
                    program = torch.export.export(self.module, args, **options)
            finally:
                handle.remove()
        self._check(surplus)
        return program

    def _emitted(self, call: Call, tracing: Tracing, x: Tensor) -> Tensor:
        stored = self.stored.get(call.name)
        if stored is None:
            return self.computed[call.name](tracing, x)
        return tracing.named("values", call, stored.emit(tracing.mark))

    def _check(self, surplus: list[str]) -> None:
        missed = next((path for path in surplus if path not in self.recording.calls), None)
        if missed is not None:
            raise ExportError(
                f"{missed} is called while the model is traced, but not when it runs on the example input:\n  "
                f"{missed}: {unreached(missed, self.module, self.recording.calls)}"
            )
        if surplus:
            raise ExportError(
                f"{surplus[0]} is called more often while the model is traced than when it runs on the example input. "
                "Let the forward take the same path both times (no branch on torch.compiler.is_exporting())."
            )


_FIXED = (
    "export_program: torch.export can't leave all the sizes open that dynamic_shapes names. Recurrent layers have as "
    "many steps as the example: leave out that dimension, or write export_onnx_qdq, whose loops are open. torch "
    "says:\n{}"
)


def _plain(each: object) -> object:
    return values_of(each) if isinstance(each, Tensor) else each


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's notices about its own insides; errors pass."""
    with warnings.catch_warnings():
        for category in (DeprecationWarning, FutureWarning):
            warnings.simplefilter("ignore", category)
        warnings.filterwarnings("ignore", module=r"torch\.")
        yield

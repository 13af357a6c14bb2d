"""A model as an ONNX graph in which every call of a quantizer is one placeholder node."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..qcore import TensorQuant
from .caveats import unreached
from .errors import ExportError
from .lowering import Lowering, lowered
from .record import Call, Recording

__all__ = ["DOMAIN", "trace"]

DOMAIN = "bitwright"  # of the placeholders; none is left in the end


def trace(
    module: nn.Module,
    quantizers: dict[str, TensorQuant],
    recording: Recording,
    args: tuple[Any, ...],
    options: dict[str, Any],
) -> torch.onnx.ONNXProgram:
    """Export a model whose quantizers emit placeholders: ``Quantize`` nodes with the path and number of the call.

    A rounding that QuantizeLinear does not do is traced as the torch code it is, between ``Divide`` (by the scale) and
    ``Quantize``.

    Args:
        module: the model, in evaluation mode.
        quantizers: by path.
        recording: what they were asked for with the same arguments.
        args: positional arguments.
        options: further keywords of `torch.onnx.export`.
    """
    counts: dict[str, int] = {}
    surplus: list[str] = []

    def emitter(path: str) -> Lowering:
        def emit(quantizer: TensorQuant, x: Tensor, *context: Any) -> tuple[Tensor, None]:
            index = counts.get(path, 0)
            counts[path] = index + 1
            calls = recording.calls.get(path, [])
            if index >= len(calls):
                surplus.append(path)
                return x, None
            return _placeholders(calls[index], x), None

        return emit

    handle = module.register_forward_pre_hook(lambda *_: counts.clear())  # torch may run forward more than once
    try:
        with lowered(quantizers, emitter), _quiet(), torch.no_grad():
            program = torch.onnx.export(module, args, **options)
    finally:
        handle.remove()
    missed = next((path for path in surplus if path not in recording.calls), None)
    if missed is not None:
        raise ExportError(
            f"{missed} is called while the model is traced, but not when it runs on the example input:\n  {missed}: "
            f"{unreached(missed, module, recording.calls)}"
        )
    if surplus:
        raise ExportError(
            f"{surplus[0]} is called more often while the model is traced than when it runs on the example input. Let "
            "the forward take the same path both times (no branch on torch.compiler.is_exporting())."
        )
    assert program is not None  # it is for dynamo=False only
    return program


def _placeholders(call: Call, x: Tensor) -> Tensor:
    which = {"path": call.path, "index": call.index}
    if not (call.half_even or call.stored):
        x = torch.onnx.ops.symbolic(f"{DOMAIN}::Divide", (x,), which, dtype=x.dtype, shape=x.shape, version=1)
        x = call.quantizer.rounding(x)  # type: ignore[operator]
    return torch.onnx.ops.symbolic(f"{DOMAIN}::Quantize", (x,), which, dtype=x.dtype, shape=x.shape, version=1)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's notices about itself; errors pass."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    with warnings.catch_warnings():
        for category in (DeprecationWarning, FutureWarning):
            warnings.simplefilter("ignore", category)
        warnings.filterwarnings("ignore", module=r"torch\.|onnxscript\.|onnx_ir\.")
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)

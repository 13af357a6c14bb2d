"""What QONNX's readers can't take, found before anything is traced."""

from collections.abc import Callable, Iterator

import torch
from torch import nn

from ...qcore import BINARY
from ..capture.record import Call, Recording
from ..targets.doors import QONNX
from ..targets.rules import called, layer_problems, problems, refuse
from ..targets.use import use_of_call
from .nodes import rounding_mode

__all__ = ["check", "shown_by_data"]


def check(module: nn.Module, recording: Recording) -> None:
    """Refuse what can't be written, all of it in one error.

    Args:
        module: the model.
        recording: every call of every quantizer.

    Raises:
        ExportError: with one line for each layer or quantizer: its path, what is unsupported, what to write instead.
    """
    refuse(QONNX, _causes(module, recording), "part")


def _causes(module: nn.Module, recording: Recording) -> Iterator[tuple[str, object]]:
    layers = layer_problems(module, QONNX)
    yield from ((called(module, path), said) for path, said in layers.items())
    for call in recording:
        if any(call.path.startswith(f"{path}." if path else "") for path in layers):
            continue  # the layer is named
        yield from ((call.path, problem) for problem in problems(use_of_call(call), QONNX))
        yield from ((call.path, said) for said in shown_by_data(call))


def shown_by_data(call: Call) -> Iterator[str]:
    """What keeps a call out that only its data shows."""
    yield from (said for said in (rule(call) for rule in _RULES) if said is not None)


def _signs(call: Call) -> str | None:
    computed = not (call.stored or call.quantizer.follows_input)
    if not computed or call.grid.number_format != BINARY:
        return None
    rounding = getattr(call.quantizer, "rounding", None)
    if rounding_mode(rounding) == "ROUND":
        return None
    return "BipolarQuant takes the nearest of two levels, and this rounding does not. Write rounding='half_even'."


def _precision(call: Call) -> str | None:
    if call.dtype is torch.float32:
        return None
    found = str(call.dtype).removeprefix("torch.")
    return f"its input is {found}, and QONNX is float32. Export a float32 model: model.float()."


def _grid(call: Call) -> str | None:
    scale = call.grid.scale
    if not bool((scale.isfinite() & (scale > 0)).all()):
        return "a scale is not a positive, finite number. Check what its scaling computes."
    if call.plain.axis == -1:
        return (
            f"its scale has the shape {tuple(scale.shape)} for values of shape {tuple(call.codes.shape)}, and QONNX's "
            "readers take one scale, or one for each channel. Write axis=None or axis=1."
        )
    if not call.on_grid:
        return f"the values it returns do not lie on the grid it returns ({type(call.quantizer).__name__}._quantize)."
    return None


_RULES: tuple[Callable[[Call], str | None], ...] = (_signs, _precision, _grid)

"""What QONNX's readers can't take, found before anything is traced."""

from collections.abc import Callable

import torch
from torch import nn

from ...qcore import BINARY
from ..capture.record import Call, Recording
from ..errors import ExportError, with_causes
from ..targets.doors import QONNX
from ..targets.rules import problems
from ..targets.use import use_of_call

__all__ = ["check"]


def check(module: nn.Module, recording: Recording) -> None:
    """Refuse what can't be written, all of it in one error.

    Args:
        module: the model.
        recording: every call of every quantizer.

    Raises:
        ExportError: with one line for each layer or quantizer: its path, what is unsupported, what to write instead.
    """
    refused = {
        path: reason
        for path, each in module.named_modules()
        for kind, reason in QONNX.refused_layers
        if isinstance(each, kind)
    }
    causes = {path: f"{path or type(module).__name__}: {reason}" for path, reason in refused.items()}
    for call in recording:
        if any(call.path.startswith(f"{path}." if path else "") for path in refused):
            continue  # the layer is named
        known = (str(each) for each in problems(use_of_call(call), QONNX))
        shown = (rule(call) for rule in _RULES)
        problem = next((each for found in (known, shown) for each in found if each is not None), None)
        if problem is not None:
            causes.setdefault(call.path, f"{call.path}: {problem}")
    if causes:
        count = f"{len(causes)} part{'s' * (len(causes) > 1)}"
        raise ExportError(with_causes(f"QONNX can't express {count} of this model:", list(causes.values())))


def _precision(call: Call) -> str | None:
    if call.dtype is torch.float32:
        return None
    found = str(call.dtype).removeprefix("torch.")
    return f"its input is {found}, and QONNX is float32. Export a float32 model: model.float()."


def _width(call: Call) -> str | None:
    width = getattr(getattr(call.quantizer, "int_range", None), "bit_width", None)
    if isinstance(width, torch.Tensor) and width.ndim:
        setting = use_of_call(call).setting("bit_width")
        return (
            f"it has {width.numel()} bit widths, and QONNX's readers take one. Write {setting}=8, or another width for "
            "all."
        )
    if call.plain.narrow_range and not call.plain.signed:
        return (
            "it leaves out the largest of its unsigned integers, which hls4ml and FINN refuse. Write "
            f"{use_of_call(call).setting('narrow_range')}=False."
        )
    return None


def _signs(call: Call) -> str | None:
    use = use_of_call(call)
    if call.stored or call.grid.number_format != BINARY or use.rounding_name == "half_even":
        return None
    return (
        f"rounding {use.rounding_name!r}, and BipolarQuant goes to the nearest of its two levels. Write "
        f"{use.setting('rounding')}='half_even'."
    )


def _grid(call: Call) -> str | None:
    scale = call.grid.scale
    if not bool((scale.isfinite() & (scale > 0)).all()):
        return "a scale is not a positive, finite number. Check what its scaling computes."
    if call.plain.axis == -1 or call.plain.block is not None:
        return (
            f"its scale has the shape {tuple(scale.shape)} for values of shape {tuple(call.codes.shape)}; QONNX's "
            "readers take one scale, or one for each channel. Write axis=None or axis=1."
        )
    if not call.on_grid:
        return f"the values it returns do not lie on the grid it returns ({type(call.quantizer).__name__}._quantize)."
    return None


_RULES: tuple[Callable[[Call], str | None], ...] = (_precision, _width, _signs, _grid)

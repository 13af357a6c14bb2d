"""What QONNX's readers can't take, found before anything is traced."""

from collections.abc import Callable

import torch
from torch import nn

from ...qcore import BINARY, GridQuant, TruncQuant
from ...qcore.grid_quant import FLOAT_BITS
from ..capture.record import Call, Recording
from ..errors import ExportError, with_causes
from .nodes import rounding_mode

__all__ = ["check"]

BIAS_BITS = 32


def check(module: nn.Module, recording: Recording) -> None:
    """Refuse what can't be written, all of it in one error.

    Args:
        module: the model.
        recording: every call of every quantizer.

    Raises:
        ExportError: with one line for each layer or quantizer: its path, what is unsupported, what to write instead.
    """
    layers = {path: each for path, each in module.named_modules() if isinstance(each, nn.RNNBase)}
    causes = {path: f"{path or type(each).__name__}: {_RECURRENT}" for path, each in layers.items()}
    for call in recording:
        if any(call.path.startswith(f"{path}." if path else "") for path in layers):
            continue  # the layer is named
        problem = next(filter(None, (rule(call) for rule in _RULES)), None)
        if problem is not None:
            causes.setdefault(call.path, f"{call.path}: {problem}")
    if causes:
        count = f"{len(causes)} part{'s' * (len(causes) > 1)}"
        raise ExportError(with_causes(f"QONNX can't express {count} of this model:", list(causes.values())))


_RECURRENT = (
    "QONNX has no loop over time, and its readers take no recurrent layers. Export it by export_onnx_qdq, or call a "
    "cell (QuantLSTMCell) once for each step."
)


def _kind(call: Call) -> str | None:
    quantizer = call.quantizer
    if call.stored or quantizer.follows_input or isinstance(quantizer, TruncQuant):
        return None
    if isinstance(quantizer, GridQuant) and type(quantizer)._quantize is GridQuant._quantize:
        return None
    return (
        f"{type(quantizer).__name__} has arithmetic of its own, and Quant computes IntQuant's. Put what is yours into "
        "a scaling of an IntQuant."
    )


def _levels(call: Call) -> str | None:
    number_format = call.grid.number_format
    if number_format.whole or number_format == BINARY:
        return None
    return (
        f"its levels are {number_format}, and QONNX's readers take integers, and the signs of BinaryAct and "
        "BinaryWeightPerTensor. Quantize to integers, or export by export_onnx_qdq."
    )


def _zero_point(call: Call) -> str | None:
    if call.grid.zero_point is None:
        return None
    return (
        "it has a zero point, which FINN refuses, and which qonnx adds before it rounds: ties go another way than in "
        f"ONNX. Write {_setting(call, 'quant')}={_WITHOUT[_role(call)]}, or export by export_onnx_qdq."
    )


_WITHOUT = {"weight": "Int8WeightPerChannel", "bias": "Int8BiasOwnScale", "act": "Int8Act (or Uint8Act)"}


def _dynamic(call: Call) -> str | None:
    if call.stored or not call.follows_input:
        return None
    return (
        "its scale follows the input, and QONNX's readers take scales that are constant. Write "
        f"{_setting(call, 'quant')}=Int8Act, and run some batches in training mode."
    )


def _width(call: Call) -> str | None:
    width = getattr(getattr(call.quantizer, "int_range", None), "bit_width", None)
    if isinstance(width, torch.Tensor) and width.ndim:
        return (
            f"it has {width.numel()} bit widths, and QONNX's readers take one. Write {_setting(call, 'bit_width')}=8, "
            "or another width for all."
        )
    grid, bias = call.plain, call.quantizer.follows_input or (call.stored and call.codes.ndim == 1)
    most = BIAS_BITS if bias else FLOAT_BITS
    if grid.bit_width > most:
        return (
            f"{grid.bit_width} bits, and readers compute in float32, which holds integers of {most}. Write "
            f"{_setting(call, 'bit_width')}={most} or less."
        )
    if grid.narrow_range and not grid.signed:
        return (
            "it leaves out the largest of its unsigned integers, which hls4ml and FINN refuse. Write "
            f"{_setting(call, 'narrow_range')}=False."
        )
    return None


def _rounding(call: Call) -> str | None:
    if call.stored or call.quantizer.follows_input:  # however its integers came about, they are kept
        return None
    rounding = getattr(call.quantizer, "rounding", None)
    name = getattr(rounding, "name", None) or getattr(rounding, "__name__", type(rounding).__name__)
    binary = call.grid.number_format == BINARY
    if rounding_mode(rounding) == "ROUND" or (rounding_mode(rounding) is not None and not binary):
        return None
    others = "the nearest of its two levels" if binary else "'half_even' and 'floor'"
    return (
        f"rounding {name!r}, and QONNX's readers know {others} (qonnx's HALF_UP rounds ties away from zero). Write "
        f"{_setting(call, 'rounding')}='half_even'."
    )


def _precision(call: Call) -> str | None:
    if call.dtype is torch.float32:
        return None
    found = str(call.dtype).removeprefix("torch.")
    return f"its input is {found}, and QONNX is float32. Export a float32 model: model.float()."


def _grid(call: Call) -> str | None:
    scale = call.grid.scale
    if not bool((scale.isfinite() & (scale > 0)).all()):
        return "a scale is not a positive, finite number. Check what its scaling computes."
    if call.plain.axis == -1 or call.plain.block is not None:
        return (
            f"it has scales for {call.grid.granularity}, and QONNX's readers take one scale, or one for each channel. "
            f"Write {_setting(call, 'quant')}={_BY_CHANNEL[_role(call)]}."
        )
    if not call.on_grid:
        return f"the values it returns do not lie on the grid it returns ({type(call.quantizer).__name__}._quantize)."
    return None


_BY_CHANNEL = {"weight": "Int8WeightPerChannel", "bias": "Int8BiasOwnScale", "act": "Int8ActPerChannel"}


def _role(call: Call) -> str:
    slot = _slot(call)
    return slot if slot in ("weight", "bias") else "act"


def _slot(call: Call) -> str:
    return call.path.rsplit(".", 1)[-1].removesuffix("_quant")


def _setting(call: Call, name: str) -> str:
    """A setting as the layer takes it: with the prefix of the quantizer's slot."""
    slot = _slot(call)
    prefixed = slot in ("weight", "bias", "input", "output") or name == "quant"
    return f"{slot}_{name}" if prefixed else name


_RULES: tuple[Callable[[Call], str | None], ...] = (
    _kind,
    _precision,
    _dynamic,
    _levels,
    _zero_point,
    _grid,
    _width,
    _rounding,
)

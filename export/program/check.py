"""What a program can't hold, found before anything is traced."""

from collections.abc import Callable

import torch
from torch import Tensor

from ...qcore import GridQuant, TruncQuant
from ..capture.record import Call, Recording
from ..errors import ExportError, with_causes

__all__ = ["check"]

WIDEST_ACTIVATION = 24  # bits: the operators clamp float32 numbers, which tell such integers apart
WIDEST_STORED = 32


def check(recording: Recording) -> None:
    """Refuse what can't be written, all of it in one error.

    Args:
        recording: every call of every quantizer.

    Raises:
        ExportError: with one line for each quantizer: its path, what is unsupported, what to write instead.
    """
    causes: dict[str, str] = {}
    for call in recording:
        for rule in _RULES:
            problem = rule(call)
            if problem is not None:
                causes.setdefault(call.path, f"{call.path}: {problem}")
    if causes:
        count = f"{len(causes)} quantizer{'s' * (len(causes) > 1)}"
        raise ExportError(with_causes(f"A torch program can't express {count} of this model:", list(causes.values())))


def _computed(call: Call) -> bool:
    """Whether the codes are computed when the program runs."""
    return not (call.stored or call.quantizer.follows_input)


def _kind(call: Call) -> str | None:
    quantizer = call.quantizer
    if not _computed(call) or type(quantizer) is TruncQuant:
        return None
    if isinstance(quantizer, GridQuant) and type(quantizer)._quantize is GridQuant._quantize:
        return None
    return (
        f"{type(quantizer).__name__} has arithmetic of its own, and the operators of a program compute IntQuant's. Put "
        "what is yours into a rounding, a scaling or a zero point of an IntQuant."
    )


def _width(call: Call) -> str | None:
    width = getattr(getattr(call.quantizer, "int_range", None), "bit_width", None)
    if isinstance(width, Tensor) and width.ndim and _computed(call):
        return (
            f"it has {width.numel()} bit widths, and a program clips a tensor that is computed at run time to one. "
            f"Write {_setting(call, 'bit_width')}=8, or another width for all."
        )
    widest = WIDEST_ACTIVATION if _computed(call) else WIDEST_STORED
    bits = call.plain.bit_width
    if bits <= widest:
        return None
    kind = "computes activations in" if _computed(call) else "stores"
    remedy = f"Write {_setting(call, 'bit_width')}={widest} or less."
    return f"{bits} bits; a program {kind} up to {widest}. {remedy}"


def _rounding(call: Call) -> str | None:
    """A parameter's integers are stored, however they came about; an activation's are computed at run time."""
    if not _computed(call) or call.half_even:
        return None
    rounding = getattr(call.quantizer, "rounding", None)
    if rounding is None or (getattr(rounding, "deterministic", True) and _repeats(rounding)):
        return None
    name = getattr(rounding, "name", None) or getattr(rounding, "__name__", type(rounding).__name__)
    return (
        f"rounding {name!r} is random in evaluation, and a program can't repeat it. Write "
        f"{_setting(call, 'rounding')}='half_even', or one that is deterministic in evaluation."
    )


def _setting(call: Call, name: str) -> str:
    """A setting as the layer takes it: with the prefix of the quantizer's slot."""
    slot = call.path.rsplit(".", 1)[-1].removesuffix("_quant")
    return f"{slot}_{name}" if slot in ("weight", "bias", "input", "output") else name


def _repeats(rounding: Callable[[Tensor], Tensor]) -> bool:
    """Does a rounding answer alike twice?"""
    probe = torch.linspace(-2, 2, 257)
    with torch.random.fork_rng(), torch.no_grad():
        return torch.equal(rounding(probe.clone()), rounding(probe.clone()))


def _precision(call: Call) -> str | None:
    if call.dtype is torch.float32:
        return None
    found = str(call.dtype).removeprefix("torch.")
    return f"its input is {found}, and the operators compute in float32. Export a float32 model: model.float()."


def _grid(call: Call) -> str | None:
    scale, granularity = call.grid.scale, call.grid.granularity
    if not bool((scale.isfinite() & (scale > 0)).all()):
        return "a scale is not a positive, finite number. Check what its scaling computes."
    shape = call.codes.shape
    if call.plain.axis == -1 and tuple(scale.shape) != granularity.scales_shape(shape):
        return (
            f"its scale has the shape {tuple(scale.shape)} for values of shape {tuple(shape)}; a program takes one "
            "scale per tensor, per index of one dimension, or per group. Write axis=None or axis=1."
        )
    if _computed(call) and not call.follows_input and (call.plain.block is not None or call.plain.axis == -1):
        return (
            f"it has a stored scale for {granularity} of an activation, whose number of groups changes with the "
            "input. Write axis=None for one scale, or axis=1 for one for each channel."
        )
    if not call.on_grid:
        return f"the values it returns do not lie on the grid it returns ({type(call.quantizer).__name__}._quantize)."
    return None


def _loop(call: Call) -> str | None:
    if call.steady or call.follows_input:
        return None
    return (
        "its grid changes from step to step: it saw no data, so each step takes the range of its own input, and a "
        "program has one grid for all steps. Run some batches in training mode first, or load a checkpoint."
    )


_RULES: tuple[Callable[[Call], str | None], ...] = (_kind, _width, _rounding, _precision, _grid, _loop)

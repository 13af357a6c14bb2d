"""What a program can't hold, found before anything is traced."""

from collections.abc import Callable, Iterator

import torch

from ..capture.record import Call, Recording
from ..targets.doors import PROGRAM
from ..targets.rules import problems, refuse
from ..targets.use import use_of_call

__all__ = ["check", "shown_by_data"]


def check(recording: Recording) -> None:
    """Refuse what can't be written, all of it in one error.

    Args:
        recording: every call of every quantizer.

    Raises:
        ExportError: with one line for each quantizer: its path, what is unsupported, what to write instead.
    """
    refuse(PROGRAM, _causes(recording))


def _causes(recording: Recording) -> Iterator[tuple[str, object]]:
    """What is known before there is data, and then what the data shows."""
    for call in recording:
        yield from ((call.path, problem) for problem in problems(use_of_call(call), PROGRAM))
        yield from ((call.path, said) for said in shown_by_data(call))


def shown_by_data(call: Call) -> Iterator[str]:
    """What keeps a call out that only its data shows."""
    yield from (said for said in (rule(call) for rule in _RULES) if said is not None)


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


_RULES: tuple[Callable[[Call], str | None], ...] = (_precision, _grid, _loop)

"""What a user should know of a model before relying on its file: quantizers without data, and those never called."""

import sys
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from torch import nn

from ...qcore import BitwrightWarning, GridQuant, TensorQuant
from ...qcore.errors import UncalibratedWarning
from ..errors import with_causes

__all__ = ["caveats", "silent_quantizers", "unreached", "warn_of_caveats", "warn_user"]


def warn_of_caveats(call: str, model: nn.Module, quantizers: dict[str, TensorQuant], called: Collection[str]) -> None:
    """Warn, at every call, of all quantizers that `caveats` names, in one `BitwrightWarning`.

    Args:
        call: the function that the user called, for the message.
        model: after a forward in evaluation.
        quantizers: by path.
        called: the paths of those that the forward called.
    """
    found = caveats(model, quantizers, called)
    if found:
        warn_user(with_causes(f"{call}: some quantizers of this model may not do what you expect:", found))


def warn_user(text: str) -> None:
    """Issue a `BitwrightWarning` from the line that called the library, at every call."""
    frame = sys._getframe(1)
    own = __name__.partition(".")[0]
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == own:
        frame = frame.f_back
    warnings.warn_explicit(  # no registry: Python would show the same text from the same line only once
        text,
        BitwrightWarning,
        frame.f_code.co_filename,
        frame.f_lineno,
        frame.f_globals.get("__name__"),
    )


def caveats(model: nn.Module, quantizers: dict[str, TensorQuant], called: Collection[str]) -> list[str]:
    """One line for each thing that is amiss, with the paths of the quantizers it concerns.

    Example:
        >>> import bitwright.nn as qnn
        >>> model = nn.Sequential(qnn.QuantReLU(), qnn.QuantReLU(scale=0.1))
        >>> print(*caveats(model, {"0.act_quant": model[0].act_quant}, ["0.act_quant"]))
        0.act_quant: saw no data, so the range is that of the input at hand: in torch another input gets another grid, \
in a file it does not. Run some batches in training mode first, or load a checkpoint.
    """
    groups: dict[str, list[str]] = {}
    for path, quantizer in quantizers.items():
        for problem in _problems(quantizer) if path in called else [unreached(path, model, called)]:
            groups.setdefault(problem, []).append(path)
    return [f"{', '.join(paths)}: {problem}" for problem, paths in groups.items()]


def unreached(path: str, model: nn.Module, called: Collection[str]) -> str:
    """Why a forward did not call a quantizer, and what to do."""
    layer, _, _ = path.rpartition(".")
    parent, _, name = layer.rpartition(".")
    owner = model.get_submodule(parent)
    if isinstance(owner, nn.MultiheadAttention):
        return (
            f"never called: nn.MultiheadAttention does not call {name} but reads its weight, which stays in floats. "
            "Write the attention with quantized layers of its own."
        )
    if isinstance(owner, nn.TransformerEncoderLayer):
        return (
            "never called: in evaluation nn.TransformerEncoderLayer takes a fast path, which reads the weights of its "
            "layers in floats. Turn it off: torch.backends.mha.set_fastpath_enabled(False)."
        )
    if any(each.rpartition(".")[0] == layer for each in called):
        return "never called: the forward of its layer leaves it out. Call it there, or set it to None."
    return (
        "never called: the example input does not reach its layer, or the model reads the layer's weight instead of "
        "calling it (F.linear(x, layer.weight)), in floats. Call the layer, or remove it."
    )


def _problems(quantizer: TensorQuant) -> list[str]:
    clock = quantizer.clock if isinstance(quantizer, GridQuant) else None
    progress = "" if clock is None else clock.progress()
    found = [_unmeasured(quantizer)]
    if progress:
        found.append(
            f"its settings are not at their end ({progress}), and the file has what evaluation has now. Train on, or "
            "go to the end: qnn.finish_schedules(model)."
        )
    return list(filter(None, found))


def _unmeasured(quantizer: TensorQuant) -> str | None:
    if not quantizer.calibrated:
        return (
            "saw no data, so the range is that of the input at hand: in torch another input gets another grid, in a "
            "file it does not. Run some batches in training mode first, or load a checkpoint."
        )
    if quantizer.calibrating:
        return (
            "still calibrating, so the range is the average of the batches so far and was never learned. Train on, "
            "choose fewer calibration_steps, or end it: qnn.finish_calibration(model)."
        )
    return None


@contextmanager
def silent_quantizers() -> Iterator[None]:
    """Without the warning that each quantizer gives by itself when it saw no data: `warn_of_caveats` names them all."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UncalibratedWarning)
        yield

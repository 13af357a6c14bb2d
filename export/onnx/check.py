"""What a dialect can't hold, found before anything is traced."""

from collections.abc import Callable, Iterator

import torch

from ..capture.record import Call, Recording
from ..errors import ExportError
from ..targets.rules import problems, refuse
from ..targets.target import Target
from ..targets.use import use_of_call
from .activations.plan import plan_of
from .dialects import BIAS, BLOCKS, EXPORTER_OPSET, LATEST_OPSET, Dialect, Storage, StoredAs

__all__ = ["check", "needed_opset", "shown_by_data", "storage_of", "stored_as"]


def stored_as(call: Call, dialect: Dialect) -> StoredAs | None:
    """How a file holds the tensor of a call, if that is the same for all inputs; a wide bias has int32."""
    number_format = call.grid.number_format
    if call.quantizer.follows_input:
        return StoredAs(BIAS) if number_format.signed or number_format.bits < BIAS.bits else None
    fitting = dialect.stored_as(number_format)
    if fitting is None and call.stored and call.codes.ndim == 1 and number_format.whole and number_format.signed:
        return StoredAs(BIAS)
    return fitting


def storage_of(call: Call, dialect: Dialect) -> Storage | None:
    """The type of the numbers or codes of a call; None where there is none, or where it needs none."""
    if call.stored or call.quantizer.follows_input:
        form = stored_as(call, dialect)
        return None if form is None else form.storage
    return plan_of(call, dialect).storage


def needed_opset(recording: Recording, dialect: Dialect) -> int:
    """The oldest opset that has every type that the calls need, and that torch's exporter writes."""
    stored = (storage_of(call, dialect) for call in recording)
    blocks = BLOCKS if any(_in_blocks(call, dialect) for call in recording) else EXPORTER_OPSET
    return max([EXPORTER_OPSET, blocks, *(storage.opset for storage in stored if storage is not None)])


def _in_blocks(call: Call, dialect: Dialect) -> bool:
    """Whether DequantizeLinear is to have a block size."""
    if call.stored or call.quantizer.follows_input:
        return call.plain.block is not None
    return plan_of(call, dialect).block is not None


def check(recording: Recording, dialect: Dialect, target: Target, opset: int | None) -> int:
    """Refuse what can't be written, all of it in one error.

    Args:
        recording: every call of every quantizer.
        dialect: the dialect.
        target: what it can hold.
        opset: what the user asked for, or None for the oldest that will do.

    Returns:
        The opset to write.

    Raises:
        ExportError: with one line for each quantizer: its path, what is unsupported, what to write instead.
    """
    refuse(target, _causes(recording, dialect, target))
    needed = needed_opset(recording, dialect)
    if opset is not None and opset < needed:
        raise ExportError(_old_opset(recording, dialect, opset, needed))
    if opset is not None and opset > LATEST_OPSET:
        raise ExportError(
            f"opset_version={opset} is too new: onnxruntime does not run its QuantizeLinear and DequantizeLinear. "
            f"Write opset_version={LATEST_OPSET} or less, or leave it out: this model needs {needed}."
        )
    return opset or needed


def _causes(recording: Recording, dialect: Dialect, target: Target) -> Iterator[tuple[str, object]]:
    """What is known before there is data, and then what the data shows."""
    for call in recording:
        yield from ((call.path, problem) for problem in problems(use_of_call(call), target))
        yield from ((call.path, said) for said in shown_by_data(call, dialect))


def shown_by_data(call: Call, dialect: Dialect) -> Iterator[str]:
    """What keeps a call out that only its data shows."""
    yield from (said for said in (rule(call, dialect) for rule in _RULES) if said is not None)


def _old_opset(recording: Recording, dialect: Dialect, opset: int, needed: int) -> str:
    asked = f"opset_version={opset} is too old"
    remedy = f"Write opset_version={needed}, or leave it out."
    stored = [(call, storage_of(call, dialect)) for call in recording]
    wanting = [(call, storage) for call, storage in stored if storage is not None and storage.opset > opset]
    grouped = [call for call, _ in stored if _in_blocks(call, dialect)]
    if not wanting and grouped:
        others = f" (and {len(grouped) - 1} more)" if len(grouped) > 1 else ""
        return f"{asked}: {grouped[0].path}{others} has scales in groups, which ONNX has since opset {BLOCKS}. {remedy}"
    if not wanting:
        return f"{asked}: torch.onnx.export writes {EXPORTER_OPSET} and later. {remedy}"
    first, storage = max(wanting, key=lambda pair: pair[1].opset)
    number_format, form = first.grid.number_format, stored_as(first, dialect) if first.stored else storage
    levels = f"{number_format.bits} bits" if number_format.whole else f"levels of {number_format}"
    others = f" (and {len(wanting) - 1} more)" if len(wanting) > 1 else ""
    return (
        f"{asked}: {first.path}{others} has {levels}, stored as {form}, which ONNX has since opset {storage.opset}. "
        f"{remedy}"
    )


Rule = Callable[[Call, Dialect], str | None]


def _precision(call: Call, dialect: Dialect) -> str | None:
    if call.dtype is torch.float32:
        return None
    found = str(call.dtype).removeprefix("torch.")
    return f"its input is {found}, and {dialect.name} is exact in float32. Export a float32 model: model.float()."


def _grid(call: Call, dialect: Dialect) -> str | None:
    scale = call.grid.scale
    if not bool((scale.isfinite() & (scale > 0)).all()):
        return "a scale is not a positive, finite number. Check what its scaling computes."
    if call.plain.axis == -1 and (call.stored or not call.follows_input):
        return (
            f"its scale has the shape {tuple(scale.shape)} for values of shape {tuple(call.codes.shape)}; "
            f"{dialect.name} takes one scale per tensor, per index of one dimension, or per group along one. Write "
            "axis=None or axis=1."
        )
    if not call.on_grid:
        return f"the values it returns do not lie on the grid it returns ({type(call.quantizer).__name__}._quantize)."
    return None


def _loop(call: Call, dialect: Dialect) -> str | None:
    if call.steady or call.follows_input:
        return None
    return (
        "its grid changes from step to step: it saw no data, so each step takes the range of its own input, and a file "
        "has one grid for all steps. Run some batches in training mode first, or load a checkpoint."
    )


def _zero_point(call: Call, dialect: Dialect) -> str | None:
    zero_point = call.grid.zero_point
    if zero_point is None or not call.grid.number_format.whole:
        return None
    low, high = call.grid.bounds
    if bool(((zero_point >= low) & (zero_point <= high)).all()):
        return None
    outside = zero_point[(zero_point < low) | (zero_point > high)].reshape(-1)[0].item()
    return f"zero point {outside:g} lies outside {low} to {high}, where ONNX wants it. Choose a range that includes 0."


_RULES: tuple[Rule, ...] = (_precision, _grid, _loop, _zero_point)

"""What Brevitas saves of a quantizer, as the state of one of this library.

Its files say nothing of how a number is meant (a range, its logarithm, the width of a range); the model does, which
declares the same quantizer.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ...nn import QuantLayer, Slot
from ...qcore import (
    ConstantScaling,
    FloatScale,
    IntQuant,
    LearnedBitWidth,
    LogScale,
    PowerOfTwoScale,
    RunningScaling,
    StoredScaling,
    TensorQuant,
)
from ...qcore.scaling.statistics import measure

__all__ = ["Place", "Taken", "parts_of", "translated"]

_PLACE = re.compile(r"(?P<place>.+?)(?:\.fused_activation_quant_proxy)?\.tensor_quant\.(?P<ending>.+)")
_ENDINGS = {
    "scaling_impl.value": "range",
    "scaling_impl.learned_value": "range",  # of early versions
    "scaling_impl.runtime_stats.running_stats": "running",
    "scaling_impl.stats_scaling_impl.affine_rescaling.affine_weight": "gain",
    "scaling_impl.stats_scaling_impl.affine_rescaling.affine_bias": "shift",
    "zero_point_impl.value": "zero",
    "msb_clamp_bit_width_impl.bit_width_offset": "width_offset",
    "msb_clamp_bit_width_impl.bit_width": "width",
}


class Place(NamedTuple):
    """A quantizer of the model: its path, that of the module that holds it, this module and its slot, and itself."""

    path: str
    layer_path: str
    layer: nn.Module
    slot: Slot | None
    quant: TensorQuant

    @property
    def keywords(self) -> str:
        """What the keywords for its settings start with."""
        return "" if self.slot is None else self.slot.keywords


class Taken(NamedTuple):
    """What became of the numbers of a quantizer: its new state, in words, and what doesn't fit."""

    state: dict[str, Tensor]
    said: str
    problems: list[str]


def parts_of(key: str) -> tuple[str, str] | None:
    """The quantizer that a key of a file belongs to, and which number of it; None for any other key.

    Example:
        >>> parts_of("relu.act_quant.fused_activation_quant_proxy.tensor_quant.scaling_impl.value")
        ('relu.act_quant', 'range')
        >>> parts_of("conv.weight_quant.tensor_quant.pre_scaling_impl.value")
        ('conv.weight_quant', 'pre_scaling_impl.value')
        >>> parts_of("conv.weight")
    """
    found = _PLACE.fullmatch(key)
    if found is None:
        return None
    place = found["place"].removesuffix("_proxy")  # act_quant_proxy, in early versions
    return place, _ENDINGS.get(found["ending"], found["ending"])


def translated(place: Place, numbers: Mapping[str, Tensor], weight: Tensor | None) -> Taken:
    """The state of a quantizer from what a file says of it.

    Args:
        place: the quantizer.
        numbers: from the file, by what they are (see `parts_of`).
        weight: what the file has for the parameter that it quantizes.
    """
    quant = place.quant
    if not isinstance(quant, IntQuant):
        kind = type(quant).__name__
        unused = [f"{place.path}: {kind} keeps no state, and the file has its {name}." for name in numbers]
        return Taken({}, "", unused)
    parts = [_width(place, quant, numbers), _range(place, quant, numbers, weight)]
    unknown = [
        f"{place.path}: nothing in this library corresponds to {name}, which the file has. Write a scaling of your own "
        "(docs/your-own-quantizer.md) and set it from the file."
        for name in numbers
        if name not in _ENDINGS.values()
    ]
    return Taken(
        {name: each for part in parts for name, each in part.state.items()},
        ", ".join(part.said for part in parts if part.said),
        [problem for part in parts for problem in part.problems] + unknown,
    )


def _width(place: Place, quant: IntQuant, numbers: Mapping[str, Tensor]) -> Taken:
    """A learned bit width, or a constant one that is saved."""
    offset, constant = numbers.get("width_offset"), numbers.get("width")
    width, setting = quant.bit_width, f"{place.keywords}bit_width"
    if not isinstance(width, LearnedBitWidth):
        if offset is not None:
            has = f"{width} bits" if isinstance(width, int) else type(width).__name__
            return _unfit(
                place, f"the file has a learned bit width, and the model has {has}. Write {setting}=LearnedBitWidth."
            )
        if constant is not None and isinstance(width, int) and int(constant) != width:
            bits = int(constant)
            return _unfit(place, f"the file has {bits} bits, and the model has {width}. Write {setting}={bits}.")
        return _NOTHING
    if offset is None and constant is None:
        return _unfit(
            place,
            "the file has no learned bit width. Write the constant one that the file's quantizer has, such as "
            f"{setting}=8.",
        )
    if offset is None:
        assert constant is not None
        offset = constant - width.min_bit_width
    exact = float(offset.abs()) + width.min_bit_width
    if round(exact) > width.max_bit_width:
        return _unfit(
            place,
            f"the file has a bit width of {exact:.4g}, and the model stops at {width.max_bit_width}. Write "
            f"{place.keywords}max_bit_width={round(exact)}.",
        )
    return Taken({"bit_width.offset": offset.reshape(1)}, f"bit width {exact:.4g}", [])


def _range(place: Place, quant: IntQuant, numbers: Mapping[str, Tensor], weight: Tensor | None) -> Taken:
    """A range that was learned or collected, with its lower end where there is a zero point."""
    found, zero = numbers.get("range"), numbers.get("zero")
    follows = numbers.get("gain") if quant.of_parameter else None  # a statistic of the weight, rescaled
    given = found if found is not None else numbers.get("running", follows)
    scaling = quant.scaling
    if not isinstance(scaling, StoredScaling):
        if given is None and zero is None:
            return _NOTHING
        has = "a constant scale" if isinstance(scaling, ConstantScaling) else f"{type(scaling).__name__}"
        kind = "learned" if quant.of_parameter else "calibrated"
        return _unfit(
            place, f"the file has a stored range, and the model has {has}. Write {place.keywords}scaling={kind!r}."
        )
    wrong = _nothing_stored(place) if given is None else _misfit(place, quant, scaling, given)
    if wrong:
        return _unfit(place, wrong)
    if (zero is None) != (quant.zero_point is None):
        return _unfit(place, _other_zero_point(place, zero))
    if given is follows and weight is None:
        return _NOTHING  # the file lacks the weight, which is told elsewhere
    if found is None:
        base = _from_statistic(place, scaling, numbers, weight)
    elif type(scaling.restriction) is FloatScale and bool((found < 0).any()):
        return _unfit(
            place,
            f"the file has {float(found.min()):.4g} for its range: the logarithm of one. Write "
            f"{place.keywords}restriction='log' or 'power_of_two', as the file's quantizer has it.",
        )
    else:
        base = _as_stored(scaling, found)
    base = base.detach().reshape(-1).to(scaling.magnitude_base.dtype)
    taken = 1 if isinstance(scaling, RunningScaling) else scaling.calibration_steps  # a running average goes on
    state = {"magnitude_base": base, "measured": torch.ones(1), "steps": torch.tensor(taken * scaling.calls)}
    said = _in_words(scaling.restriction.load(base))
    if scaling.has_low:
        state["low_base"] = torch.zeros_like(base) if zero is None else -zero.abs().reshape(-1).to(base)
        said += "" if zero is None else f", down to {float(state['low_base'].min()):.4g}"
    state |= {name: torch.zeros_like(base) for name in ("magnitude_offset", "low_offset") if name in _learned(scaling)}
    return Taken({f"scaling.{name}": each for name, each in state.items()}, said, [])


_NOTHING = Taken({}, "", [])


def _learned(scaling: StoredScaling) -> set[str]:
    return {name for name, parameter in scaling.named_parameters() if parameter is not None}


def _as_stored(scaling: StoredScaling, found: Tensor) -> Tensor:
    """A number of the file as the scaling stores it."""
    restriction, found = scaling.restriction, found.to(torch.promote_types(found.dtype, torch.float32))
    if isinstance(restriction, LogScale):
        return found
    if not isinstance(restriction, PowerOfTwoScale):
        return restriction.store(found.abs())
    rounded = {"ceil": torch.ceil, "floor": torch.floor, "round": torch.round}[restriction.rounding](found)
    power, magnitude = torch.exp2(rounded), torch.exp2(found)
    exact = restriction.restrict(magnitude) == power
    return torch.where(exact, magnitude, power)  # a power of two in the file is the same one here


def _from_statistic(
    place: Place, scaling: StoredScaling, numbers: Mapping[str, Tensor], weight: Tensor | None
) -> Tensor:
    """A range that is a statistic, rescaled by what was learned."""
    if "running" in numbers:
        measured = numbers["running"].abs().reshape(-1)
    else:
        assert weight is not None
        assert isinstance(place.layer, QuantLayer)
        seen = getattr(place.layer, "_outputs_first", lambda each: each)(weight.detach().float())
        measured = measure(scaling.statistic, seen, scaling.granularity)[0]
    base = scaling.restriction.store(measured)
    base = base * numbers["gain"].reshape(-1) if "gain" in numbers else base
    return base + numbers["shift"].reshape(-1) if "shift" in numbers else base


def _misfit(place: Place, quant: IntQuant, scaling: StoredScaling, found: Tensor) -> str:
    """What is wrong with the number of ranges, if anything."""
    known, count = scaling.magnitude_base.shape[0], found.numel()
    has = "one range" if count == 1 else f"{count} ranges of shape {tuple(found.shape)}"
    keyword = f"{place.keywords}quant" if place.keywords else "act_quant"
    if quant.granularity.single:
        if count == 1:
            return ""
        kind = "Int8WeightPerChannel" if place.quant.of_parameter else "Int8ActPerChannel"
        return f"the file has {has}, and the model has one. Write {keyword}={kind}."
    axis = quant.axis
    along = axis is None or found.ndim < 2 or (axis < found.ndim and found.shape[axis] == count)
    sized = place.quant.of_parameter or known > 1  # others get their number with the first data, or with a file
    if along and (count == known or not sized) and not (count == 1 and known != 1):
        return ""
    kind = "Int8WeightPerTensor" if place.quant.of_parameter else "Int8Act"
    remedy = f" Write {keyword}={kind}." if count == 1 else ""
    own = f"{known} ({quant.granularity})" if sized else f"one for each of {quant.granularity}"
    return f"the file has {has}, and the model has {own}.{remedy}"


def _nothing_stored(place: Place) -> str:
    if place.quant.of_parameter:
        return (
            "the file has no range for it: there it follows the weight, or was never used. Write "
            f"{place.keywords}scaling='statistic', which follows the weight too."
        )
    return (
        "the file has no range for it: there it is constant, or the model was saved before it saw any data. Write "
        f"the constant, such as {place.keywords}max_value=1.0, or save the model after some training steps."
    )


def _other_zero_point(place: Place, zero: Tensor | None) -> str:
    if zero is None:
        return f"the file has no zero point, and the model has one. Write {place.keywords}zero_point=None."
    kind = "ShiftedUint8WeightPerTensor" if place.quant.of_parameter else "ShiftedUint8Act"
    return (
        f"the file has a zero point, and the model has none. Write {place.keywords}zero_point='range' with a statistic "
        f"that has a lower end, or start from {kind}."
    )


def _unfit(place: Place, problem: str) -> Taken:
    return Taken({}, "", [f"{place.path}: {problem}"])


def _in_words(magnitude: Tensor) -> str:
    if magnitude.numel() == 1:
        return f"range {float(magnitude):.4g}"
    return f"{magnitude.numel()} ranges from {float(magnitude.min()):.4g} to {float(magnitude.max()):.4g}"

"""What keeps a quantizer out of a target: rules that read the target's record."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import nn

from ...nn.layer import QuantLayer
from ...qcore import Integers, NumberFormat
from ...qcore.formats.minifloat import Minifloat
from ..errors import ExportError, with_causes
from .target import PLACES, Accepts, Target
from .use import Use

__all__ = ["Problem", "called", "layer_problems", "problems", "refuse"]


class Problem(NamedTuple):
    """One thing that keeps a quantizer out.

    Args:
        setting: the attribute that decides it.
        what: what was found, and what the target has.
        remedy: what to write instead.
    """

    setting: str
    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.what}. {self.remedy}"


Rule = Callable[[Use, Accepts, Target], Problem | None]


def problems(use: Use, target: Target) -> list[Problem]:
    """All that keeps a quantizer out of a target, as far as it is known before there is data.

    Args:
        use: what the quantizer will be asked to do.
        target: the target.

    Example:
        >>> import bitwright.nn as qnn
        >>> from bitwright.export import TARGETS
        >>> from bitwright.export.targets.use import uses_of
        >>> (use,) = uses_of(nn.Sequential(qnn.QuantReLU(bit_width=20)))
        >>> print(*problems(use, TARGETS["onnx-qdq"]))
        20 bits, unsigned; QDQ stores 2 to 16. Write bit_width=16 or less.
    """
    accepts = target.role(use.role)
    found = (rule(use, accepts, target) for rule in _RULES)
    return [each for each in found if each is not None]


def layer_problems(model: nn.Module, target: Target) -> dict[str, Problem]:
    """The layers that have no place in a target, by path: refused types, and float biases where these must be integers.

    Example:
        >>> import bitwright.nn as qnn
        >>> from bitwright.export import TARGETS
        >>> for path, problem in layer_problems(nn.Sequential(qnn.QuantLinear(2, 2)), TARGETS["onnx-integer"]).items():
        ...     print(path, problem)
        0 its bias is float. Write bias_quant=Int32Bias.
    """
    found = {}
    for path, layer in model.named_modules():
        reason = next((said for kind, said in target.refused_layers if isinstance(layer, kind)), None)
        if reason is not None:
            what, _, remedy = reason.partition(". ")
            found[path] = Problem("", what, remedy)
        elif not target.float_biases and _float_bias(layer):
            found[path] = Problem("", "its bias is float", "Write bias_quant=Int32Bias.")
    return found


def _float_bias(layer: nn.Module) -> bool:
    slots = [each for each in layer.slots if each.role == "bias"] if isinstance(layer, QuantLayer) else []
    return any(
        getattr(layer, each.parameter or "", None) is not None and getattr(layer, f"{each.name}_quant", None) is None
        for each in slots
    )


def called(model: nn.Module, path: str) -> str:
    """What messages call a layer.

    Example:
        >>> called(nn.Linear(1, 1), ""), called(nn.Sequential(nn.ReLU()), "0")
        ('the model (Linear)', '0 (ReLU)')
    """
    return f"{path or 'the model'} ({type(model.get_submodule(path)).__name__})"


def refuse(target: Target, causes: Iterable[tuple[str, object]], what: str = "quantizer") -> None:
    """Raise one error that names all that a target can't hold, each with its first problem.

    Args:
        target: the target.
        causes: path of a quantizer, or of a layer, and the problem.
        what: what messages call them.

    Raises:
        ExportError: where there are any.
    """
    lines: dict[str, str] = {}
    for path, problem in causes:
        lines.setdefault(path, f"{path}: {problem}")
    if lines:
        count = f"{len(lines)} {what}{'s' * (len(lines) > 1)}"
        raise ExportError(with_causes(f"{target.name} can't express {count} of this model:", list(lines.values())))


def _arithmetic(use: Use, accepts: Accepts, target: Target) -> Problem | None:
    """Only values that are computed as the target computes them."""
    if not (accepts.computes and use.own_arithmetic):
        return None
    return Problem(
        "_quantize",
        f"{type(use.quantizer).__name__} has arithmetic of its own, and {target.name} computes IntQuant's",
        "Put what is yours into a rounding, a scaling or a zero point of an IntQuant.",
    )


def _several_widths(use: Use, accepts: Accepts, target: Target) -> Problem | None:
    width = getattr(getattr(use.quantizer, "int_range", None), "bit_width", None)
    if not (accepts.computes and isinstance(width, torch.Tensor) and width.ndim):
        return None
    return Problem(
        "bit_width",
        f"it has {width.numel()} bit widths, and {target.name} computes a tensor in one",
        f"Write {use.setting('bit_width')}=8, or another width for all.",
    )


def _overflow(use: Use, accepts: Accepts, target: Target) -> Problem | None:
    number_format = use.number_format
    if not (accepts.computes and accepts.saturates and isinstance(number_format, Minifloat)):
        return None
    if number_format.saturating:
        return None
    return Problem(
        "saturating",
        f"{number_format}: what rounds past its ends becomes infinite or NaN, where {target.name} stops at the ends",
        "Write saturating=True, as the ready formats have it.",
    )


def _levels(use: Use, accepts: Accepts, target: Target) -> Problem | None:
    number_format = use.number_format
    if number_format is None or accepts.holds(number_format) or (use.vector and target.biases.holds(number_format)):
        return None
    if number_format.whole:
        return _width(use, number_format, accepts, target)
    levels = f"its levels are {number_format}"
    if not accepts.tables and (accepts.whole or all(each.whole for each in accepts.formats)):
        elsewhere = f"Write {target.elsewhere}, which stores them, or quantize to integers."
        remedy = "Quantize to integers." if target.elsewhere is None else elsewhere
        return Problem("number_format", f"{levels}, and {target.name} has integers only", remedy)
    return Problem(
        "number_format",
        f"{levels}, of {number_format.bits} bits; {target.name} has no type with these levels, and codes beside a "
        f"table have up to {accepts.tables}",
        f"Choose a format of up to {accepts.tables} bits.",
    )


def _narrow(use: Use, accepts: Accepts, target: Target) -> Problem | None:
    number_format = use.number_format
    if accepts.narrow_unsigned or not isinstance(number_format, Integers):
        return None
    if number_format.signed or not number_format.narrow_range:
        return None
    setting = use.setting("narrow_range")
    what = f"it leaves out the largest of its unsigned integers, which {target.name} has no word for"
    return Problem("narrow_range", what, f"Write {setting}=False.")


def _width(use: Use, number_format: NumberFormat, accepts: Accepts, target: Target) -> Problem:
    signed = number_format.signed
    kinds = ("signed", "unsigned") if signed else ("unsigned", "signed")
    have, setting = f"{number_format.bits} bits, {kinds[0]}; {target.name}", use.setting("bit_width")
    widths = sorted({each.bits for each in accepts.formats if each.whole and each.signed == signed})
    if not widths:
        remedy = f"Write {use.setting('signed')}={not signed}."
        return Problem("signed", f"{have} has {kinds[1]} integers only", remedy)
    if accepts.exact:
        listed = ", ".join(map(str, widths))
        return Problem("bit_width", f"{have} has {listed}", f"Write {setting}={widths[-1]}.")
    return Problem("bit_width", f"{have} stores 2 to {widths[-1]}", f"Write {setting}={widths[-1]} or less.")


def _rounding(use: Use, accepts: Accepts, target: Target) -> Problem | None:
    rounding, name = use.rounding, use.rounding_name
    if not accepts.computes or rounding is None:
        return None
    setting = use.setting("rounding")
    if not (getattr(rounding, "deterministic", True) and _repeats(rounding)):
        return Problem(
            "rounding",
            f"rounding {name!r} is random in evaluation, and a file can't repeat it",
            f"Write {setting}='half_even', or one that is deterministic in evaluation.",
        )
    if accepts.roundings is None or name in accepts.roundings:
        return None
    allowed = ", ".join(map(repr, accepts.roundings))
    return Problem(
        "rounding", f"rounding {name!r}; {target.name} has {allowed}", f"Write {setting}={accepts.roundings[0]!r}."
    )


def _repeats(rounding: Callable[..., object]) -> bool:
    """Does a rounding answer alike twice, in evaluation?"""
    probe, training = torch.linspace(-2, 2, 257), getattr(rounding, "training", False)
    if isinstance(rounding, nn.Module):
        rounding.training = False
    try:
        with torch.random.fork_rng(devices=()), torch.no_grad():
            one, two = rounding(probe.clone()), rounding(probe.clone())
    finally:
        if isinstance(rounding, nn.Module):
            rounding.training = training
    return isinstance(one, torch.Tensor) and isinstance(two, torch.Tensor) and torch.equal(one, two)


def _dynamic(use: Use, accepts: Accepts, target: Target) -> Problem | None:
    if accepts.dynamic or not use.dynamic:
        return None
    return Problem(
        "scaling",
        f"its scale follows the input, and {target.name} takes scales that are known beforehand",
        "Choose a quantizer whose range is measured or learned, such as Int8Act.",
    )


def _place(use: Use, accepts: Accepts, target: Target) -> Problem | None:
    place = use.place
    if place in accepts.scales or use.role == "bias" or (use.dynamic and accepts.dynamic):
        return None
    if place == "group" and use.role == "activation" and "axis" in accepts.scales:
        return Problem(
            "granularity",
            f"it has a stored scale for {use.granularity} of an activation, whose number of groups changes with the "
            "input",
            "Write axis=None for one scale, or axis=1 for one for each channel.",
        )
    allowed = _WORDS[tuple(each for each in PLACES if each in accepts.scales)]
    setting = use.setting("axis")
    if place == "group" and use.role == "weight":
        ready = "Int8WeightPerChannel" if "axis" in accepts.scales else "Int8WeightPerTensor"
        return Problem(
            "granularity",
            f"its scales are for {use.granularity}; {target.name} takes {allowed}",
            f"Choose another quantizer, such as {ready}.",
        )
    remedy = f"Write {setting}=None or {setting}=1." if "axis" in accepts.scales else f"Write {setting}=None."
    return Problem("granularity", f"its scales are for {use.granularity}; {target.name} takes {allowed}", remedy)


_WORDS = {
    ("tensor",): "one scale per tensor",
    ("axis",): "one scale per index of one dimension",
    ("group",): "one scale per group along one dimension",
    ("tensor", "axis"): "one scale per tensor, or per index of one dimension",
    ("tensor", "group"): "one scale per tensor, or per group along one dimension",
    ("axis", "group"): "one scale per index of one dimension, or per group along one",
    ("tensor", "axis", "group"): "one scale per tensor, per index of one dimension, or per group along one",
}


def _scale_rule(use: Use, accepts: Accepts, target: Target) -> Problem | None:
    rule = use.scale_rule
    if accepts.scale_rules is None or rule is None or rule.startswith(accepts.scale_rules) or use.role == "bias":
        return None
    allowed = " or ".join(accepts.scale_rules)
    choice = accepts.scale_rules[0].replace(" ", "_")
    return Problem(
        "restriction",
        f"its scales are of the kind {rule!r}, and {target.name} takes {allowed}",
        f"Write {use.setting('restriction')}={choice!r}.",
    )


def _zero_point(use: Use, accepts: Accepts, target: Target) -> Problem | None:
    zero_point = getattr(use.quantizer, "zero_point", None)
    if zero_point is None or use.role == "bias":
        return None
    if not accepts.zero_points:
        remedy = f"Choose a quantizer without one, such as {_WITHOUT[use.role]}."
        return Problem("zero_point", f"it has a zero point, and {target.name} has none", remedy)
    if not accepts.float_zero_points and not getattr(zero_point, "whole", True):
        return Problem(
            "zero_point",
            f"its zero point lies between two integers, and {target.name} takes whole ones",
            "Choose a quantizer whose zero point is an integer, such as ShiftedUint8WeightPerTensor.",
        )
    return None


_WITHOUT = {"weight": "Int8WeightPerChannel", "activation": "Int8Act or Uint8Act", "bias": "Int8BiasOwnScale"}

_RULES: tuple[Rule, ...] = (
    _arithmetic,
    _several_widths,
    _overflow,
    _levels,
    _narrow,
    _rounding,
    _dynamic,
    _place,
    _scale_rule,
    _zero_point,
)

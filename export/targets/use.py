"""One quantizer of a model as far as it is known before there is any data."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from torch import nn

from ...nn.contexts.intercepting import quantizers_of
from ...nn.layer import QuantLayer
from ...qcore import BiasQuant, GridQuant, Integers, NumberFormat, PerTensor, TensorQuant, TruncQuant
from ...qcore.formats.unaligned import UnalignedIntegers
from ...qcore.granularity import Granularity
from ...qcore.scaling import MagnitudeScaling, StoredScaling
from ..capture.grid import place_in
from ..capture.record import Call

__all__ = ["Use", "use_of", "use_of_call", "uses_of"]


@dataclass(frozen=True)
class Use:
    """What a quantizer will be asked to do.

    Args:
        path: of the quantizer in its model; the name of a setting, where there is no model.
        quantizer: the module.
        role: ``"weight"``, ``"activation"`` or ``"bias"``.
        number_format: the levels; None where data decides.
        granularity: who shares a scale.
        shape: of the parameter; None where it is not known, or no parameter.
        dynamic: whether the scale follows the input.

    Example:
        >>> import bitwright.nn as qnn
        >>> [(use.path, use.role, str(use.number_format)) for use in uses_of(nn.Sequential(qnn.QuantLinear(4, 2)))]
        [('0.weight_quant', 'weight', 'int8 narrow')]
    """

    path: str
    quantizer: TensorQuant
    role: str
    number_format: NumberFormat | None
    granularity: Granularity
    shape: tuple[int, ...] | None = None
    dynamic: bool = False

    @property
    def vector(self) -> bool:
        """Whether it is a parameter of one dimension."""
        return self.shape is not None and len(self.shape) == 1 and self.role != "activation"

    @property
    def place(self) -> str:
        """Who shares a scale: ``"tensor"``, ``"axis"``, ``"group"``, or ``"other"`` for what ONNX has no word for."""
        if self.granularity.single:
            return "tensor"
        if self.granularity.axis is not None:
            return "axis"
        if self.shape is None:
            return "group"
        axis, block = place_in(self.granularity, self.shape)
        return "other" if axis == -1 else "group" if block is not None else "tensor" if axis is None else "axis"

    @property
    def rounding(self) -> Callable[..., object] | None:
        """What it rounds with."""
        return getattr(self.quantizer, "rounding", None)

    @property
    def rounding_name(self) -> str:
        """What messages call that."""
        rounding = self.rounding
        name = getattr(rounding, "name", None) or getattr(rounding, "__name__", type(rounding).__name__)
        return str(name)

    @property
    def scale_rule(self) -> str | None:
        """Which scales are allowed, such as ``"float"`` or ``"power of two (ceil)"``; None where a class decides."""
        restriction = getattr(getattr(self.quantizer, "scaling", None), "restriction", None)
        return cast("str | None", getattr(restriction, "kind", None))

    @property
    def own_arithmetic(self) -> bool:
        """Whether the numbers are worked out otherwise than by a scale, a zero point and a rounding."""
        if isinstance(self.quantizer, GridQuant):
            return type(self.quantizer)._quantize is not GridQuant._quantize
        return not isinstance(self.quantizer, BiasQuant | TruncQuant)

    def setting(self, name: str) -> str:
        """A setting as the layer takes it: with the prefix of the quantizer's slot.

        Example:
            >>> import bitwright.nn as qnn
            >>> [use.setting("bit_width") for use in uses_of(nn.Sequential(qnn.QuantLinear(4, 2), qnn.QuantReLU()))]
            ['weight_bit_width', 'bit_width']
        """
        slot = self.path.rsplit(".", 1)[-1].removesuffix("_quant")
        return name if slot == "act" or not self.path.endswith("_quant") else f"{slot}_{name}"


def uses_of(model: nn.Module) -> list[Use]:
    """What all quantizers of a model will be asked to do; nothing runs."""
    return [use_of(path, each) for path, each in quantizers_of(model).items()]


def use_of(path: str, quantizer: TensorQuant) -> Use:
    """What one quantizer will be asked to do.

    Args:
        path: where it is.
        quantizer: the module.
    """
    follows = quantizer.follows_input
    stored = quantizer.of_parameter or follows
    parameters = [] if not stored else quantizer._parameters_served()
    return Use(
        path,
        quantizer,
        _role(quantizer, stored),
        _levels_of(quantizer),
        getattr(quantizer, "granularity", PerTensor()),
        tuple(parameters[0].shape) if parameters else None,
        not stored and _follows_data(quantizer),
    )


def use_of_call(call: Call) -> Use:
    """The same of a call, which knows what it got and answered."""
    quantizer = call.quantizer
    return Use(
        call.path,
        quantizer,
        _role(quantizer, call.stored or quantizer.follows_input),
        call.grid.number_format,
        call.grid.granularity,
        tuple(call.codes.shape),
        call.follows_input,
    )


def _follows_data(quantizer: TensorQuant) -> bool:
    """Whether each input gets a scale of its own, also when there was data; what a user's class does is not known."""
    scaling = getattr(quantizer, "scaling", None)
    measured = isinstance(scaling, MagnitudeScaling) and not isinstance(scaling, StoredScaling)
    return measured and isinstance(quantizer, GridQuant) and quantizer.dynamic


def _role(quantizer: TensorQuant, stored: bool) -> str:
    if quantizer.follows_input:
        return "bias"
    if not stored:
        return "activation"
    served = ((ref(), slot) for ref, slot in quantizer._served)
    roles = [_slot_role(layer, slot) for layer, slot in served if layer is not None]
    return roles[0] if roles else "weight"


def _slot_role(layer: nn.Module, slot: str) -> str:
    found = next((each for each in layer.slots if each.name == slot), None) if isinstance(layer, QuantLayer) else None
    return "weight" if found is None else found.role


def _levels_of(quantizer: TensorQuant) -> NumberFormat | None:
    if isinstance(quantizer, TruncQuant):
        return Integers(quantizer.bit_width)
    found, width = getattr(quantizer, "number_format", None), getattr(quantizer, "bit_width", None)
    if not isinstance(found, NumberFormat):
        return Integers(width) if isinstance(width, int) else None
    whole = getattr(getattr(quantizer, "zero_point", None), "whole", True)
    return found if whole or not isinstance(found, Integers) else UnalignedIntegers(found.bits)

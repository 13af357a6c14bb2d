"""Unsigned quantizers where a tensor is never negative: a bit more for the same tensor."""

from collections.abc import Iterable

from ...qcore.declare.inject import QuantizerType, settings
from ..layers.table import takes_on_grid
from ..recording.nodes import Graph
from ..rules.choices import Choice
from .producers import inputs_of, never_negative

__all__ = ["can_be_unsigned", "choose_signs"]

WHY = "what was recorded is never negative"


def choose_signs(choices: Iterable[Choice], graph: Graph) -> None:
    """Make quantizers of inputs unsigned whose inputs are never negative in any call, unless a rule says otherwise."""
    for choice in choices:
        if choice.quantized is None or not takes_on_grid(choice.quantized):
            continue
        for slot in choice.quantized.slots:
            if slot.name != "input" or slot.parameter is not None or f"{slot.keywords}signed" in choice.settings:
                continue
            edges = inputs_of(graph, choice.layer.path)
            if edges and can_be_unsigned(choice.quantizer("input")) and all(map(never_negative, edges)):
                choice.set(f"{slot.keywords}signed", False, WHY)


def can_be_unsigned(quantizer: object) -> bool:
    """Whether a quantizer is declared signed and symmetric, and may be told otherwise.

    Example:
        >>> from bitwright.quantizers import Int8Act, ShiftedUint8Act
        >>> can_be_unsigned(Int8Act), can_be_unsigned(ShiftedUint8Act)
        (True, False)
    """
    if not isinstance(quantizer, QuantizerType):
        return False
    declared = settings(quantizer)
    shifted = "zero_point" in declared and declared["zero_point"].declared is not None
    return "signed" in declared and declared["signed"].declared is True and not shifted

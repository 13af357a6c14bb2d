"""What `quantize` decided for every layer, kept on the model that it made."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torch import nn

from ...qcore.declare.inject import QuantizerType

__all__ = ["Decision", "SlotDecision", "decisions_of", "keep_decisions"]

_KEPT = "_decisions"  # an attribute of the model: it is copied and pickled with it, and in no state dict


@dataclass(frozen=True)
class SlotDecision:
    """The quantizer of one slot, and why it is that.

    Attributes:
        quantizer: the declaration that the slot's quantizer was resolved from; None if there is none.
        rules: the numbers of the rules that the quantizer and its settings are from, counted from 0.
        why: these rules as text, and what `quantize` decided itself.

    Example:
        >>> from bitwright.quantizers import Int8Act
        >>> SlotDecision(Int8Act, (0,), ("nn.Conv2d",)).why
        ('nn.Conv2d',)
    """

    quantizer: QuantizerType | None
    rules: tuple[int, ...] = ()
    why: tuple[str, ...] = ()


@dataclass(frozen=True)
class Decision:
    """What was decided for one layer, or one place where a function is called.

    Attributes:
        path: of the layer; the first one if it is shared.
        layer: the name of its class.
        slots: by name, ``{"weight": ...}``; empty if it stays float.
        float_reason: why it stays float.

    Example:
        >>> Decision("head", "Linear", {}, 'by the rule "head"').quantized
        False
    """

    path: str
    layer: str
    slots: Mapping[str, SlotDecision] = field(default_factory=dict)
    float_reason: str = ""

    @property
    def quantized(self) -> bool:
        """Whether it has quantizers."""
        return not self.float_reason


def decisions_of(model: nn.Module) -> list[Decision]:
    """What `quantize` decided for the layers of a model; nothing for a model that it did not make.

    Example:
        >>> decisions_of(nn.Linear(2, 2))
        []
    """
    return list(vars(model).get(_KEPT, ()))


def keep_decisions(model: nn.Module, decisions: Iterable[Decision]) -> None:
    """Keep decisions on a model, over those that an earlier call made for the same layers.

    Example:
        >>> model = nn.Linear(2, 2)
        >>> keep_decisions(model, [Decision("", "Linear", {}, "no rule is for it")])
        >>> decisions_of(model)[0].float_reason, list(model.state_dict())
        ('no rule is for it', ['weight', 'bias'])
    """
    former = {each.path: each for each in decisions_of(model)}
    for each in decisions:
        if each.quantized or each.path not in former or not former[each.path].quantized:
            former[each.path] = each
    vars(model)[_KEPT] = tuple(former.values())

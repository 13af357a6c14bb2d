"""One quantizer for each tensor: layers that take the same one share it."""

from collections.abc import Iterable

from ...nn import QuantLayer
from ...qcore import TensorQuant
from ...qcore.declare.inject import QuantizerType
from ..recording.nodes import Graph
from .choices import Choice
from .given import Given
from .producers import Edge, inputs_of
from .table import has_weights, slot_of

__all__ = ["share_inputs"]


def share_inputs(choices: Iterable[Choice], graph: Graph) -> list[list[Choice]]:
    """Groups of layers whose inputs are the same tensors, in every call, and are to be quantized alike.

    The layers are not converted yet. The first layer of each group makes the quantizer, the others take it; see
    `take_shared`.
    """
    groups: dict[object, list[Choice]] = {}
    for choice in choices:
        if choice.quantized is None or not has_weights(choice.quantized):
            continue
        edges = inputs_of(graph, choice.layer.path)
        declared = declared_for(choice, "input")
        if declared is not None and edges and None not in edges:
            groups.setdefault((frozenset(map(_key, edges)), declared), []).append(choice)
    return [group for group in groups.values() if len(group) > 1]


def _key(edge: Edge | None) -> tuple[int, int]:
    assert edge is not None
    return edge[0].index, edge[1]


def declared_for(choice: Choice, slot: str) -> QuantizerType | None:
    """The quantizer that a slot gets, with its settings; None if it gets none or shares one already."""
    assert choice.quantized is not None
    if not any(each.name == slot for each in choice.quantized.slots):
        return None
    quantizer = choice.quantizer(slot)
    if not isinstance(quantizer, QuantizerType):
        return None
    return quantizer(**own_settings(choice, slot))


def own_settings(choice: Choice, slot: str) -> dict[str, object]:
    """The settings of a slot's quantizer, without the prefix of their keywords."""
    found: dict[str, object] = {}
    assert choice.quantized is not None
    for keyword, given in choice.settings.items():
        meant = slot_of(choice.quantized, keyword)
        if meant is not None and meant.name == slot and keyword not in (f"{slot}_quant", "return_quant_tensor"):
            found[keyword.removeprefix(meant.keywords)] = given.value
    return found


def take_shared(choice: Choice, slot: str, layer: QuantLayer, other: str, path: str) -> None:
    """Let a slot take the quantizer of a layer that is converted already, in place of its own settings."""
    assert choice.quantized is not None
    quant = getattr(layer, f"{other}_quant")
    assert isinstance(quant, TensorQuant)
    slots = {keyword: slot_of(choice.quantized, keyword) for keyword in choice.settings}
    own = [keyword for keyword, meant in slots.items() if meant is not None and meant.name == slot]
    before = [choice.settings.pop(keyword) for keyword in own]
    choice.settings[f"{slot}_quant"] = Given.together(before, quant, f"shared with {path}")

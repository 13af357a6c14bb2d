"""One quantizer for each tensor: layers that take the same one share it."""

from collections.abc import Iterable, Sequence

from ...nn import QuantLayer
from ...qcore.declare.inject import QuantizerType
from ..layers.table import takes_on_grid
from ..recording.nodes import Graph
from ..rules.choices import Choice
from ..rules.given import Given
from .producers import inputs_of

__all__ = ["Shared", "declared_for", "own_settings", "share", "share_inputs"]

Shared = list[tuple[Choice, str]]
"""Slots of layers that are to have one quantizer."""


def share_inputs(choices: Iterable[Choice], graph: Graph) -> list[Shared]:
    """Groups of layers whose inputs are the same tensors, in every call, and are to be quantized alike."""
    groups: dict[object, Shared] = {}
    for choice in choices:
        if choice.quantized is None or not takes_on_grid(choice.quantized):
            continue
        edges = inputs_of(graph, choice.layer.path)
        declared = declared_for(choice, "input")
        if declared is not None and edges and None not in edges:
            tensors = frozenset((edge[0].index, edge[1]) for edge in edges if edge is not None)
            groups.setdefault((tensors, declared), []).append((choice, "input"))
    return [group for group in groups.values() if len(group) > 1]


def declared_for(choice: Choice, slot: str) -> QuantizerType | None:
    """The quantizer that a slot gets, with its settings; None if it gets none, or a module that is there already."""
    assert choice.quantized is not None
    if not any(each.name == slot for each in choice.quantized.slots):
        return None
    quantizer = choice.quantizer(slot)
    return quantizer(**own_settings(choice, slot)) if isinstance(quantizer, QuantizerType) else None


def own_settings(choice: Choice, slot: str) -> dict[str, object]:
    """The settings of a slot's quantizer, without the prefix of their keywords."""
    found: dict[str, object] = {}
    assert choice.quantized is not None
    for keyword, given in choice.settings.items():
        meant = choice.slot(keyword)
        if (
            meant is not None
            and meant.name == slot
            and keyword.startswith(meant.keywords)
            and keyword not in (f"{slot}_quant", "return_quant_tensor")
        ):
            found[keyword.removeprefix(meant.keywords)] = given.value
    return found


def share(groups: Iterable[Sequence[tuple[Choice, str]]]) -> None:
    """Let the slots of each group have the quantizer of the first one, once the layers are converted."""
    for group in groups:
        (head, first), *others = group
        quant = getattr(head.layer.module, f"{first}_quant")
        for choice, slot in others:
            layer = choice.layer.module
            assert isinstance(layer, QuantLayer)
            if getattr(layer, f"{slot}_quant") is None:  # a placement moved it elsewhere
                continue
            setattr(layer, f"{slot}_quant", quant)
            _note(choice, slot, head.layer.path)


def _note(choice: Choice, slot: str, path: str) -> None:
    assert choice.quantized is not None
    given = choice.settings.get(f"{slot}_quant") or Given(choice.quantizer(slot), ())
    choice.settings[f"{slot}_quant"] = Given.together([given], given.value, f"shared with {path}")

"""Activation layers that a model calls in several places: one for each place, so that each tensor has its quantizer."""

import copy
from collections.abc import Callable

from torch import nn

from ..layers.layers import Layer, layers_of
from ..layers.table import has_weights
from ..recording.nodes import Graph, Node
from .sites import Edits, interposed, is_written

__all__ = ["separate"]


def separate(model: nn.Module, graph: Graph, wanted: Callable[[Layer], bool]) -> dict[str, str]:
    """Give every place that calls an activation layer without state a layer of its own: ``relu``, ``relu_2``.

    A place that can't be rewritten goes on calling the first one.

    Args:
        model: it is changed in place.
        graph: of the model; it has to be recorded anew if the model was changed.
        wanted: which layers are to be separated.

    Returns:
        The paths of the new layers, each with that of the layer that it does the work of.

    Example:
        >>> import torch
        >>> from ..recording.recorder import record
        >>> relu = nn.ReLU()
        >>> model = nn.Sequential(nn.Linear(2, 2), relu, nn.Linear(2, 2), relu)
        >>> separate(model, record(model, torch.ones(1, 2)), lambda layer: True), model[1] is model[3]
        ({'3': '1'}, False)
    """
    made: dict[str, str] = {}
    for layer in layers_of(model):
        if layer.quantized is None or has_weights(layer.quantized) or layer.module.state_dict() or not wanted(layer):
            continue
        if not isinstance(layer.module, nn.Identity) and all(node.keeps_grid for node in graph.calls(layer.path)):
            continue  # dropout and pooling by maximum make no tensor that wants a quantizer of its own
        if len(layer.paths) > 1:
            for path in layer.paths[1:]:
                parent, _, name = path.rpartition(".")
                setattr(model.get_submodule(parent), name, copy.deepcopy(layer.module))
                made[path] = layer.path
        elif layer.path:
            made |= dict.fromkeys(_each_its_own(model, graph, layer), layer.path)
    return made


def _each_its_own(model: nn.Module, graph: Graph, layer: Layer) -> list[str]:
    """A layer for every place but the first; their paths."""
    places: list[Node] = []
    for node in graph.calls(layer.path):
        if node.place is not None and (node.owner, node.place) not in [(each.owner, each.place) for each in places]:
            places.append(node)
    edits: Edits = {}
    number = 1
    for node in places[1:]:
        owner = model.get_submodule(node.owner)
        base = layer.path.rpartition(".")[2]
        number += 1
        while hasattr(owner, f"{base}_{number}"):
            number += 1
        name = f"{base}_{number}"
        assert node.place is not None
        if is_written(owner, node.place, node):
            owner.add_module(name, copy.deepcopy(layer.module))
            edits.setdefault(node.owner, []).append((node.place, name, node))
    return interposed(model, edits)

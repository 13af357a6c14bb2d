"""Activation functions in a model's code: a layer in the place of each, so that it can quantize what it returns."""

import ast
import linecache
from collections.abc import Collection

from torch import nn

from ..recording.nodes import Graph, Node
from ..recording.places import Place
from .sites import Edits, interposed, is_written, sites_of

__all__ = ["activations_as_layers"]

_LAYERS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "leaky_relu": nn.LeakyReLU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "hardswish": nn.Hardswish,
    "hardsigmoid": nn.Hardsigmoid,
}


def activations_as_layers(model: nn.Module, graph: Graph, nodes: Collection[Node], but: Collection[str]) -> list[str]:
    """Let a model call a layer, such as `torch.nn.ReLU`, in each place where its code calls such a function.

    A call with more arguments than the tensor, one that works in place, and one that can't be rewritten stay.

    Args:
        model: it is changed in place.
        graph: of the model; it has to be recorded anew if the model was changed.
        nodes: the calls that are meant.
        but: kinds of functions that stay.

    Returns:
        The paths of the new layers.

    Example:
        >>> import torch
        >>> from ..recording.recorder import record
        >>> class Rectified(nn.Module):
        ...     def forward(self, x):
        ...         return torch.relu(x)
        >>> model = Rectified()
        >>> graph = record(model, torch.ones(2))
        >>> activations_as_layers(model, graph, graph.nodes, ()), type(model.relu).__name__
        (['relu'], 'ReLU')
    """
    edits: Edits = {}
    for site in sites_of(graph):
        node = site.node
        layer, name = _LAYERS.get(node.kind), str(getattr(node.function, "__name__", ""))
        if layer is None or node.kind in but or name.endswith("_") or not any(each in nodes for each in site.nodes):
            continue
        owner = model.get_submodule(node.owner)
        if node.place is None or not _takes_the_tensor_alone(node.place) or not is_written(owner, node.place, node):
            continue
        owner.add_module(node.name, layer().train(owner.training))
        edits.setdefault(node.owner, []).append((node.place, node.name, node))
    return interposed(model, edits)


def _takes_the_tensor_alone(place: Place) -> bool:
    """Whether a call is written with no other argument: ``F.relu(x)``, ``x.relu()``."""
    line, end_line, column, end_column = place.position
    lines = [each.encode() for each in linecache.getlines(place.file)[line - 1 : end_line]]
    if not lines:
        return False
    lines[-1] = lines[-1][:end_column]
    lines[0] = lines[0][column:]
    try:
        call = ast.parse(b"(" + b"".join(lines) + b")", mode="eval").body
    except SyntaxError:
        return False
    if not isinstance(call, ast.Call) or call.keywords:
        return False
    if len(call.args) == 1:
        return not isinstance(call.args[0], ast.Starred)
    return not call.args and isinstance(call.func, ast.Attribute)

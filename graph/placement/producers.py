"""What a recorded graph says of the tensors that layers take: who makes them, and whether they can be negative."""

from collections.abc import Iterator

from torch import nn

from ..recording.kinds import kind_of
from ..recording.nodes import Graph, Node

__all__ = ["Edge", "inputs_of", "makers_of", "never_negative", "producer"]

Edge = tuple[Node, int]  # an operation, and which of its results

_NEVER_NEGATIVE = frozenset({"relu", "relu6", "sigmoid", "hardsigmoid", "softmax", "softplus", "exp", "abs", "square"})
_COMBINING = frozenset({"add", "mul", "cat", "stack", "mean", "sum", "avg_pool", "max_pool", "dropout", "interpolate"})


def inputs_taken(kind: type) -> int:
    """How many of the tensors that a layer takes its quantizer of inputs is for, from the first one on.

    Attention takes query, key and value; other layers take one, and maybe states or masks besides.

    Example:
        >>> from torch import nn
        >>> inputs_taken(nn.MultiheadAttention), inputs_taken(nn.LSTM)
        (3, 1)
    """
    return 3 if issubclass(kind, nn.MultiheadAttention) else 1


def inputs_of(graph: Graph, path: str) -> list[Edge | None]:
    """What every call of a layer takes, each once; None for a tensor that no input of the model goes into.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from ..recording.recorder import record
        >>> graph = record(nn.Sequential(nn.ReLU(), nn.Linear(2, 2)), torch.ones(1, 2))
        >>> inputs_of(graph, "1")
        [(0: ReLU(input), 0)]
    """
    found: list[Edge | None] = []
    for node in graph.calls(path):
        for inputs in (node.inputs, *node.alternatives):
            count = inputs_taken(node.function) if isinstance(node.function, type) else 1
            for edge in inputs[:count] or [None]:
                if edge not in found:
                    found.append(edge)
    return found


def producer(edge: Edge) -> Edge:
    """Who computed the values of a tensor: past views, pooling by maximum and everything else that moves values only.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from ..recording.recorder import record
        >>> graph = record(nn.Sequential(nn.ReLU(), nn.MaxPool1d(2), nn.Flatten()), torch.ones(1, 2, 4))
        >>> producer((graph.node("2"), 0))[0].path
        '0'
    """
    node = edge[0]
    while node.keeps_grid and node.inputs and node.inputs[0] is not None:
        edge = node.inputs[0]
        node = edge[0]
    return edge


def makers_of(edge: Edge) -> list[Node]:
    """The operations whose results a tensor consists of: like `producer`, and past concatenations.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from ..recording.recorder import record
        >>> class Both(nn.Module):
        ...     def forward(self, x):
        ...         return torch.cat([x.relu(), x.abs()]).flatten()
        >>> graph = record(Both(), torch.ones(2))
        >>> [node.path for node in makers_of((graph.node("reshape"), 0))]
        ['relu', 'abs']
    """
    node = producer(edge)[0]
    if node.module is None and node.kind in ("cat", "stack") and all(each is not None for each in node.inputs):
        return [maker for source in node.sources for maker in makers_of(source)]
    return [node]


def never_negative(edge: Edge | None) -> bool:
    """Whether a tensor can't be negative, by what it is computed with; and was not, in what was recorded.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from ..recording.recorder import record
        >>> model = nn.Sequential(nn.ReLU(), nn.AvgPool1d(2), nn.Linear(2, 2))
        >>> [never_negative((record(model, torch.ones(1, 4)).node(path), 0)) for path in ("1", "2", "input")]
        [True, False, False]
    """
    return edge is not None and _never_negative(edge[0], {})


def _never_negative(node: Node, known: dict[Node, bool]) -> bool:
    if node not in known:
        known[node] = False  # where a loop comes back to it
        kind = kind_of(node.function) or node.kind
        certain = kind in _NEVER_NEGATIVE or (kind == "hardtanh" and node.low == 0)
        if not certain and (kind in _COMBINING or node.keeps_grid):
            certain = bool(node.inputs) and all(
                source is not None and _never_negative(source[0], known) for source in _sources(node)
            )
        known[node] = certain and not node.low < 0
    return known[node]


def _sources(node: Node) -> Iterator[Edge | None]:
    for inputs in (node.inputs, *node.alternatives):
        yield from inputs

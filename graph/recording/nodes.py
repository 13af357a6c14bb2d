"""The graph of a recording and its nodes."""

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from ..errors import GraphError
from .places import Place

__all__ = ["Graph", "Node", "Source"]

Source = tuple["Node", int]
"""A node and the number of its output. What a write changed in another view of the same memory has a number behind."""


@dataclass(eq=False)
class Node:
    """One operation of a model: a call of a layer or of a function, an input, or an output.

    Attributes:
        index: its place in the graph.
        kind: what it computes: the kind of a function ("add", see `bitwright.graph.recording.kinds`), or its own name
            where no kind is known; the name of a module's class ("Conv2d"); "input" or "output".
        function: the function that was called, or the module's class.
        owner: the path of the module whose code makes the call.
        name: the last part of the path. Functions are sites named by their kind; the second place in the source of the
            owner has "_2". Where the owner has an attribute of such a name, they are "add_site", "add_site_2".
        module: the path of the layer that is called, None for a function.
        place: where the call is written, None if that is not known.
        inputs: the node and its output that each tensor comes from, in the order of arguments; None for a constant, and
            for what reaches the model by ways that torch does not show: numpy, vmap.
        users: the nodes that read an output of this one.
        parameters: the paths of the parameters and buffers that are, or went into, an argument.
        shape: of the first output, in the first example.
        low: the smallest value of the first output, over all examples; NaN where there is none.
        high: the largest.
        keeps_grid: whether every value of the output is one of the first input, or zero.
        homogeneous: whether it carries over positive scales of channels.
        alternatives: lists like ``inputs``, from examples in which the tensors came from elsewhere.
        arguments: what the function was called with in the first example, by position and by name: a `TENSOR` for each
            tensor, in the order of ``inputs``.

    Example:
        >>> import torch
        >>> from bitwright.graph import record
        >>> from torch import nn
        >>> relu = record(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), torch.ones(1, 2)).nodes[2]
        >>> relu.kind, relu.low >= 0, [source.path for source, _ in relu.inputs]
        ('ReLU', True, ['0'])
    """

    index: int
    kind: str
    function: Callable[..., Any] | None
    owner: str = ""
    name: str = ""
    module: str | None = None
    place: Place | None = None
    inputs: list[Source | None] = field(default_factory=list)
    users: list["Node"] = field(default_factory=list)
    parameters: list[str] = field(default_factory=list)
    shape: tuple[int, ...] = ()
    low: float = math.nan
    high: float = math.nan
    keeps_grid: bool = False
    homogeneous: bool = False
    alternatives: list[list[Source | None]] = field(default_factory=list)
    arguments: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})

    @property
    def path(self) -> str:
        """The path of the layer, or that of the site: "layer1.0.conv1", "layer1.0.add"."""
        if self.module is not None:
            return self.module
        return f"{self.owner}.{self.name}" if self.owner else self.name

    @property
    def sources(self) -> list[Source]:
        """What any input comes from, in any example."""
        found = [each for inputs in (self.inputs, *self.alternatives) for each in inputs if each is not None]
        return list(dict.fromkeys(found))

    def __repr__(self) -> str:
        read = [", ".join("-" if each is None else _shown(each) for each in some) for some in self._all_inputs()]
        where = "" if self.place is None or self.module is not None else f"  {self.place}"
        return f"{self.path or '(model)'}: {self.kind}({' | '.join(read)}){where}"

    def _all_inputs(self) -> list[list[Source | None]]:
        return [self.inputs, *self.alternatives]


def _shown(source: Source) -> str:
    node, output = source
    return f"{node.path}[{output}]" if output else node.path


@dataclass
class Graph:
    """What a model computed on examples.

    Attributes:
        nodes: all operations, each behind those that it reads.
        called: the paths of all modules that were called, layers and what holds them.
        unreached: functions of a known kind in the source of methods and helper functions that ran, at places that no
            example reached: the class, the method, the kind, and file and line.
        aliases: for every path of a module the first one, by which nodes and `called` go.

    Example:
        >>> import torch
        >>> from bitwright.graph import record
        >>> from torch import nn
        >>> graph = record(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), torch.ones(1, 2))
        >>> [node.path for node in graph.nodes], graph.calls("0")[0].shape
        (['input', '0', '1', 'output'], (1, 2))
    """

    nodes: list[Node]
    called: frozenset[str] = frozenset()
    unreached: list[tuple[type, str, str, str]] = field(default_factory=list)
    aliases: dict[str, str] = field(default_factory=dict, repr=False)

    def functions(self, kinds: Collection[str] | None = None) -> list[Node]:
        """The calls of functions, or those of some kinds only."""
        calls = [each for each in self.nodes if each.module is None and each.function is not None]
        return calls if kinds is None else [each for each in calls if each.kind in kinds]

    def calls(self, module: str) -> list[Node]:
        """The calls of a layer; a layer at several paths goes by any of them."""
        first = self.aliases.get(module, module)
        return [each for each in self.nodes if each.module == first]

    def node(self, path: str) -> Node:
        """The first call of a layer or at a site, or an input or output of that name.

        Raises:
            GraphError: there is none.
        """
        first = self.aliases.get(path, path)
        found = [each for each in self.nodes if each.path == first]
        if found:
            return next((each for each in found if each.function is not None), found[0])
        near = get_close_matches(path, [each.path for each in self.nodes], n=2)
        hint = f"Near it are {', '.join(near)}." if near else "print(graph) shows all nodes."
        raise GraphError(f"graph.node: no call, input or output has the path {path!r}. {hint}")

    def __str__(self) -> str:
        return "\n".join(map(repr, self.nodes))

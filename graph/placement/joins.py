"""Sums and concatenations: which tensors meet there, and who has to put them on one grid."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..recording.nodes import Graph, Node
from .producers import producer

__all__ = ["JOINS", "Join", "joins_of"]

JOINS = frozenset({"add", "sub", "cat", "stack"})


@dataclass(frozen=True)
class Join:
    """Tensors that meet in sums and concatenations, and those that these are made of in turn.

    Attributes:
        producers: the operations that compute the tensors.
        places: the sums and concatenations.

    Example:
        >>> Join((), ()).paths
        []
    """

    producers: tuple[Node, ...]
    places: tuple[Node, ...]

    @property
    def paths(self) -> list[str]:
        """Of the sums and concatenations."""
        return list(dict.fromkeys(node.path for node in self.places))


def joins_of(graph: Graph) -> list[Join]:
    """The sums and concatenations of a model in groups: in each, all operands have to lie on one grid.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from ..recording.recorder import record
        >>> class Residual(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.a, self.b = nn.Linear(2, 2), nn.Linear(2, 2)
        ...
        ...     def forward(self, x):
        ...         x = self.a(x)
        ...         return x + self.b(x) + x
        >>> join, = joins_of(record(Residual(), torch.ones(1, 2)))
        >>> [node.path for node in join.producers], join.paths
        (['a', 'b'], ['add', 'add_2'])
    """
    sets = _Sets(len(graph.nodes))
    places = [node for node in graph.functions(JOINS) if _is_join(node)]
    for node in places:
        for source in node.sources:
            sets.join(node.index, producer(source)[0].index)
    groups: dict[int, list[Node]] = {}
    for node in _members(places):
        groups.setdefault(sets.find(node.index), []).append(node)
    joined = set(places)
    return [
        Join(
            tuple(sorted((node for node in found if node not in joined), key=lambda node: node.index)),
            tuple(sorted((node for node in found if node in joined), key=lambda node: node.index)),
        )
        for found in groups.values()
    ]


def _is_join(node: Node) -> bool:
    """Whether two tensors of the model meet, not one and a number or a parameter."""
    return all(sum(each is not None for each in inputs) > 1 for inputs in (node.inputs, *node.alternatives))


def _members(places: Sequence[Node]) -> Iterable[Node]:
    found = [node for place in places for node in (place, *(producer(source)[0] for source in place.sources))]
    return dict.fromkeys(found)


class _Sets:
    """Disjoint sets of numbers that grow together."""

    def __init__(self, count: int) -> None:
        self._above = list(range(count))

    def find(self, number: int) -> int:
        """The number that stands for the set of one."""
        while self._above[number] != number:
            self._above[number] = self._above[self._above[number]]
            number = self._above[number]
        return number

    def join(self, one: int, other: int) -> None:
        """Make one set of two."""
        self._above[self.find(other)] = self.find(one)

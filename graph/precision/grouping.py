"""Layers that must agree on a setting."""

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from ...qcore.models import shown
from ..errors import GraphError
from ..placement.producers import inputs_of
from ..recording.nodes import Graph

__all__ = ["groups_of", "joined_groups", "read_groups"]

Groups = Sequence[str | Iterable[str]]


def groups_of(layers: Mapping[str, nn.Module], graph: Graph) -> tuple[tuple[str, ...], ...]:
    """Layers of one class that take the same tensor in every call, and layers that share a weight.

    Args:
        layers: by path.
        graph: of the model that holds them.

    Example:
        >>> import torch
        >>> from ..recording.recorder import record
        >>> class Gated(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.up, self.gate, self.down = nn.Linear(4, 8), nn.Linear(4, 8), nn.Linear(8, 4)
        ...
        ...     def forward(self, x):
        ...         return self.down(self.up(x) * self.gate(x).sigmoid())
        >>> model = Gated()
        >>> groups_of(dict(model.named_children()), record(model, torch.ones(1, 4)))
        (('up', 'gate'),)
    """
    alike: dict[object, list[str]] = {}
    for path, layer in layers.items():
        edges = inputs_of(graph, path)
        if edges and None not in edges:
            tensors = frozenset((edge[0].index, edge[1]) for edge in edges if edge is not None)
            alike.setdefault((type(layer), tensors), []).append(path)
        for each in layer.parameters():
            alike.setdefault(id(each), []).append(path)
    return joined_groups(list(layers), alike.values())


def joined_groups(paths: Sequence[str], groups: Iterable[Iterable[str]]) -> tuple[tuple[str, ...], ...]:
    """Groups of two and more, those that have a layer in common as one; in the order of the paths.

    Example:
        >>> joined_groups(["a", "b", "c", "d"], [["c", "a"], ["d"], ["a", "b"]])
        (('a', 'b', 'c'),)
    """
    group_of = {path: {path} for path in paths}
    for group in groups:
        together = set().union(*(group_of[path] for path in group))
        for path in together:
            group_of[path] = together
    found = {id(group): tuple(path for path in paths if path in group) for group in group_of.values()}
    return tuple(group for group in found.values() if len(group) > 1)


def read_groups(asked: str, given: object, paths: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Groups as a user gives them: each a glob, or a list of globs, whose layers agree.

    Raises:
        GraphError: something else, or a glob that matches no layer.

    Example:
        >>> read_groups("allocate_bits", ["0.*", ["1.q", "1.k"]], ["0.q", "0.k", "1.q", "1.k", "head"])
        (('0.q', '0.k'), ('1.q', '1.k'))
    """
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise GraphError(
            f"{asked}: groups={shown(given)} is not possible. Write a list of groups, each a glob or a list of globs: "
            'groups=["block1.attn.*", ["up", "gate"]]; [] for none.'
        )
    groups: list[list[str]] = []
    for each in given:
        globs: list[Any] = [each] if isinstance(each, str) else list(each) if isinstance(each, Iterable) else [each]
        group: list[str] = []
        for glob in globs:
            matched = [path for path in paths if isinstance(glob, str) and fnmatchcase(path, glob)]
            if not matched:
                raise GraphError(
                    f"{asked}: {shown(glob)} among the groups matches no layer of the table. They are {_few(paths)}."
                )
            group += matched
        groups.append(group)
    return joined_groups(paths, groups)


def _few(paths: Sequence[str]) -> str:
    more = f" and {len(paths) - 4} more" if len(paths) > 4 else ""
    return ", ".join(paths[:4]) + more

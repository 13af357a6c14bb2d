"""Several forwards in one graph, and names for what is called in them."""

import keyword
import math
from collections import Counter
from collections.abc import Hashable, Mapping

from torch import nn

from .nodes import Node, Source

__all__ = ["merge", "name_sites"]


def merge(nodes: list[Node], new: list[Node]) -> list[Node]:
    """Nodes of several forwards, and those of one more.

    The same layer or function called from the same place for the n-th time in a forward is one node: its range
    widens, and what it reads in the new forward only is an alternative. A node that is new stands behind the one that
    it followed.
    """
    if not nodes:
        return new
    known = dict(zip(_keys(nodes), nodes, strict=True))
    same: dict[Node, Node] = {}
    merged = list(nodes)
    before: Node | None = None
    for key, node in zip(_keys(new), new, strict=True):
        inputs: list[Source | None] = [None if each is None else (same[each[0]], each[1]) for each in node.inputs]
        found = known.get(key)
        if found is None:
            node.inputs, node.users, found = inputs, [], node
            merged.insert(0 if before is None else merged.index(before) + 1, node)
        elif inputs not in (found.inputs, *found.alternatives):
            found.alternatives.append(inputs)
        if found is not node:
            _widen(found, node)
        same[node] = found
        for each in inputs:
            if each is not None and found not in each[0].users:
                each[0].users.append(found)
        before = found
    return merged


def _keys(nodes: list[Node]) -> list[Hashable]:
    """What is equal for one call in several forwards."""
    seen: Counter[Hashable] = Counter()
    keys: list[Hashable] = []
    for node in nodes:
        what = node.name if node.function is None else node.module
        call = (node.kind, node.owner, what, None if node.place is None else node.place.key)
        seen[call] += 1
        keys.append((call, seen[call]))
    return keys


def _widen(node: Node, by: Node) -> None:
    if math.isnan(by.low) or math.isnan(node.low):
        node.low = node.high = math.nan
    else:
        node.low, node.high = min(node.low, by.low), max(node.high, by.high)
    node.keeps_grid &= by.keeps_grid
    node.homogeneous &= by.homogeneous
    node.parameters += [each for each in by.parameters if each not in node.parameters]


def name_sites(nodes: list[Node], owners: Mapping[str, nn.Module]) -> None:
    """Name functions by their kind, numbered as they are written; one place that runs twice has one name."""
    groups: dict[tuple[str, str], list[Node]] = {}
    for node in nodes:
        if node.module is None and node.function is not None:
            groups.setdefault((node.owner, node.kind), []).append(node)
    for (owner, kind), group in groups.items():
        places = [node.place for node in group if node.place is not None]
        order: list[Hashable] = list(dict.fromkeys(each.key for each in sorted(places, key=lambda each: each.order)))
        if any(node.place is None for node in group):
            order.append(None)  # behind, all under one name
        names = _free_names(owners[owner], kind, len(order))
        for node in group:
            node.name = names[order.index(None if node.place is None else node.place.key)]


def _free_names(owner: nn.Module, kind: str, count: int) -> list[str]:
    base = f"{kind}_site" if keyword.iskeyword(kind) else kind
    while True:
        names = [base, *(f"{base}_{number}" for number in range(2, count + 1))]
        if not any(hasattr(owner, name) for name in names):
            return names
        base += "_site"

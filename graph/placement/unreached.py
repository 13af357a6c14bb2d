"""Warnings of calls of functions that rules are for, and that no example reached."""

from collections.abc import Iterable

from ..recording.kinds import name_of
from ..recording.nodes import Graph
from ..rules.rules import Rule

__all__ = ["not_reached"]

_NOUNS = {
    "add": ("addition", "additions"),
    "sub": ("subtraction", "subtractions"),
    "mul": ("multiplication", "multiplications"),
    "div": ("division", "divisions"),
    "cat": ("concatenation", "concatenations"),
    "matmul": ("matrix product", "matrix products"),
}


def not_reached(graph: Graph, rules: Iterable[Rule]) -> list[str]:
    """What to tell of the functions in the code of the model that rules are for, and that stay float.

    Example:
        >>> not_reached(Graph([]), [])
        []
    """
    asked = {name_of(rule.where) for rule in rules if rule.is_function and rule.settings is not None}
    found: dict[tuple[str, str, str], list[str]] = {}
    for owner, method, kind, where in graph.unreached:
        if kind in asked:
            found.setdefault((owner.__name__, method, kind), []).append(where)
    texts: list[str] = []
    for (owner, method, kind), places in found.items():
        one, several = _NOUNS.get(kind, (f"call of {kind}", f"calls of {kind}"))
        many = len(places) > 1
        listed = ", ".join(places[:5]) + (f" and {len(places) - 5} more" if len(places) > 5 else "")
        texts.append(
            f"{owner}.{method}: {len(places)} {several if many else one} {'were' if many else 'was'} not reached by "
            f"the examples ({listed}) and {'stay' if many else 'stays'} float. Pass an example for each branch."
        )
    return texts

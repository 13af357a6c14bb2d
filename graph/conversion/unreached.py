"""Warnings of calls of functions that rules are for, and that no example reached."""

import warnings
from collections.abc import Iterable

from ..errors import GraphWarning
from ..recording.kinds import name_of
from ..recording.nodes import Graph
from .rules import Rule

__all__ = ["warn_of_unreached"]

_NOUNS = {
    "add": ("addition", "additions"),
    "sub": ("subtraction", "subtractions"),
    "mul": ("multiplication", "multiplications"),
    "div": ("division", "divisions"),
    "cat": ("concatenation", "concatenations"),
    "matmul": ("matrix product", "matrix products"),
}


def warn_of_unreached(graph: Graph, rules: Iterable[Rule]) -> None:
    """Tell of the functions in the code of the model that rules are for, and that stay float.

    Example:
        >>> warn_of_unreached(Graph([]), [])
    """
    asked = {name_of(rule.where) for rule in rules if rule.is_function and rule.settings is not None}
    found: dict[tuple[str, str, str], list[str]] = {}
    for owner, method, kind, where in graph.unreached:
        if kind in asked:
            found.setdefault((owner.__name__, method, kind), []).append(where)
    for (owner, method, kind), places in found.items():
        one, several = _NOUNS.get(kind, (f"call of {kind}", f"calls of {kind}"))
        many = len(places) > 1
        listed = ", ".join(places[:5]) + (f" and {len(places) - 5} more" if len(places) > 5 else "")
        text = (
            f"{owner}.{method}: {len(places)} {several if many else one} {'were' if many else 'was'} not reached by "
            f"the examples ({listed}) and {'stay' if many else 'stays'} float. Pass an example for each branch."
        )
        warnings.warn(text, GraphWarning, stacklevel=5)

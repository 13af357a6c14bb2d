"""Example inputs: one forward or several, each as its arguments."""

from collections.abc import Mapping
from typing import Any

import torch

from ...qcore.models import shown
from ..errors import GraphError

__all__ = ["Call", "calls_of"]

Call = tuple[tuple[Any, ...], dict[str, Any]]  # the positional and the keyword arguments of one forward


def calls_of(examples: object) -> list[Call]:
    """The arguments of each forward that examples stand for.

    Args:
        examples: a tensor, a tuple of positional arguments, a dict of keyword arguments, or a list of any of these,
            one for each forward.

    Returns:
        Positional and keyword arguments of each forward.

    Raises:
        GraphError: something else, or an empty list.

    Example:
        >>> calls_of((1, 2)), calls_of([{"x": 3}, (4,)])
        ([((1, 2), {})], [((), {'x': 3}), ((4,), {})])
    """
    if not isinstance(examples, list):
        return [_call_of(examples, "examples")]
    if not examples:
        raise GraphError("examples is an empty list, so there is no forward to run. Pass at least one: examples=(x,).")
    return [_call_of(each, f"examples[{number}]") for number, each in enumerate(examples)]


def _call_of(example: object, name: str) -> Call:
    if isinstance(example, torch.Tensor):
        return (example,), {}
    if isinstance(example, tuple):
        return tuple(example), {}
    if isinstance(example, Mapping):
        strange = next((key for key in example if not isinstance(key, str)), None)
        if strange is not None:
            raise GraphError(
                f"{name} is a dict with the key {shown(strange)}, and a dict holds keyword arguments by their names. "
                "Pass a dict that forward takes as an argument inside a tuple: examples=({...},)."
            )
        return (), dict(example)
    raise GraphError(
        f"{name} is {shown(example)}. Pass a tensor, a tuple of positional arguments, a dict of keyword arguments, "
        "or a list of any of these, one for each forward: examples=(x,)."
    )

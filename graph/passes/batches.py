"""Batches of data, as what each forward is called with."""

from collections.abc import Iterable, Mapping

from torch import Tensor

from ...qcore.models import shown
from ..errors import GraphError
from ..recording.examples import calls_of
from .evaluation import Call

__all__ = ["batches_of"]


def batches_of(asked: str, data: object) -> list[Call]:
    """The arguments of each forward that data stands for.

    Args:
        asked: the function that the user called.
        data: a tensor, a tuple of arguments, a dict of keyword arguments, or a list or loader of these. A list as a
            batch, as loaders make it, is a tuple of arguments.

    Raises:
        GraphError: something else, or no batch at all.

    Example:
        >>> batches_of("smooth", [[1, 2], {"x": 3}])
        [((1, 2), {}), ((), {'x': 3})]
    """
    if isinstance(data, Tensor | tuple | Mapping):
        return calls_of(data)
    if not isinstance(data, Iterable) or isinstance(data, str | bytes):
        raise GraphError(f"{asked}: data={shown(data)} is no batch. Pass a tensor, or a list or loader of batches.")
    calls = [call for batch in data for call in calls_of(tuple(batch) if isinstance(batch, list) else batch)]
    if not calls:
        raise GraphError(f"{asked}: data holds no batch. Pass a tensor, or a list or loader of batches.")
    return calls

"""The batches that a pass gets, as the arguments of each forward."""

import inspect
from collections.abc import Iterable, Mapping

from torch import Tensor, nn
from torch.utils import _pytree

from ...qcore.models import shown
from ..errors import GraphError
from ..recording.examples import Call, calls_of
from .samples import samples_in

__all__ = ["batches_of"]


def batches_of(asked: str, model: nn.Module, data: object) -> list[Call]:
    """The arguments of each forward, on the device of the model.

    Args:
        asked: the pass, for messages.
        model: what takes them.
        data: a batch, or an iterable of batches. A batch is a tensor, a dict of keyword arguments, or a tuple or list
            of positional arguments; of those, as many count as forward takes, so that a loader may give labels, too.

    Raises:
        GraphError: something else, no batch, or a tuple of more than forward takes.

    Example:
        >>> import torch
        >>> images, labels = torch.ones(2, 8), torch.zeros(2)
        >>> [(args[0].shape, len(args)) for args, _ in batches_of("explain", nn.Linear(8, 2), [(images, labels)])]
        [(torch.Size([2, 8]), 1)]
    """
    expected = "Pass a tensor, or a list or loader of batches."
    if isinstance(data, Tensor | tuple | Mapping):
        batches: Iterable[object] = [data]
    elif isinstance(data, Iterable) and not isinstance(data, str | bytes):
        batches = data
    else:
        raise GraphError(f"{asked}: data={shown(data)} is no batch. {expected}")
    most = _positional(model)
    if isinstance(data, tuple) and most is not None and len(data) > most:  # such as x.split(8)
        takes = f"{most or 'no'} positional argument{'s' * (most != 1)}"
        raise GraphError(
            f"{asked}: data is a tuple of {len(data)}, which is one batch, and forward takes {takes}. Pass a list of "
            "batches: list(data)."
        )
    device = next((each.device for each in model.parameters()), None)
    calls: list[Call] = []
    for batch in batches:
        if not isinstance(batch, Tensor | tuple | list | Mapping):
            raise GraphError(
                f"{asked}: a batch of data is {shown(batch)}. Pass a tensor, a tuple of positional arguments, or a "
                "dict of keyword arguments."
            )
        calls += calls_of(tuple(batch)[:most] if isinstance(batch, tuple | list) else batch)
    if not calls:
        raise GraphError(f"{asked}: data holds no batch. {expected}")
    empty = next((index for index, call in enumerate(calls) if samples_in(call) == 0), None)
    if empty is not None:
        raise GraphError(f"{asked}: batch {empty} of data holds no sample. {expected}")
    return _pytree.tree_map(lambda each: each.to(device) if isinstance(each, Tensor) else each, calls)


def _positional(model: nn.Module) -> int | None:
    """How many positional arguments forward takes at most; None for any number."""
    parameters = inspect.signature(model.forward).parameters.values()
    if any(each.kind is each.VAR_POSITIONAL for each in parameters):
        return None
    return sum(each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD) for each in parameters)

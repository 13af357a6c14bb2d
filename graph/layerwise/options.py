"""What all layer-wise algorithms take besides settings of their own."""

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypedDict

from torch import nn

from ...qcore.errors import nearest
from ...qcore.models import shown
from ..errors import GraphError

__all__ = ["WalkOptions", "checked"]


class WalkOptions(TypedDict, total=False):
    """The keyword arguments of `walk_blocks` that every algorithm hands on.

    Attributes:
        reference: the float model, with the same paths; by default the model itself with its quantizers off.
        blocks: paths of the blocks; by default the largest list of modules that is a chain, if there is one.
        mask: the argument that says which tokens count: (samples, tokens), 0 for padding. None for all.
        rows: how many inputs of a layer are used at most, spread evenly over samples, of which each gives one at least.
        wait_on: where the inputs of a block wait while others run: ``"device"``, ``"cpu"``, or a folder.
        checkpoint: a file that holds what was chosen so far, after every block, so that a walk goes on there.
        progress: whether a bar shows how far it has come.

    Example:
        >>> WalkOptions(rows=4096, progress=False)
        {'rows': 4096, 'progress': False}
    """

    reference: nn.Module | None
    blocks: Sequence[str] | None
    mask: str | None
    rows: int | None
    wait_on: str | Path
    checkpoint: str | Path | None
    progress: bool


def checked(call: Callable[..., Any], options: WalkOptions) -> WalkOptions:
    """The options, or an error that names the call and the setting that was perhaps meant.

    Args:
        call: the function that takes them as ``**options``.
        options: what it got.

    Raises:
        GraphError: one of them is no option.

    Example:
        >>> def smallest(model, *, steps=1, **options): ...
        >>> checked(smallest, {"bloks": ["0"]})
        Traceback (most recent call last):
        bitwright.graph.errors.GraphError: smallest: there is no setting bloks=['0']. Did you mean blocks?
    """
    known = WalkOptions.__annotations__
    for name, item in options.items():
        if name not in known:
            own = [each.name for each in inspect.signature(call).parameters.values() if each.kind is each.KEYWORD_ONLY]
            near = nearest(name, [*own, *known])
            meant = f"Did you mean {near}?" if near else f"There are {', '.join([*own, *known])}."
            raise GraphError(f"{call.__name__}: there is no setting {name}={shown(item)}. {meant}")
    return options

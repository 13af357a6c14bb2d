"""What all layer-wise algorithms take besides settings of their own."""

from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

from torch import nn

__all__ = ["WalkOptions"]


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

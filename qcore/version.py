"""What tells whether something computed from tensors is still right."""

from typing import Any

from torch import Tensor, distributed

__all__ = ["version_of"]


def version_of(*tensors: Tensor) -> tuple[Any, ...] | None:
    """Where each tensor lies in memory and how often it was changed in place; None if that isn't counted.

    It isn't in inference mode, nor where several processes train together: sharded parameters (FSDP) are gathered into
    memory that is used again, and their changes are not counted. Memory that is freed is used again: hold on to it
    (``detach()``) for as long as a version is compared with.

    Example:
        >>> import torch
        >>> x = torch.ones(2)
        >>> before = version_of(x)
        >>> version_of(x) == before, version_of(x.add_(1)) == before
        (True, False)
    """
    if any(each.is_inference() for each in tensors) or (distributed.is_available() and distributed.is_initialized()):
        return None
    return tuple((each.data_ptr(), each._version) for each in tensors)

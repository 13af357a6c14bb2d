"""What tells whether something computed from tensors is still right."""

from torch import Tensor, distributed, nn

__all__ = ["tensors_of", "version_of"]

_may_be_distributed = distributed.is_available()


def tensors_of(module: nn.Module) -> list[Tensor]:
    """Every parameter and buffer of a module, in a quarter of the time that ``parameters()`` and ``buffers()`` take.

    Example:
        >>> [tuple(each.shape) for each in tensors_of(nn.Sequential(nn.Linear(3, 2)))]
        [(2, 3), (2,)]
    """
    found = [each for each in (*module._parameters.values(), *module._buffers.values()) if each is not None]
    for child in module._modules.values():
        if child is not None:
            found += tensors_of(child)
    return found


def version_of(*tensors: Tensor) -> tuple[int, ...] | None:
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
    if _may_be_distributed and distributed.is_initialized():
        return None
    version = []
    for each in tensors:
        if each.is_inference():
            return None
        version += (each.data_ptr(), each._version)
    return tuple(version)

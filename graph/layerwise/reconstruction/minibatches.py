"""Minibatches that don't depend on how samples came in batches."""

import torch

from ...measuring.samples import samples_in, taken
from ...recording.examples import Call

__all__ = ["minibatches"]


def minibatches(call: Call, size: int, seed: int) -> list[Call]:
    """The samples of a call in a random order, in parts of equal size, or one less.

    Args:
        call: the arguments of a forward with all samples.
        size: of a part, at most.
        seed: of the order.

    Example:
        >>> [args[0].shape for args, _ in minibatches(((torch.ones(10, 2),), {}), 4, seed=0)]
        [torch.Size([4, 2]), torch.Size([3, 2]), torch.Size([3, 2])]
    """
    count = samples_in(call) or 1
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return [taken(call, index) for index in order.tensor_split(-(-count // size))]

"""Statistics over all ranks of a distributed training, equal to those of one process that saw all the data."""

import torch
from torch import Tensor
from torch import distributed as dist

__all__ = ["distributed", "gathered_kth_largest", "highest", "lowest", "summed"]


def distributed() -> bool:
    """Whether this process is one of several that train together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def highest(statistic: Tensor) -> Tensor:
    """The elementwise maximum over ranks."""
    return _reduced(statistic, dist.ReduceOp.MAX)


def lowest(statistic: Tensor) -> Tensor:
    """The elementwise minimum over ranks."""
    return _reduced(statistic, dist.ReduceOp.MIN)


def summed(statistic: Tensor) -> Tensor:
    """The elementwise sum over ranks."""
    return _reduced(statistic, dist.ReduceOp.SUM)


def _reduced(statistic: Tensor, operation: dist.ReduceOp.RedOpType) -> Tensor:
    total = statistic.clone()
    dist.all_reduce(total, operation)
    return total


def gathered_kth_largest(rows: Tensor, k: int) -> Tensor:
    """The ``k``-th largest of each row, the rows of all ranks put together: each rank sends its ``k`` largest."""
    own = rows.new_full((rows.shape[0], k), float("-inf"))
    count = min(k, rows.shape[1])
    own[:, :count] = rows.topk(count, 1).values
    gathered = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, own)
    return torch.cat(gathered, 1).topk(k, 1).values[:, -1]

"""Adaptive pooling in operations that torch's exporter to ONNX has, where it has none for the pooling itself."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .windows import adaptive_windows

__all__ = ["expressible", "largest", "means"]

_AVERAGES: dict[int, Callable[..., Tensor]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
_MAXIMA: dict[int, Callable[..., Tensor]] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


def expressible(x: Tensor, counts: Sequence[int]) -> bool:
    """Whether the exporter is to get another form: it has one for a single window, and none for sizes left open."""
    sizes = x.shape[-len(counts) :]
    return any(each != 1 for each in counts) and all(isinstance(each, int) for each in sizes)


def means(x: Tensor, counts: Sequence[int]) -> Tensor:
    """What ``F.adaptive_avg_pool`` gives for so many windows along each of the last dimensions.

    Example:
        >>> means(torch.tensor([[1.0, 2.0, 4.0]]), [2])
        tensor([[1.5000, 3.0000]])
    """
    return _pooled(x, counts, _AVERAGES, lambda window, dim: window.mean(dim, keepdim=True))


def largest(x: Tensor, counts: Sequence[int]) -> Tensor:
    """What ``F.adaptive_max_pool`` gives for so many windows along each of the last dimensions.

    Example:
        >>> largest(torch.tensor([[1.0, 2.0, 4.0]]), [2])
        tensor([[2., 4.]])
    """
    return _pooled(x, counts, _MAXIMA, lambda window, dim: window.amax(dim, keepdim=True))


def _pooled(
    x: Tensor,
    counts: Sequence[int],
    evenly: dict[int, Callable[..., Tensor]],
    reduce: Callable[[Tensor, int], Tensor],
) -> Tensor:
    dims = len(counts)
    sizes = x.shape[-dims:]
    if not any(size % count for size, count in zip(sizes, counts, strict=True)):
        return evenly[dims](x, [size // count for size, count in zip(sizes, counts, strict=True)])
    for dim, count in zip(range(-dims, 0), counts, strict=True):
        windows = zip(*adaptive_windows(x.shape[dim], count), strict=True)
        x = torch.cat([reduce(x.narrow(dim, start, end - start), dim) for start, end in windows], dim)
    return x

"""Windows of pooling layers: where they lie along one dimension, and sums over them that are exact on integers."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ...qcore.tracing import exporting

__all__ = [
    "adaptive_counts",
    "adaptive_windows",
    "each_dimension",
    "lengths_of",
    "overhang",
    "sums_between",
    "sums_of_windows",
]


def each_dimension(argument: int | Sequence[int], dims: int) -> tuple[int, ...]:
    """An argument of torch's pooling layers, one number for each dimension.

    Example:
        >>> each_dimension(2, 3), each_dimension((2, 1), 2)
        ((2, 2, 2), (2, 1))
    """
    numbers = (argument,) if isinstance(argument, int) else tuple(argument)
    return numbers * dims if len(numbers) == 1 else numbers


def _count(size: int, kernel: int, stride: int, padding: int, ceil_mode: bool) -> int:
    """How many windows there are; in ``ceil_mode`` the last begins before the end, or in the padding in front."""
    reach = size + 2 * padding - kernel
    if not ceil_mode:
        return reach // stride + 1
    count = -(-reach // stride) + 1
    return count - 1 if (count - 1) * stride >= size + padding else count


def overhang(size: int, kernel: int, stride: int, padding: int) -> int:
    """By how much the last window in ``ceil_mode`` reaches beyond the padding.

    Example:
        >>> overhang(5, 2, 2, 0), overhang(4, 2, 2, 0)
        (1, 0)
    """
    end = (_count(size, kernel, stride, padding, True) - 1) * stride + kernel
    return max(end - size - 2 * padding, 0)


def lengths_of(size: int, kernel: int, stride: int, padding: int, ceil_mode: bool, with_padding: bool) -> list[int]:
    """How many elements each window has, as torch counts them: with the padding, but nothing beyond it, or without.

    Example:
        >>> lengths_of(5, 3, 2, 1, False, True), lengths_of(5, 3, 2, 1, False, False)
        ([3, 3, 3], [2, 3, 2])
    """
    starts = [each * stride - padding for each in range(_count(size, kernel, stride, padding, ceil_mode))]
    if with_padding:
        return [min(start + kernel, size + padding) - start for start in starts]
    return [min(start + kernel, size) - max(start, 0) for start in starts]


def adaptive_counts(output_size: int | Sequence[int | None] | None, sizes: Sequence[int]) -> list[int]:
    """How many windows torch's adaptive pooling has along each dimension; None in its argument: one for each element.

    Example:
        >>> adaptive_counts((None, 2), (7, 8)), adaptive_counts(1, (7, 8))
        ([7, 2], [1, 1])
    """
    given = output_size if isinstance(output_size, Sequence) else [output_size] * len(sizes)
    return [size if count is None else count for size, count in zip(sizes, given, strict=True)]


def adaptive_windows(size: int, count: int) -> tuple[list[int], list[int]]:
    """Where so many windows of torch's adaptive pooling start and end.

    Example:
        >>> adaptive_windows(5, 3)
        ([0, 1, 3], [2, 4, 5])
    """
    starts = [each * size // count for each in range(count)]
    return starts, [-(-(each + 1) * size // count) for each in range(count)]


def sums_of_windows(
    x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...], padding: tuple[int, ...], ceil_mode: bool
) -> Tensor:
    """Sums over windows in the last two dimensions: exact where the elements are integers, and the sums not too large.

    Example:
        >>> sums_of_windows(torch.tensor([[[1.0, 2.0, 4.0]]]), (1, 2), (1, 2), (0, 0), True)
        tensor([[[3., 4.]]])
    """
    sides: list[int] = []  # from the last dimension on, as F.pad takes them
    for size, *window in zip(x.shape[-2:], kernel, stride, padding, strict=True):
        extra = overhang(size, *window) if ceil_mode else 0
        sides = [window[2], window[2] + extra, *sides]
    x = F.pad(x, sides) if any(sides) else x
    if not exporting():
        return F.avg_pool2d(x, kernel, stride, divisor_override=1)
    return torch.round(F.avg_pool2d(x, kernel, stride) * math.prod(kernel))  # torch's exporter to ONNX drops divisors


def sums_between(x: Tensor, dim: int, starts: Sequence[int], ends: Sequence[int]) -> Tensor:
    """Sums over windows of any lengths along one dimension; exact as `sums_of_windows` is.

    Example:
        >>> sums_between(torch.tensor([1.0, 2.0, 4.0]), 0, [0, 1], [2, 3])
        tensor([3., 6.])
    """
    from_start = torch.cat([torch.zeros_like(x.narrow(dim, 0, 1)), x.cumsum(dim)], dim)
    first, behind = (torch.tensor(each, device=x.device) for each in (starts, ends))
    return from_start.index_select(dim, behind) - from_start.index_select(dim, first)

"""The means of output channels over samples and positions."""

from collections.abc import Iterator

import torch
from torch import Tensor

__all__ = ["ChannelMeans"]


class ChannelMeans:
    """Means of each channel of named tensors, over everything that was added, in float64.

    Batches weigh by their size: the mean doesn't depend on how samples come in batches.

    Args:
        magnitudes: whether `magnitude` is asked for, too.

    Example:
        >>> means = ChannelMeans(magnitudes=True)
        >>> means.add("conv", torch.tensor([[1.0, 2.0], [3.0, 2.0]]), axis=-1)
        >>> means.add("conv", torch.tensor([[8.0, 2.0]]), axis=-1)
        >>> means["conv"], means.magnitude("conv")
        (tensor([4., 2.], dtype=torch.float64), 3.7859388972001824)
    """

    def __init__(self, magnitudes: bool = False) -> None:
        self._magnitudes = magnitudes
        self._sums: dict[str, Tensor] = {}
        self._squares: dict[str, float] = {}
        self._counts: dict[str, int] = {}

    def add(self, name: str, x: Tensor, axis: int) -> None:
        """Count a tensor in, whose channels run over a dimension."""
        others = [dim for dim in range(x.ndim) if dim != axis % x.ndim]
        sums = x.sum(others, dtype=torch.float64) if others else x.double()
        self._sums[name] = self._sums[name] + sums if name in self._sums else sums
        self._counts[name] = self._counts.get(name, 0) + x.numel()
        if self._magnitudes:
            self._squares[name] = self._squares.get(name, 0.0) + float(x.square().sum(dtype=torch.float64))

    def with_those_of(self, other: "ChannelMeans") -> "ChannelMeans":
        """The means over everything that either of them counted, for what both did."""
        both = ChannelMeans()
        for name in self:
            if name in other:
                both._sums[name] = self._sums[name] + other._sums[name]
                both._counts[name] = self._counts[name] + other._counts[name]
        return both

    def __contains__(self, name: str) -> bool:
        """Whether values of that name were added."""
        return self._counts.get(name, 0) > 0

    def __iter__(self) -> Iterator[str]:
        """The names, in the order in which they came."""
        return (name for name in self._counts if name in self)

    def __getitem__(self, name: str) -> Tensor:
        """The mean of each channel."""
        sums = self._sums[name]
        return sums / (self._counts[name] // sums.numel())

    def magnitude(self, name: str) -> float:
        """The root mean square of all values."""
        return (self._squares[name] / self._counts[name]) ** 0.5

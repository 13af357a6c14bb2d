"""The means of output channels over samples and positions."""

from collections.abc import Iterator

import torch
from torch import Tensor

__all__ = ["ChannelMeans"]


class ChannelMeans:
    """Means of each channel of named tensors, over everything that was added, in float64.

    Samples weigh by their size: the mean doesn't depend on how they come in batches.

    Args:
        magnitudes: whether `magnitude` is asked for, too.

    Example:
        >>> means = ChannelMeans(magnitudes=True)
        >>> means.add("conv", torch.tensor([[1.0, 2.0], [3.0, 2.0]]), axis=-1, dim=0, samples=2)
        >>> means.add("conv", torch.tensor([[8.0, 2.0]]), axis=-1)
        >>> means["conv"], means.magnitude("conv")
        (tensor([4., 2.], dtype=torch.float64), 3.7859388972001824)
        >>> means.of_samples("conv")[:, 0]
        tensor([1., 3., 8.], dtype=torch.float64)
    """

    def __init__(self, magnitudes: bool = False) -> None:
        self._magnitudes = magnitudes
        self._sums: dict[str, list[Tensor]] = {}  # (samples, channels) each
        self._counts: dict[str, list[int]] = {}  # values of each channel in each sample
        self._squares: dict[str, float] = {}

    def add(self, name: str, x: Tensor, axis: int, dim: int = 0, samples: int = 1) -> None:
        """Count a tensor in.

        Args:
            name: whose it is.
            x: the tensor.
            axis: the dimension of its channels.
            dim: the dimension that counts samples, or several positions of each.
            samples: how many samples there are; with 1, the tensor is one.
        """
        if not x.numel():
            return
        axis %= x.ndim
        apart = x.unflatten(dim, (samples, -1))
        channels = axis + (axis >= dim)
        others = [each for each in range(apart.ndim) if each not in (dim, channels)]
        sums = apart.sum(others, dtype=torch.float64) if others else apart.double()
        self._sums.setdefault(name, []).append(sums if dim < channels else sums.t())
        self._counts.setdefault(name, []).extend([x.numel() // x.shape[axis] // samples] * samples)
        if self._magnitudes:
            self._squares[name] = self._squares.get(name, 0.0) + float(x.square().sum(dtype=torch.float64))

    def with_those_of(self, other: "ChannelMeans") -> "ChannelMeans":
        """The means over everything that either of them counted, for what both did."""
        both = ChannelMeans()
        for name in self:
            if name in other:
                both._sums[name] = [*self._sums[name], *other._sums[name]]
                both._counts[name] = [*self._counts[name], *other._counts[name]]
        return both

    def __contains__(self, name: str) -> bool:
        """Whether values of that name were added."""
        return name in self._sums

    def __iter__(self) -> Iterator[str]:
        """The names, in the order in which they came."""
        return iter(self._sums)

    def __getitem__(self, name: str) -> Tensor:
        """The mean of each channel."""
        return torch.cat(self._sums[name]).sum(0) / sum(self._counts[name])

    def of_samples(self, name: str) -> Tensor:
        """The mean of each channel in each sample: (samples, channels)."""
        sums = torch.cat(self._sums[name])
        return sums / sums.new_tensor(self._counts[name]).unsqueeze(1)

    def magnitude(self, name: str) -> float:
        """The root mean square of all values."""
        values = sum(self._counts[name]) * self._sums[name][0].shape[1]
        return (self._squares[name] / values) ** 0.5

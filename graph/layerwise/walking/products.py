"""Products of inputs and weights: how a weight becomes a matrix, and an input its rows."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ...recording.kinds import kind_of

__all__ = ["Convolution", "Linear", "Product", "Stacked", "Transposed", "product_of"]


class Product(Protocol):
    """What a function multiplies: ``out = weight @ row + bias`` for every row that it takes from the input."""

    def columns(self, x: Tensor) -> int:
        """How many inputs one output has."""
        ...

    def matrix(self, weight: Tensor) -> Tensor:
        """The weight as one matrix for each group, outputs x inputs: (G, O, n)."""
        ...

    def stored(self, matrix: Tensor, shape: Sequence[int]) -> Tensor:
        """The way back: the matrices as a weight of some shape."""
        ...

    def positions(self, x: Tensor) -> tuple[int, int]:
        """How many samples an input has, and how many rows each of them gives."""
        ...

    def rows(self, x: Tensor, chosen: Tensor | None = None) -> Tensor:
        """The rows that the weight meets: (R, G, n), sample by sample.

        Args:
            x: the input.
            chosen: the positions of each sample that are taken, (samples, P); None for all.
        """
        ...


@dataclass(frozen=True)
class Linear:
    """``F.linear``.

    Example:
        >>> Linear().rows(torch.ones(2, 5, 3), torch.tensor([[0], [4]])).shape, Linear().positions(torch.ones(2, 5, 3))
        (torch.Size([2, 1, 3]), (2, 5))
    """

    def columns(self, x: Tensor) -> int:
        return x.shape[-1]

    def matrix(self, weight: Tensor) -> Tensor:
        return weight.unsqueeze(0)

    def stored(self, matrix: Tensor, shape: Sequence[int]) -> Tensor:
        return matrix.reshape(tuple(shape))

    def positions(self, x: Tensor) -> tuple[int, int]:
        return (x.shape[0], math.prod(x.shape[1:-1])) if x.ndim > 1 else (1, 1)

    def rows(self, x: Tensor, chosen: Tensor | None = None) -> Tensor:
        samples, each = self.positions(x)
        apart = x.reshape(samples, each, x.shape[-1])
        if chosen is not None:
            apart = apart.gather(1, chosen.unsqueeze(2).expand(-1, -1, x.shape[-1]))
        return apart.reshape(-1, 1, x.shape[-1])


@dataclass(frozen=True)
class Stacked(Linear):
    """Linear layers whose weights are kept as one, such as the projections of queries, keys and values.

    Args:
        parts: how many; each has inputs of its own.

    Example:
        >>> Stacked(3).matrix(torch.ones(12, 8)).shape
        torch.Size([3, 4, 8])
    """

    parts: int = 1

    def matrix(self, weight: Tensor) -> Tensor:
        return weight.reshape(self.parts, -1, weight.shape[-1])


@dataclass(frozen=True)
class Convolution:
    """``F.conv1d`` to ``F.conv3d``, of inputs that are padded already where padding isn't zeros.

    Args:
        kernel: size along each dimension.
        stride, dilation: along each dimension.
        padding: zeros before and behind, along each dimension.
        groups: of channels.

    Example:
        >>> conv = Convolution((3,), (1,), (1,), ((1, 1),), 1)
        >>> conv.rows(torch.tensor([[[1.0, 2.0]]])).squeeze(1)
        tensor([[0., 1., 2.],
                [1., 2., 0.]])
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    groups: int

    def columns(self, x: Tensor) -> int:
        return x.shape[-1 - len(self.kernel)] // self.groups * math.prod(self.kernel)

    def matrix(self, weight: Tensor) -> Tensor:
        return weight.reshape(self.groups, weight.shape[0] // self.groups, -1)

    def stored(self, matrix: Tensor, shape: Sequence[int]) -> Tensor:
        return matrix.reshape(tuple(shape))

    def outputs(self, sizes: Sequence[int]) -> tuple[int, ...]:
        """The size of the output along each dimension, for an input that is padded already."""
        each = zip(sizes, self.kernel, self.stride, self.dilation, strict=True)
        return tuple((size - dilation * (kernel - 1) - 1) // stride + 1 for size, kernel, stride, dilation in each)

    def _padded_sizes(self, x: Tensor) -> tuple[int, ...]:
        sizes = x.shape[-len(self.kernel) :]
        return tuple(size + sum(pads) for size, pads in zip(sizes, self.padding, strict=True))

    def positions(self, x: Tensor) -> tuple[int, int]:
        samples = x.shape[0] if x.ndim == len(self.kernel) + 2 else 1
        return samples, math.prod(self.outputs(self._padded_sizes(x)))

    def rows(self, x: Tensor, chosen: Tensor | None = None) -> Tensor:
        x = x if x.ndim == len(self.kernel) + 2 else x.unsqueeze(0)
        if any(map(any, self.padding)):
            x = F.pad(x, [side for pads in reversed(self.padding) for side in pads])
        sizes = x.shape[2:]
        samples, channels, flat = x.shape[0], x.shape[1], x.flatten(2)  # (N, C, S)
        starts = _raveled(self.outputs(sizes), self.stride, sizes, x.device)  # (L,)
        taps = _raveled(self.kernel, self.dilation, sizes, x.device)  # (K,)
        first = starts.expand(samples, -1) if chosen is None else starts[chosen]  # (N, P)
        index = (first.unsqueeze(2) + taps).reshape(samples, 1, -1)  # (N, 1, P K)
        taken = flat.gather(2, index.expand(-1, channels, -1)).unflatten(2, (first.shape[1], -1))
        return taken.transpose(1, 2).reshape(samples * first.shape[1], self.groups, -1)


@dataclass(frozen=True)
class Transposed:
    """``F.conv_transpose1d`` to ``F.conv_transpose3d``: a convolution of an input with zeros in between.

    Args:
        kernel: size along each dimension.
        stride, dilation: along each dimension.
        padding: along each dimension.
        output_padding: along each dimension.
        groups: of channels.

    Example:
        >>> Transposed((2,), (2,), (1,), (0,), (0,), 1).rows(torch.tensor([[[5.0]]])).squeeze(1)
        tensor([[5., 0.],
                [0., 5.]])
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: tuple[int, ...]
    output_padding: tuple[int, ...]
    groups: int

    def columns(self, x: Tensor) -> int:
        return x.shape[-1 - len(self.kernel)] // self.groups * math.prod(self.kernel)

    def matrix(self, weight: Tensor) -> Tensor:
        inputs, outputs = weight.shape[0] // self.groups, weight.shape[1]
        apart = weight.reshape(self.groups, inputs, outputs, -1).transpose(1, 2)
        return apart.reshape(self.groups, outputs, -1)

    def stored(self, matrix: Tensor, shape: Sequence[int]) -> Tensor:
        inputs, outputs = shape[0] // self.groups, shape[1]
        return matrix.reshape(self.groups, outputs, inputs, -1).transpose(1, 2).reshape(tuple(shape))

    def _plain(self) -> Convolution:
        """The convolution of the spread input; its taps run backwards, see `rows`."""
        ends = []
        for kernel, dilation, padding, more in zip(
            self.kernel, self.dilation, self.padding, self.output_padding, strict=True
        ):
            reach = dilation * (kernel - 1) - padding
            ends.append((reach, reach + more))
        ones = (1,) * len(self.kernel)
        return Convolution(self.kernel, ones, self.dilation, tuple(ends), self.groups)

    def _spread(self, x: Tensor) -> Tensor:
        sizes = [(size - 1) * stride + 1 for size, stride in zip(x.shape[2:], self.stride, strict=True)]
        out = x.new_zeros(*x.shape[:2], *sizes)
        out[(..., *(slice(None, None, stride) for stride in self.stride))] = x
        return out

    def positions(self, x: Tensor) -> tuple[int, int]:
        samples = x.shape[0] if x.ndim == len(self.kernel) + 2 else 1
        sizes = x.shape[-len(self.kernel) :]
        spread = [(size - 1) * stride + 1 for size, stride in zip(sizes, self.stride, strict=True)]
        padded = [size + sum(pads) for size, pads in zip(spread, self._plain().padding, strict=True)]
        return samples, math.prod(self._plain().outputs(padded))

    def rows(self, x: Tensor, chosen: Tensor | None = None) -> Tensor:
        x = x if x.ndim == len(self.kernel) + 2 else x.unsqueeze(0)
        found = self._plain().rows(self._spread(x), chosen)  # (R, G, C / G * K)
        apart = found.unflatten(2, (-1, *self.kernel))
        return apart.flip(list(range(3, apart.ndim))).flatten(2)


def _raveled(counts: Sequence[int], steps: Sequence[int], sizes: Sequence[int], device: torch.device) -> Tensor:
    """The places of a lattice in the flat memory of an array of some sizes."""
    found = torch.zeros(1, dtype=torch.int64, device=device)
    for count, step, size in zip(counts, steps, sizes, strict=True):
        along = torch.arange(count, device=device) * step
        found = (found.unsqueeze(1) * size + along).reshape(-1)
    return found


def _numbers(value: Any, count: int) -> tuple[int, ...]:
    return (int(value),) * count if not isinstance(value, Sequence) else tuple(map(int, value)) * (count // len(value))


def _linear(given: Mapping[str, Any]) -> Product:
    return Linear()


def _convolution(given: Mapping[str, Any]) -> Product:
    kernel = tuple(given["weight"].shape[2:])
    stride, dilation = (_numbers(given[name], len(kernel)) for name in ("stride", "dilation"))
    padding = given["padding"]
    if padding == "valid":
        pads = [(0, 0)] * len(kernel)
    elif padding == "same":
        reach = [spread * (size - 1) for size, spread in zip(kernel, dilation, strict=True)]
        pads = [(each // 2, each - each // 2) for each in reach]
    else:
        pads = [(each, each) for each in _numbers(padding, len(kernel))]
    return Convolution(kernel, stride, dilation, tuple(pads), int(given["groups"]))


def _transposed(given: Mapping[str, Any]) -> Product:
    kernel = tuple(given["weight"].shape[2:])
    names = ("stride", "dilation", "padding", "output_padding")
    stride, dilation, padding, output_padding = (_numbers(given[name], len(kernel)) for name in names)
    return Transposed(kernel, stride, dilation, padding, output_padding, int(given["groups"]))


_CONV = {"input": None, "weight": None, "bias": None, "stride": 1, "padding": 0, "dilation": 1, "groups": 1}
_TRANSPOSED = {
    **dict.fromkeys(("input", "weight", "bias")),
    "stride": 1,
    "padding": 0,
    "output_padding": 0,
    "groups": 1,
    "dilation": 1,
}
_KINDS: Mapping[str, tuple[Mapping[str, Any], Callable[[Mapping[str, Any]], Product]]] = {
    "linear": (dict.fromkeys(("input", "weight", "bias")), _linear),
    "conv": (_CONV, _convolution),
    "conv_transpose": (_TRANSPOSED, _transposed),
}


def product_of(
    function: object, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[Product, dict[str, Any]] | None:
    """What a call multiplies, and its arguments by name; None for a function that is no product with a weight.

    Example:
        >>> product, given = product_of(F.conv1d, (torch.ones(1, 4, 8), torch.ones(6, 2, 3)), {"groups": 2})
        >>> product.matrix(given["weight"]).shape, product.positions(given["input"])
        (torch.Size([2, 3, 6]), (1, 6))
    """
    found = _KINDS.get(kind_of(function) or "")
    if found is None:
        return None
    usual, make = found
    given = {**usual, **dict(zip(usual, args, strict=False)), **kwargs}
    return make(given), given

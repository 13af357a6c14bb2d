"""Which values share a scale.

A granularity is a value without state. It says one thing, `Granularity.block`: how many neighbours along each dimension
share a scale. All else follows: how many scales a tensor has, `rows` in which dimension 0 counts them, which is what
statistics and fused forms work on, and the compact shape in which scales are kept, that of ONNX's blocked quantization.
"""

import math
from collections.abc import Sequence
from operator import index
from typing import NamedTuple

import torch
from torch import Tensor

from .errors import QuantizerError, SettingError

__all__ = ["Granularity", "PerAxis", "PerBlock", "PerGroup", "PerTensor", "PerToken", "granularity_of"]


class Granularity:
    """Base of granularities, the shipped ones and a user's own: subclasses implement `block`.

    They are values: equal, hashable, immutable. A subclass is a frozen dataclass, or a named tuple behind this class;
    the latter also goes through ``torch.compile`` as part of a `QuantTensor`. ``str`` of it is part of what a saved
    state says of its numbers.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class PerHead(Granularity):  # a projection's outputs, head by head
        ...     heads: int
        ...
        ...     def block(self, shape):
        ...         return (shape[0] // self.heads, *shape[1:])
        >>> per_head, weight = PerHead(2), torch.tensor([[1.0, -2.0], [0.5, 0.25], [3.0, 0.0], [0.5, 4.0]])
        >>> per_head.count(weight.shape), per_head.scales_shape(weight.shape)
        (2, (2, 1))
        >>> per_head.rows(weight).abs().amax(1)
        tensor([2., 4.])
    """

    __slots__ = ()
    axis: int | None = None  # the dimension with a scale for each index, where that is all that there is

    def block(self, shape: Sequence[int]) -> tuple[int, ...]:
        """How many neighbours along each dimension of a tensor share a scale, from 1 to the dimension's size.

        A block at the end of a dimension may be shorter.
        """
        raise NotImplementedError

    @property
    def single(self) -> bool:
        """Whether there is one scale, whatever the tensor's shape."""
        return False

    @property
    def broadcasts(self) -> bool:
        """Whether scales broadcast against every tensor, as it cuts no dimension into pieces."""
        return False

    def check(self) -> None:
        """Raise a `SettingError` where it was made with something impossible; called when a quantizer takes it."""

    def fits(self, ndim: int) -> bool:
        """Whether tensors of so many dimensions can have it."""
        return True

    def placed(self, ndim: int) -> "Granularity":
        """The same for tensors of so many dimensions, with dimensions counted from the first."""
        return self

    def scales_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape in which the scales of a tensor are kept: one for each block."""
        return tuple(-(-size // step) for size, step in zip(shape, self._block(shape), strict=True))

    def count(self, shape: Sequence[int]) -> int:
        """How many scales a tensor has."""
        return math.prod(self.scales_shape(shape))

    def _block(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The block, at least 1 along each dimension; checked."""
        found = tuple(self.block(shape))
        if len(found) != len(shape) or not all(
            1 <= step <= max(size, 1) for step, size in zip(found, shape, strict=True)
        ):
            raise QuantizerError(
                f"{self!r}.block({tuple(shape)}) is {found}: expected one whole number for each of {len(shape)} "
                "dimensions, from 1 to its size."
            )
        return found

    def _split(self, shape: Sequence[int]) -> bool:
        """Whether some dimension is cut into pieces, so that the scales don't broadcast against the tensor."""
        return not self.broadcasts and any(
            1 < step < size for step, size in zip(self._block(shape), shape, strict=True)
        )

    def view(self, x: Tensor) -> Tensor:
        """The tensor, or its rows, whichever `beside` broadcasts against."""
        return self.rows(x) if self._split(x.shape) else x

    def beside(self, scales: Tensor, x: Tensor) -> Tensor:
        """The scales of a tensor, or other numbers like them, shaped to broadcast against `view` of it."""
        if scales.numel() == 1:
            return scales.reshape(())
        return scales.reshape(-1, 1) if self._split(x.shape) else self.compact(scales, x.shape)

    def back(self, view: Tensor, x: Tensor) -> Tensor:
        """The tensor of a view, shaped like ``x``."""
        return self.unrows(view, x) if self._split(x.shape) else view

    def compact(self, flat: Tensor, shape: Sequence[int]) -> Tensor:
        """One number for each row, in the shape in which scales are kept; one for all stays 0-d."""
        return flat if flat.ndim == 0 else flat.reshape(self.scales_shape(shape))

    def spread(self, scales: Tensor, shape: Sequence[int]) -> Tensor:
        """The scales of a tensor of some shape, or other numbers like them, broadcastable to it."""
        if scales.numel() == 1:
            return scales.reshape(())
        for dim, (step, size) in enumerate(zip(self._block(shape), shape, strict=True)):
            if 1 < step < size:
                scales = scales.repeat_interleave(step, dim).narrow(dim, 0, size)
        return scales

    def rows(self, x: Tensor) -> Tensor:
        """The values that share a scale, row by row: (scales, values). A view where the layout allows one.

        A block at the end that is shorter is filled up by repeating it.
        """
        block = self._block(x.shape)
        for dim, step in enumerate(block):
            missing = -x.shape[dim] % step
            if missing:
                tail = x.narrow(dim, x.shape[dim] - (step - missing), step - missing)
                fill = [1] * x.ndim
                fill[dim] = -(-missing // (step - missing))
                x = torch.cat([x, tail.repeat(fill).narrow(dim, 0, missing)], dim)
        counted, shared, sizes = _dimensions(x.shape, block)
        scales, values = (math.prod([sizes[dim] for dim in dims]) for dims in (counted, shared))
        return x.reshape(sizes).permute(counted + shared).reshape(scales, values)

    def unrows(self, rows: Tensor, x: Tensor) -> Tensor:
        """The tensor whose `rows` these are, shaped like ``x``."""
        block = self._block(x.shape)
        full = [-(-size // step) * step for size, step in zip(x.shape, block, strict=True)]
        counted, shared, sizes = _dimensions(full, block)
        order = counted + shared
        back = [order.index(dim) for dim in range(len(order))]
        out = rows.reshape([sizes[dim] for dim in order]).permute(back).reshape(full)
        for dim, size in enumerate(x.shape):
            out = out.narrow(dim, 0, size) if full[dim] != size else out
        return _laid_out(out, x)

    def __str__(self) -> str:
        return repr(self)

    # A named tuple behind this class equals one of its own kind only, and is never false.

    def __eq__(self, other: object) -> bool:
        if not isinstance(self, tuple):
            return self is other
        return type(self) is type(other) and tuple.__eq__(self, other)

    def __ne__(self, other: object) -> bool:
        return not self == other  # a tuple has its own

    def __hash__(self) -> int:
        return hash((type(self), *self)) if isinstance(self, tuple) else object.__hash__(self)

    def __bool__(self) -> bool:
        return True


def _laid_out(out: Tensor, like: Tensor) -> Tensor:
    """A tensor in the memory format of another, contiguous or channels last."""
    for ndim, layout in ((4, torch.channels_last), (5, torch.channels_last_3d)):
        if like.ndim == ndim and not like.is_contiguous() and like.is_contiguous(memory_format=layout):
            return out.contiguous(memory_format=layout)
    return out.contiguous()


def _dimensions(shape: Sequence[int], block: Sequence[int]) -> tuple[list[int], list[int], list[int]]:
    """Each dimension as (blocks, size of a block): which of these count scales, which share one, and their sizes."""
    sizes: list[int] = []
    counted, shared = [], []
    for size, step in zip(shape, block, strict=True):
        if step < size or size == 0:
            counted.append(len(sizes))
            sizes.append(size // step)
        if size > 0 and (step > 1 or step == size):
            shared.append(len(sizes))
            sizes.append(step)
    return counted, shared, sizes


class PerTensor(Granularity, NamedTuple("_PerTensor", [])):
    """One scale for all values.

    Example:
        >>> PerTensor().count((4, 8)), str(PerTensor())
        (1, 'per tensor')
    """

    __slots__ = ()

    def block(self, shape: Sequence[int]) -> tuple[int, ...]:
        return tuple(max(size, 1) for size in shape)

    @property
    def single(self) -> bool:
        return True

    def scales_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        return ()

    @property
    def broadcasts(self) -> bool:
        return True

    def rows(self, x: Tensor) -> Tensor:
        return x.reshape(1, -1)

    def spread(self, scales: Tensor, shape: Sequence[int]) -> Tensor:
        return scales

    def __str__(self) -> str:
        return "per tensor"


class _Axis(NamedTuple):
    axis: int


class PerAxis(Granularity, _Axis):
    """A scale for each index of one dimension: per channel. ``axis=1`` in a quantizer stands for ``PerAxis(1)``.

    Example:
        >>> PerAxis(1).scales_shape((2, 3, 4, 4)), str(PerAxis(1))
        ((1, 3, 1, 1), 'axis 1')
    """

    __slots__ = ()
    axis: int = _Axis.axis  # type: ignore[assignment]

    def check(self) -> None:
        _check_dimension("axis", self.axis)

    def block(self, shape: Sequence[int]) -> tuple[int, ...]:
        axis = self.axis % len(shape)
        return tuple(1 if dim == axis else max(size, 1) for dim, size in enumerate(shape))

    def scales_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        axis = self.axis % len(shape)
        return tuple(size if dim == axis else 1 for dim, size in enumerate(shape))

    @property
    def broadcasts(self) -> bool:
        return True

    def rows(self, x: Tensor) -> Tensor:
        moved = x.movedim(self.axis, 0)
        return moved.flatten(1) if x.ndim > 1 else moved.unsqueeze(1)

    def spread(self, scales: Tensor, shape: Sequence[int]) -> Tensor:
        return scales

    def fits(self, ndim: int) -> bool:
        return -ndim <= self.axis < ndim

    def placed(self, ndim: int) -> Granularity:
        return PerAxis(self.axis % ndim)

    def compact(self, flat: Tensor, shape: Sequence[int]) -> Tensor:
        if flat.ndim == 0:
            return flat
        return flat.reshape([-1 if dim == self.axis % len(shape) else 1 for dim in range(len(shape))])

    def __str__(self) -> str:
        return f"axis {self.axis}"


class _Group(NamedTuple):
    group_size: int = 32
    group_axis: int = -1


class PerGroup(Granularity, _Group):
    """A scale for each run of neighbours along one dimension, at every index of the others; the last may be shorter.

    The ``block_size`` of ONNX's DequantizeLinear.

    Args:
        group_size: how many neighbours, 1 or more; -1 for the whole row.
        group_axis: the dimension that is cut into groups.

    Example:
        >>> groups = PerGroup(group_size=4)
        >>> groups.scales_shape((2, 10)), str(groups)
        ((2, 3), 'groups of 4 along axis -1')
        >>> groups.spread(torch.tensor([[1.0, 2.0]]), (1, 6))
        tensor([[1., 1., 1., 1., 2., 2.]])
    """

    __slots__ = ()

    def check(self) -> None:
        _check_dimension("group_axis", self.group_axis)
        if not _is_size(self.group_size):
            expected = "a whole number of neighbours, 1 or more, or -1 for all"
            raise SettingError("group_size", self.group_size, expected)

    def block(self, shape: Sequence[int]) -> tuple[int, ...]:
        axis, found = self.group_axis % len(shape), [1] * len(shape)
        size = max(shape[axis], 1)
        found[axis] = size if self.group_size == -1 else min(self.group_size, size)
        return tuple(found)

    def fits(self, ndim: int) -> bool:
        return -ndim <= self.group_axis < ndim

    def placed(self, ndim: int) -> Granularity:
        return PerGroup(self.group_size, self.group_axis % ndim)

    def __str__(self) -> str:
        size = "all" if self.group_size == -1 else self.group_size
        return f"groups of {size} along axis {self.group_axis}"


class PerToken(Granularity, NamedTuple("_PerToken", [])):
    """A scale for each vector along the last dimension.

    Example:
        >>> PerToken().scales_shape((2, 7, 64)), str(PerToken())
        ((2, 7, 1), 'per token')
    """

    __slots__ = ()

    def block(self, shape: Sequence[int]) -> tuple[int, ...]:
        return (*[1] * (len(shape) - 1), *(max(size, 1) for size in shape[-1:]))

    def scales_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        return (*shape[:-1], 1) if shape else ()

    @property
    def broadcasts(self) -> bool:
        return True

    def rows(self, x: Tensor) -> Tensor:
        return x.reshape(math.prod(x.shape[:-1]), x.shape[-1]) if x.ndim else x.reshape(1, 1)

    def __str__(self) -> str:
        return "per token"


class _Block(NamedTuple):
    block_sizes: tuple[int, ...]


class PerBlock(Granularity, _Block):
    """A scale for each block of the last dimensions, such as 128 x 128; one for each index of those before.

    Args:
        block_sizes: of the last dimensions, in their order; -1 for a whole dimension.

    Example:
        >>> PerBlock((2, 4)).scales_shape((3, 4, 10)), str(PerBlock((2, 4)))
        ((3, 2, 3), 'blocks of 2 x 4')
    """

    __slots__ = ()

    def check(self) -> None:
        sizes = self.block_sizes
        if not isinstance(sizes, tuple) or not sizes or not all(map(_is_size, sizes)):
            expected = "a tuple of whole numbers, 1 or more, or -1 for a whole dimension, such as (128, 128)"
            raise SettingError("block_sizes", sizes, expected)

    def block(self, shape: Sequence[int]) -> tuple[int, ...]:
        sizes = self.block_sizes[-len(shape) :] if shape else ()
        known = [1] * (len(shape) - len(sizes)) + [*sizes]
        return tuple(
            max(side, 1) if size == -1 else min(size, max(side, 1)) for size, side in zip(known, shape, strict=True)
        )

    def __str__(self) -> str:
        return f"blocks of {' x '.join(map(str, self.block_sizes))}"


_PER_TENSOR = PerTensor()


def granularity_of(axis: object, granularity: object = None) -> Granularity:
    """The granularity that was given, or the one that ``axis`` stands for.

    Raises:
        SettingError: an axis that is no dimension, something that is no granularity, or both that don't agree.

    Example:
        >>> granularity_of(None), granularity_of(1)
        (PerTensor(), PerAxis(axis=1))
    """
    if axis is None and type(granularity) is PerTensor:
        return granularity
    dimension = _checked_axis(axis)
    if granularity is None:
        return _PER_TENSOR if dimension is None else PerAxis(dimension)
    if not isinstance(granularity, Granularity):
        raise SettingError("granularity", granularity, "a Granularity such as PerGroup(32), PerAxis(1) or PerTensor()")
    granularity.check()
    if dimension is not None and granularity.axis != dimension:
        raise SettingError("axis", axis, f"no axis beside granularity={granularity!r}", "Leave one of the two out.")
    return granularity


def _whole(number: object) -> int | None:
    """The number as an int; None if it is no whole number."""
    try:
        return None if isinstance(number, bool) else index(number)  # type: ignore[arg-type]
    except TypeError:
        return None


def _check_dimension(setting: str, found: object) -> None:
    if _whole(found) is None:
        raise SettingError(setting, found, "a dimension such as 1")


def _is_size(found: object) -> bool:
    """Whether it is a number of neighbours, or -1 for all."""
    number = _whole(found)
    return number is not None and (number >= 1 or number == -1)


def _checked_axis(axis: object) -> int | None:
    if axis is None:
        return None
    found = _whole(axis)
    if found is None:
        raise SettingError("axis", axis, "a dimension such as 1, or None for one scale per tensor")
    if not -_DIMENSIONS <= found < _DIMENSIONS:
        expected = f"a dimension from {-_DIMENSIONS} to {_DIMENSIONS - 1}, or None for one scale per tensor"
        raise SettingError("axis", axis, expected)
    return found


_DIMENSIONS = 8  # more than any tensor that flows through a network has

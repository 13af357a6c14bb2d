"""Which operations keep a tensor on its grid, and what grid their results are on."""

from collections.abc import Callable, Hashable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from .aliases import Arguments, Keywords, Operator
from .formats.integers import Integers
from .granularity import Granularity, PerAxis, PerGroup, PerToken
from .grid import Grid, is_stored, shared

__all__ = [
    "CHANGES",
    "COPIES",
    "DIMENSIONS",
    "FILTERS",
    "JOINS",
    "MOVES",
    "RULES",
    "SHIFTS",
    "STAYS",
    "SUMS",
    "VIEWS",
    "Operation",
    "may_hold_zero",
    "may_leave",
]

aten = torch.ops.aten


class Operation(NamedTuple):
    """A call of an operation on tensors of which at least one is quantized.

    Args:
        func: the operation.
        args: its positional arguments, quantized tensors replaced by their values.
        kwargs: its keyword arguments, likewise.
        grids: the grid, or None, of each positional argument; for a list of tensors, of each of them.
        out: the result, the first one of several.
    """

    func: Operator
    args: Arguments
    kwargs: Keywords
    grids: tuple[Grid | None, ...]
    out: Tensor

    def argument(self, index: int, name: str, default: object) -> Any:
        """An argument given by position or by name."""
        return self.args[index] if len(self.args) > index else self.kwargs.get(name, default)


# Groups of operations that treat values alike.

COPIES = (aten.alias.default, aten.clone.default, aten.detach.default, aten.lift_fresh.default)
SHIFTS = (aten.flip.default, aten.roll.default)
DIMENSIONS = (  # dimensions are exchanged, dropped or cut
    aten.expand.default,
    aten.permute.default,
    aten.select.int,
    aten.slice.Tensor,
    aten.split.Tensor,
    aten.split_with_sizes.default,
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.t.default,
    aten.transpose.int,
    aten.unbind.int,
    aten.unsqueeze.default,
)
VIEWS = (aten._reshape_alias.default, aten._unsafe_view.default, aten.view.default)
MOVES = (  # values change places, or some of them are picked
    aten.channel_shuffle.default,
    aten.gather.default,
    aten.index.Tensor,
    aten.index_select.default,
    aten.native_channel_shuffle.default,
    aten.pixel_shuffle.default,
    aten.pixel_unshuffle.default,
    aten.repeat.default,
    aten.unfold.default,
)
FILTERS = (  # values are picked along the dimensions after batch and channels
    aten.adaptive_max_pool2d.default,
    aten.adaptive_max_pool3d.default,
    aten.max_pool2d.default,
    aten.max_pool2d_with_indices.default,
    aten.max_pool3d.default,
    aten.max_pool3d_with_indices.default,
    aten.reflection_pad1d.default,
    aten.reflection_pad2d.default,
    aten.reflection_pad3d.default,
    aten.replication_pad1d.default,
    aten.replication_pad2d.default,
    aten.replication_pad3d.default,
    aten.upsample_nearest1d.default,
    aten.upsample_nearest2d.default,
    aten.upsample_nearest3d.default,
    aten.upsample_nearest1d.vec,
    aten.upsample_nearest2d.vec,
    aten.upsample_nearest3d.vec,
    aten._upsample_nearest_exact1d.default,
    aten._upsample_nearest_exact2d.default,
    aten._upsample_nearest_exact3d.default,
    aten._upsample_nearest_exact1d.vec,
    aten._upsample_nearest_exact2d.vec,
    aten._upsample_nearest_exact3d.vec,
)
JOINS = (aten.cat.default, aten.stack.default)
SUMS = (aten.add.Tensor, aten.sub.Tensor)


# Each rule returns the grid of the result, or None where it is on none; a list where each of several has its own.

Rule = Callable[[Operation], Grid | list[Grid] | None]
_Some = TypeVar("_Some", bound=Rule)
RULES: dict[Operator, Rule] = {}  # for the result
CHANGES: dict[Operator, Rule] = {}  # for the tensor that is written to
STAYS = {aten.relu_.default, aten.zero_.default, aten.detach_.default}  # write to a tensor, which keeps its grid


def _keeps(*operations: Operator, table: dict[Operator, Rule] = RULES) -> Callable[[_Some], _Some]:
    def register(rule: _Some) -> _Some:
        table.update(dict.fromkeys(operations, rule))
        return rule

    return register


def may_hold_zero(grid: Grid | None) -> bool:
    """Whether 0 is among the values of a grid: on that of integers it always is; on no grid, nothing is amiss.

    Example:
        >>> may_hold_zero(Grid(torch.tensor(0.5))), may_hold_zero(None)
        (True, True)
    """
    return grid is None or grid.number_format.whole or grid.number_format.has_zero


@_keeps(*COPIES)
def _in_place_of_each(op: Operation) -> Grid | None:
    """Values stay where they are."""
    return op.grids[0]


@_keeps(aten.relu.default)
def _above_zero(op: Operation) -> Grid | None:
    """Values stay where they are, or become 0."""
    return op.grids[0] if may_hold_zero(op.grids[0]) else None


@_keeps(*SHIFTS, *MOVES, aten.as_strided.default, aten.masked_select.default)
def _anywhere(op: Operation) -> Grid | None:
    """Values may end up anywhere: fine with one scale for all."""
    grid = op.grids[0]
    return grid if grid is not None and grid.granularity.single else None


@_keeps(aten.im2col.default)
def _unfolded(op: Operation) -> Grid | None:
    """The same, with 0 around them."""
    return _anywhere(op) if may_hold_zero(op.grids[0]) else None


@_keeps(aten._to_copy.default)
def _converted(op: Operation) -> Grid | None:
    grid = op.grids[0]
    if grid is None or not op.out.dtype.is_floating_point:
        return None
    zero_point = None if grid.zero_point is None else grid.zero_point.to(op.out.device)
    scale = grid.scale.to(op.out.device)
    return grid.replace(scale=scale, zero_point=zero_point, scale_format=grid.scale_format)


@_keeps(*FILTERS)
def _spatial(op: Operation) -> Grid | None:
    grid = op.grids[0]
    if grid is None or grid.granularity.single:
        return grid
    return grid if grid.axis is not None and grid.axis <= 1 else None


@_keeps(aten.constant_pad_nd.default)
def _padded(op: Operation) -> Grid | None:
    grid = op.grids[0]
    if grid is None or not may_hold_zero(grid) or op.argument(2, "value", 0) != 0:  # other values are on no grid
        return None
    if grid.granularity.single:
        return grid
    touched = {op.out.ndim - 1 - index // 2 for index, width in enumerate(op.args[1]) if width}
    return None if grid.axis is None or grid.axis in touched else grid


@_keeps(*VIEWS)
def _viewed(op: Operation) -> Grid | None:
    grid = op.grids[0]
    if grid is None or grid.granularity.single:
        return grid
    if grid.axis is None:
        return grid if op.args[0].shape == op.out.shape else _reshaped(op, grid)
    kept = grid.axis + 1
    same = op.args[0].shape[:kept] == op.out.shape[:kept]
    return _moved(grid, grid.axis, op.out.ndim) if same else None


@_keeps(*DIMENSIONS)
def _dimensions(op: Operation) -> Grid | list[Grid] | None:
    """Scales go where their dimension goes."""
    grid = op.grids[0]
    if grid is None or grid.granularity.single:
        return grid
    if grid.axis is None:
        return _rearranged(op, grid)
    axis = _followed(op, grid.axis)
    return None if axis is None else _moved(grid, axis, op.out.ndim)


def _followed(op: Operation, axis: int) -> int | None:
    """Where a dimension is after an operation that exchanges, drops or cuts some; None unless it is there as a whole.

    A stride that only this dimension has tells where it went.
    """
    tensor, mark = op.args[0], 7919
    strides = [mark if dim == axis else 0 for dim in range(tensor.ndim)]
    marked = torch.empty(mark * tensor.shape[axis], device="meta").as_strided(tensor.shape, strides)
    result = _listed(op.func(marked, *op.args[1:], **op.kwargs))[0]
    if mark not in result.stride():
        return None
    there = result.stride().index(mark)
    return there if result.shape[there] == tensor.shape[axis] else None


def _moved(grid: Grid, axis: int, ndim: int) -> Grid:
    """The grid with its scales along another axis of a tensor of another rank."""
    shape = [1] * ndim
    shape[axis] = -1
    zero_point = None if grid.zero_point is None else grid.zero_point.reshape(shape)
    scale, kept = grid.scale.reshape(shape), grid.scale_format
    return grid.replace(scale=scale, zero_point=zero_point, granularity=PerAxis(axis), scale_format=kept)


def _rearranged(op: Operation, grid: Grid) -> list[Grid] | None:
    """Scales of groups are moved as the values are, where that leaves the grouped dimension whole."""
    tensor, groups = op.args[0], _groups(grid.granularity, op.args[0].ndim)
    there = None if groups is None else _followed(op, groups.group_axis)
    if groups is None or there is None:
        return None
    axis, arguments = groups.group_axis, op.args[1:]
    if op.func is aten.expand.default:
        sizes = list(arguments[0])
        sizes[axis - tensor.ndim] = -1
        arguments = (sizes, *arguments[1:])

    def moved(each: Tensor | None) -> list[Tensor | None]:
        if each is None or each.ndim == 0:
            return [each] * len(outs)
        one = each.shape[axis] == 1  # what an operation does with a dimension of size 1, it must not do here
        shape = [*each.shape[:axis], tensor.shape[axis], *each.shape[axis + 1 :]]
        found = op.func(each.expand(shape) if one else each, *arguments, **op.kwargs)
        return [piece.narrow(there, 0, 1) if one else piece for piece in _listed(found)]

    outs = _listed(op.func(torch.empty_like(tensor, device="meta"), *op.args[1:], **op.kwargs))
    granularity = _regrouped(grid.granularity, groups.group_size, there, outs[0].ndim)
    kept = {"granularity": granularity, "scale_format": None if op.func in _PICKS else grid.scale_format}
    pairs = zip(moved(grid.scale), moved(grid.zero_point), strict=True)
    return [grid.replace(scale=scale, zero_point=zero_point, **kept) for scale, zero_point in pairs]


# Where scales are left out, the largest may be, which tells the scale that they are multiples of.
_PICKS = (
    aten.select.int,
    aten.slice.Tensor,
    aten.split.Tensor,
    aten.split_with_sizes.default,
    aten.unbind.int,
)


def _reshaped(op: Operation, grid: Grid) -> Grid | None:
    """The same where dimensions are joined and split on either side of the grouped one."""
    before, after = op.args[0].shape, op.out.shape
    groups = _groups(grid.granularity, len(before))
    if groups is None:
        return None
    axis, size = groups.group_axis, before[groups.group_axis]
    ahead = before[:axis].numel()
    there = next((dim for dim, side in enumerate(after) if side == size and after[:dim].numel() == ahead), None)
    if there is None or after[there + 1 :].numel() != before[axis + 1 :].numel():
        return None

    def shaped(each: Tensor | None) -> Tensor | None:
        if each is None or each.ndim == 0:
            return each
        return each.reshape([*after[:there], each.shape[axis], *after[there + 1 :]])

    granularity = _regrouped(grid.granularity, groups.group_size, there, len(after))
    kept = grid.scale_format
    moved = {"scale": shaped(grid.scale), "zero_point": shaped(grid.zero_point)}
    return grid.replace(**moved, granularity=granularity, scale_format=kept)


def _groups(granularity: Granularity, ndim: int) -> PerGroup | None:
    """Groups along one dimension; a token is a group of all."""
    if isinstance(granularity, PerToken):
        return PerGroup(-1, ndim - 1) if ndim else None
    return granularity if isinstance(granularity, PerGroup) else None  # whose axis counts from the first dimension


def _regrouped(granularity: Granularity, size: int, axis: int, ndim: int) -> Granularity:
    """The same groups along another dimension."""
    return granularity if isinstance(granularity, PerToken) and axis == ndim - 1 else PerGroup(size, axis)


def _listed(found: Any) -> list[Tensor]:
    return list(found) if isinstance(found, (tuple, list)) else [found]


@_keeps(*JOINS)
def _joined(op: Operation) -> Grid | None:
    """One grid for all, made by one stored scale."""
    first = op.grids[0]
    if first is None or not all(shared(first, grid) for grid in op.grids):
        return None
    dim = op.argument(1, "dim", 0) % op.out.ndim
    if first.granularity.single:
        return first
    return first if first.axis is not None and op.func is aten.cat.default and dim != first.axis else None


@_keeps(*SUMS)
def _summed(op: Operation) -> Grid | None:
    """On one shared scale integers add up; the result needs one bit more."""
    one, other, *_ = op.grids
    if one is None or other is None or not (is_stored(one.source) and is_stored(other.source)):
        return None
    if not (one.number_format.whole and other.number_format.whole):
        return None
    (scale_of_one, terms), (scale_of_other, more) = _stored_scale(one), _stored_scale(other)
    if op.argument(2, "alpha", 1) != 1 or scale_of_one != scale_of_other or one.granularity != other.granularity:
        return None
    if op.args[0].shape != op.args[1].shape and not one.granularity.single and one.axis is None:
        return None
    if op.args[0].ndim != op.args[1].ndim and not one.granularity.single:
        return None
    subtracts = op.func is aten.sub.Tensor
    zero_point = _combined(one.zero_point, other.zero_point, subtracts)
    signed = one.signed or other.signed or subtracts
    spare = 2 if one.signed != other.signed else 1  # an unsigned range of b bits needs b + 1 signed ones
    width = max(int(one.bit_width), int(other.bit_width)) + spare
    source = ("sum", scale_of_one, terms - more if subtracts else terms + more)
    spare_bits = min(one.spare_bits, other.spare_bits) - 1
    return Grid(one.scale, zero_point, Integers(width, signed), one.granularity, source, spare_bits)


def _stored_scale(grid: Grid) -> tuple[Hashable, int]:
    """What a grid has its scale from, and how many times its zero point is added up."""
    source = grid.source
    return source[1:] if isinstance(source, tuple) and source[0] == "sum" else (source, 1)


def _combined(one: Tensor | None, other: Tensor | None, subtracts: bool) -> Tensor | None:
    if one is None or other is None:
        return one if other is None else (-other if subtracts else other)
    return one - other if subtracts else one + other


# Dropout: a fresh tensor is filled with 0 and 1, divided by the share that is kept, and multiplied with the values.


@_keeps(aten.bernoulli_.float, table=CHANGES)
def _tossed(op: Operation) -> Grid | None:
    """0 and 1 are integers of one bit."""
    one = torch.ones((), dtype=op.out.dtype, device=op.out.device)
    return Grid(one, None, Integers(1, signed=False), source=("mask", "1"))


@_keeps(aten.div_.Scalar, aten.div_.Tensor, table=CHANGES)
def _rescaled(op: Operation) -> Grid | None:
    """A mask divided by the share of values that it keeps."""
    mask, share = op.grids[0], op.args[1]
    if mask is None or mask.source != ("mask", "1") or not isinstance(share, (int, float)) or not 0 < share <= 1:
        return None
    return mask.replace(scale=mask.scale / share, source=("mask", str(share)))


@_keeps(aten.mul.Tensor)
@_keeps(aten.mul_.Tensor, table=CHANGES)
def _masked(op: Operation) -> Grid | None:
    """Each value becomes 0 or the same multiple of itself."""
    at = next((index for index, grid in enumerate(op.grids) if _is_mask(grid)), None)
    grid = None if at is None else op.grids[1 - at]
    if at is None or grid is None or not may_hold_zero(grid) or op.args[1 - at].shape != op.out.shape:
        return None
    mask = op.grids[at]
    assert mask is not None
    return _dropped(op, grid, mask.scale, mask.source)


@_keeps(aten.native_dropout.default)
def _dropped_at_once(op: Operation) -> Grid | None:
    grid, probability = op.grids[0], op.args[1]
    if grid is None or op.argument(2, "train", True) is False:
        return grid
    if probability >= 1 or not may_hold_zero(grid):
        return None
    return _dropped(op, grid, 1 / (1 - probability), ("mask", str(1 - probability)))


def _dropped(op: Operation, grid: Grid, factor: float | Tensor, mask: Hashable) -> Grid:
    scale = grid.scale.to(torch.promote_types(grid.scale.dtype, op.out.dtype))
    return grid.replace(scale=scale * factor, source=("dropped", mask, grid.source))


def _is_mask(grid: Grid | None) -> bool:
    return grid is not None and isinstance(grid.source, tuple) and grid.source[0] == "mask"


# The names that autograd has for operations.

_SOMETIMES = {"add", "cat", "constantpadnd", "mul", "stack", "sub"}
_ALWAYS = {func._schema.name.removeprefix("aten::").replace("_", "") for func in RULES} - _SOMETIMES


def may_leave(operations: list[str]) -> list[str]:
    """Which of the operations that a tensor went through, in order, may have taken it off its grid.

    Example:
        >>> may_leave(["MaxPool2DWithIndices", "AvgPool2D", "View"]), may_leave(["Add", "View"])
        (['AvgPool2D'], ['Add'])
    """
    found = []
    for operation in operations:
        if operation.lower() not in _ALWAYS:
            found.append(operation)
            if operation.lower() not in _SOMETIMES:
                break  # certain to, whatever comes later
    return found

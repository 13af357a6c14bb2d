"""A tensor of integers that runs through a model in place of floats.

Its values are a sum of terms, integers times a scale: one term for a quantized tensor, for sums of products and after
an addition of tensors on one scale; two after an addition of tensors on different grids. Integers are centred (the zero
point is subtracted), so that 0 is 0 for padding and ReLU. What can be done with the integers alone is done with them;
anything else is computed on the values, and noted in the journal.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils import _pytree

from ....qcore.aliases import Arguments, Keywords, Operator
from ...capture.grid import IntegerGrid
from ...errors import ExportError
from ..sums import signed_bits
from .journal import Journal

__all__ = ["SELECTIONS", "IntegerTensor", "Term", "compact"]

aten = torch.ops.aten


class Term(NamedTuple):
    """Integers, and what one of them is worth.

    Args:
        codes: int64, centred.
        scale: float32, 0-d or broadcastable to the codes.
    """

    codes: Tensor
    scale: Tensor

    @property
    def values(self) -> Tensor:
        """The float32 values: two roundings, of the integer to float32 and of the product."""
        return self.codes.to(torch.float32) * self.scale


class IntegerTensor(torch.Tensor):
    """A tensor whose values are integers times scales, which operations keep as integers where they can.

    Args:
        terms: what the values are the sum of, in order.
        journal: of the run that the tensor belongs to.
        grid: the quantizer's grid that the integers are on, or None.
        low: values below count as this (a ReLU after an addition), or None.
        high: values above count as this, or None.
        bounded: whether the integers lie between the bounds already.
        stored: name of the quantizer's call whose parameter it is, or a part of it; None for activations.
        zero: whether it is made of zeros, such as the state before a recurrence: on any grid.

    Example:
        >>> x = IntegerTensor((Term(torch.tensor([3, -1]), torch.tensor(0.5)),), Journal())
        >>> x.relu().terms[0].codes, x.value, type(x.sin()).__name__
        (tensor([3, 0]), tensor([ 1.5000, -0.5000]), 'Tensor')
    """

    terms: tuple[Term, ...]
    journal: Journal
    grid_: IntegerGrid | None
    low: float | None
    high: float | None
    aliased: bool
    bounded: bool
    stored: str | None
    zero: bool

    @staticmethod
    def __new__(
        cls: type["IntegerTensor"],
        terms: tuple[Term, ...],
        journal: Journal,
        grid: IntegerGrid | None = None,
        low: float | None = None,
        high: float | None = None,
        aliased: bool = False,
        bounded: bool = False,
        stored: str | None = None,
        zero: bool = False,
    ) -> "IntegerTensor":
        codes = terms[0].codes
        self = torch.Tensor._make_wrapper_subclass(
            cls, codes.size(), dtype=torch.float32, device=codes.device, requires_grad=False
        )
        self.terms, self.journal, self.grid_, self.low, self.high = terms, journal, grid, low, high
        self.aliased, self.bounded, self.stored, self.zero = aliased, bounded, stored, zero
        return self

    def __init__(self, *parts: object, **named: object) -> None:
        pass

    @property
    def value(self) -> Tensor:
        """The float32 values, terms added up in order."""
        total = self.terms[0].values
        for term in self.terms[1:]:
            total = total + term.values
        return total.clamp(self.low, self.high) if self.pending else total

    @property
    def pending(self) -> bool:
        """Whether there are bounds beyond which integers lie that count as the bounds."""
        return not self.bounded and (self.low is not None or self.high is not None)

    @property
    def single(self) -> Term | None:
        """The only term of a tensor whose integers say everything, or None."""
        return self.terms[0] if len(self.terms) == 1 and not self.pending else None

    def __repr__(self, *, tensor_contents: object = None) -> str:
        return f"IntegerTensor({tuple(self.shape)}, {len(self.terms)} terms)"

    def __iadd__(self, other: Tensor | complex) -> Tensor:
        return self + other  # rebinds, as the result may be plain

    def __isub__(self, other: Tensor | complex) -> Tensor:
        return self - other

    def __imul__(self, other: Tensor | complex) -> Tensor:
        return self * other

    def __itruediv__(self, other: Tensor | complex) -> Tensor:
        return self / other

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(
        cls, func: Operator, types: object, args: Arguments = (), kwargs: Keywords | None = None
    ) -> object:
        kwargs = kwargs or {}
        if func._schema.is_mutable and isinstance(args[0] if args else None, IntegerTensor):
            return _in_place(func, args, kwargs)
        rule = _RULES.get(func)
        out = None if rule is None else rule(func, args, kwargs)
        if out is not None:
            return out
        if rule is None:
            out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        if func not in _LIKE:
            _journal((args, kwargs)).compute_in_float(func)
        return func(*_plain(args), **_plain(kwargs))


def _in_place(func: Operator, args: Arguments, kwargs: Keywords) -> object:
    """Write into an integer tensor: possible where the result is one, and no other tensor shares its memory."""
    target = args[0]
    name, overload = func._schema.name.removeprefix("aten::").removesuffix("_"), func._overloadname
    twin = getattr(getattr(aten, name, None), overload, None)
    out = None if twin is None or target.aliased else IntegerTensor.__torch_dispatch__(twin, (), args, kwargs)
    if not isinstance(out, IntegerTensor):
        where = target.journal.layer
        raise ExportError(
            f"{where}: {name}_ changes a quantized tensor in place, and what comes out are no integers on a grid. "
            f"Write the operation that returns a new tensor ({name}; inplace=False)."
        )
    target.terms, target.grid_, target.low, target.high = out.terms, out.grid_, out.low, out.high
    target.bounded, target.stored, target.zero = out.bounded, out.stored, out.zero
    return target


def _plain(arguments: Any) -> Any:
    if isinstance(arguments, (tuple, list)):
        return type(arguments)(_plain(each) for each in arguments)
    if isinstance(arguments, dict):
        return {name: _plain(each) for name, each in arguments.items()}
    return arguments.value if isinstance(arguments, IntegerTensor) else arguments


def _journal(arguments: object) -> Journal:
    """The journal of the first integer tensor among arguments."""
    found = (each for each in _pytree.tree_leaves(arguments) if isinstance(each, IntegerTensor))
    return next(found).journal


# Rules: the result of an operation on integers, or None where it takes values.

Rule = Callable[[Operator, Arguments, Keywords], object]
_RULES: dict[Operator, Rule] = {}
_LIKE = {
    *(aten.ones_like.default, aten.empty_like.default, aten.full_like.default),
    *(aten.new_ones.default, aten.new_empty.default, aten.new_full.default),
}


def _does(*operations: Operator) -> Callable[[Rule], Rule]:
    def register(rule: Rule) -> Rule:
        _RULES.update(dict.fromkeys(operations, rule))
        return rule

    return register


def _alike(tensor: IntegerTensor, terms: tuple[Term, ...], *, moved: bool, aliased: bool = False) -> IntegerTensor:
    """Other integers of a tensor: on the grid that it was on, unless several scales moved with them."""
    grid = None if moved and any(term.scale.ndim for term in terms) else tensor.grid_
    kept = (tensor.low, tensor.high, aliased, tensor.bounded, tensor.stored, tensor.zero)
    return IntegerTensor(terms, tensor.journal, grid, *kept)


@_does(aten.alias.default, aten.detach.default, aten.lift_fresh.default, aten.clone.default)
def _same(func: Operator, args: Arguments, kwargs: Keywords) -> object:
    tensor = args[0]
    terms = tuple(Term(func(term.codes, **kwargs), term.scale) for term in tensor.terms)
    return _alike(tensor, terms, moved=False, aliased=func is not aten.clone.default)


@_does(
    *(aten.expand.default, aten.permute.default, aten.t.default, aten.transpose.int, aten.unfold.default),
    *(aten.flip.default, aten.roll.default, aten.gather.default, aten.index_select.default, aten.index.Tensor),
    *(aten.select.int, aten.slice.Tensor, aten.split.Tensor, aten.split_with_sizes.default, aten.unbind.int),
    *(aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims, aten.unsqueeze.default, aten.repeat.default),
    *(aten.pixel_shuffle.default, aten.pixel_unshuffle.default, aten.channel_shuffle.default),
)
def _moved(func: Operator, args: Arguments, kwargs: Keywords) -> object:
    """Values change places; several scales go with them."""
    tensor, *rest = args
    if not isinstance(tensor, IntegerTensor):
        return None
    scales = [term.scale if term.scale.ndim == 0 else _spread(term) for term in tensor.terms]
    codes = [func(term.codes, *rest, **kwargs) for term in tensor.terms]
    moved = [each if each.ndim == 0 else func(each, *rest, **kwargs) for each in scales]
    view = func._schema.returns[0].alias_info is not None
    if not isinstance(codes[0], (tuple, list)):
        return _alike(tensor, tuple(map(Term, codes, moved)), moved=True, aliased=view)
    parts = []
    for index in range(len(codes[0])):
        own = (each if scale.ndim == 0 else each[index] for each, scale in zip(moved, scales, strict=True))
        parts.append(_alike(tensor, tuple(map(Term, (each[index] for each in codes), own)), moved=True, aliased=True))
    return parts


@_does(aten.view.default, aten._unsafe_view.default, aten._reshape_alias.default)
def _reshaped(func: Operator, args: Arguments, kwargs: Keywords) -> object:
    """The integers may lie in memory in another order than torch believes the tensor to."""
    tensor, size = args[0], args[1]
    terms = (
        Term(each.codes.reshape(size), each.scale if each.scale.ndim == 0 else _spread(each).reshape(size))
        for each in tensor.terms
    )
    return _alike(tensor, tuple(terms), moved=True, aliased=True)


@_does(aten.new_zeros.default, aten.zeros_like.default)
def _zeros(func: Operator, args: Arguments, kwargs: Keywords) -> object:
    """Zeros are integers on any grid: on that of the tensor that they are like, where it has one scale."""
    tensor, *rest = args
    if kwargs.get("dtype") not in (None, torch.float32):
        return None
    term, kept = tensor.single, {key: each for key, each in kwargs.items() if key != "dtype"}
    codes = func(tensor.terms[0].codes, *rest, **kept)
    one_scale = term is not None and term.scale.ndim == 0
    scale = term.scale if term is not None and one_scale else torch.ones((), device=codes.device)
    return IntegerTensor((Term(codes, scale),), tensor.journal, tensor.grid_ if one_scale else None, zero=True)


@_does(aten.embedding.default)
def _looked_up(func: Operator, args: Arguments, kwargs: Keywords) -> object:
    """Rows of a table; several scales go with them."""
    table, indices = args[:2]
    if not isinstance(table, IntegerTensor) or isinstance(indices, IntegerTensor):
        return None
    terms = (
        Term(func(each.codes, indices), each.scale if each.scale.ndim == 0 else func(_spread(each), indices))
        for each in table.terms
    )
    rows = _alike(table, tuple(terms), moved=True)
    rows.stored = None  # which rows, the input says
    return rows


def compact(scale: Tensor) -> Tensor:
    """A scale with size 1 in every dimension along which it doesn't change.

    Example:
        >>> compact(torch.tensor([[0.5, 0.5], [0.1, 0.1]])).shape
        torch.Size([2, 1])
    """
    for dim in range(scale.ndim):
        first = scale.narrow(dim, 0, 1)
        scale = first if scale.shape[dim] > 1 and bool((scale == first).all()) else scale
    return scale


def _spread(term: Term) -> Tensor:
    return term.scale.expand(term.codes.shape).contiguous()


@_does(aten._to_copy.default)
def _converted(func: Operator, args: Arguments, kwargs: Keywords) -> object:
    return _alike(args[0], args[0].terms, moved=False) if kwargs.get("dtype") in (None, torch.float32) else None


@_does(
    *(aten.max_pool2d_with_indices.default, aten.max_pool3d_with_indices.default),
    *(aten.max_pool2d.default, aten.max_pool3d.default),  # in inference mode
    *(aten.adaptive_max_pool2d.default, aten.adaptive_max_pool3d.default),
    *(aten.upsample_nearest1d.default, aten.upsample_nearest2d.default, aten.upsample_nearest3d.default),
    *(aten.upsample_nearest1d.vec, aten.upsample_nearest2d.vec, aten.upsample_nearest3d.vec),
    *(aten._upsample_nearest_exact1d.default, aten._upsample_nearest_exact2d.default),
    *(aten._upsample_nearest_exact1d.vec, aten._upsample_nearest_exact2d.vec),
    *(aten.reflection_pad1d.default, aten.reflection_pad2d.default, aten.reflection_pad3d.default),
    *(aten.replication_pad1d.default, aten.replication_pad2d.default, aten.replication_pad3d.default),
)
def _selected(func: Operator, args: Arguments, kwargs: Keywords) -> object:
    """Some values are kept, the largest or every other: on integers the same, where neighbours share a scale."""
    tensor, *rest = args
    given = [Term(term.codes, compact(term.scale)) for term in tensor.terms]
    if any(size > 1 for term in given for size in term.scale.shape[2:]):
        return None
    if len(given) > 1 and "max_pool" in func._schema.name:
        return _largest(func, tensor, given, rest, kwargs)
    indices: list[Tensor] = []
    terms = []
    for term in given:
        out = func(term.codes.double(), *rest, **kwargs)
        codes, *indices = out if isinstance(out, tuple) else (out,)
        terms.append(Term(codes.to(torch.int64), term.scale))
    kept = _alike(tensor, tuple(terms), moved=False)
    return (kept, *indices) if indices else kept


def _largest(func: Operator, tensor: IntegerTensor, given: list[Term], rest: list[object], kwargs: Keywords) -> object:
    """Of a sum of integers on different grids: the integers at the places where their values are largest."""
    pool = func if len(func._schema.returns) > 1 else getattr(aten, f"{func._schema.name[6:]}_with_indices").default
    _, indices = pool(tensor.value, *rest, **kwargs)
    spatial = indices.ndim - next(each for each in range(2, 4) if f"max_pool{each}d" in func._schema.name)
    flat = indices.flatten(spatial)
    terms = (Term(term.codes.flatten(spatial).gather(-1, flat).reshape(indices.shape), term.scale) for term in given)
    kept = _alike(tensor, tuple(terms), moved=False)
    return kept if len(func._schema.returns) == 1 else (kept, indices)


@_does(aten.constant_pad_nd.default)
def _padded(func: Operator, args: Arguments, kwargs: Keywords) -> object:
    tensor, widths, *rest = args
    if (rest[0] if rest else kwargs.get("value", 0)) != 0:
        return None
    if tensor.pending and ((tensor.low or 0) > 0 or (tensor.high or 0) < 0):
        return None  # the zeros would count as the bound
    terms = (
        Term(func(each.codes, widths, 0), each.scale if each.scale.ndim == 0 else func(_spread(each), widths, 1.0))
        for each in tensor.terms
    )
    return _alike(tensor, tuple(terms), moved=True)


@_does(aten.cat.default, aten.stack.default)
def _joined(func: Operator, args: Arguments, kwargs: Keywords) -> object:
    """Integers side by side, each with its own scale."""
    if not all(isinstance(each, IntegerTensor) and not each.pending for each in args[0]):
        return None
    tensors: list[IntegerTensor] = list(args[0])
    first = next((each for each in tensors if not each.zero), tensors[0])
    tensors = [_zeros_like(first, each) if each.zero else each for each in tensors]
    if len({len(each.terms) for each in tensors}) > 1:
        return None
    dim = args[1] if len(args) > 1 else kwargs.get("dim", 0)
    if func is aten.stack.default:
        tensors = [each.unsqueeze(dim) for each in tensors]  # type: ignore[misc]
    terms = [_side_by_side(parts, dim) for parts in zip(*(each.terms for each in tensors), strict=True)]
    same = all(each.scale.ndim == 0 for each in terms) and all(_on_one_grid(first.grid_, x.grid_) for x in tensors)
    return IntegerTensor(tuple(terms), first.journal, first.grid_ if same else None, zero=first.zero)


def _zeros_like(tensor: IntegerTensor, zeros: IntegerTensor) -> IntegerTensor:
    """Zeros on the grid of another tensor, where its scales don't differ from place to place."""
    scales = [each.scale for each in tensor.terms]
    if any(each.ndim for each in scales):
        return zeros
    terms = (Term(zeros.terms[0].codes, each) for each in scales)
    return IntegerTensor(tuple(terms), zeros.journal, tensor.grid_, zero=True)


def _side_by_side(parts: tuple[Term, ...], dim: int) -> Term:
    scale = parts[0].scale
    if not all(each.scale.ndim == 0 and bool(each.scale == scale) for each in parts):
        scale = torch.cat([_spread(each) for each in parts], dim)
    return Term(torch.cat([each.codes for each in parts], dim), scale)


def _on_one_grid(one: IntegerGrid | None, other: IntegerGrid | None) -> bool:
    """Whether the same integers stand for the same values, whatever the grids are called."""
    return one is other or (one is not None and other is not None and replace(other, name=one.name) == one)


@_does(aten.add.Tensor, aten.sub.Tensor)
def _added(func: Operator, args: Arguments, kwargs: Keywords) -> object:
    """Terms side by side: what they add up to is worked out when they are quantized."""
    one, other, *rest = args
    alpha = rest[0] if rest else kwargs.get("alpha", 1)
    if not (isinstance(one, IntegerTensor) and isinstance(other, IntegerTensor)) or alpha != 1:
        return None
    if one.pending or other.pending:
        return None
    if len(one.terms) > 1 and len(other.terms) > 1:
        return None  # terms are added from left to right
    shape = torch.broadcast_shapes(one.shape, other.shape)
    sign = -1 if func is aten.sub.Tensor else 1
    grid, first, second = _grid_of_sum(one, other, sign), one.single, other.single
    if grid is not None and first is not None and second is not None:
        return IntegerTensor((Term(first.codes + sign * second.codes, first.scale),), one.journal, grid)
    terms = [Term(each.codes.expand(shape), each.scale) for each in one.terms]
    others = [Term(sign * each.codes.expand(shape), each.scale) for each in other.terms]
    terms = terms + others if len(other.terms) == 1 else others + terms
    if any(each.scale.ndim not in (0, len(shape)) for each in terms):
        return None
    return IntegerTensor(tuple(terms), one.journal)


def _grid_of_sum(one: IntegerTensor, other: IntegerTensor, sign: int) -> IntegerGrid | None:
    """The grid of a sum of two activations on one scale, or None."""
    first, second = one.grid_, other.grid_
    if first is None or second is None or not torch.equal(first.scale, second.scale):
        return None
    if any(each.axis is not None or each.bit_width > SUMMED for each in (first, second)):
        return None
    (low, high), (below, above) = first.centred_bounds, second.centred_bounds
    low, high = (low + below, high + above) if sign > 0 else (low - above, high - below)
    bits = max(signed_bits(low, high) - (low >= 0), 2)
    name = f"{first.name} {'+' if sign > 0 else '-'} {second.name}"
    return IntegerGrid(name, first.scale, torch.zeros_like(first.zero_point), bits, low < 0)


SUMMED = 22  # bits of an activation; sums of products, in accumulators, are wider, and stay terms of their own


@_does(aten.neg.default)
def _negated(func: Operator, args: Arguments, kwargs: Keywords) -> object:
    tensor = args[0]
    if tensor.pending:
        return None
    return IntegerTensor(tuple(Term(-each.codes, each.scale) for each in tensor.terms), tensor.journal)


@_does(aten.relu.default)
def _rectified(func: Operator, args: Arguments, kwargs: Keywords) -> object:
    tensor = args[0]
    if tensor.single is None:
        return _bounded(tensor, 0.0, None)
    term = tensor.single
    codes = term.codes.clamp_min(0)
    return IntegerTensor((Term(codes, term.scale),), tensor.journal, tensor.grid_, 0.0, tensor.high, bounded=True)


@_does(aten.hardtanh.default, aten.clamp.default, aten.clamp_min.default, aten.clamp_max.default, aten.relu6.default)
def _clamped(func: Operator, args: Arguments, kwargs: Keywords) -> object:
    named = dict(zip((each.name for each in func._schema.arguments), args, strict=False)) | kwargs
    if func is aten.relu6.default:
        return _bounded(args[0], 0.0, 6.0)
    default = {"min_val": -1.0, "max_val": 1.0} if func is aten.hardtanh.default else {}
    named = default | named
    low, high = (named.get(f"{end}_val", named.get(end)) for end in ("min", "max"))
    return _bounded(args[0], low, high)


def _bounded(tensor: IntegerTensor, low: float | None, high: float | None) -> IntegerTensor:
    """Clamping is left for later: it commutes with what integers go through until they are quantized."""

    def inside(bound: float | None) -> float | None:
        if bound is None:
            return None
        bound = bound if low is None else max(bound, low)
        return bound if high is None else min(bound, high)

    new_low = low if tensor.low is None else inside(tensor.low)
    new_high = high if tensor.high is None else inside(tensor.high)
    return IntegerTensor(tensor.terms, tensor.journal, tensor.grid_, new_low, new_high)


# Sums


@_does(aten.convolution.default)
def _convolved(func: Operator, args: Arguments, kwargs: Keywords) -> object:
    x, weight, bias, stride, padding, dilation, transposed, output_padding, groups = args
    factors = _factors(x, weight)
    if factors is None:
        return None
    one, other = factors
    flat = other.scale.reshape(-1)
    if flat.numel() > 1:
        rows = _spread(other)
        if transposed:  # (in, out / groups, *kernel)
            rows = rows.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
        rows = rows.flatten(1)
        flat = rows[:, 0]
        if bool((rows != flat[:, None]).any()):  # products of several scales in one sum
            return None
    reach = other.codes.abs().sum() if transposed else other.codes.abs().flatten(1).sum(1).max()
    x.journal.require_exact(one.codes, reach)
    with torch.backends.cudnn.flags(enabled=False):  # its algorithms may transform numbers before they add
        sums = func(
            one.codes.double(),
            other.codes.double(),
            None,
            stride,
            padding,
            dilation,
            transposed,
            output_padding,
            groups,
        )
    axis = x.ndim - weight.ndim + 1  # the channels, after the batch if there is one
    return _with_bias(x, weight, sums, one.scale * flat, axis, bias)


@_does(aten.mul.Tensor)
def _multiplied_each(func: Operator, args: Arguments, kwargs: Keywords) -> object:
    """Products of integers, element by element, on the product of the scales."""
    one, other = (each.single if isinstance(each, IntegerTensor) else None for each in args[:2])
    if one is None or other is None:
        return None
    codes = one.codes * other.codes
    if any(each.ndim not in (0, codes.ndim) for each in (one.scale, other.scale)):
        return None
    journal = args[0].journal
    journal.note_sums(codes, None)
    return IntegerTensor((Term(codes, one.scale * other.scale),), journal)


@_does(aten.mm.default, aten.bmm.default)
def _multiplied(func: Operator, args: Arguments, kwargs: Keywords) -> object:
    return _products(func, args[0], args[1], None)


@_does(aten.addmm.default)
def _multiplied_with_bias(func: Operator, args: Arguments, kwargs: Keywords) -> object:
    if kwargs.get("alpha", 1) != 1 or kwargs.get("beta", 1) != 1:
        return None
    return _products(aten.mm.default, args[1], args[2], args[0])


def _products(func: Operator, x: Any, weight: Tensor, bias: Tensor | None) -> Tensor | None:
    factors = _factors(x, weight)
    if factors is None:
        return None
    one, other = factors
    scales = other.scale
    if scales.ndim:
        row = scales.expand(other.codes.shape)
        row = row[..., :1, :]
        if weight.ndim != 2 or not bool((scales == row).all()):
            return None
        scales = row.reshape(-1)
    x.journal.require_exact(one.codes, other.codes.abs().sum(-2).max() if other.codes.numel() else 0)
    sums = func(one.codes.double(), other.codes.double())
    return _with_bias(x, weight, sums, one.scale * scales.reshape(-1), sums.ndim - 1, bias)


def _factors(x: Tensor, weight: Tensor) -> tuple[Term, Term] | None:
    """The integers of both sides, where there are such, and the input has one scale."""
    if not (isinstance(x, IntegerTensor) and isinstance(weight, IntegerTensor)):
        return None
    one, other = x.single, weight.single
    return None if one is None or other is None or one.scale.ndim else (one, other)


def _with_bias(x: IntegerTensor, weight: Tensor, sums: Tensor, scale: Tensor, axis: int, bias: Tensor | None) -> Tensor:
    """The sums as a tensor; a bias on their scale is added in integers, one of another scale is a second term."""
    journal, codes = x.journal, sums.to(torch.int64)
    scale = scale.reshape(()) if scale.numel() == 1 else scale  # flat
    journal.note_sums(codes, axis)

    def along(flat: Tensor) -> Tensor:
        return flat if flat.ndim == 0 else flat.reshape([-1 if dim == axis else 1 for dim in range(codes.ndim)])

    terms: list[Term] = [Term(codes, along(scale))]
    if isinstance(bias, IntegerTensor) and bias.single is not None:
        own = bias.single
        if torch.equal(own.scale.reshape(scale.shape) if own.scale.numel() == scale.numel() else own.scale, scale):
            codes = codes + along(own.codes)
            journal.note_sums(codes, axis)
            terms = [Term(codes, along(scale))]
        elif x.zero:
            terms = [Term(along(own.codes).expand(codes.shape), along(own.scale))]
        else:
            terms.append(Term(along(own.codes).expand(codes.shape), along(own.scale)))
    stored = weight.stored if isinstance(weight, IntegerTensor) and not x.zero else None
    if stored is not None and x.grid_ is not None:
        added = bias.stored if isinstance(bias, IntegerTensor) else None
        journal.note_product(stored, added, x.grid_, [sums.to(torch.int64), codes], axis)
    if journal.keep:
        journal.accumulators[journal.call] = codes
    zero = torch.zeros(scale.shape, dtype=torch.int64)
    grid = None
    if len(terms) == 1:
        bits = journal.accumulator_bits
        grid = IntegerGrid(journal.call, scale, zero, bits, True, axis=None if scale.ndim == 0 else axis)
    out = IntegerTensor(tuple(terms), journal, grid)
    if bias is None or isinstance(bias, IntegerTensor):
        return out
    journal.compute_in_float("a float bias")
    return out.value + along(bias)


@_does(aten.mean.dim, aten.sum.dim_IntList)
def _averaged(func: Operator, args: Arguments, kwargs: Keywords) -> object:
    named = dict(zip((each.name for each in func._schema.arguments), args, strict=False)) | kwargs
    tensor, keepdim = args[0], named.get("keepdim", False)
    dims = named.get("dim") or range(tensor.ndim)
    dims = [dim % tensor.ndim for dim in dims]
    if named.get("dtype") is not None:
        return None
    count = 1
    for dim in dims:
        count *= tensor.shape[dim]

    def reduce(term: Term) -> tuple[Tensor, Tensor]:
        scale = term.scale if keepdim or term.scale.ndim == 0 else term.scale.squeeze(dims)
        return term.codes.sum(dims, keepdim=keepdim), scale

    apart = any(term.scale.ndim and any(term.scale.shape[dim] > 1 for dim in dims) for term in tensor.terms)
    return None if apart else _means(tensor, [reduce(each) for each in tensor.terms], 1 if func is _SUM else count)


_SUM = aten.sum.dim_IntList


@_does(aten.amax.default)
def _maximum(func: Operator, args: Arguments, kwargs: Keywords) -> object:
    named = dict(zip((each.name for each in func._schema.arguments), args, strict=False)) | kwargs
    tensor, keepdim = args[0], named.get("keepdim", False)
    dims = [dim % tensor.ndim for dim in named.get("dim") or range(tensor.ndim)]
    if len(tensor.terms) > 1 or any(tensor.terms[0].scale.shape[dim] > 1 for dim in dims if tensor.terms[0].scale.ndim):
        return None
    term = tensor.terms[0]
    scale = term.scale if keepdim or term.scale.ndim == 0 else term.scale.squeeze(dims)
    return _alike(tensor, (Term(term.codes.amax(dims, keepdim), scale),), moved=not keepdim)


@_does(aten.avg_pool2d.default, aten.avg_pool3d.default)
def _average_pooled(func: Operator, args: Arguments, kwargs: Keywords) -> object:
    named = dict(zip((each.name for each in func._schema.arguments), args, strict=False)) | kwargs
    tensor, kernel, padding = args[0], named["kernel_size"], named.get("padding", (0,))
    if named.get("ceil_mode", False) or (any(padding) and not named.get("count_include_pad", True)):
        return None  # windows of different sizes
    dims = 2 if func is aten.avg_pool2d.default else 3
    kernel = list(kernel) * (dims if len(kernel) == 1 else 1)
    count = named.get("divisor_override")
    if count is None:
        count = 1
        for size in kernel:
            count *= size
    return _pooled_sums(tensor, dims, kernel, named.get("stride") or kernel, padding, count)


@_does(aten._adaptive_avg_pool2d.default)
def _adaptively_pooled(func: Operator, args: Arguments, kwargs: Keywords) -> object:
    tensor, size = args
    if any(tensor.shape[-2 + each] % size[each] for each in range(2)):
        return None  # windows of different sizes
    kernel = [tensor.shape[-2 + each] // size[each] for each in range(2)]
    return _pooled_sums(tensor, 2, kernel, kernel, 0, kernel[0] * kernel[1])


def _pooled_sums(
    tensor: IntegerTensor, dims: int, kernel: list[int], stride: list[int], padding: list[int] | int, count: int
) -> IntegerTensor | None:
    if any(term.scale.ndim and any(size > 1 for size in term.scale.shape[-dims:]) for term in tensor.terms):
        return None
    pool = F.avg_pool2d if dims == 2 else F.avg_pool3d

    def reduce(term: Term) -> tuple[Tensor, Tensor]:
        return pool(term.codes.double(), kernel, stride, padding, divisor_override=1).to(torch.int64), term.scale

    return _means(tensor, [reduce(each) for each in tensor.terms], count)


def _means(tensor: IntegerTensor, sums: list[tuple[Tensor, Tensor]], count: int) -> IntegerTensor | None:
    """Sums of integers; the division by their number goes into the scale."""
    if tensor.pending:
        return None
    for codes, _ in sums:
        tensor.journal.note_sums(codes, None)
    return IntegerTensor(tuple(Term(codes, scale / count) for codes, scale in sums), tensor.journal)


_SELECTING = {
    *(_same, _moved, _reshaped, _converted, _selected, _padded, _joined, _rectified, _clamped, _negated, _maximum),
    *(_zeros, _looked_up),
}
SELECTIONS = frozenset(operation for operation, rule in _RULES.items() if rule in _SELECTING)  # no new values

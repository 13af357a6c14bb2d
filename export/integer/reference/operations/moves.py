"""Integers that change places, are repeated, left out, or surrounded with zeros."""

import torch
from torch import Tensor

from .....qcore.aliases import Arguments, Keywords, Operator
from ..terms import Term, TermsTensor, alike_in_space, compact
from .rules import Rules, named

__all__ = ["RULES"]

aten = torch.ops.aten
RULES = Rules()


@RULES.of(aten.alias.default, aten.detach.default, aten.lift_fresh.default, aten.clone.default)
def _same(func: Operator, args: Arguments, kwargs: Keywords) -> object:
    tensor = args[0]
    terms = (Term(func(term.codes, **kwargs), term.scale) for term in tensor.terms)
    return tensor.alike(*terms, moved=False, aliased=func is not aten.clone.default)


@RULES.of(
    *(aten.expand.default, aten.permute.default, aten.t.default, aten.transpose.int, aten.unfold.default),
    *(aten.flip.default, aten.roll.default, aten.gather.default, aten.index_select.default, aten.index.Tensor),
    *(aten.select.int, aten.slice.Tensor, aten.split.Tensor, aten.split_with_sizes.default, aten.unbind.int),
    *(aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims, aten.unsqueeze.default, aten.repeat.default),
    *(aten.pixel_shuffle.default, aten.pixel_unshuffle.default, aten.channel_shuffle.default, aten.rot90.default),
    *(aten.diagonal.default, aten.take.default, aten.masked_select.default),
)
def _moved(func: Operator, args: Arguments, kwargs: Keywords) -> object:
    """Values change places; several scales go with them."""
    tensor, *rest = args
    if not isinstance(tensor, TermsTensor):
        return None
    scales = [term.scale if term.scale.ndim == 0 else term.spread for term in tensor.terms]
    codes = [func(term.codes, *rest, **kwargs) for term in tensor.terms]
    moved = [each if each.ndim == 0 else func(each, *rest, **kwargs) for each in scales]
    view = func._schema.returns[0].alias_info is not None
    if not isinstance(codes[0], (tuple, list)):
        return tensor.alike(*map(Term, codes, moved), moved=True, aliased=view)
    parts = []
    for index in range(len(codes[0])):
        own = (each if scale.ndim == 0 else each[index] for each, scale in zip(moved, scales, strict=True))
        parts.append(tensor.alike(*map(Term, (each[index] for each in codes), own), moved=True, aliased=True))
    return parts


@RULES.of(aten.view.default, aten._unsafe_view.default, aten._reshape_alias.default)
def _reshaped(func: Operator, args: Arguments, kwargs: Keywords) -> object:
    """The integers may lie in memory in another order than torch believes the tensor to."""
    tensor, size = args[0], args[1]
    terms = [
        Term(each.codes.reshape(size), each.scale if each.scale.ndim == 0 else each.spread.reshape(size))
        for each in tensor.terms
    ]
    places = ((one.codes.data_ptr(), other.codes.data_ptr()) for one, other in zip(terms, tensor.terms, strict=True))
    severed = any(one != other for one, other in places)
    return tensor.alike(*terms, moved=True, aliased=True, severed=severed)


@RULES.of(aten.new_zeros.default, aten.zeros_like.default, aten.new_empty.default, aten.empty_like.default)
def _zeros(func: Operator, args: Arguments, kwargs: Keywords) -> object:
    """Zeros are integers on any grid: on that of the tensor that they are like, where its scales fit.

    What is empty is zeros, too, for integers to be written into.
    """
    tensor, *rest = args
    if kwargs.get("dtype") not in (None, torch.float32):
        return None
    twin = {aten.new_empty.default: aten.new_zeros.default, aten.empty_like.default: aten.zeros_like.default}
    kept = {key: each for key, each in kwargs.items() if key != "dtype"}
    terms = [Term(twin.get(func, func)(each.codes, *rest, **kept), compact(each.scale)) for each in tensor.terms]
    shape = terms[0].codes.shape
    fits = all(_fits(each.scale, shape) for each in terms)
    if func in twin and fits:
        out = tensor.alike(*terms, moved=False)
        out.stored, out._made_of_zeros = None, True
        return out
    term = terms[0]
    single = tensor.single is not None and term.scale.ndim == 0
    scale = term.scale if single else torch.ones((), device=term.codes.device)
    return tensor.made(Term(term.codes, scale), grid=tensor.grid_ if single else None, zero=True)


def _fits(scale: Tensor, shape: torch.Size) -> bool:
    """Whether a scale broadcasts to a shape of as many dimensions."""
    same = scale.ndim == len(shape) and all(one in (1, other) for one, other in zip(scale.shape, shape, strict=True))
    return scale.ndim == 0 or same


@RULES.of(aten.embedding.default)
def _looked_up(func: Operator, args: Arguments, kwargs: Keywords) -> object:
    """Rows of a table; several scales go with them."""
    table, indices = args[:2]
    if not isinstance(table, TermsTensor) or isinstance(indices, TermsTensor):
        return None
    terms = (
        Term(func(each.codes, indices), each.scale if each.scale.ndim == 0 else func(each.spread, indices))
        for each in table.terms
    )
    rows = table.alike(*terms, moved=True)
    rows.stored = None  # which rows, the input says
    return rows


@RULES.of(aten._to_copy.default)
def _converted(func: Operator, args: Arguments, kwargs: Keywords) -> object:
    plain = kwargs.get("dtype") in (None, torch.float32)
    return args[0].alike(*args[0].terms, moved=False) if plain else None


@RULES.of(
    *(aten.upsample_nearest1d.default, aten.upsample_nearest2d.default, aten.upsample_nearest3d.default),
    *(aten.upsample_nearest1d.vec, aten.upsample_nearest2d.vec, aten.upsample_nearest3d.vec),
    *(aten._upsample_nearest_exact1d.default, aten._upsample_nearest_exact2d.default),
    *(aten._upsample_nearest_exact3d.default, aten._upsample_nearest_exact3d.vec),
    *(aten._upsample_nearest_exact1d.vec, aten._upsample_nearest_exact2d.vec),
    *(aten.reflection_pad1d.default, aten.reflection_pad2d.default, aten.reflection_pad3d.default),
    *(aten.replication_pad1d.default, aten.replication_pad2d.default, aten.replication_pad3d.default),
)
def _repeated(func: Operator, args: Arguments, kwargs: Keywords) -> object:
    """Values are repeated in space, where neighbours share a scale."""
    tensor, *rest = args
    given = alike_in_space(tensor)
    if given is None:
        return None
    terms = (Term(func(term.codes.double(), *rest, **kwargs).to(torch.int64), term.scale) for term in given)
    return tensor.alike(*terms, moved=False)


@RULES.of(aten.im2col.default)
def _unfolded(func: Operator, args: Arguments, kwargs: Keywords) -> object:
    """Windows as columns, with zeros around."""
    tensor, *rest = args
    if any(term.scale.ndim for term in tensor.terms) or tensor.excludes(0.0):
        return None
    terms = (Term(func(term.codes.double(), *rest, **kwargs).to(torch.int64), term.scale) for term in tensor.terms)
    return tensor.alike(*terms, moved=True)


@RULES.of(aten.constant_pad_nd.default)
def _padded(func: Operator, args: Arguments, kwargs: Keywords) -> object:
    tensor, widths = args[:2]
    value = float(named(func, args, kwargs).get("value") or 0)
    if value:
        return _framed(func, args, value)
    if tensor.excludes(0.0):
        return None
    terms = (
        Term(func(each.codes, widths, 0), each.scale if each.scale.ndim == 0 else func(each.spread, widths, 1.0))
        for each in tensor.terms
    )
    return tensor.alike(*terms, moved=True)


def _framed(func: Operator, args: Arguments, value: float) -> object:
    """Padding with a number that is one of the tensor's integers."""
    tensor, widths = args[:2]
    grid, term = tensor.grid_, tensor.single
    if grid is None or term is None or term.scale.ndim:
        return None
    code = grid.code_of(value)
    return None if code is None else tensor.alike(Term(func(term.codes, widths, code), term.scale), moved=True)


@RULES.of(aten.tril.default, aten.triu.default)
def _triangle(func: Operator, args: Arguments, kwargs: Keywords) -> object:
    tensor, *rest = args
    if tensor.excludes(0.0):
        return None
    return tensor.alike(*(Term(func(each.codes, *rest), each.scale) for each in tensor.terms), moved=False)

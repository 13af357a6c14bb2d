"""Zeros written over some integers, and integers of one tensor or another, place by place."""

import torch
from torch import Tensor

from .....qcore.aliases import Arguments, Keywords, Operator
from ..terms import Term, TermsTensor
from .joins import chosen
from .rules import Rules, named

__all__ = ["RULES", "is_zero"]

aten = torch.ops.aten
RULES = Rules()


def is_zero(given: object) -> bool:
    """Whether it is the number 0, or a tensor of that number alone."""
    if isinstance(given, Tensor):
        return not isinstance(given, TermsTensor) and given.ndim == 0 and float(given) == 0
    return isinstance(given, int | float) and given == 0


@RULES.of(aten.where.self, aten.where.ScalarOther, aten.where.ScalarSelf)
def _where(func: Operator, args: Arguments, kwargs: Keywords) -> object:
    condition, one, other = args
    if isinstance(condition, TermsTensor):
        return None
    if isinstance(one, TermsTensor) and isinstance(other, TermsTensor):
        return chosen(condition, one, other)
    if isinstance(one, TermsTensor):
        return _zeroed(one, ~condition) if is_zero(other) else None
    return _zeroed(other, condition) if is_zero(one) else None


@RULES.of(aten.masked_fill.Scalar, aten.masked_fill.Tensor)
def _filled(func: Operator, args: Arguments, kwargs: Keywords) -> object:
    tensor, mask, number = args
    return _zeroed(tensor, mask) if isinstance(tensor, TermsTensor) and is_zero(number) else None


def _zeroed(tensor: TermsTensor, mask: Tensor) -> TermsTensor | None:
    """Zeros where a mask says so."""
    if tensor.excludes(0.0):
        return None
    shape = torch.broadcast_shapes(mask.shape, tensor.shape)
    if len(shape) != tensor.ndim:
        return None
    terms = (Term(torch.where(mask, 0, each.codes), each.scale) for each in tensor.terms)
    out = tensor.alike(*terms, moved=False)
    out.stored = None
    return out


@RULES.of(aten.index_fill.int_Scalar, aten.index_fill.int_Tensor, aten.scatter.value)
def _filled_by_index(func: Operator, args: Arguments, kwargs: Keywords) -> object:
    tensor, dim, index, number = args
    if not isinstance(tensor, TermsTensor) or tensor.excludes(0.0) or not is_zero(number):
        return None
    out = tensor.alike(*(Term(func(each.codes, dim, index, 0), each.scale) for each in tensor.terms), moved=False)
    out.stored = None
    return out


@RULES.of(aten.index_put.default, aten.scatter.src)
def _placed(func: Operator, args: Arguments, kwargs: Keywords) -> object:
    """Zeros, or integers on the same scale, written to some places."""
    given = named(func, args, kwargs)
    tensor, source = given.pop("self"), given.get("values", given.get("src"))
    if not isinstance(tensor, TermsTensor) or tensor.single is None or given.get("accumulate", False):
        return None
    if is_zero(source):
        codes = torch.zeros((), dtype=torch.int64)
    elif isinstance(source, TermsTensor) and source.single is not None and tensor.single.scale.ndim == 0:
        if source.single.scale.ndim or bool(source.single.scale != tensor.single.scale):
            return None
        codes = source.single.codes
    else:
        return None
    given["values" if "values" in given else "src"] = codes
    out = tensor.alike(Term(func(tensor.single.codes, **given), tensor.single.scale), moved=False)
    out.stored = None
    grids = {id(tensor.grid_), id(source.grid_ if isinstance(source, TermsTensor) else tensor.grid_)}
    out.grid_ = out.grid_ if len(grids) == 1 else None
    return out


@RULES.of(
    *(aten.gt.Scalar, aten.ge.Scalar, aten.lt.Scalar, aten.le.Scalar, aten.eq.Scalar, aten.ne.Scalar),
    *(aten.gt.Tensor, aten.ge.Tensor, aten.lt.Tensor, aten.le.Tensor, aten.eq.Tensor, aten.ne.Tensor),
)
def _compared(func: Operator, args: Arguments, kwargs: Keywords) -> object:
    """Integers compared with each other, or with a number, which is as good as with the integer below it."""
    one, other = args
    if isinstance(one, TermsTensor) and isinstance(other, int | float):
        return None if one.single is None else func(one.value, other)
    if not (isinstance(one, TermsTensor) and isinstance(other, TermsTensor)):
        return None
    first, second = one.single, other.single
    if first is None or second is None or first.scale.ndim or second.scale.ndim or bool(first.scale != second.scale):
        return None
    return func(first.codes, second.codes)

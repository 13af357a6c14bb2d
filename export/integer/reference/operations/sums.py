"""Sums and differences of integers, and factors: numbers that change what the integers are worth."""

import torch
from torch import Tensor

from .....qcore.aliases import Arguments, Keywords, Operator
from ....capture.grid import IntegerGrid
from ...sums import signed_bits
from ..terms import Term, TermsTensor
from .masks import is_zero
from .rules import Rules, named

__all__ = ["RULES"]

aten = torch.ops.aten
RULES = Rules()


@RULES.of(aten.add.Tensor, aten.sub.Tensor)
def _added(func: Operator, args: Arguments, kwargs: Keywords) -> object:
    """Terms side by side: what they add up to is worked out when they are quantized."""
    one, other, *rest = args
    alpha = rest[0] if rest else kwargs.get("alpha", 1)
    if isinstance(one, TermsTensor) and is_zero(other):
        return one.alike(*one.terms, moved=False)
    if isinstance(other, TermsTensor) and is_zero(one) and alpha == 1:
        return other.alike(*other.terms, moved=False) if func is aten.add.Tensor else _negative(other)
    if not (isinstance(one, TermsTensor) and isinstance(other, TermsTensor)) or one.pending or other.pending:
        return None
    if alpha != 1:
        scaled = _scaled(other, alpha)
        return None if scaled is None else _sum(one, scaled, -1 if func is aten.sub.Tensor else 1)
    return _sum(one, other, -1 if func is aten.sub.Tensor else 1)


def _sum(one: TermsTensor, other: TermsTensor, sign: int) -> TermsTensor | None:
    if len(one.terms) > 1 and len(other.terms) > 1:
        return None  # terms are added from left to right
    shape = torch.broadcast_shapes(one.shape, other.shape)
    grid, first, second = _grid_of_sum(one, other, sign), one.single, other.single
    if grid is not None and first is not None and second is not None:
        return one.made(Term(first.codes + sign * second.codes, first.scale), grid=grid)
    terms = [Term(each.codes.expand(shape), each.scale) for each in one.terms]
    others = [Term(sign * each.codes.expand(shape), each.scale) for each in other.terms]
    terms = terms + others if len(other.terms) == 1 else others + terms
    if any(each.scale.ndim not in (0, len(shape)) for each in terms):
        return None
    return one.made(*terms)


def _grid_of_sum(one: TermsTensor, other: TermsTensor, sign: int) -> IntegerGrid | None:
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


@RULES.of(aten.neg.default)
def _negated(func: Operator, args: Arguments, kwargs: Keywords) -> object:
    return _negative(args[0])


@RULES.of(aten.rsub.Scalar)
def _subtracted_from(func: Operator, args: Arguments, kwargs: Keywords) -> object:
    tensor, number, *rest = args
    return _negative(tensor) if number == 0 and (rest[0] if rest else kwargs.get("alpha", 1)) == 1 else None


def _negative(tensor: TermsTensor) -> TermsTensor | None:
    return None if tensor.pending else tensor.made(*(Term(-each.codes, each.scale) for each in tensor.terms))


@RULES.of(aten.abs.default)
def _magnitudes(func: Operator, args: Arguments, kwargs: Keywords) -> object:
    term = args[0].single
    return None if term is None else args[0].made(Term(term.codes.abs(), term.scale))


# Factors


@RULES.of(aten.mul.Tensor)
def _multiplied_each(func: Operator, args: Arguments, kwargs: Keywords) -> object:
    """Products of integers, element by element, on the product of the scales; or with a number, or a mask."""
    one, other = args[:2]
    if not isinstance(one, TermsTensor):
        one, other = other, one
    if isinstance(other, int | float):
        return _scaled(one, other)
    if isinstance(other, TermsTensor):
        return _products_each(one, other)
    return _masked(one, other) if other.dtype is torch.bool else None


@RULES.of(aten.div.Tensor)
def _divided(func: Operator, args: Arguments, kwargs: Keywords) -> object:
    one, other = args[:2]
    numbers = isinstance(one, TermsTensor) and isinstance(other, int | float) and other != 0
    return _scaled(one, other, divides=True) if numbers else None


def _products_each(one: TermsTensor, other: TermsTensor) -> TermsTensor | None:
    first, second = one.single, other.single
    if first is None or second is None:
        return None
    codes = first.codes * second.codes
    if any(each.ndim not in (0, codes.ndim) for each in (first.scale, second.scale)):
        return None
    one.journal.note_sums(codes, None)
    return one.made(Term(codes, first.scale * second.scale))


def _masked(tensor: TermsTensor, mask: Tensor) -> TermsTensor | None:
    if tensor.excludes(0.0) or torch.broadcast_shapes(mask.shape, tensor.shape) != tensor.shape:
        return None
    return tensor.alike(*(Term(each.codes * mask, each.scale) for each in tensor.terms), moved=False)


def _scaled(tensor: TermsTensor, factor: float, *, divides: bool = False) -> TermsTensor | None:
    """A number changes what the integers are worth; a negative one their sign, too."""
    if tensor.pending or factor != factor or factor in (float("inf"), float("-inf")):
        return None
    sign, size = (-1 if factor < 0 else 1), abs(float(factor))
    if size == 0:
        return tensor.made(*(Term(torch.zeros_like(each.codes), each.scale) for each in tensor.terms))
    terms = (Term(sign * each.codes, each.scale / size if divides else each.scale * size) for each in tensor.terms)
    return tensor.made(*terms)


# Two factors, by the sign


@RULES.of(aten.leaky_relu.default)
def _leaky(func: Operator, args: Arguments, kwargs: Keywords) -> object:
    """Negative integers are worth less than others."""
    tensor, slope = args[0], named(func, args, kwargs).get("negative_slope", 0.01)
    term = tensor.single
    if term is None or slope < 0:
        return None
    if slope == 0:
        return tensor.alike(Term(term.codes.clamp_min(0), term.scale), moved=False)
    lesser, tensor.journal.scaled_by_value = term.scale * float(slope), True
    return tensor.made(Term(term.codes, torch.where(term.codes < 0, lesser, term.scale)))


@RULES.of(aten._prelu_kernel.default)
def _parametric(func: Operator, args: Arguments, kwargs: Keywords) -> object:
    """Negative integers are multiplied with those of a slope, and are worth the product of both scales."""
    tensor, slope = args
    if not (isinstance(tensor, TermsTensor) and isinstance(slope, TermsTensor)):
        return None
    term, factor = tensor.single, slope.single
    if term is None or factor is None:
        return None
    below = term.codes < 0
    codes = torch.where(below, term.codes * factor.codes, term.codes)
    scale = torch.where(below, term.scale * factor.scale, term.scale)
    tensor.journal.note_sums(codes, None)
    tensor.journal.scaled_by_value = True
    return tensor.made(Term(codes, scale))

"""Sums of products: convolutions, matrix products, and the biases added to them."""

import torch
from torch import Tensor

from .....qcore.aliases import Arguments, Keywords, Operator
from ....capture.grid import IntegerGrid
from ..terms import Term, TermsTensor, compact
from .rules import Rules

__all__ = ["RULES"]

aten = torch.ops.aten
RULES = Rules()


@RULES.of(aten.convolution.default)
def _convolved(func: Operator, args: Arguments, kwargs: Keywords) -> object:
    x, weight, bias, stride, padding, dilation, transposed, output_padding, groups = args
    axis = x.ndim - weight.ndim + 1  # the channels, after the batch if there is one
    factors = _factors(x, weight)
    if factors is None:
        return None
    one, other = factors
    own = _input_scales(one.scale, axis, weight, groups, transposed)
    flat = _output_scales(other, groups, transposed)
    if own is None or flat is None:  # products of several scales in one sum
        return None
    reach = other.codes.abs().sum() if transposed else other.codes.abs().flatten(1).sum(1).max()
    x.journal.require_exact(one.codes, reach)
    rest = (None, stride, padding, dilation, transposed, output_padding, groups)
    with torch.backends.cudnn.flags(enabled=False):  # its algorithms may transform numbers before they add
        sums = func(one.codes.double(), other.codes.double(), *rest)
    return _with_bias(x, weight, sums, own * flat, axis, bias)


def _output_scales(weight: Term, groups: int, transposed: bool) -> Tensor | None:
    """The scale of the weights of each output, 1-d; None where one sum has several."""
    flat = weight.scale.reshape(-1)
    if flat.numel() == 1:
        return flat
    rows = weight.spread
    if transposed:  # (in, out / groups, *kernel)
        rows = rows.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
    rows = rows.flatten(1)
    return None if bool((rows != rows[:, :1]).any()) else rows[:, 0]


def _input_scales(scale: Tensor, axis: int, weight: Tensor, groups: int, transposed: bool) -> Tensor | None:
    """The scale of the inputs of each output, 1-d or 0-d; None where one sum has several."""
    scale = compact(scale)
    if scale.numel() == 1:
        return scale.reshape(())
    depthwise = not transposed and weight.shape[1] == 1 and scale.shape[axis] == scale.numel() == groups
    return scale.reshape(-1).repeat_interleave(weight.shape[0] // groups) if depthwise else None


@RULES.of(aten.mm.default, aten.bmm.default)
def _multiplied(func: Operator, args: Arguments, kwargs: Keywords) -> object:
    return _products(func, args[0], args[1], None)


@RULES.of(aten.mv.default, aten.dot.default)
def _multiplied_with_vector(func: Operator, args: Arguments, kwargs: Keywords) -> object:
    x, vector = args
    if not (isinstance(x, TermsTensor) and isinstance(vector, TermsTensor)):
        return None
    out = _products(aten.mm.default, x.reshape(-1, x.shape[-1]), vector.unsqueeze(1), None)
    return None if out is None else out.reshape(x.shape[:-1])


@RULES.of(aten.addmm.default, aten.baddbmm.default)
def _multiplied_with_bias(func: Operator, args: Arguments, kwargs: Keywords) -> object:
    if kwargs.get("alpha", 1) != 1 or kwargs.get("beta", 1) not in (0, 1):
        return None
    product = aten.mm.default if func is aten.addmm.default else aten.bmm.default
    bias = args[0] if kwargs.get("beta", 1) else None
    if bias is not None and func is aten.baddbmm.default:
        return None
    return _products(product, args[1], args[2], bias)


def _products(func: Operator, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor | None:
    factors = _factors(x, weight)
    if factors is None or compact(factors[0].scale).numel() > 1:
        return None
    one, other = factors
    scales = other.scale
    if scales.ndim:
        row = scales.expand(other.codes.shape)
        row = row[..., :1, :]
        if weight.ndim != 2 or not bool((scales == row).all()):
            return None
        scales = row.reshape(-1)
    assert isinstance(x, TermsTensor)
    x.journal.require_exact(one.codes, other.codes.abs().sum(-2).max() if other.codes.numel() else 0)
    sums = func(one.codes.double(), other.codes.double())
    return _with_bias(x, weight, sums, compact(one.scale).reshape(()) * scales.reshape(-1), sums.ndim - 1, bias)


def _factors(x: Tensor, weight: Tensor) -> tuple[Term, Term] | None:
    """The integers of both sides, where there are such."""
    if not (isinstance(x, TermsTensor) and isinstance(weight, TermsTensor)):
        return None
    one, other = x.single, weight.single
    return None if one is None or other is None else (one, other)


def _with_bias(x: TermsTensor, weight: Tensor, sums: Tensor, scale: Tensor, axis: int, bias: Tensor | None) -> Tensor:
    """The sums as a tensor; a bias on their scale is added in integers, one of another scale is a second term."""
    journal, codes = x.journal, sums.to(torch.int64)
    scale = scale.reshape(()) if scale.numel() == 1 else scale  # flat
    journal.note_sums(codes, axis)

    def along(flat: Tensor) -> Tensor:
        return flat if flat.ndim == 0 else flat.reshape([-1 if dim == axis else 1 for dim in range(codes.ndim)])

    terms: list[Term] = [Term(codes, along(scale))]
    if isinstance(bias, TermsTensor) and bias.single is not None:
        own = bias.single
        if torch.equal(own.scale.reshape(scale.shape) if own.scale.numel() == scale.numel() else own.scale, scale):
            codes = codes + along(own.codes)
            journal.note_sums(codes, axis)
            terms = [Term(codes, along(scale))]
        elif x.zero:
            terms = [Term(along(own.codes).expand(codes.shape), along(own.scale))]
        else:
            terms.append(Term(along(own.codes).expand(codes.shape), along(own.scale)))
    stored = weight.stored if isinstance(weight, TermsTensor) and not x.zero else None
    if stored is not None and x.grid_ is not None:
        added = bias.stored if isinstance(bias, TermsTensor) else None
        journal.note_product(stored, added, x.grid_, [sums.to(torch.int64), codes], axis)
    if journal.keep:
        journal.accumulators[journal.call] = codes
    zero = torch.zeros(scale.shape, dtype=torch.int64)
    grid = None
    if len(terms) == 1:
        bits = journal.accumulator_bits
        grid = IntegerGrid(journal.call, scale, zero, bits, True, axis=None if scale.ndim == 0 else axis)
    out = x.made(*terms, grid=grid)
    if bias is None or isinstance(bias, TermsTensor):
        return out
    journal.compute_in_float("a float bias")
    return out.value + along(bias)

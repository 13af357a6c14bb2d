"""Sums over dimensions and windows; the division by their number goes into the scale."""

import math
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from .....qcore.aliases import Arguments, Keywords, Operator
from ..terms import Term, TermsTensor, compact
from .rules import Rules, named

__all__ = ["RULES"]

aten = torch.ops.aten
RULES = Rules()


@RULES.of(aten.mean.dim, aten.mean.default, aten.sum.dim_IntList, aten.sum.default)
def _reduced(func: Operator, args: Arguments, kwargs: Keywords) -> object:
    given = named(func, args, kwargs)
    tensor, keepdim = args[0], given.get("keepdim", False)
    dims = [dim % tensor.ndim for dim in given.get("dim") or range(tensor.ndim)]
    if given.get("dtype") is not None:
        return None
    count = math.prod(tensor.shape[dim] for dim in dims)

    def reduce(term: Term) -> Term:
        scale = term.scale if keepdim or term.scale.ndim == 0 else term.scale.squeeze(dims)
        return Term(term.codes.sum(dims, keepdim=keepdim), scale)

    apart = any(term.scale.ndim and any(term.scale.shape[dim] > 1 for dim in dims) for term in tensor.terms)
    return None if apart else _over(tensor, map(reduce, tensor.terms), count if "mean" in func._schema.name else 1)


@RULES.of(aten.cumsum.default)
def _running(func: Operator, args: Arguments, kwargs: Keywords) -> object:
    tensor, dim = args[:2]
    given = [Term(term.codes, compact(term.scale)) for term in tensor.terms]
    if any(term.scale.ndim and term.scale.shape[dim] > 1 for term in given) or kwargs.get("dtype") is not None:
        return None
    return _over(tensor, (Term(term.codes.cumsum(dim), term.scale) for term in given), 1)


@RULES.of(aten.col2im.default)
def _folded(func: Operator, args: Arguments, kwargs: Keywords) -> object:
    """Windows added up where they overlap."""
    tensor, *rest = args
    if any(term.scale.ndim for term in tensor.terms):
        return None
    sums = (Term(func(term.codes.double(), *rest, **kwargs).to(torch.int64), term.scale) for term in tensor.terms)
    return _over(tensor, sums, 1)


@RULES.of(aten.avg_pool2d.default, aten.avg_pool3d.default)
def _average_pooled(func: Operator, args: Arguments, kwargs: Keywords) -> object:
    """Sums over windows. Where windows differ in size, each place has a scale of its own."""
    given = named(func, args, kwargs)
    tensor, dims = args[0], 2 if func is aten.avg_pool2d.default else 3
    pool = F.avg_pool2d if dims == 2 else F.avg_pool3d
    kernel, ceil = given["kernel_size"], given.get("ceil_mode", False)
    stride, padding = given.get("stride") or kernel, list(given.get("padding", (0,)))

    def sums(numbers: Tensor, padding: list[int] = padding) -> Tensor:
        return pool(numbers, kernel, stride, padding, ceil, True, 1)

    count = given.get("divisor_override")
    if count is None:
        ones = _ones(tensor, dims)
        if given.get("count_include_pad", True):
            widths = [each for each in reversed(padding * (dims if len(padding) == 1 else 1)) for _ in range(2)]
            count = sums(F.pad(ones, widths, value=1.0), [0])
            for dim, size in enumerate(sums(ones).shape):
                count = count.narrow(dim, 0, size)  # a window that starts in the padding on the right is none
        else:
            count = sums(ones)
    return _windows(tensor, dims, sums, count)


@RULES.of(aten._adaptive_avg_pool2d.default, aten._adaptive_avg_pool3d.default)
def _adaptively_pooled(func: Operator, args: Arguments, kwargs: Keywords) -> object:
    """Sums over as many windows as the result has places, some larger than others."""
    tensor, sizes = args
    dims = len(sizes)

    def sums(numbers: Tensor) -> Tensor:
        for dim, size in enumerate(sizes, numbers.ndim - dims):
            numbers = (numbers.movedim(dim, -1) @ _membership(numbers.shape[dim], size)).movedim(-1, dim)
        return numbers

    return _windows(tensor, dims, sums, sums(_ones(tensor, dims)))


def _membership(ins: int, outs: int) -> Tensor:
    """Which numbers belong to which window: (ins, outs), of ones and zeros."""
    place, window = torch.arange(ins)[:, None], torch.arange(outs)
    return ((place >= window * ins // outs) & (place < -(-(window + 1) * ins // outs))).double()


def _ones(tensor: TermsTensor, dims: int) -> Tensor:
    """A one for each place in space."""
    return torch.ones([1] * (tensor.ndim - dims) + list(tensor.shape[-dims:]), dtype=torch.float64)


def _windows(
    tensor: TermsTensor, dims: int, sums: Callable[[Tensor], Tensor], count: Tensor | int
) -> TermsTensor | None:
    """The means of windows: their sums, on scales divided by how many numbers each has."""
    given = [Term(term.codes, compact(term.scale)) for term in tensor.terms]
    if any(term.scale.ndim and any(size > 1 for size in term.scale.shape[-dims:]) for term in given):
        return None
    if isinstance(count, Tensor):
        count = int(count.flatten()[0]) if bool((count == count.flatten()[0]).all()) else count.to(torch.float32)
    return _over(tensor, (Term(sums(term.codes.double()).to(torch.int64), term.scale) for term in given), count)


@RULES.of(
    *(aten.upsample_linear1d.default, aten.upsample_bilinear2d.default, aten.upsample_trilinear3d.default),
    *(aten.upsample_linear1d.vec, aten.upsample_bilinear2d.vec, aten.upsample_trilinear3d.vec),
)
def _interpolated(func: Operator, args: Arguments, kwargs: Keywords) -> object:
    """Linear interpolation whose weights are fractions of a small power of two: torch rounds all others itself."""
    given = named(func, args, kwargs)
    tensor = args[0]
    dims = tensor.ndim - 2
    scales = [Term(term.codes, compact(term.scale)) for term in tensor.terms]
    if any(size > 1 for term in scales for size in term.scale.shape[2:]):
        return None
    outs = func(*((scales[0].codes.double(), *args[1:])), **kwargs).shape[2:]
    ins, factors = tensor.shape[2:], given.get("scale_factors") or [given.get(f"scales{e}") for e in _SUFFIXES[dims]]
    exact = all(each is None or each * one == other for each, one, other in zip(factors, ins, outs, strict=True))
    parts = [
        max(out - 1, 1) if given["align_corners"] else 2 * out // math.gcd(size, out)
        for size, out in zip(ins, outs, strict=True)
    ]
    count = math.prod(parts)
    if count > LARGEST_DIVISOR or count & (count - 1) or not (exact or given["align_corners"]):
        return None

    def sums(term: Term) -> Term:
        parts = func(term.codes.double(), *args[1:], **kwargs) * count
        return Term(parts.round().to(torch.int64), term.scale)

    return _over(tensor, map(sums, scales), count)


LARGEST_DIVISOR = 1024  # bits that linear interpolation adds to integers: ten
_SUFFIXES = {1: ("",), 2: ("_h", "_w"), 3: ("_d", "_h", "_w")}


def _over(tensor: TermsTensor, sums: Iterable[Term], count: Tensor | int) -> TermsTensor | None:
    """Sums of integers; the division by their number goes into the scale."""
    if tensor.pending:
        return None
    terms = [Term(codes, scale if isinstance(count, int) and count == 1 else scale / count) for codes, scale in sums]
    for codes, _ in terms:
        tensor.journal.note_sums(codes, None)
    return tensor.made(*terms)

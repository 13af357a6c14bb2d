"""Integers of several tensors side by side, or one of several in each place."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from .....qcore.aliases import Arguments, Keywords, Operator
from ....capture.grid import IntegerGrid
from ..terms import Term, TermsTensor
from .rules import Rules

__all__ = ["RULES", "chosen", "on_one_grid"]

aten = torch.ops.aten
RULES = Rules()


@RULES.of(aten.cat.default, aten.stack.default)
def _joined(func: Operator, args: Arguments, kwargs: Keywords) -> object:
    """Integers side by side, each with its own scale."""
    given = args[0]
    if not all(isinstance(each, TermsTensor) for each in given) or not _bounded_alike(given):
        return None
    tensors: list[TermsTensor] = list(given)
    first = next((each for each in tensors if not each.zero), tensors[0])
    tensors = [_zeros_like(first, each) if each.zero else each for each in tensors]
    dim = args[1] if len(args) > 1 else kwargs.get("dim", 0)
    if func is aten.stack.default:
        tensors = [each.unsqueeze(dim) for each in tensors]  # type: ignore[misc]
    terms = [_side_by_side(parts, dim) for parts in _parallel(tensors)]
    same = all(each.scale.ndim == 0 for each in terms) and all(on_one_grid(first.grid_, x.grid_) for x in tensors)
    return _bounded(first, terms, same)


def _bounded_alike(tensors: Sequence[TermsTensor]) -> bool:
    """Whether no tensor has bounds that another one has not."""
    bounds = {(each.low, each.high) if each.pending else None for each in tensors}
    return len(bounds) == 1


def _bounded(first: TermsTensor, terms: Sequence[Term], same: bool) -> TermsTensor:
    """Integers of several tensors that are bounded alike."""
    out = first.made(*terms, grid=first.grid_ if same else None, zero=first.zero)
    if first.pending:
        out.low, out.high = first.low, first.high
    return out


def _parallel(tensors: Sequence[TermsTensor]) -> list[tuple[Term, ...]]:
    """The first terms of all tensors, the second ones ...; a tensor of fewer terms than another gets zeros."""
    count = max(len(each.terms) for each in tensors)
    longest = next(each for each in tensors if len(each.terms) == count)

    def filled(tensor: TermsTensor) -> list[Term]:
        zeros = torch.zeros_like(tensor.terms[0].codes)
        more = longest.terms[len(tensor.terms) :]
        return [*tensor.terms, *(Term(zeros, each.scale if each.scale.ndim == 0 else torch.ones(())) for each in more)]

    return list(zip(*map(filled, tensors), strict=True))


def _zeros_like(tensor: TermsTensor, zeros: TermsTensor) -> TermsTensor:
    """Zeros on the grid of another tensor, where its scales don't differ from place to place."""
    scales = [each.scale for each in tensor.terms]
    if any(each.ndim for each in scales):
        return zeros
    return zeros.made(*(Term(zeros.terms[0].codes, each) for each in scales), grid=tensor.grid_, zero=True)


def _share_scale(parts: Sequence[Term]) -> bool:
    scale = parts[0].scale
    return all(each.scale.ndim == 0 and bool(each.scale == scale) for each in parts)


def _side_by_side(parts: tuple[Term, ...], dim: int) -> Term:
    scale = parts[0].scale if _share_scale(parts) else torch.cat([each.spread for each in parts], dim)
    return Term(torch.cat([each.codes for each in parts], dim), scale)


def on_one_grid(one: IntegerGrid | None, other: IntegerGrid | None) -> bool:
    """Whether the same integers stand for the same values, whatever the grids are called."""
    return one is other or (one is not None and other is not None and replace(other, name=one.name) == one)


def chosen(condition: Tensor, one: TermsTensor, other: TermsTensor) -> TermsTensor | None:
    """Integers of one tensor where a condition holds, of another elsewhere; None if they are bounded differently."""
    if not _bounded_alike((one, other)):
        return None
    terms = []
    for first, second in _parallel((one, other)):
        codes = torch.where(condition, first.codes, second.codes)
        if _share_scale((first, second)):
            scale = first.scale
        else:
            scale = torch.where(condition, first.scale, second.scale).expand(codes.shape)
            one.journal.scaled_by_value = True
        terms.append(Term(codes, scale))
    same = all(each.scale.ndim == 0 for each in terms) and on_one_grid(one.grid_, other.grid_)
    return _bounded(one, terms, same)

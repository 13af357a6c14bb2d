"""Integers written into others in place, into views too: those on the same scale, and zeros."""

import torch

from .....qcore.aliases import Arguments, Keywords, Operator
from ..terms import TermsTensor, compact
from .joins import on_one_grid
from .masks import is_zero
from .rules import Rules

__all__ = ["RULES"]

aten = torch.ops.aten
RULES = Rules()


@RULES.of(aten.copy_.default)
def _copied(func: Operator, args: Arguments, kwargs: Keywords) -> object:
    target, source = args[:2]
    if is_zero(source):
        return _zeroed(target)
    if not _writable(target) or not isinstance(source, TermsTensor) or len(source.terms) != len(target.terms):
        return None
    bounds = [(each.low, each.high, each.bounded) for each in (target, source)]
    if bounds[0] != bounds[1] or not on_one_grid(target.grid_, source.grid_):
        return None
    for one, other in zip(target.terms, source.terms, strict=True):
        scales = [compact(each.scale) for each in (one, other)]
        if scales[0].numel() != scales[1].numel() or not bool((scales[0] == scales[1]).all()):
            return None
    for one, other in zip(target.terms, source.terms, strict=True):
        one.codes.copy_(other.codes)
    return target


@RULES.of(aten.fill_.Scalar, aten.fill_.Tensor)
def _filled(func: Operator, args: Arguments, kwargs: Keywords) -> object:
    return _zeroed(args[0]) if is_zero(args[1]) else None


@RULES.of(aten.zero_.default)
def _cleared(func: Operator, args: Arguments, kwargs: Keywords) -> object:
    return _zeroed(args[0])


def _zeroed(target: TermsTensor) -> TermsTensor | None:
    if not _writable(target) or target.excludes(0.0):
        return None
    for term in target.terms:
        term.codes.zero_()
    return target


def _writable(target: TermsTensor) -> bool:
    """Whether what is written into its integers reaches all tensors that share them, and none that is a parameter."""
    return target.stored is None and not target.severed

"""The largest, the smallest, the first few of some integers: those at the places of such values."""

import torch
from torch import Tensor

from .....qcore.aliases import Arguments, Keywords, Operator
from ..terms import Term, TermsTensor, alike_in_space, compact
from .joins import chosen
from .rules import Rules, named

__all__ = ["RULES"]

aten = torch.ops.aten
RULES = Rules()


def _keys(tensor: TermsTensor) -> Tensor:
    """Floats that are ordered as the values are: the integers themselves where they have one scale."""
    single = tensor.single
    return tensor.value if single is None or compact(single.scale).numel() > 1 else single.codes.double()


@RULES.of(
    *(aten.max_pool2d_with_indices.default, aten.max_pool3d_with_indices.default),
    *(aten.max_pool2d.default, aten.max_pool3d.default),  # in inference mode
    *(aten.adaptive_max_pool2d.default, aten.adaptive_max_pool3d.default),
)
def _pooled(func: Operator, args: Arguments, kwargs: Keywords) -> object:
    """The largest of each window, where neighbours share a scale; of a sum on different grids, by its values."""
    tensor, *rest = args
    given = alike_in_space(tensor)
    if given is None:
        return None
    if len(given) > 1:
        name = func._schema.name.removeprefix("aten::")
        single = len(func._schema.returns) == 1
        pool = getattr(aten, f"{name}_with_indices").default if single else func
        _, indices = pool(tensor.value, *rest, **kwargs)
        spatial = indices.ndim - next(each for each in range(2, 4) if f"max_pool{each}d" in name)
        flat = indices.flatten(spatial)
        picked = (term.codes.flatten(spatial).gather(-1, flat).reshape(indices.shape) for term in given)
        kept = tensor.alike(*map(Term, picked, (term.scale for term in given)), moved=False)
        return kept if single else (kept, indices)
    out = func(given[0].codes.double(), *rest, **kwargs)
    codes, *indices = out if isinstance(out, tuple) else (out,)
    kept = tensor.alike(Term(codes.to(torch.int64), given[0].scale), moved=False)
    return (kept, *indices) if indices else kept


@RULES.of(
    *(aten.max.dim, aten.min.dim, aten.topk.default, aten.sort.default, aten.sort.stable, aten.kthvalue.default),
    *(aten.median.dim, aten.mode.default, aten.cummax.default, aten.cummin.default),
)
def _chosen_along(func: Operator, args: Arguments, kwargs: Keywords) -> object:
    """Integers at the places that the operator finds along one dimension, and the places."""
    given = named(func, args, kwargs)
    tensor, dim = args[0], given.get("dim", -1)
    _, places = func(_keys(tensor), *args[1:], **kwargs)
    return _at(tensor, dim, places, given.get("keepdim", False)), places


def _at(tensor: TermsTensor, dim: int, places: Tensor, keepdim: bool) -> TermsTensor:
    """The integers at places along a dimension, several scales with them."""
    dropped = places.ndim < tensor.ndim
    index = places.unsqueeze(dim) if dropped else places

    tensor.journal.scaled_by_value |= any(compact(each.scale).numel() > 1 for each in tensor.terms)

    def taken(numbers: Tensor) -> Tensor:
        found = numbers.gather(dim, index)
        return found.squeeze(dim) if dropped else found

    terms = (
        Term(taken(each.codes), each.scale if each.scale.ndim == 0 else taken(each.spread)) for each in tensor.terms
    )
    return tensor.alike(*terms, moved=dropped or tensor.terms[0].scale.ndim > 0)


@RULES.of(aten.amax.default, aten.amin.default, aten.max.default, aten.min.default)
def _extreme(func: Operator, args: Arguments, kwargs: Keywords) -> object:
    """The largest or smallest over some dimensions, or all."""
    given = named(func, args, kwargs)
    tensor, keepdim = args[0], given.get("keepdim", False)
    dims = sorted({dim % tensor.ndim for dim in given.get("dim") or range(tensor.ndim)})
    if not dims:
        return tensor.alike(*tensor.terms, moved=False)
    others = [dim for dim in range(tensor.ndim) if dim not in dims]
    keys = _keys(tensor).permute(*others, *dims).flatten(len(others))
    places = keys.argmax(-1, keepdim=True) if "max" in func._schema.name else keys.argmin(-1, keepdim=True)
    shape = [1 if dim in dims else size for dim, size in enumerate(tensor.shape)]

    def taken(numbers: Tensor) -> Tensor:
        rows = numbers.permute(*others, *dims).flatten(len(others)).gather(-1, places)
        return rows.reshape(shape) if keepdim else rows.squeeze(-1)

    terms = []
    for each in tensor.terms:
        scale = compact(each.scale)
        if scale.ndim and all(scale.shape[dim] == 1 for dim in dims):
            scale = scale if keepdim else scale.squeeze(dims)
        elif scale.ndim:
            scale, tensor.journal.scaled_by_value = taken(each.spread), True
        terms.append(Term(taken(each.codes), scale))
    return tensor.alike(*terms, moved=not keepdim)


@RULES.of(aten.argmax.default, aten.argmin.default, aten.argsort.default, aten.argsort.stable)
def _places(func: Operator, args: Arguments, kwargs: Keywords) -> object:
    return func(_keys(args[0]), *args[1:], **kwargs)


@RULES.of(aten.maximum.default, aten.minimum.default, aten.fmax.default, aten.fmin.default)
def _larger(func: Operator, args: Arguments, kwargs: Keywords) -> object:
    one, other = args
    if not (isinstance(one, TermsTensor) and isinstance(other, TermsTensor)):
        return None
    if one.ndim != other.ndim:
        return None
    first = one.value >= other.value if "max" in func._schema.name else one.value <= other.value
    return chosen(first, one, other)

"""Activation functions that clip: with the integers where a bound is one, later where it isn't."""

import torch
from torch import Tensor

from .....qcore.aliases import Arguments, Keywords, Operator
from ..terms import Term, TermsTensor
from .rules import Rules, named

__all__ = ["RULES"]

aten = torch.ops.aten
RULES = Rules()


@RULES.of(aten.relu.default)
def _rectified(func: Operator, args: Arguments, kwargs: Keywords) -> object:
    return _bounded(args[0], 0.0, None)


@RULES.of(
    *(aten.hardtanh.default, aten.clamp.default, aten.clamp_min.default, aten.clamp_max.default, aten.relu6.default),
)
def _clamped(func: Operator, args: Arguments, kwargs: Keywords) -> object:
    if func is aten.relu6.default:
        return _bounded(args[0], 0.0, 6.0)
    default = {"min_val": -1.0, "max_val": 1.0} if func is aten.hardtanh.default else {}
    given = default | named(func, args, kwargs)
    low, high = (given.get(f"{end}_val", given.get(end)) for end in ("min", "max"))
    return _bounded(args[0], low, high)


def _bounded(tensor: TermsTensor, low: float | None, high: float | None) -> TermsTensor:
    """Clip the integers where the bounds are integers too; else leave it for later, as it commutes with moving them.

    Until they are quantized, that is, or until something needs the integers themselves.
    """

    def inside(bound: float | None) -> float | None:
        if bound is None:
            return None
        bound = bound if low is None else max(bound, low)
        return bound if high is None else min(bound, high)

    new_low = low if tensor.low is None else inside(tensor.low)
    new_high = high if tensor.high is None else inside(tensor.high)
    terms, single = tensor.terms, tensor.single
    ends = None if single is None else _integer_ends(tensor, single, low, high)
    if single is not None and ends is not None:
        codes = single.codes
        codes = codes if ends[0] is None else codes.clamp_min(ends[0])
        terms = (Term(codes if ends[1] is None else codes.clamp_max(ends[1]), single.scale),)
    return type(tensor)(terms, tensor.journal, tensor.grid_, new_low, new_high, bounded=ends is not None)


def _integer_ends(
    tensor: TermsTensor, term: Term, low: float | None, high: float | None
) -> tuple[int | None, int | None] | None:
    """Bounds in integers, each None where it is needless; None instead of both if one lies between integers."""
    ends: list[int | None] = []
    smallest, largest = _reach(tensor)
    below = low is not None and smallest is not None and smallest >= low
    above = high is not None and largest is not None and largest <= high
    for bound, needless in ((low, below), (high, above)):
        if bound is None or needless:
            ends.append(None)
        elif bound == 0:
            ends.append(0)
        elif term.scale.ndim:
            return None
        else:
            code = round(bound / float(term.scale))
            if float(_value(code, term.scale)) != bound:
                return None
            ends.append(code)
    return ends[0], ends[1]


def _reach(tensor: TermsTensor) -> tuple[float | None, float | None]:
    """The smallest and the largest value on the grid of a tensor, as far as that is known."""
    grid = tensor.grid_
    if grid is None or grid.axis is not None:
        return None, None
    low, high = (float(_value(code, grid.scale)) for code in grid.centred_bounds)
    return low, high


def _value(code: int, scale: Tensor) -> Tensor:
    return torch.tensor(code, dtype=torch.float32) * scale


@RULES.of(aten.threshold.default, aten.hardshrink.default)
def _shrunk(func: Operator, args: Arguments, kwargs: Keywords) -> object:
    """Zeros in place of small integers."""
    given = named(func, args, kwargs)
    tensor = args[0]
    if tensor.single is None or given.get("value", 0) != 0:
        return None
    values = tensor.value
    kept = values > given["threshold"] if "threshold" in given else values.abs() > given.get("lambd", 0.5)
    out = tensor.alike(Term(torch.where(kept, tensor.single.codes, 0), tensor.single.scale), moved=False)
    out.stored = None
    return out

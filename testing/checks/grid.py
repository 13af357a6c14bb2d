"""Quantized values: on the grid, in the range, in order, zero kept, each value at its nearest level."""

import torch
from torch import Tensor

from ...qcore import Grid, Rounding, TwoLevel
from ...qcore.formats.int_range import representable_bounds
from ..places import Places
from ..registry import register_check
from ..report import Failure, NotApplicable
from ..subject import Case, with_life

__all__ = ["granularity", "grid_membership", "idempotence", "monotonicity", "rounding", "value_range", "zero"]

_EXACT = 1 << 22  # float32 holds fractions beside integers up to this size


@register_check
def grid_membership(case: Case) -> None:
    """Values are levels times a positive, finite scale: whole steps, where the levels are integers."""
    for values, grid in case.each_way():
        if not bool((grid.scale.isfinite() & (grid.scale > 0)).all()):
            raise Failure("a positive, finite scale", shown(grid.scale))
        if grid.scale.requires_grad or grid.scale.dtype not in (torch.float32, torch.float64):
            raise Failure("the grid's scale detached, in float32 or float64", repr(grid.scale))
        zero_point = grid.zero_point if grid.number_format.whole else None
        if zero_point is not None and not torch.equal(zero_point, zero_point.round()):
            raise Failure("a whole number as zero point", shown(zero_point))
        codes = case.codes(values, grid)
        off = (codes - codes.round()).abs() > 1e-3 + codes.abs() * 1e-6
        if bool((off | codes.isnan()).any()):
            levels = "whole numbers of steps" if grid.number_format.whole else f"levels of {grid.number_format}"
            raise Failure(levels, _first(codes, off | codes.isnan(), case, grid))


@register_check
def value_range(case: Case) -> None:
    """Values stay between the lowest and the highest level; those at or beyond an end are clipped to it."""
    low, high = case.subject.bounds
    pulled_in = representable_bounds(low, high, 24) if case.subject.number_format.whole else (low, high)
    for values, grid in case.each_way():
        codes = case.codes(values, grid).round()
        # integers of more than 24 bits don't come back from float32 values: there the values of the ends are compared
        lowest, highest = (_value(end, grid, values) for end in (low, high))
        outside = ((codes < low) & (values < lowest)) | ((codes > high) & (values > highest))
        if bool(outside.any()):
            lowest, highest = (_level(end, grid) for end in (low, high))
            kind = "integers" if grid.number_format.whole else "levels"
            raise Failure(f"{kind} from {lowest} to {highest}", _first(codes, outside, case, grid))
        if not case.subject.fixed_grid:
            continue  # the range is dynamic, so nothing lies beyond it
        with torch.no_grad():
            steps = case.codes(case.rounded(case.x), grid)
        ends = (low, pulled_in[0], lowest, steps <= low), (high, pulled_in[1], highest, steps >= high)
        for end, held, at, beyond in ends:
            missed = beyond & (codes != end) & (values != at) & (values != _value(held, grid, values))
            if bool(missed.any()):
                expected = f"{_level(end, grid)} for values at or beyond that end of the range"
                raise Failure(expected, _first(codes, missed, case, grid))


def _value(end: int, grid: Grid, values: Tensor) -> Tensor:
    """The value of an integer, or at a place, worked out exactly and rounded once to the type of other values."""
    level = Places(grid.number_format).steps(torch.tensor(end))
    centred = level if grid.zero_point is None else level - grid.zero_point.double()
    return (centred * grid.scale.double()).to(values.dtype)


def _level(place: int, grid: Grid) -> str:
    """The integer, or the level, at a place."""
    level = Places(grid.number_format).steps(torch.tensor(place)).item()
    return f"{level:.0f}" if grid.number_format.whole else f"{level:.9g}"


def _first(places: Tensor, where: Tensor, case: Case, grid: Grid) -> str:
    """The first integer, or level, where a mask is set, and its input."""
    return first(Places(grid.number_format).steps(places), where, case)


@register_check
def rounding(case: Case) -> None:
    """Within the range, a value becomes the declared rounding of ``x / scale``, computed by division."""
    declared = getattr(case.module, "rounding", None)
    low, high = case.subject.bounds
    for values, grid in case.each_way():
        places, levels = Places(grid.number_format), grid.number_format
        with torch.no_grad():
            steps = case.rounded(case.x) / grid.scale  # in float32, as ONNX QuantizeLinear divides
        codes = case.codes(values, grid).round()
        shift = 0.0 if grid.zero_point is None else grid.zero_point
        exact = isinstance(declared, Rounding) and case.subject.known
        exact = exact and (levels.whole or grid.zero_point is None)  # float zero points are added before
        expected = places.of(steps)
        if exact:
            reached = declared(steps) if levels.whole else levels.nearest(steps, declared)  # type: ignore[misc, arg-type]
            expected = places.of(reached) if levels.whole else places.of(reached).round()
        inside = (expected + shift > low) & (expected + shift < high) & (steps.abs() < _EXACT)
        allowed = 0.0 if exact else 1.0
        wrong = inside & ((codes - shift - expected).abs() > allowed)
        if bool(wrong.any()):
            what = "a neighbour of"
            if exact:
                what = f"{first(places.steps(expected + shift), wrong)}, {declared!r} of"
            raise Failure(f"{what} {first(steps + shift, wrong)} steps", _first(codes, wrong, case, grid))


@register_check
def idempotence(case: Case) -> None:
    """Quantizing again changes nothing, or at most one step if the scale is measured anew or rounding is directed."""
    if getattr(case.module, "transform", None) is not None:
        raise NotApplicable(f"{type(case.module.transform).__name__} would transform its own results")
    values, grid = case.quantize()
    gap = case.gap(values, grid)
    again, _ = case.quantize(values)
    moved = (again - values).abs()
    # A percentile or a power of two may measure another scale; a scale that creeps moves values by many steps. And the
    # floor of (3 * 0.1) / 0.1 is 2 in floating point.
    exact = case.subject.fixed_grid and _to_nearest(case)
    allowed = torch.zeros_like(gap) if exact else gap * 1.001
    if bool((moved > allowed).any()):
        raise Failure(f"{first(values, moved > allowed)} again", first(again, moved > allowed, case))


def _to_nearest(case: Case) -> bool:
    declared = getattr(case.module, "rounding", torch.round)
    probe = torch.tensor([-1.01, -0.99, 0.99, 1.01])
    return all(torch.equal(declared(probe), probe.round()) for _ in range(8))


@register_check
def monotonicity(case: Case) -> None:
    """Quantization keeps the order of values that share a scale."""
    for share in (0.125, 0.25, 0.5) if case.subject.fixed_grid else ():
        grid = case.quantize()[1]
        more = case.x + (share * case.gap(case.x, grid)).to(case.x.dtype)
        moved = []
        for x in (case.x, more):
            torch.default_generator.manual_seed(0)  # a random rounding need not keep the order
            moved.append(case.quantize(x)[0])
        if bool((moved[1] < moved[0]).any()):
            _falls(case.x, moved[0], more, moved[1], moved[1] < moved[0])
    for values, _ in case.each_way():
        given, moved = (case.granularity.rows(each) for each in (case.x, values))
        order = given.argsort(1)
        given, moved = given.gather(1, order), moved.gather(1, order)
        down = (moved.diff() < 0) & (given.diff() > 0)
        if bool(down.any()):
            _falls(given[:, :-1], moved[:, :-1], given[:, 1:], moved[:, 1:], down)


def _falls(x: Tensor, y: Tensor, above: Tensor, after: Tensor, where: Tensor) -> None:
    expected = f"at least {first(y, where)} for {first(above, where)}, as for {first(x, where)}"
    raise Failure(expected, first(after, where))


@register_check
def zero(case: Case) -> None:
    """Zero stays exactly zero: padding and ReLU rely on it."""
    if not case.subject.number_format.has_zero:
        raise NotApplicable(f"0 is no level of {case.subject.number_format}")
    at = torch.arange(case.x.numel()).reshape(case.x.shape) % 2 == 1
    zeros, grid = case.x.masked_fill(at, 0.0), case.quantize()[1]
    some = with_life(zeros, case.granularity, grid.scale)  # `constant_input` covers tensors of zeros only
    at = some == 0
    values, _ = case.quantize(some)
    if bool((values[at] != 0).any()):
        raise Failure("0 for 0", first(values, at & (values != 0)))


@register_check
def granularity(case: Case) -> None:
    """There is one number, or one for all that share a scale as declared; these don't affect each other."""
    with torch.no_grad():
        grid = case.module.quantize(case.x.clone(), *case.context)[1]
    assert grid is not None
    granularity, shape = grid.granularity, case.x.shape
    wanted = granularity.scales_shape(shape)
    if granularity.single:
        if grid.scale.numel() != 1:
            raise Failure("one scale, as axis is None", f"a scale of shape {tuple(grid.scale.shape)}")
        return
    where = str(granularity)
    if tuple(grid.scale.shape) not in (wanted, wanted[(granularity.axis or 0) % case.x.ndim :]):
        raise Failure(f"a scale of shape {wanted}, for {where}", f"{tuple(grid.scale.shape)}")
    if granularity.count(shape) < 2:
        return
    number = granularity.compact(torch.arange(granularity.count(shape)), shape)
    which, factor = 0, 8.0
    if isinstance(getattr(getattr(case.module, "scaling", None), "restriction", None), TwoLevel):
        which, factor = int(granularity.rows(case.x).abs().amax(1).argmin()), 0.25  # the largest one scales them all
    own = (granularity.spread(number, shape) == which).expand(shape)
    changed = torch.where(own, case.x * factor, case.x)  # the other scales don't depend on these
    before, after = (_newly(case, x)[0] for x in (case.x, changed))
    moved = ~own & (before != after)
    if bool(moved.any()):
        what = f"channel {which} of" if granularity.axis is not None else f"number {which + 1} of the"
        raise Failure(
            f"{first(before, moved)} as before, when {what} {where} is multiplied by {factor:g}",
            first(after, moved, case),
        )


def _newly(case: Case, x: Tensor) -> tuple[Tensor, Grid]:
    """The output of a fresh module for a tensor."""
    module = case.subject.build(tuple(x.shape))
    case.subject.settle(module, x, *case.context)
    return Case(case.subject, module, x, case.context).quantize()


def first(values: Tensor, where: Tensor, case: Case | None = None) -> str:
    """The first value where a mask is set, and its input."""
    picked = values.expand(where.shape)[where].reshape(-1)[0].item()
    if case is None:
        return f"{picked:.9g}"
    return f"{picked:.9g} for {case.x.expand(where.shape)[where].reshape(-1)[0].item():.9g}"


def shown(tensor: Tensor) -> str:
    """A small tensor in one line, with the digits that float32 needs."""
    flat = tensor.detach().reshape(-1)
    numbers = ", ".join(f"{each:.9g}" for each in flat[:8].tolist())
    more = ", ..." if flat.numel() > 8 else ""
    return numbers if tensor.ndim == 0 else f"[{numbers}{more}]"

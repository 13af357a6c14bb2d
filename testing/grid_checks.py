"""Quantized values: on the grid, in the range, in order, zero kept, each value at its nearest integer."""

import torch
from torch import Tensor

from ..qcore import Grid, Rounding
from ..qcore.int_range import representable_bounds
from .registry import register_check
from .report import Failure
from .subject import Case, with_life

__all__ = ["granularity", "grid_membership", "idempotence", "monotonicity", "rounding", "value_range", "zero"]

_EXACT = 1 << 22  # float32 holds fractions beside integers up to this size


@register_check
def grid_membership(case: Case) -> None:
    """Values are whole steps: ``(integer - zero_point) * scale``; the scale is positive and finite."""
    for values, grid in case.each_way():
        if not bool((grid.scale.isfinite() & (grid.scale > 0)).all()):
            raise Failure("a positive, finite scale", shown(grid.scale))
        if grid.scale.requires_grad or grid.scale.dtype not in (torch.float32, torch.float64):
            raise Failure("the grid's scale detached, in float32 or float64", repr(grid.scale))
        if grid.zero_point is not None and not torch.equal(grid.zero_point, grid.zero_point.round()):
            raise Failure("a whole number as zero point", shown(grid.zero_point))
        codes = case.codes(values, grid)
        off = (codes - codes.round()).abs() > 1e-3 + codes.abs() * 1e-6
        if bool((off | codes.isnan()).any()):
            raise Failure("whole numbers of steps", first(codes, off | codes.isnan(), case))


@register_check
def value_range(case: Case) -> None:
    """Integers stay within the range of the bit width; values at or beyond an end are clipped to it."""
    low, high = case.subject.bounds
    pulled_in = representable_bounds(low, high, 24)
    for values, grid in case.each_way():
        codes = case.codes(values, grid).round()
        # integers of more than 24 bits don't come back from float32 values: there the values of the ends are compared
        lowest, highest = (_value(end, grid, values) for end in (low, high))
        outside = ((codes < low) & (values < lowest)) | ((codes > high) & (values > highest))
        if bool(outside.any()):
            raise Failure(f"integers from {low} to {high}", first(codes, outside, case))
        if not case.subject.fixed_grid:
            continue  # the range is dynamic, so nothing lies beyond it
        steps = case.codes(case.x, grid)
        ends = (low, pulled_in[0], lowest, steps <= low), (high, pulled_in[1], highest, steps >= high)
        for end, held, at, beyond in ends:
            missed = beyond & (codes != end) & (values != at) & (values != grid.from_int(torch.tensor(held)))
            if bool(missed.any()):
                raise Failure(f"{end} for values at or beyond that end of the range", first(codes, missed, case))


def _value(end: int, grid: Grid, values: Tensor) -> Tensor:
    """The value of an integer, worked out exactly and rounded once to the type of other values."""
    centred = end if grid.zero_point is None else end - grid.zero_point.double()
    return (centred * grid.scale.double()).to(values.dtype)


@register_check
def rounding(case: Case) -> None:
    """Within the range, a value becomes the declared rounding of ``x / scale``, computed by division."""
    declared = getattr(case.module, "rounding", None)
    low, high = case.subject.bounds
    for values, grid in case.each_way():
        steps = case.x / grid.scale  # in float32, as ONNX QuantizeLinear divides
        codes = case.codes(values, grid).round()
        shift = 0.0 if grid.zero_point is None else grid.zero_point
        exact = isinstance(declared, Rounding) and case.subject.integer
        expected = declared(steps) if exact else steps  # type: ignore[misc]
        inside = (expected + shift > low) & (expected + shift < high) & (steps.abs() < _EXACT)
        allowed = 0.0 if exact else 1.0
        wrong = inside & ((codes - shift - expected).abs() > allowed)
        if bool(wrong.any()):
            what = f"{first(expected + shift, wrong)}, {declared!r} of" if exact else "a neighbour of"
            raise Failure(f"{what} {first(steps + shift, wrong)} steps", first(codes, wrong, case))


@register_check
def idempotence(case: Case) -> None:
    """Quantizing again changes nothing, or at most one step if the scale is measured anew or rounding is directed."""
    values, grid = case.quantize()
    again, _ = case.quantize(values)
    moved = (again - values).abs()
    # A percentile or a power of two may measure another scale; a scale that creeps moves values by many steps. And the
    # floor of (3 * 0.1) / 0.1 is 2 in floating point.
    exact = case.subject.fixed_grid and _to_nearest(case)
    allowed = torch.zeros_like(grid.scale) if exact else grid.scale * 1.001
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
        more = case.x + share * case.quantize()[1].scale
        moved = []
        for x in (case.x, more):
            torch.default_generator.manual_seed(0)  # a random rounding need not keep the order
            moved.append(case.quantize(x)[0])
        if bool((moved[1] < moved[0]).any()):
            _falls(case.x, moved[0], more, moved[1], moved[1] < moved[0])
    for values, grid in case.each_way():
        given, moved = (_channels(each, grid) for each in (case.x, values))
        order = given.argsort(1)
        given, moved = given.gather(1, order), moved.gather(1, order)
        down = (moved.diff() < 0) & (given.diff() > 0)
        if bool(down.any()):
            _falls(given[:, :-1], moved[:, :-1], given[:, 1:], moved[:, 1:], down)


def _channels(x: Tensor, grid: Grid) -> Tensor:
    """One row for each scale."""
    return x.reshape(1, -1) if grid.axis is None else x.movedim(grid.axis, 0).reshape(x.shape[grid.axis], -1)


def _falls(x: Tensor, y: Tensor, above: Tensor, after: Tensor, where: Tensor) -> None:
    expected = f"at least {first(y, where)} for {first(above, where)}, as for {first(x, where)}"
    raise Failure(expected, first(after, where))


@register_check
def zero(case: Case) -> None:
    """Zero stays exactly zero: padding and ReLU rely on it."""
    at = torch.arange(case.x.numel()).reshape(case.x.shape) % 2 == 1
    some = with_life(case.x.masked_fill(at, 0.0), case.quantize()[1])  # `constant_input` covers tensors of zeros only
    at = some == 0
    values, _ = case.quantize(some)
    if bool((values[at] != 0).any()):
        raise Failure("0 for 0", first(values, at & (values != 0)))


@register_check
def granularity(case: Case) -> None:
    """The scale is one number, or one per index of the declared axis; channels don't affect each other."""
    _, grid = case.quantize()
    if grid.axis is None:
        if grid.scale.numel() != 1:
            raise Failure("one scale, as axis is None", f"a scale of shape {tuple(grid.scale.shape)}")
        return
    axis = grid.axis % case.x.ndim
    wanted = tuple(side if dim == axis else 1 for dim, side in enumerate(case.x.shape))
    if tuple(grid.scale.shape) not in (wanted, wanted[axis:]):
        raise Failure(f"a scale of shape {wanted}, for axis {grid.axis}", f"{tuple(grid.scale.shape)}")
    if case.x.shape[axis] < 2:
        return
    changed = case.x.clone()
    changed.select(axis, 0).mul_(8)  # the scales of the other channels don't affect this one
    before, after = (_newly(case, x)[0] for x in (case.x, changed))
    rest = (torch.arange(case.x.shape[axis]) > 0).reshape(wanted)
    moved = rest & (before != after)
    if bool(moved.any()):
        raise Failure(
            f"{first(before, moved)} as before, when channel 0 of axis {grid.axis} is multiplied by 8",
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

"""Gradients of values, scales and zero points, against a plain-autograd twin and against LSQ's closed form."""

from typing import Any

import torch
from torch import Tensor

from ...qcore import Rounding
from ...qcore.kernels.composed import composed
from ..registry import register_check
from ..report import Failure, NotApplicable
from ..subject import Case
from .grid import first, shown

__all__ = ["gradient", "scale_gradient"]

_TOLERANCE = 2e-4  # relative to the size of the summands


@register_check
def gradient(case: Case) -> None:
    """The input's gradient passes inside the range and stops outside; the scale's statistic may add its own."""
    _needs_parts(case)
    if not case.subject.fixed_grid and _tied(case):
        return  # of two equal magnitudes, either may get the gradient
    weights = _upstream(case.x)
    x = case.x.clone().requires_grad_()
    values, _ = case.run(x)
    if not values.requires_grad:
        raise Failure("a gradient for the input", "values that require none (detached)")
    (found,) = torch.autograd.grad(values, x, weights, allow_unused=True)
    found = torch.zeros_like(x) if found is None else found
    twin_x = case.x.clone().requires_grad_()
    twin, _, size = _twin(case, twin_x, values.detach())
    (expected,) = torch.autograd.grad(twin, twin_x, weights, allow_unused=True)
    expected = torch.zeros_like(x) if expected is None else expected
    wrong = ~((found - expected).abs() <= _TOLERANCE * (1 + weights.abs() + size)) & ~_at_an_end(case)
    if bool(wrong.any()):
        raise Failure(
            f"{first(expected, wrong)} as gradient of the input (that of the composed form; {first(weights, wrong)} "
            "comes in)",
            first(found, wrong, case),
        )


@register_check
def scale_gradient(case: Case) -> None:
    """A learned scale's gradient is LSQ's: ``q - x / scale`` inside, the end of the range outside; q is the level."""
    _needs_parts(case)
    parameters = [(name, each) for name, each in case.module.named_parameters() if each.requires_grad]
    parameters = [each for each in parameters if not each[0].startswith("levels.")]  # learned levels are no scale
    if not parameters:
        raise NotApplicable("nothing in it is learned")
    weights = _upstream(case.x)
    values, grid = case.run(case.x.clone().requires_grad_())
    if bool(_at_an_end(case).any()):
        return  # on the boundary, either gradient is right
    twin, scale, _ = _twin(case, case.x, values.detach())
    wanted = [each for _, each in parameters]
    found = torch.autograd.grad(values, wanted, weights, allow_unused=True, retain_graph=True)
    expected = torch.autograd.grad(twin, wanted, weights, allow_unused=True, retain_graph=True)
    pull = _closed_form(case, values.detach(), weights)
    if pull is not None and scale.requires_grad and getattr(case.module, "transform", None) is None:
        expected = torch.autograd.grad(scale, wanted, pull.to(scale.dtype), allow_unused=True, retain_graph=True)
    size = (weights.abs() * (values.detach().abs() + case.x.abs()) / grid.scale).sum()
    for (name, parameter), one, other in zip(parameters, found, expected, strict=True):
        slope = 1.0 if parameter.numel() == 0 else _slope(scale, parameter)
        one, other = (torch.zeros_like(parameter) if each is None else each for each in (one, other))
        if not bool(((one - other).abs() <= _TOLERANCE * (size * slope + other.abs()) + 1e-12).all()):
            raise Failure(f"{shown(other)} as gradient of {name}", shown(one))


def _needs_parts(case: Case) -> None:
    if not case.subject.known:
        raise NotApplicable("neither GridQuant nor BiasQuant: its gradient is its own")
    if not case.subject.number_format.whole and case.subject.zero_points:
        raise NotApplicable("a zero point that is no whole number has a gradient of its own")


def _tied(case: Case) -> bool:
    """Whether several values of one channel share its largest magnitude, its maximum or its minimum."""
    rows = case.subject.granularity.rows(case.x)
    ends = (rows.abs() == rows.abs().amax(1, True), rows == rows.amax(1, True), rows == rows.amin(1, True))
    return any(bool((each.sum(1) > 1).any()) for each in ends)


def _upstream(x: Tensor) -> Tensor:
    """An upstream gradient with both signs, different everywhere."""
    return (torch.linspace(-1, 2, x.numel()) + 0.1).reshape(x.shape)


def _parts(case: Case, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """Scale and zero point as the module's parts compute them, with their autograd graphs."""
    module: Any = case.module
    x = case.rounded(x)
    if case.context:
        inputs, weights = case.context
        return inputs.scale * weights.scale.reshape(-1), None
    scale = module.scaling(x)
    zero_point = None if module.zero_point is None else module.zero_point(x, scale)
    spread = case.subject.granularity.spread
    return spread(scale, x.shape), None if zero_point is None else spread(zero_point, x.shape)


def _twin(case: Case, x: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What the module computes, in plain autograd, with its levels; the scale; the size of the scale's gradient."""
    module: Any = case.module
    scale, zero_point = _parts(case, x)
    x = case.rounded(x)
    levels = case.subject.number_format
    low, high = levels.low, levels.high
    if not getattr(module.rounding, "straight_through", True):
        twin = composed(x, scale, levels, zero_point, module.rounding)
    else:
        steps = x / scale
        shift = torch.zeros_like(scale) if zero_point is None else zero_point
        inside = _inside(case)
        chosen = case.subject.places.nearest(values / scale.detach()).to(steps.dtype)
        straight = steps + (chosen - steps).detach()
        if getattr(module, "clip_first", False):
            straight = (x + (chosen * scale - x).detach()) / scale  # the scale is moved by what is clipped alone
        ends = torch.where(steps.detach() + shift.detach() > high, high - shift, low - shift)
        if not levels.whole:
            ends = chosen  # without zero points
        twin = torch.where(inside, straight, ends) * scale
        if getattr(module, "pass_clipped", False) or not getattr(module, "clips", True):
            twin = torch.where(inside, twin, twin + x - x.detach())
    size = ((values.abs() + x.detach().abs()) / scale.detach()).sum() / (high - low)
    return twin, scale, size


def _inside(case: Case) -> Tensor:
    """Where nothing is clipped: the nearest integer is in range, or the number lies between the edges of the format."""
    scale, zero_point = _parts(case, case.x)
    steps = (case.rounded(case.x) / scale).detach()
    declared = getattr(case.module, "rounding", torch.round)
    if getattr(case.module, "clip_first", False):
        return (steps >= case.subject.number_format.low) & (steps < case.subject.number_format.high)
    if not case.subject.number_format.whole:
        return case.subject.number_format.inside(steps, declared)
    low, high = case.subject.bounds
    with torch.no_grad(), torch.random.fork_rng():
        codes = declared(steps) if getattr(declared, "deterministic", False) else torch.round(steps)
    codes = codes if zero_point is None else codes + zero_point.detach()
    return (codes >= low) & (codes <= high)


def _at_an_end(case: Case) -> Tensor:
    """Where the value lies on the clipping boundary, so that either gradient is right."""
    grid = case.grid
    assert grid is not None
    declared: Any = getattr(case.module, "rounding", None)
    levels = case.subject.number_format
    clip_first = getattr(case.module, "clip_first", False)
    if clip_first or not levels.whole:
        edges = (levels.low, levels.high) if clip_first else levels.edges(declared)
        steps = case.rounded(case.x).double() / grid.scale.double()
        return torch.stack([(steps - edge).abs() <= 1e-5 * max(abs(edge), 1e-3) for edge in edges]).any(0)
    steps = case.codes(case.rounded(case.x), grid)
    low, high = case.subject.bounds
    near = 1e-5 * max(1, abs(low), abs(high))
    if isinstance(declared, Rounding):
        reaches = (0.5,) if declared.name.startswith("half") else (0.0, 1.0)
        ends = [end for reach in reaches for end in (low - reach, high + reach)]
        return torch.stack([(steps - end).abs() < near for end in ends]).any(0)
    return ((steps - low).abs() < 1 + near) | ((steps - high).abs() < 1 + near)  # it may turn anywhere


def _closed_form(case: Case, values: Tensor, weights: Tensor) -> Tensor | None:
    """LSQ's gradient of the scale; None with a zero point, which contributes to it."""
    scale, zero_point = _parts(case, case.x)
    if zero_point is not None:
        return None
    scale = scale.detach()
    codes = values / scale
    inside = 0.0 if getattr(case.module, "clip_first", False) else codes - case.rounded(case.x) / scale
    moved = torch.where(_inside(case), inside, codes)
    return (weights * moved).sum_to_size(scale.shape)


def _slope(scale: Tensor, parameter: Tensor) -> float:
    """The largest derivative of the scale with respect to a parameter."""
    if not scale.requires_grad:
        return 1.0
    (found,) = torch.autograd.grad(scale.sum(), parameter, allow_unused=True, retain_graph=True)
    return 1.0 if found is None else max(float(found.abs().max()), 1e-12)

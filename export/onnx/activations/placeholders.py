"""What a quantizer of activations is traced as: placeholders, and the arithmetic that a file has to do itself."""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor

from ....qcore import GridQuant
from ...capture.record import Call
from ..dialects import Dialect
from ..tracing.placeholder import placeholder
from .plan import Plan, needs_clipping, plan_of, static_shape

__all__ = ["emitter"]


def emitter(dialect: Dialect) -> Callable[[Call, Tensor], Tensor]:
    """What traces one call of a quantizer: a function of the call, and of its traced input.

    - ``Quantize`` stands for QuantizeLinear and DequantizeLinear; with a scale, and a zero point, as further inputs
      where they follow the input. Behind ``Divide``, by a scale that stays, it takes levels.
    - ``Multiply`` stands for levels times their scale, which is its second input where it follows the input.
    - ``Name`` gives a value the name by which verification finds it.

    Args:
        dialect: the dialect, whose types decide what is left to trace.
    """
    return lambda call, x: _traced(call, dialect, x)


def _traced(call: Call, dialect: Dialect, x: Tensor) -> Tensor:
    if call.stored or call.quantizer.follows_input:
        return placeholder("Quantize", call, x)
    plan = plan_of(call, dialect)
    if plan.native and not plan.follows:
        return placeholder("Quantize", call, x)
    quantizer = cast(GridQuant, call.quantizer)
    if plan.follows:
        return _following(call, quantizer, plan, dialect, x)
    steps = placeholder("Divide", call, x)
    if call.grid.number_format.whole:
        return placeholder("Quantize", call, quantizer.rounding(steps))
    levels = call.grid.number_format.nearest(steps, quantizer.rounding)
    if plan.storage is not None:
        return placeholder("Quantize", call, levels)
    return placeholder("Multiply", call, _named("levels", call, levels))


def _following(call: Call, quantizer: GridQuant, plan: Plan, dialect: Dialect, x: Tensor) -> Tensor:
    """One whose scale follows the input."""
    scale = quantizer._scale(x)
    zero_point = None if quantizer.zero_point is None else quantizer._zero_of(x, scale)
    scale = _named("scale", call, scale)
    if plan.native and static_shape(plan, x.shape):
        assert plan.storage is not None
        if needs_clipping(call, plan.storage, dialect):
            x = _clipped(call, quantizer, x, scale, zero_point)
        given = [scale] if zero_point is None else [scale, zero_point]
        if plan.block is None:
            given = [each.reshape(()) if plan.axis is None else each.reshape(-1) for each in given]
        return placeholder("Quantize", call, x, *given)
    granularity, levels = quantizer.granularity, call.grid.number_format
    view, beside = granularity.view(x), granularity.beside(scale, x)
    if zero_point is None:
        reached = levels.nearest(view / beside, quantizer.rounding)
    else:
        zero_point = _named("zero_point", call, zero_point)
        reached = levels.near(view / beside, quantizer.rounding, granularity.beside(zero_point, x))
    reached = _named("levels", call, granularity.back(reached, x))
    spread = beside if view is x else granularity.back(beside.expand_as(view), x)
    return placeholder("Multiply", call, reached, spread)


def _clipped(call: Call, quantizer: GridQuant, x: Tensor, scale: Tensor, zero_point: Tensor | None) -> Tensor:
    """Values clipped at the ends of the grid: they round to its last integers, so the codes are the same."""
    granularity, (low, high) = quantizer.granularity, call.grid.bounds
    view, beside = granularity.view(x), granularity.beside(scale, x)
    shift = 0.0 if zero_point is None else granularity.beside(zero_point, x)
    inside = torch.minimum(torch.maximum(view, (low - shift) * beside), (high - shift) * beside)
    return granularity.back(inside, x)


def _named(role: str, call: Call, x: Tensor) -> Tensor:
    return placeholder("Name", call, x, role=role)

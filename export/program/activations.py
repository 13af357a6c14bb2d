"""Activations in a program: torch's quantize and dequantize operators, or the traced arithmetic of their format."""

from collections.abc import Callable
from typing import NamedTuple, cast

import torch
from torch import Tensor

from ...qcore import GridQuant, Integers, PerTensor, PerToken
from ..capture.record import Call
from .markers import Mark
from .names import Names
from .operators import operators, type_of

__all__ = ["RunTimeValue", "Tracing", "activation_of"]


class Tracing(NamedTuple):
    """What tracing an activation needs.

    Args:
        mark: names a tensor.
        names: of nodes.
        exact: divide by the scale first, see `export_program`.
    """

    mark: Mark
    names: Names
    exact: bool

    def named(self, role: str, call: Call, x: Tensor) -> Tensor:
        """A tensor of a call, under its name."""
        return self.mark(x, self.names.node(role, call.path, call.index))

    def held(self, role: str, call: Call, x: Tensor) -> Tensor:
        """A constant of a call, which becomes a buffer."""
        return self.mark(x, Names.buffer(role, call.path, call.index))


RunTimeValue = Callable[[Tracing, Tensor], Tensor]


def activation_of(call: Call) -> RunTimeValue:
    """What traces a call of an activation's quantizer."""
    if call.follows_input:
        return Following(call)
    return Standing(call) if isinstance(call.grid.number_format, Integers) else StandingLevels(call)


class Standing:
    """Integers on a scale that stays.

    Args:
        call: the call.
    """

    def __init__(self, call: Call) -> None:
        self.call = call
        plain = call.plain
        self.kind = (*plain.bounds, type_of(*plain.bounds, mixes=plain.axis is not None))
        self.scale = plain.shaped(plain.scale, call.codes.ndim).clone()  # for a division
        self.scales, self.zero_points = plain.scale.clone(), plain.zero_point.clone()

    def __call__(self, tracing: Tracing, x: Tensor) -> Tensor:
        call, plain = self.call, self.call.plain
        if tracing.exact or not call.half_even:
            rounding: Callable[[Tensor], Tensor] = call.quantizer.rounding  # type: ignore[assignment]
            scale = tracing.held("divisor", call, self.scale)
            x = rounding(x / scale) * scale  # next to an integer in steps: nothing that follows moves it
        name, given = "per_tensor", (plain.scale.item(), int(plain.zero_point)) if plain.axis is None else ()
        if plain.axis is not None:
            scales = tracing.held("scale", call, self.scales)
            name, given = (
                "per_channel",
                (
                    scales,
                    tracing.held("zero_point", call, self.zero_points),
                    plain.axis,
                ),
            )
        codes = tracing.named("codes", call, _operator("quantize", name)(x, *given, *self.kind))
        return tracing.named("values", call, _operator("dequantize", name)(codes, *given, *self.kind))


class StandingLevels:
    """Levels that are no integers, on a scale that stays.

    Args:
        call: the call.
    """

    def __init__(self, call: Call) -> None:
        self.call = call
        self.scale = call.grid.along(call.grid.scale.detach().cpu().float(), call.codes.shape).clone()

    def __call__(self, tracing: Tracing, x: Tensor) -> Tensor:
        call, quantizer = self.call, cast(GridQuant, self.call.quantizer)
        scale = tracing.held("scale", call, self.scale)
        levels = call.grid.number_format.nearest(x / scale, quantizer.rounding)
        return tracing.named("values", call, tracing.named("levels", call, levels) * scale)


class Following:
    """A scale that follows the input.

    Args:
        call: the call.
    """

    def __init__(self, call: Call) -> None:
        self.call = call
        self.whole = isinstance(call.grid.number_format, Integers)
        if self.whole:
            bounds = call.grid.bounds
            self.kind = (*bounds, type_of(*bounds, mixes=True))

    def __call__(self, tracing: Tracing, x: Tensor) -> Tensor:
        call, quantizer = self.call, cast(GridQuant, self.call.quantizer)
        scale = quantizer._scale(x)
        zero_point = None if quantizer.zero_point is None else quantizer._zero_of(x, scale)
        scale = tracing.named("scale", call, scale)
        if zero_point is not None:
            zero_point = tracing.named("zero_point", call, zero_point)
        name = self._operator(x)
        if name is None:
            return self._traced(tracing, x, scale, zero_point)
        if tracing.exact or not call.half_even:
            granularity = quantizer.granularity
            view, beside = granularity.view(x), granularity.beside(scale, x)
            x = granularity.back(quantizer.rounding(view / beside) * beside, x)
        zero_point = torch.zeros_like(scale) if zero_point is None else zero_point
        return self._by_operator(name, tracing, x, scale, zero_point.to(torch.int64))

    def _operator(self, x: Tensor) -> str | None:
        """The operators that take such scales; None where there are none."""
        granularity = self.call.grid.granularity
        if not self.whole:
            return None
        if isinstance(granularity, PerTensor):
            return "per_tensor"
        if isinstance(granularity, PerToken) and x.ndim > 1:
            return "per_token"
        if granularity.axis is not None:
            return "per_channel"
        block, size = granularity.block(self.call.codes.shape), x.shape[-1]
        rows = all(each == 1 for each in block[:-1]) and block[-1] > 1 and isinstance(size, int)
        return "per_channel_group" if rows and size % block[-1] == 0 else None

    def _by_operator(self, name: str, tracing: Tracing, x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        call, shape, axis = self.call, x.shape, self.call.grid.granularity.axis
        before, after = self.kind, self.kind
        given: tuple[object, ...] = (scale, zero_point)
        if axis is not None:
            given = (scale.reshape(-1), zero_point.reshape(-1), axis % x.ndim)
        if name == "per_token":
            after = (*self.kind, torch.float32)
        if name == "per_channel_group":
            size = call.grid.granularity.block(call.codes.shape)[-1]
            x = x.reshape(-1, shape[-1])
            before, after = (*self.kind, size), (*self.kind, size, torch.float32)
        codes = tracing.named("codes", call, _operator("quantize", name, tensor=True)(x, *given, *before))
        values = _operator("dequantize", name, tensor=True)(codes, *given, *after)
        return tracing.named("values", call, values.reshape(shape) if name == "per_channel_group" else values)

    def _traced(self, tracing: Tracing, x: Tensor, scale: Tensor, zero_point: Tensor | None) -> Tensor:
        call, quantizer = self.call, cast(GridQuant, self.call.quantizer)
        granularity, levels = quantizer.granularity, call.grid.number_format
        view, beside = granularity.view(x), granularity.beside(scale, x)
        if zero_point is None:
            reached = levels.nearest(view / beside, quantizer.rounding)
        else:
            reached = levels.near(view / beside, quantizer.rounding, granularity.beside(zero_point, x))
        reached = tracing.named("levels", call, granularity.back(reached, x))
        spread = beside if view is x else granularity.back(beside.expand_as(view), x)
        return tracing.named("values", call, reached * spread)


def _operator(verb: str, name: str, tensor: bool = False) -> Callable[..., Tensor]:
    found = getattr(operators(), f"{verb}_{name}")
    return found.tensor if tensor and name == "per_tensor" else found.default

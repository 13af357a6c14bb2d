"""The fast forms of `fake_quant`: one autograd function for each kind of quantization.

Eager forms, for float32 and float64 on the CPU: four passes over memory, three of them in place; what backward needs is
the input and the output, which are alive anyway, and no masks. Those that start from a magnitude or from the tensor
itself spare the small operations between it and the scale. They have autograd's older form (the newer one inspects its
signature at every call: 40 us), which torch.func doesn't take. The traced form is pointwise and recomputes in backward,
so that a compiler turns each direction into one loop; it serves every device.

Where the gradients of an eager form are to be differentiated in turn, they are those of its definition (`again`).
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..aliases import Arguments, Context
from ..formats.number_format import NumberFormat
from ..rounding import HalfEven, Rounding
from ..tracing import differentiated, transformed
from .composed import composed
from .derivatives import clamp_through

__all__ = [
    "LARGE",
    "EagerFakeQuant",
    "MagnitudeFakeQuant",
    "TracedFakeQuant",
    "repeated",
    "runs_eagerly",
]

LARGE = 1 << 18  # numbers from which on quantized values may be worked out again in backward rather than kept: 1 MB
_hardtanh_backward = torch.ops.aten.hardtanh_backward.default
_hardtanh_backward_out = torch.ops.aten.hardtanh_backward.grad_input


def runs_eagerly(x: Tensor) -> bool:
    """Whether the eager forms can take a tensor."""
    wide = x.dtype == torch.float32 or x.dtype == torch.float64
    return wide and x.device.type == "cpu" and not torch.compiler.is_compiling() and not transformed()


def apply_eagerly(function: type[torch.autograd.Function], *args: object) -> Any:
    """The function's outputs, or None under a transform, which takes no such function."""
    return None if transformed() else function.apply(*args)


def again(grad: Tensor, definition: Callable[..., Tensor], *inputs: Tensor | None) -> list[Tensor | None]:
    """The gradients of a definition in torch's own operations: what can be differentiated again, or mapped."""
    recorded = torch.is_grad_enabled()
    with torch.enable_grad():
        own = [each if each is None else each.view_as(each) for each in inputs]  # one may be made from another
        wanted = [each for each in own if each is not None and each.requires_grad]
        found = torch.autograd.grad(definition(*own), wanted, grad, create_graph=recorded, allow_unused=True)
    gradients = iter(found)
    return [next(gradients) if each is not None and each.requires_grad else None for each in own]


def quantize_eagerly(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    number_format: NumberFormat,
    rounding: Rounding,
    relu: bool,
) -> Tensor:
    """Values on the grid, in one allocation; no gradients."""
    steps = torch.div(x, scale)
    if zero_point is None:
        return number_format.inplace(steps, rounding, relu).mul_(scale)
    return number_format.shifted(steps, rounding, zero_point).mul_(scale)


def inside_only(
    grad: Tensor,
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    number_format: NumberFormat,
    rounding: Rounding,
    relu: bool,
) -> Tensor:
    """The gradient where nothing is clipped, else 0, by the one vectorised kernel that does it."""
    low, high = number_format.edges(rounding)
    one_shift = zero_point is None or zero_point.numel() == 1
    plain = isinstance(rounding, HalfEven) or not number_format.whole
    if plain and scale.numel() == 1 and one_shift and not number_format.sharp:
        step, shift = scale.item(), 0.0 if zero_point is None else zero_point.item()
        lowest = 0.0 if relu else (low - shift) * step
        return _hardtanh_backward(grad, x, lowest, (high - shift) * step)
    codes = torch.div(x, scale)
    if number_format.whole:
        rounding.inplace(codes)
    if relu:
        codes.masked_fill_(x <= 0, low - 1)
    if zero_point is not None:
        codes.add_(zero_point)
    return _hardtanh_backward_out(grad, codes, low, high, grad_input=codes)


def _unclipped(grad: Tensor, x: Tensor, relu: bool) -> Tensor:
    """The gradient where what is clipped lets it pass; the ReLU does not."""
    return torch.where(x > 0, grad, 0.0) if relu else grad


def step_grad(grad: Tensor, inside: Tensor, x: Tensor, y: Tensor, step: float, few: bool) -> float:
    """LSQ's gradient of one scale, from what is at hand: inside ``(y - x) / scale``, outside ``y / scale``."""
    if few:
        total = (torch.dot(grad.reshape(-1), y.reshape(-1)) - torch.dot(inside.reshape(-1), x.reshape(-1))).item()
        if math.isfinite(total):
            return total / step
    # with many integers the two products would cancel; with an infinite value that was clipped, they are NaN
    return (grad * torch.where(inside == 0, y, y - x)).sum().item() / step


def _steps_grad(grad: Tensor, inside: Tensor, x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    """The same for several scales."""
    return (grad * torch.where(inside == 0, y, y - x)).sum_to_size(scale.shape) / scale


_hooks_in_use: Any = getattr(getattr(torch._C, "_autograd", None), "_top_saved_tensors_default_hooks", None)


def set_aside(ctx: Context, y: Tensor, rounding: Rounding) -> Tensor | None:
    """Keep a large result in ``ctx.aside``, with its version, and not among the saved tensors; what is left to save.

    Whoever else would keep it for backward may take it away (set None), and ask for it there: `repeated` works it out
    again, once for all. Not under gradient checkpointing or other hooks on saved tensors, which decide for themselves
    what is kept; and not where torch doesn't tell.
    """
    ctx.aside = None
    if (
        y.numel() < LARGE
        or y.is_inference()
        or not rounding.deterministic
        or _hooks_in_use is None
        or _hooks_in_use(False) is not None
    ):
        return y
    ctx.aside = (y.detach(), y._version)
    return None


def repeated(ctx: Context) -> Tensor:
    """The result that a function set aside, from ``(x, scale, ...)`` among its saved tensors."""
    if ctx.aside is None:
        x, scale, *_ = ctx.saved_tensors
        y = quantize_eagerly(x, scale, None, *ctx.form)
        ctx.aside = (y, y._version)
    y, version = ctx.aside
    if y._version != version:
        raise RuntimeError(
            "a quantized tensor needed for gradient computation has been modified by an inplace operation: version "
            f"{y._version}, expected {version}. Write y = y + 1 for y += 1."
        )
    return y


def result_of(ctx: Context, x: Tensor, scale: Tensor, saved: Tensor | None) -> Tensor:
    """The result, for the function's own backward."""
    if saved is not None:
        return saved
    if ctx.aside is None:
        return quantize_eagerly(x, scale, None, *ctx.form)
    y = repeated(ctx)
    ctx.aside = None
    return y


class EagerFakeQuant(torch.autograd.Function):
    """``(x, scale, zero_point) -> y``."""

    @staticmethod
    def forward(
        ctx: Context,
        x: Tensor,
        scale: Tensor,
        zero_point: Tensor | None,
        number_format: NumberFormat,
        rounding: Rounding,
        relu: bool,
        clips: bool,
    ) -> Tensor:
        y = quantize_eagerly(x, scale, zero_point, number_format, rounding, relu)
        ctx.rest = number_format, rounding, relu, clips
        learned = ctx.needs_input_grad[1]
        needed = learned or clips or relu or ctx.needs_input_grad[2]
        ctx.save_for_backward(x if needed else None, scale, zero_point, y if learned else None)
        return y

    @staticmethod
    def backward(ctx: Context, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, scale, zero_point, y = ctx.saved_tensors
        number_format, rounding, relu, clips = ctx.rest
        if isinstance(x, Tensor) and differentiated(grad):

            def definition(x: Tensor, scale: Tensor, zero_point: Tensor | None) -> Tensor:
                return composed(x, scale, number_format, zero_point, rounding, relu=relu, clips=clips)

            return *again(grad, definition, x, scale, zero_point), None, None, None, None
        asked = ctx.needs_input_grad
        inside = grad
        if clips or asked[1] or asked[2]:
            inside = inside_only(grad, x, scale, zero_point, number_format, rounding, relu)
        scale_grad = zero_point_grad = None
        if asked[1]:
            if scale.numel() == 1:
                scale_grad = torch.full_like(scale, step_grad(grad, inside, x, y, scale.item(), number_format.few))
            else:
                scale_grad = _steps_grad(grad, inside, x, y, scale)
        if asked[2]:
            zero_point_grad = (inside - grad).mul_(scale).sum_to_size(zero_point.shape)
        passed = inside if clips else _unclipped(grad, x, relu)
        return passed, scale_grad, zero_point_grad, None, None, None, None


class MagnitudeFakeQuant(torch.autograd.Function):
    """``(x, base, offset) -> (y, scale)``, with scale = max(|base + offset|, floor) / threshold: learned scales."""

    @staticmethod
    def forward(
        ctx: Context,
        x: Tensor,
        base: Tensor,
        offset: Tensor,
        rest: tuple[list[int] | None, float, float, NumberFormat, Rounding, bool, bool],
    ) -> tuple[Tensor, Tensor]:
        shape, threshold, floor, number_format, rounding, relu, clips = rest
        magnitude = _wide(base + offset)
        if shape is None:
            number = abs(magnitude.item())
            number = number if number >= floor else in_precision(floor, magnitude)
            scale = divided(number, threshold, magnitude)
        else:
            scale = (magnitude.abs().clamp_min_(floor) / threshold).reshape(shape)
        y = quantize_eagerly(x, scale, None, number_format, rounding, relu)
        ctx.form, ctx.rest, ctx.magnitude = (number_format, rounding, relu), (threshold, floor, clips), magnitude
        ctx.mark_non_differentiable(scale)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, scale, set_aside(ctx, y, rounding), base, offset)
        return y, scale

    @staticmethod
    def backward(ctx: Context, grad: Tensor | None, _: object) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        if grad is None:
            return None, None, None, None
        x, scale, y, base, offset = ctx.saved_tensors
        number_format, rounding, relu = ctx.form
        threshold, floor, clips = ctx.rest
        if differentiated(grad):
            ctx.aside = None

            def definition(x: Tensor, base: Tensor, offset: Tensor) -> Tensor:
                step = clamp_through(_wide(base + offset).abs(), floor) / threshold
                shaped = step.reshape(scale.shape)
                return composed(x, shaped, number_format, None, rounding, relu=relu, clips=clips)

            return *again(grad, definition, x, base, offset), None
        inside = inside_only(grad, x, scale, None, number_format, rounding, relu)
        y = result_of(ctx, x, scale, y)
        magnitude = ctx.magnitude
        if scale.ndim == 0:
            number = magnitude.item()
            factor = 0.0 if abs(number) < floor else math.copysign(1, number) / threshold
            pull = step_grad(grad, inside, x, y, scale.item(), number_format.few)
            offset_grad = torch.full_like(magnitude, pull * factor)
        else:
            factors = torch.where(magnitude.abs() < floor, 0.0, magnitude.sign() / threshold)
            offset_grad = _steps_grad(grad, inside, x, y, scale).reshape(magnitude.shape) * factors
        passed = inside if clips else _unclipped(grad, x, relu)
        return passed, offset_grad if ctx.needs_input_grad[1] else None, offset_grad, None


def _wide(magnitude: Tensor) -> Tensor:
    """A scale is never half precision."""
    return magnitude if magnitude.dtype == torch.float32 or magnitude.dtype == torch.float64 else magnitude.float()


def in_precision(number: float, like: Tensor) -> float:
    """A number, as tensors of that precision hold it."""
    return torch.tensor(number, dtype=like.dtype).item()


def divided(magnitude: float, threshold: float, like: Tensor) -> Tensor:
    """The quotient in the precision of a tensor: a double holds enough digits for it to be rounded once."""
    return torch.full((), magnitude / threshold, dtype=like.dtype)


class TracedFakeQuant(torch.autograd.Function):
    """``(x, scale, zero_point) -> y`` in pointwise operations, recomputed in backward."""

    @staticmethod
    def forward(
        x: Tensor,
        scale: Tensor,
        zero_point: Tensor | None,
        number_format: NumberFormat,
        rounding: Rounding,
        relu: bool,
        clips: bool,
    ) -> Tensor:
        steps = x / scale
        if zero_point is None:
            return number_format.nearest(steps, rounding, relu) * scale
        return number_format.near(steps, rounding, zero_point) * scale

    @staticmethod
    def setup_context(ctx: Context, inputs: Arguments, output: object) -> None:
        x, scale, zero_point, ctx.number_format, ctx.rounding, ctx.relu, ctx.clips = inputs
        ctx.save_for_backward(x, scale, zero_point)

    @staticmethod
    def backward(ctx: Context, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, scale, zero_point = ctx.saved_tensors
        number_format, rounding = ctx.number_format, ctx.rounding
        step = scale.detach()  # inside the range the derivatives are constant, but for `grad`
        steps = x.detach() / step
        if zero_point is None:
            reached, inside = number_format.nearest(steps, rounding, ctx.relu), number_format.inside(steps, rounding)
            clipped = reached
        else:
            shift = zero_point.detach()
            reached, inside = number_format.near(steps, rounding, shift), number_format.within(steps, rounding, shift)
            clipped = reached + (shift - zero_point)
        if ctx.relu:
            inside = inside & (x > 0)
        passed = torch.where(inside if ctx.clips else x > 0, grad, 0.0) if ctx.clips or ctx.relu else grad
        scale_grad = zero_point_grad = None
        if ctx.needs_input_grad[1]:
            scale_grad = (grad * torch.where(inside, reached - steps, clipped)).sum_to_size(scale.shape)
        if ctx.needs_input_grad[2]:
            outside = torch.where(inside, 0.0, -grad * scale)
            zero_point_grad = outside.sum_to_size(scale.shape)
        return passed, scale_grad, zero_point_grad, None, None, None, None

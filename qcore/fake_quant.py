"""Fake quantization: real values moved onto a grid, with gradients for values, scale and zero point.

The arithmetic is that of ONNX ``QuantizeLinear`` and ``DequantizeLinear``::

    q = clamp(round(x / scale) + zero_point, low, high)
    y = (q - zero_point) * scale

Gradients are straight through where the rounded integer lies in range, zero where it was clipped; the scale's is
LSQ's (Esser et al., "Learned Step Size Quantization", 2020): ``q - x / scale`` inside, the bound outside.

Three forms compute it: `composed_fake_quant` in plain autograd (the definition; serves learned bit widths and roundings
of the user's own), and two fused ones, for eager CPU tensors and for everything that is traced.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .int_range import representable_bounds
from .rounding import HalfEven, Rounding, round_straight_through

__all__ = ["composed_fake_quant", "fake_quant", "quantize_to_int"]

_HALF_EVEN = HalfEven()
_MANTISSA_BITS = {torch.float32: 24, torch.float64: 53}


def fake_quant(
    x: Tensor,
    scale: Tensor,
    low: int | Tensor,
    high: int | Tensor,
    zero_point: Tensor | None = None,
    rounding: Callable[[Tensor], Tensor] = _HALF_EVEN,
    *,
    relu: bool = False,
    clips: bool = True,
) -> Tensor:
    """Move ``x`` onto the grid ``(integer - zero_point) * scale`` with integers from ``low`` to ``high``.

    Args:
        x: values of any floating dtype; half precision is computed in float32.
        scale: positive, 0-d or broadcastable to ``x``.
        low: smallest integer; tensors where the bit width is learned.
        high: largest integer.
        zero_point: whole numbers shaped like ``scale``, or None for 0.
        rounding: callable on ``x / scale``, see `Rounding`.
        relu: clamp ``x`` at 0 first, at no extra cost; for unsigned grids without zero point.
        clips: False promises that ``x`` is within range, so that the gradient needs no mask.

    Returns:
        A new tensor like ``x``. Its gradient reaches ``x``, ``scale`` and ``zero_point``.

    Example:
        >>> fake_quant(torch.tensor([-1.0, 0.26, 0.5, 9.0]), torch.tensor(0.25), -8, 7)
        tensor([-1.0000,  0.2500,  0.5000,  1.7500])
    """
    if x.dtype not in _MANTISSA_BITS:  # half precision can't tell neighbouring integers apart
        wide = fake_quant(x.float(), scale.float(), low, high, zero_point, rounding, relu=relu, clips=clips)
        return wide.to(x.dtype)
    if not isinstance(rounding, Rounding) or not (isinstance(low, int) and isinstance(high, int)):
        return composed_fake_quant(x.clamp_min(0) if relu else x, scale, low, high, zero_point, rounding)
    low, high = representable_bounds(low, high, _MANTISSA_BITS[x.dtype])
    fused = _EagerFakeQuant if x.device.type == "cpu" and not torch.compiler.is_compiling() else _TracedFakeQuant
    return fused.apply(x, scale, zero_point, low, high, rounding, relu, clips)


def composed_fake_quant(
    x: Tensor,
    scale: Tensor,
    low: int | Tensor,
    high: int | Tensor,
    zero_point: Tensor | None = None,
    rounding: Callable[[Tensor], Tensor] = _HALF_EVEN,
) -> Tensor:
    """The definition of `fake_quant`, written with torch's own operations: slower, and the twin it is tested against.

    Example:
        >>> composed_fake_quant(torch.tensor([0.3, 9.0]), torch.tensor(0.25), -8, 7)
        tensor([0.2500, 1.7500])
    """
    if isinstance(low, int) and isinstance(high, int):
        low, high = representable_bounds(low, high, _MANTISSA_BITS.get(x.dtype, 24))
    if zero_point is not None:
        low, high = low - zero_point, high - zero_point
    rounded = round_straight_through(x / scale, rounding)
    if isinstance(low, Tensor) or isinstance(high, Tensor):
        like = high if isinstance(high, Tensor) else low
        low, high = (torch.as_tensor(bound, dtype=rounded.dtype, device=like.device) for bound in (low, high))  # type: ignore[union-attr]
        clamped = torch.clamp(rounded, low, high)
    else:
        clamped = torch.clamp(rounded, low, high)
    return clamped * scale


def quantize_to_int(
    x: Tensor,
    scale: Tensor,
    low: int,
    high: int,
    zero_point: Tensor | None = None,
    rounding: Callable[[Tensor], Tensor] = _HALF_EVEN,
) -> Tensor:
    """The integers that `fake_quant` moves ``x`` to, as a floating tensor (float32 or float64).

    Example:
        >>> quantize_to_int(torch.tensor([0.3, 9.0]), torch.tensor(0.25), -8, 7)
        tensor([1., 7.])
    """
    x = x if x.dtype in _MANTISSA_BITS else x.float()
    low, high = representable_bounds(low, high, _MANTISSA_BITS[x.dtype])
    codes = rounding(x / scale)
    return (codes if zero_point is None else codes + zero_point).clamp(low, high)


class _EagerFakeQuant(torch.autograd.Function):
    """Four passes over memory, three of them in place; keeps the input and the output, no masks."""

    @staticmethod
    def forward(
        x: Tensor,
        scale: Tensor,
        zero_point: Tensor | None,
        low: int,
        high: int,
        rounding: Rounding,
        relu: bool,
        clips: bool,
    ) -> Tensor:
        y = rounding.inplace(torch.div(x, scale))
        if zero_point is None:
            y.clamp_(0 if relu else low, high)
        elif zero_point.numel() == 1:
            shift = zero_point.item()
            y.clamp_(low - shift, high - shift)
        else:
            y.add_(zero_point).clamp_(low, high).sub_(zero_point)
        return y.mul_(scale)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, scale, zero_point, ctx.low, ctx.high, ctx.rounding, ctx.relu, ctx.clips = inputs
        if ctx.needs_input_grad[1]:
            ctx.save_for_backward(x, scale, zero_point, output)
        elif ctx.clips:
            ctx.save_for_backward(x, scale, zero_point, None)
        else:
            ctx.save_for_backward(None, scale, zero_point, None)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, scale, zero_point, y = ctx.saved_tensors
        passed = _inside(ctx, grad, x, scale, zero_point) if ctx.clips else grad
        scale_grad = zero_point_grad = None
        if ctx.needs_input_grad[1]:
            if scale.numel() == 1 and ctx.high - ctx.low < 512:
                flat = torch.dot(grad.reshape(-1), y.reshape(-1)) - torch.dot(passed.reshape(-1), x.reshape(-1))
                scale_grad = (flat / scale.reshape(())).reshape(scale.shape)
            else:  # y - x first: with many integers, or few numbers, the two products would cancel
                scale_grad = ((passed * (y - x) + (grad - passed) * y).sum_to_size(scale.shape)) / scale
        if ctx.needs_input_grad[2]:
            zero_point_grad = (passed - grad).mul_(scale).sum_to_size(zero_point.shape)
        return passed, scale_grad, zero_point_grad, None, None, None, None, None


def _inside(ctx: Any, grad: Tensor, x: Tensor, scale: Tensor, zero_point: Tensor | None) -> Tensor:
    """The gradient where the rounded integer is in range, else 0, by the one vectorised kernel that does it."""
    low, high = ctx.low, ctx.high
    if isinstance(ctx.rounding, HalfEven) and scale.numel() == 1 and (zero_point is None or zero_point.numel() == 1):
        step, shift = scale.item(), 0.0 if zero_point is None else zero_point.item()
        lowest = 0.0 if ctx.relu else (low - shift - 0.5) * step
        return torch.ops.aten.hardtanh_backward(grad, x, lowest, (high - shift + 0.5) * step)
    codes = ctx.rounding.inplace(torch.div(x, scale))
    if ctx.relu:
        codes.masked_fill_(x <= 0, low - 1)
    if zero_point is not None:
        codes.add_(zero_point)
    return torch.ops.aten.hardtanh_backward(grad, codes, low - 0.5, high + 0.5)


class _TracedFakeQuant(torch.autograd.Function):
    """Pointwise operations only, recomputed in backward: a compiler fuses each direction into one loop."""

    @staticmethod
    def forward(
        x: Tensor,
        scale: Tensor,
        zero_point: Tensor | None,
        low: int,
        high: int,
        rounding: Rounding,
        relu: bool,
        clips: bool,
    ) -> Tensor:
        codes = rounding(x / scale)
        if zero_point is None:
            return torch.clamp(codes, 0 if relu else low, high) * scale
        return (torch.clamp(codes + zero_point, low, high) - zero_point) * scale

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, scale, zero_point, ctx.low, ctx.high, ctx.rounding, ctx.relu, ctx.clips = inputs
        ctx.save_for_backward(x, scale, zero_point)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, scale, zero_point = ctx.saved_tensors
        steps = x / scale
        codes = ctx.rounding(steps)
        shifted = codes if zero_point is None else codes + zero_point
        inside = (shifted >= ctx.low) & (shifted <= ctx.high)
        if ctx.relu:
            inside = inside & (x > 0)
        passed = torch.where(inside, grad, 0.0) if ctx.clips else grad
        scale_grad = zero_point_grad = None
        if ctx.needs_input_grad[1]:
            clamped = torch.clamp(shifted, ctx.low, ctx.high)
            bound = clamped if zero_point is None else clamped - zero_point
            moved = torch.where(inside, codes - steps, bound.clamp_min(0) if ctx.relu else bound)
            scale_grad = (grad * moved).sum_to_size(scale.shape)
        if ctx.needs_input_grad[2]:
            zero_point_grad = torch.where(inside, 0.0, -grad * scale).sum_to_size(zero_point.shape)  # type: ignore[union-attr]
        return passed, scale_grad, zero_point_grad, None, None, None, None, None

"""Fake quantization: real values moved onto a grid, with gradients for values, scale and zero point.

The arithmetic is that of ONNX ``QuantizeLinear`` and ``DequantizeLinear``::

    q = clamp(round(x / scale) + zero_point, low, high)
    y = (q - zero_point) * scale

Gradients are straight through where the rounded integer lies in range, zero where it was clipped; the scale's is
LSQ's (Esser et al., "Learned Step Size Quantization", 2020): ``q - x / scale`` inside, the bound outside.

`composed_fake_quant` computes it in plain autograd: the definition, which also serves learned bit widths and roundings
of the user's own. The fast forms are in `fused`.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from .fused import EagerFakeQuant, TracedFakeQuant, apply_eagerly, quantize_eagerly, runs_eagerly
from .int_range import representable_bounds
from .rounding import HalfEven, Rounding, round_straight_through

__all__ = ["composed_fake_quant", "fake_quant", "quantize_to_int"]

_HALF_EVEN = HalfEven()
_EXACT = 1 << 24  # every float holds the integers up to here
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
        return composed_fake_quant(x.relu() if relu else x, scale, low, high, zero_point, rounding)
    if high >= _EXACT or low < -_EXACT:
        low, high = representable_bounds(low, high, _MANTISSA_BITS[x.dtype])
    eager = runs_eagerly(x)
    if eager and not torch.is_grad_enabled():
        return quantize_eagerly(x, scale, zero_point, low, high, rounding, relu)
    arguments = (x, scale, zero_point, low, high, rounding, relu, clips)
    moved = apply_eagerly(EagerFakeQuant, *arguments) if eager else None
    return TracedFakeQuant.apply(*arguments) if moved is None else moved


def as_real(x: Tensor) -> Tensor:
    return x if x.is_floating_point() else x.to(torch.get_default_dtype())


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

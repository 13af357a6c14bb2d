"""Fake quantization: real values moved onto a grid, with gradients for values, scale and zero point.

The arithmetic is that of ONNX ``QuantizeLinear`` and ``DequantizeLinear``::

    q = clamp(round(x / scale) + zero_point, low, high)
    y = (q - zero_point) * scale

Gradients are straight through where the rounded integer lies in range, zero where it was clipped; the scale's is
LSQ's (Esser et al., "Learned Step Size Quantization", 2020): ``q - x / scale`` inside, the bound outside.

The definition in plain autograd is `composed_fake_quant`; the fast forms are in `fused`.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ..formats.int_range import representable_bounds
from ..formats.integers import interval
from ..formats.number_format import NumberFormat
from ..rounding import Rounding, round_straight_through
from ..tracing import transformed
from .composed import HALF_EVEN, MANTISSA_BITS, as_real, composed, composed_fake_quant
from .derivatives import clamp_through
from .device import quantized_on_device
from .fused import EagerFakeQuant, TracedFakeQuant, quantize_eagerly, runs_eagerly

__all__ = ["as_real", "composed_fake_quant", "fake_quant", "quantize_to_int", "to_levels"]


def fake_quant(
    x: Tensor,
    scale: Tensor,
    low: int | Tensor,
    high: int | Tensor,
    zero_point: Tensor | None = None,
    rounding: Callable[[Tensor], Tensor] = HALF_EVEN,
    *,
    relu: bool = False,
    clips: bool = True,
) -> Tensor:
    """Move ``x`` onto the grid ``(integer - zero_point) * scale`` with integers from ``low`` to ``high``.

    Args:
        x: values of any dtype but complex; half precision is computed in float32, integers in torch's default dtype.
        scale: positive, 0-d or broadcastable to ``x``.
        low: smallest integer; a tensor, broadcastable to ``x``, where the bit width is learned or differs by channel.
        high: largest integer.
        zero_point: whole numbers shaped like ``scale``, or None for 0.
        rounding: callable on ``x / scale``, see `Rounding`.
        relu: clamp ``x`` at 0 first, at no extra cost; for unsigned grids without zero point.
        clips: False promises that ``x`` is within range, so that the gradient needs no mask.

    Returns:
        A new floating tensor like ``x``. Its gradient reaches ``x``, ``scale`` and ``zero_point``.

    Raises:
        QuantizerError: the values are complex.

    Example:
        >>> fake_quant(torch.tensor([-1.0, 0.26, 0.5, 9.0]), torch.tensor(0.25), -8, 7)
        tensor([-1.0000,  0.2500,  0.5000,  1.7500])
    """
    return to_levels(x, scale, interval(low, high), zero_point, rounding, relu=relu, clips=clips)


def to_levels(
    x: Tensor,
    scale: Tensor,
    number_format: NumberFormat,
    zero_point: Tensor | None = None,
    rounding: Callable[[Tensor], Tensor] = HALF_EVEN,
    *,
    relu: bool = False,
    clips: bool = True,
) -> Tensor:
    """`fake_quant` for every number format: move ``x`` to its levels times ``scale``.

    Args:
        x: values of any dtype but complex; half precision is computed in float32, integers in torch's default dtype.
        scale: positive, 0-d or broadcastable to ``x``.
        number_format: the levels.
        zero_point: of integers only: whole numbers shaped like ``scale``, or None for 0.
        rounding: decides between the levels around ``x / scale``, see `Rounding`.
        relu: clamp ``x`` at 0 first; for integers without sign and zero point, and formats with a level 0.
        clips: False promises that ``x`` is within range, so that the gradient needs no mask.

    Returns:
        A new floating tensor like ``x``. Its gradient reaches ``x``, ``scale`` and ``zero_point``.

    Raises:
        QuantizerError: the values are complex.

    Example:
        >>> from bitwright.qcore import E2M1
        >>> to_levels(torch.tensor([-1.0, 0.3, 0.6, 9.0]), torch.tensor(0.25), E2M1)
        tensor([-1.0000,  0.2500,  0.5000,  1.5000])
    """
    if x.dtype not in MANTISSA_BITS:
        x = as_real(x)
        if x.dtype not in MANTISSA_BITS:  # half precision can't tell neighbouring levels apart
            if x.is_cuda:
                done = quantized_on_device(x, scale, zero_point, number_format, rounding, relu, clips)
                if done is not None:
                    return done
            wide = to_levels(x.float(), scale.float(), number_format, zero_point, rounding, relu=relu, clips=clips)
            return wide.to(x.dtype)
    eager = runs_eagerly(x)
    if not isinstance(rounding, Rounding) or number_format.learned or (not eager and transformed()):
        return composed(x, scale, number_format, zero_point, rounding, relu=relu, clips=clips)
    if eager and not torch.is_grad_enabled():
        return quantize_eagerly(x, scale, zero_point, number_format, rounding, relu)
    if not eager:
        done = quantized_on_device(x, scale, zero_point, number_format, rounding, relu, clips) if x.is_cuda else None
        if done is not None:
            return done
    function = EagerFakeQuant if eager else TracedFakeQuant
    return function.apply(x, scale, zero_point, number_format, rounding, relu, clips)


def quantize_to_int(
    x: Tensor,
    scale: Tensor,
    low: int | Tensor,
    high: int | Tensor,
    zero_point: Tensor | None = None,
    rounding: Callable[[Tensor], Tensor] = HALF_EVEN,
) -> Tensor:
    """The integers that `fake_quant` moves ``x`` to, as a floating tensor (float32 or float64).

    Example:
        >>> quantize_to_int(torch.tensor([0.3, 9.0]), torch.tensor(0.25), -8, 7)
        tensor([1., 7.])
    """
    if x.dtype not in MANTISSA_BITS:
        x = as_real(x)
        x = x if x.dtype in MANTISSA_BITS else x.float()
    if isinstance(low, int) and isinstance(high, int):
        low, high = representable_bounds(low, high, MANTISSA_BITS[x.dtype])
    codes = round_straight_through(x / scale, rounding)
    return clamp_through(codes if zero_point is None else codes + zero_point, low, high)

"""The definition of fake quantization, in torch's own operations.

Learned bit widths and roundings of the user's own are computed by it; so is everything where derivatives of derivatives
are asked for, or where a transform is at work that takes no autograd function. The fast forms are tested against it.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..errors import QuantizerError
from ..formats.int_range import representable_bounds
from ..formats.integers import MANTISSA_BITS, interval
from ..formats.number_format import NumberFormat
from ..rounding import HalfEven, Rounding, round_straight_through
from ..tracing import is_tracing, recording
from .derivatives import clamp_through, straight_through

__all__ = ["HALF_EVEN", "MANTISSA_BITS", "as_real", "composed", "composed_fake_quant"]

HALF_EVEN = HalfEven()


def composed_fake_quant(
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
    """The definition of `fake_quant`, written with torch's own operations: slower, and the twin it is tested against.

    Bounds may be tensors, broadcastable to ``x``: a bit width that is learned, or one for each channel.

    Example:
        >>> composed_fake_quant(torch.tensor([0.3, 9.0]), torch.tensor(0.25), -8, 7)
        tensor([0.2500, 1.7500])
        >>> highest = torch.tensor([[1.0], [7.0]])  # of 2 and of 4 bits
        >>> composed_fake_quant(torch.tensor([[0.3, 9.0], [0.3, 9.0]]), torch.tensor(0.25), -highest, highest)
        tensor([[0.2500, 0.2500],
                [0.2500, 1.7500]])
    """
    return composed(x, scale, interval(low, high), zero_point, rounding, relu=relu, clips=clips)


def composed(
    x: Tensor,
    scale: Tensor,
    number_format: NumberFormat,
    zero_point: Tensor | None = None,
    rounding: Callable[[Tensor], Tensor] = HALF_EVEN,
    *,
    relu: bool = False,
    clips: bool = True,
) -> Tensor:
    """The definition of `to_levels`, for every number format.

    Example:
        >>> from bitwright.qcore import E2M1
        >>> composed(torch.tensor([0.3, 9.0]), torch.tensor(0.25), E2M1)
        tensor([0.2500, 1.5000])
    """
    if x.dtype not in MANTISSA_BITS:
        real = as_real(x)
        wide = real if real.dtype in MANTISSA_BITS else real.float()
        scale = scale if scale.dtype in MANTISSA_BITS else scale.float()
        return composed(wide, scale, number_format, zero_point, rounding, relu=relu, clips=clips).to(real.dtype)
    x = x.relu() if relu else x
    steps = x / scale
    if number_format.whole:
        y, clipped = _to_integers(steps, number_format, zero_point, rounding)
    elif number_format.learned:
        y, clipped = _to_learned(steps, number_format, rounding)
    else:
        clipped = ~number_format.inside(steps.detach(), rounding)
        y = torch.where(
            clipped, _to_level(steps.detach(), number_format, rounding), _reached(steps, number_format, rounding)
        )
    y = y * scale
    if clips or not recording():
        return y
    return y + straight_through(torch.where(clipped, x, 0.0), torch.zeros_like(y))


def _to_integers(
    steps: Tensor, number_format: NumberFormat, zero_point: Tensor | None, rounding: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """The integers, less the zero point; and which of them were clipped."""
    low: Any = number_format.low
    high: Any = number_format.high
    if not number_format.learned:
        low, high = representable_bounds(low, high, MANTISSA_BITS[steps.dtype])
    if zero_point is not None:
        low, high = low - zero_point, high - zero_point
    codes = round_straight_through(steps, rounding)
    return clamp_through(codes, low, high), (codes < low) | (codes > high)


def _to_learned(
    steps: Tensor, number_format: NumberFormat, rounding: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Levels that have gradients themselves; and which numbers were clipped."""
    clipped = ~number_format.inside(steps.detach(), rounding)
    if not getattr(rounding, "straight_through", True):
        return _to_level(steps, number_format, rounding), clipped
    levels = _to_level(steps.detach(), number_format, rounding)
    return levels + torch.where(clipped, 0.0, straight_through(steps, torch.zeros_like(steps))), clipped


def _reached(steps: Tensor, number_format: NumberFormat, rounding: Callable[[Tensor], Tensor]) -> Tensor:
    """The levels, with a gradient of 1, or that of a rounding which brings its own."""
    if getattr(rounding, "straight_through", True):
        return straight_through(steps, _to_level(steps.detach(), number_format, rounding))
    return _to_level(steps, number_format, rounding)


def _to_level(steps: Tensor, number_format: NumberFormat, rounding: Callable[[Tensor], Tensor]) -> Tensor:
    ours = isinstance(rounding, Rounding) or is_tracing()  # where a number of elements is none
    return number_format.nearest(steps, rounding) if ours or steps.numel() else steps.clone()


def as_real(x: Tensor, path: str = "fake_quant") -> Tensor:
    """Values that a grid can hold: integers and truth values in torch's default dtype, floating ones as they are.

    Args:
        x: the values.
        path: where they arrive, for the message.

    Raises:
        QuantizerError: the values are complex.

    Example:
        >>> as_real(torch.tensor([0, 255], dtype=torch.uint8))
        tensor([  0., 255.])
    """
    if x.is_floating_point():
        return x
    if x.is_complex():
        raise QuantizerError(
            f"{path}: the values are {str(x.dtype).removeprefix('torch.')}, and a grid holds real numbers. Quantize "
            "torch.view_as_real(x), which has the real and the imaginary parts side by side, or x.abs()."
        )
    return x.to(torch.get_default_dtype())

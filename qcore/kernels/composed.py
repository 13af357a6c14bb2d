"""The definition of fake quantization, in torch's own operations.

Learned bit widths and roundings of the user's own are computed by it; so is everything where derivatives of derivatives
are asked for, or where a transform is at work that takes no autograd function. The fast forms are tested against it.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import QuantizerError
from ..formats.int_range import representable_bounds
from ..rounding import HalfEven, round_straight_through
from ..tracing import recording
from .derivatives import clamp_through, straight_through

__all__ = ["HALF_EVEN", "MANTISSA_BITS", "as_real", "composed_fake_quant"]

HALF_EVEN = HalfEven()
MANTISSA_BITS = {torch.float32: 24, torch.float64: 53}


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
    if x.dtype not in MANTISSA_BITS:
        real = as_real(x)
        wide = real if real.dtype in MANTISSA_BITS else real.float()
        scale = scale if scale.dtype in MANTISSA_BITS else scale.float()
        return composed_fake_quant(wide, scale, low, high, zero_point, rounding, relu=relu, clips=clips).to(real.dtype)
    x = x.relu() if relu else x
    if isinstance(low, int) and isinstance(high, int):
        low, high = representable_bounds(low, high, MANTISSA_BITS[x.dtype])
    if zero_point is not None:
        low, high = low - zero_point, high - zero_point
    codes = round_straight_through(x / scale, rounding)
    y = clamp_through(codes, low, high) * scale
    if clips or not recording():
        return y
    clipped = (codes < low) | (codes > high)
    return y + straight_through(torch.where(clipped, x, 0.0), torch.zeros_like(y))


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

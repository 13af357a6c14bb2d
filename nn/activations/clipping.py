"""Functions that clip, before a quantizer whose range is learned."""

from typing import TypeGuard

import torch
from torch import Tensor, nn

from ...qcore import IntQuant, RangeZeroPoint
from ...qcore.scaling import StoredScaling
from ...qcore.tracing import exporting

__all__ = ["learns", "unclipped"]


def learns(quant: nn.Module) -> TypeGuard[IntQuant]:
    """Whether gradients reach a range that no longer depends on the input."""
    if not isinstance(quant, IntQuant) or quant.intercept is not None:
        return False
    if not torch.is_grad_enabled() or exporting():
        return False
    if quant.dynamic or quant.calibrating or not isinstance(quant.zero_point, RangeZeroPoint | None):
        return False
    return any(each.requires_grad for each in quant.parameters())


def unclipped(x: Tensor, clipped: Tensor, low: float, high: float, quant: IntQuant) -> Tensor:
    """What a quantizer takes in place of ``clipped``, which is ``x`` clamped to [low, high]: with the same result.

    A value at the very end of the range asks for no larger range, so that values the function clips would teach a
    learned range nothing. Where the quantizer moves ``high`` to its largest integer, it moves all that lies above to
    the same one, and takes those values as they came: it clips them itself, and its range has the gradient of that. So
    with ``low``. The gradient for ``x`` remains the function's.

    Example:
        >>> import bitwright.nn as qnn
        >>> relu6 = qnn.QuantReLU6(scaling="learned", max_value=6.0)
        >>> relu6(torch.tensor([9.0, 9.0])).sum().backward()
        >>> relu6.act_quant.scaling.magnitude_offset.grad
        tensor([2.])
    """
    scaling = quant.scaling
    with torch.no_grad():
        scale = scaling.current(clipped) if isinstance(scaling, StoredScaling) else scaling(clipped)
        zero_point = 0 if quant.zero_point is None else quant.zero_point(clipped, scale)
        smallest, largest = quant.int_range.bounds()
        least, most = (torch.full((), end, dtype=x.dtype, device=x.device).to(scale.dtype) for end in (low, high))
        below = (x < low) & (quant.rounding(least / scale) + zero_point <= smallest)
        above = (x > high) & (quant.rounding(most / scale) + zero_point >= largest)
    return torch.where(below | above, x.detach(), clipped)

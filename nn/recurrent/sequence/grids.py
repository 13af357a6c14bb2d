"""Settled grids of states: what a quantizer is while a whole sequence runs past it."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ....qcore import IntQuant, TensorQuant
from ....qcore.rounding import HalfEven
from ....qcore.scaling import CalibratedScaling, ConstantScaling, LearnedScaling, RunningScaling, StoredScaling
from ....qcore.scaling.zero_point import RangeZeroPoint

__all__ = ["StateGrid", "Steps", "grid_grads", "state_grid", "steps_of"]

_MOST = 1 << 23  # integers up to which float32 holds the halves between them
_FEW = 512  # integers up to which the scale's gradient may be taken as the difference of two dot products
_STORED = (CalibratedScaling, LearnedScaling, RunningScaling)
_hardtanh_backward = torch.ops.aten.hardtanh_backward.grad_input


class Steps(NamedTuple):
    """The settled grid of a state: one scale for all steps, integers rounded half to even.

    Args:
        scale: positive, 0-d; where it is learned, its gradient is that of all steps together.
        low: the smallest integer.
        high: the largest.
        zero_point: a whole number, 0-d, or None for 0.

    Example:
        >>> from bitwright.nn import QuantIdentity
        >>> steps_of(QuantIdentity(scaling="constant", scale=0.25).act_quant)
        Steps(scale=tensor(0.2500), low=-128, high=127, zero_point=None)
    """

    scale: Tensor
    low: float
    high: float
    zero_point: Tensor | None = None


def steps_of(quant: TensorQuant) -> Steps | None:
    """The settled grid of a quantizer, with the gradients of its range; None where only the module itself will do.

    A grid is settled where every step gets the same: the scale is given, or stored and measured. Nothing is measured
    here. None for scales that follow the input, several scales, learned bit widths, other roundings than half to even,
    gradients that pass where values are clipped, intercepted quantizers and quantizers or parts of the user's own.

    Example:
        >>> from bitwright.nn import QuantIdentity
        >>> steps_of(QuantIdentity().act_quant) is None  # nothing is measured yet
        True
    """
    if type(quant) is not IntQuant or quant.intercept is not None or quant._stale or not quant.clips:
        return None
    scaling, ends = quant.scaling, quant._levels
    plain = type(quant.rounding) is HalfEven and quant.granularity.single and ends is not None
    if not plain or ends is None or max(-ends[0], ends[1]) > _MOST:
        return None
    scale = _scale(scaling)
    if scale is None or quant.zero_point is None:
        return None if scale is None else Steps(scale, *ends)
    if type(quant.zero_point) is not RangeZeroPoint or quant.zero_point.scaling is not scaling:
        return None
    low, high = ends
    return Steps(scale, low, high, quant.zero_point(scale, scale).to(scale.dtype))


def _scale(scaling: object) -> Tensor | None:
    """The scale that every input gets, 0-d."""
    if type(scaling) is ConstantScaling:
        return scaling.scale.reshape(())
    if type(scaling) not in _STORED or not isinstance(scaling, StoredScaling):
        return None
    known = scaling._whole if torch.compiler.is_compiling() else scaling.calibrated
    if not known:
        return None
    stored = scaling._stored("magnitude", scaling.magnitude_base)  # the tensor at hand counts only without a range
    return scaling.scale_for(scaling.restriction.load(stored)).reshape(())


class StateGrid(NamedTuple):
    """A grid as a kernel uses it, with the zero point taken off its ends.

    Args:
        scale: 0-d, without gradient: a tensor, since a number costs 2 us more in each operation.
        low: the smallest integer, less the zero point.
        high: the largest, likewise.
    """

    scale: Tensor
    low: float
    high: float

    def passed(self, grad: Tensor, values: Tensor, out: Tensor | None = None) -> Tensor:
        """The gradient where the rounded integer of a value is in range, else 0.

        Args:
            grad: of the values on the grid.
            values: before they are moved to it, broadcastable to the gradient.
            out: where to write it, which may be the gradient.
        """
        low, high, step = self.low - 0.5, self.high + 0.5, 1.0
        if values.device.type == "cpu":
            step = self.scale.item()
        else:  # a number would have to be waited for
            values = torch.div(values, self.scale).round_()
        out = torch.empty_like(grad) if out is None else out
        return _hardtanh_backward(grad, values, low * step, high * step, grad_input=out)

    def moved(self, values: Tensor) -> Tensor:
        """The values on the grid."""
        return torch.div(values, self.scale).round_().clamp_(self.low, self.high).mul_(self.scale)

    def scale_grad(self, grad: Tensor, passed: Tensor, values: Tensor, moved: Tensor) -> Tensor:
        """LSQ's gradient of the scale over all steps: inside ``(moved - x) / scale``, outside ``moved / scale``."""
        if self.high - self.low < _FEW:
            total = torch.dot(grad.reshape(-1), moved.reshape(-1)) - torch.dot(passed.reshape(-1), values.reshape(-1))
            if values.device.type != "cpu" or bool(total.isfinite()):
                return (total / self.scale).to(self.scale.dtype)
        # with many integers the two products would cancel; with an infinite value that was clipped, they are NaN
        total = torch.where(passed == 0, moved, moved - values).mul_(grad).sum()
        return (total / self.scale).to(self.scale.dtype)

    def zero_point_grad(self, grad: Tensor, passed: Tensor) -> Tensor:
        """The gradient of the zero point: what was clipped moves against it, a scale for each integer."""
        return (passed.sum() - grad.sum()).mul(self.scale).to(self.scale.dtype)


def state_grid(scale: Tensor | None, zero_point: Tensor | None, ends: Sequence[float]) -> StateGrid | None:
    """The grid of a scale; None for none.

    Example:
        >>> state_grid(torch.tensor(0.5), torch.tensor(100.0), (0, 255))
        StateGrid(scale=tensor(0.5000), low=-100.0, high=155.0)
    """
    if scale is None:
        return None
    shift = 0 if zero_point is None else zero_point.item()
    low, high = ends
    return StateGrid(scale.detach(), low - shift, high - shift)


def grid_grads(
    grid: StateGrid | None, grad: Tensor | None, values: Tensor | None, moved: Tensor, needed: Sequence[bool]
) -> list[Tensor | None]:
    """The gradients of scale and zero point that are needed, of a grid that values of all steps were moved to.

    Example:
        >>> grid_grads(None, None, None, torch.ones(1), (False, False))
        [None, None]
    """
    if grid is None or grad is None or values is None:
        return [None, None]
    passed = grid.passed(grad, values)
    return [
        grid.scale_grad(grad, passed, values, moved) if needed[0] else None,
        grid.zero_point_grad(grad, passed) if needed[1] else None,
    ]

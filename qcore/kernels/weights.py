"""The fast forms of weights: the tensor itself sets its scale, by its largest magnitudes.

They spare the small operations between a tensor and its scale, and the dense gradient of a maximum: each scale's goes
to one element of its row.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..aliases import Context
from ..formats.number_format import NumberFormat
from ..rounding import HalfEven, HalfUp, Rounding
from ..tracing import differentiated
from .composed import composed
from .fused import again, divided, in_precision, inside_only, result_of, set_aside, step_grad

__all__ = ["AbsMaxFakeQuant", "AbsMaxRowsFakeQuant", "RuledRowsFakeQuant"]


class AbsMaxFakeQuant(torch.autograd.Function):
    """``x -> (y, scale)``, with scale = max(|x|, floor) / threshold: weights.

    Nothing is clipped; detached, gradients pass as they are.
    """

    @staticmethod
    def forward(
        ctx: Context, x: Tensor, floor: float, number_format: NumberFormat, rounding: Rounding, detached: bool
    ) -> tuple[Tensor, Tensor]:
        threshold = number_format.high
        rows = x.reshape(x.shape[0], -1) if x.ndim else x.reshape(1, 1)
        highest, lowest = rows.amax(1), rows.amin(1)
        largest = max(highest.amax().item(), -lowest.amin().item())
        finite = math.isfinite(largest)
        magnitude = largest if largest >= floor else in_precision(floor, x)
        scale = divided(magnitude if finite else 1.0, threshold, x)
        return _weights(ctx, x, scale, finite, (floor, number_format, rounding, detached), highest, lowest)

    @staticmethod
    def backward(ctx: Context, grad: Tensor | None, _: object) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        if grad is None or ctx.detached:
            ctx.aside = None
            return grad, None, None, None, None
        x, scale, y, highest, lowest = ctx.saved_tensors
        up, down = highest.argmax().item(), lowest.argmin().item()
        positive = highest[up].item() >= -lowest[down].item()
        row = up if positive else down
        largest = highest[up].item() if positive else -lowest[down].item()
        if largest < ctx.floor or not math.isfinite(largest):
            return grad, None, None, None, None
        values = x.select(0, row).reshape(-1) if x.ndim else x.reshape(1)
        at = row * values.numel() + (values.argmax() if positive else values.argmin()).item()
        if differentiated(grad):
            return _weights_again(ctx, grad, x, scale, torch.tensor([[at]]), torch.tensor([[False]]))
        y = result_of(ctx, x, scale, y)
        pull = step_grad(grad, grad, x, y, scale.item(), ctx.form[0].few) / ctx.threshold
        del y  # before another copy is made
        result = grad.clone(memory_format=torch.contiguous_format)
        result.view(-1)[at].add_(pull if positive else -pull)
        return result, None, None, None, None


class AbsMaxRowsFakeQuant(torch.autograd.Function):
    """The same with a scale for each index of the first dimension."""

    @staticmethod
    def forward(
        ctx: Context, x: Tensor, floor: float, number_format: NumberFormat, rounding: Rounding, detached: bool
    ) -> tuple[Tensor, Tensor]:
        threshold = number_format.high
        work = x.abs()  # its memory takes the result
        rows = work.reshape(x.shape[0], -1)
        largest = rows.amax(1) if x.numel() < _LONG else _row_maxima(rows)
        magnitudes = largest.clamp_min(floor)
        finite = math.isfinite(magnitudes.sum().item())  # a third of the time of asking each; may overflow
        if not finite:
            magnitudes = torch.where(magnitudes.isfinite(), magnitudes, 1.0)
        scale = (magnitudes / threshold).reshape([-1] + [1] * (x.ndim - 1))
        ctx.plain = finite and largest.amin().item() >= floor  # every row's scale is that of its largest number
        return _weights(ctx, x, scale, finite, (floor, number_format, rounding, detached), largest, out=work)

    @staticmethod
    def backward(ctx: Context, grad: Tensor | None, _: object) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        if grad is None or ctx.detached:
            ctx.aside = None
            return grad, None, None, None, None
        x, scale, y, largest = ctx.saved_tensors
        rows, grads, largest = x.reshape(x.shape[0], -1), grad.reshape(x.shape[0], -1), largest.reshape(-1, 1)
        fixed = None if ctx.plain else (largest < ctx.floor) | ~largest.isfinite()
        if differentiated(grad):
            at = rows.abs().argmax(1, keepdim=True)
            return _weights_again(ctx, grad, x, scale, at, torch.tensor(False) if fixed is None else fixed)
        y = result_of(ctx, x, scale, y)
        work = torch.sub(y.reshape(rows.shape), rows).mul_(grads)
        del y  # memory is used again: with short rows, fresh pages cost more than the arithmetic
        pull = work.sum(1, keepdim=True) / (scale.reshape(-1, 1) * ctx.threshold)
        if fixed is not None:
            pull.masked_fill_(fixed, 0.0)
        _signs_of_largest(rows, largest, fixed, work)
        return torch.addcmul(grads, work, pull, out=work).reshape(grad.shape), None, None, None, None


class RuledRowsFakeQuant(torch.autograd.Function):
    """``(rows, rule) -> (y, scales)``: each row's scale is what a rule makes of its largest magnitude.

    The gradient goes straight through the rule: that of a scale is the magnitude's times their ratio. ``covers``
    promises that no rule clips; without ``clips``, gradients pass what is clipped, too.
    """

    @staticmethod
    def forward(
        ctx: Context,
        rows: Tensor,
        rule: Callable[[Tensor], Tensor],
        floor: float,
        number_format: NumberFormat,
        rounding: Rounding,
        detached: bool,
        covers: bool,
        clips: bool,
    ) -> tuple[Tensor, Tensor]:
        work = rows.abs()  # its memory takes the result
        largest = _row_maxima(work)
        finite = math.isfinite(largest.sum().item())
        usable = largest if finite else torch.where(largest.isfinite(), largest, 1.0)
        scale = rule(usable.clamp_min(floor)).reshape(-1, 1)
        y = number_format.inplace(torch.div(rows, scale, out=work), rounding).mul_(scale)
        ctx.form, ctx.rest = (number_format, rounding, False), (floor, detached, covers, clips)
        ctx.plain = finite and not detached and largest.amin().item() >= floor
        ctx.mark_non_differentiable(scale)
        ctx.set_materialize_grads(False)
        kept = set_aside(ctx, y, rounding)
        if clips or kept is None or not detached:
            ctx.save_for_backward(rows, scale, None if detached else kept, largest)
        return y, scale

    @staticmethod
    def backward(ctx: Context, grad: Tensor | None, _: object) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        number_format, rounding, _relu = ctx.form
        floor, detached, covers, clips = ctx.rest
        rest = (None,) * 7
        if grad is None or (detached and not clips):
            ctx.aside = None
            return grad, *rest
        rows, scale, y, largest = ctx.saved_tensors
        fixed = None
        if not (detached or ctx.plain):
            fixed = ((largest < floor) | ~largest.isfinite()).reshape(-1, 1)
        if differentiated(grad):
            ctx.aside = None

            def definition(rows: Tensor) -> Tensor:
                step = scale if detached else _straight(rows, scale, fixed)
                return composed(rows, step, number_format, None, rounding, clips=clips)

            return *again(grad, definition, rows), *rest
        clipped = not covers and _may_clip(largest, scale, number_format, rounding)
        passed = inside_only(grad, rows, scale, None, number_format, rounding, False) if clipped else grad
        if detached:
            ctx.aside = None
            return passed, *rest
        y, largest = result_of(ctx, rows, scale, y), largest.reshape(-1, 1)
        if not clipped:
            work = torch.sub(y, rows).mul_(grad)
        elif number_format.few:
            work = torch.mul(y, grad).addcmul_(passed, rows, value=-1)
        else:
            work = torch.where(passed == 0, y, y - rows).mul_(grad)
        del y
        pull = work.sum(1, keepdim=True).div_(largest)
        if fixed is not None:
            pull.masked_fill_(fixed, 0.0)
        _signs_of_largest(rows, largest, fixed, work)
        return torch.addcmul(passed if clips else grad, work, pull, out=work), *rest


def _may_clip(largest: Tensor, scale: Tensor, number_format: NumberFormat, rounding: Rounding) -> bool:
    """Whether the largest magnitudes of rows, or what is smaller, may lie beyond the ends of a format."""
    low, high = number_format.edges(rounding)
    if number_format.whole and type(rounding) not in (HalfEven, HalfUp):  # which rounds an end past its level
        low, high = number_format.low, number_format.high
    return not (largest / scale.reshape(-1)).amax().item() < min(-low, high)  # so it is with NaN, too


def _straight(rows: Tensor, scale: Tensor, fixed: Tensor | None) -> Tensor:
    """The scales, with the gradient of the largest magnitudes times their ratio; none where they are ``fixed``."""
    largest = rows.gather(1, rows.detach().abs().argmax(1, keepdim=True)).abs()
    ratio = scale / largest.detach()
    if fixed is not None:
        largest, ratio = torch.where(fixed, 0.0, largest), torch.where(fixed, 0.0, ratio)
    return scale + (largest - largest.detach()) * ratio


_INTEGER = {torch.float32: torch.int32, torch.float64: torch.int64}
_LONG = 1 << 14  # numbers from which on passes over memory cost more than calls


def _row_maxima(magnitudes: Tensor) -> Tensor:
    """The largest of each row of numbers without sign, NaN where there is one: the order of floats is their bits'.

    Integers take half the time, and a third with rows shorter than the processor's steps.
    """
    kind = magnitudes.dtype
    return magnitudes.view(_INTEGER[kind]).amax(1).view(kind)


def _signs_of_largest(rows: Tensor, largest: Tensor, fixed: Tensor | None, out: Tensor) -> None:
    """The sign of the largest number of each row, the first one where there are several; 0 elsewhere.

    A quotient of unequal numbers never rounds to 1. This form takes a third of the time of ``argmax`` on short rows.
    """
    torch.div(rows, largest if fixed is None else torch.where(fixed, float("inf"), largest), out=out)
    _hardshrink(out, 1 - torch.finfo(out.dtype).eps / 2, out=out)
    flat = out.reshape(-1)
    total = torch.dot(flat, flat).item()
    if total == (len(rows) if fixed is None else (~fixed).sum().item()):
        return
    fixed = largest < 0 if fixed is None else fixed
    tied = ((out.abs().sum(1) != 1) & ~fixed.squeeze(1)) | (fixed.squeeze(1) & (out != 0).any(1))
    few = rows[tied]
    at = few.abs().argmax(1, keepdim=True)
    signs = few.gather(1, at).sign_().masked_fill_(fixed[tied], 0.0)
    out[tied] = torch.zeros_like(few).scatter_(1, at, signs)


_hardshrink = torch.ops.aten.hardshrink.out


def _weights(
    ctx: Context,
    x: Tensor,
    scale: Tensor,
    finite: bool,
    rest: tuple[float, NumberFormat, Rounding, bool],
    *extremes: Tensor,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The results of a weight's function, and what its backward needs."""
    ctx.floor, number_format, rounding, ctx.detached = rest
    ctx.threshold = number_format.high
    steps = torch.div(x, scale, out=out)
    y = number_format.covered(steps, rounding) if finite else number_format.inplace(steps, rounding)
    y.mul_(scale)
    ctx.form = (number_format, rounding, False)
    ctx.mark_non_differentiable(scale)
    ctx.set_materialize_grads(False)
    kept = set_aside(ctx, y, rounding)
    if not ctx.detached:
        ctx.save_for_backward(x, scale, kept, *extremes)
    elif kept is None:
        ctx.save_for_backward(x, scale)
    return y, scale


def _weights_again(
    ctx: Context, grad: Tensor, x: Tensor, scale: Tensor, at: Tensor, fixed: Tensor
) -> tuple[Tensor | None, ...]:
    """The gradients of its definition: in each row the element at ``at`` sets the scale, unless that is ``fixed``."""
    ctx.aside = None

    def definition(x: Tensor) -> Tensor:
        largest = x.reshape(at.shape[0], -1).gather(1, at).abs()
        step = torch.where(fixed, scale.reshape(-1, 1), largest / ctx.threshold).reshape(scale.shape)
        number_format, rounding, _ = ctx.form
        return composed(x, step, number_format, None, rounding, clips=False)

    return *again(grad, definition, x), None, None, None, None

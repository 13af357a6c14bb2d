"""The fast forms of `fake_quant` on GPUs: one kernel for each direction, without asking the device for a number.

The numbers are those of the CPU: half precision is computed in float32, by division, and rounded to even. What
backward needs is the input and the scale. The kernels are `triton_kernels`; where Triton is missing, and for what they
don't take, there is the traced form.
"""

import math
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..aliases import Context
from ..formats.number_format import NumberFormat
from ..rounding import HalfEven
from ..tracing import differentiated, transformed
from .composed import HALF_EVEN, composed
from .derivatives import clamp_through
from .fused import again

__all__ = ["learned_on_device", "quantized_on_device", "rows_on_device", "runs_on_device"]

_BLOCK = 2048
_PROGRAMS = 2112  # several for each multiprocessor; each goes through a tensor in steps
_PLAIN = (Tensor, nn.Parameter)  # a class of another kind may have no memory
_TYPES = (torch.float32, torch.bfloat16, torch.float16)
_MOST = (1 << 31) - (1 << 24)  # numbers of a tensor: places are counted in 32 bits


def runs_on_device(x: Tensor) -> bool:
    """Whether these forms can take a tensor: on a GPU, outside compilers and transforms, with Triton there."""
    return (
        x.is_cuda
        and not torch.compiler.is_compiling()
        and not transformed()
        and type(x) in _PLAIN
        and x.dtype in _TYPES
        and 0 < x.numel() < _MOST
        and _triton()
    )


@cache
def _triton() -> bool:
    return find_spec("triton") is not None


Ends = tuple[float, float]  # the smallest and the largest integer


def ends_of(number_format: NumberFormat, rounding: object) -> Ends | None:
    """The ends of integers that float32 tells apart, where they are rounded to even; else None: not for the kernels."""
    if type(rounding) is not HalfEven or not number_format.whole or number_format.learned:
        return None
    low, high = float(number_format.low), float(number_format.high)
    return (low, high) if high < 1 << 22 and low > -(1 << 22) else None


@cache
def _applied(function: type[torch.autograd.Function]) -> Any:
    """What applies a function where no transform is at work: torch's own method looks for one at every call."""
    above: Any = super(torch.autograd.Function, function)
    return above.apply


def quantized_on_device(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    levels: NumberFormat,
    rounding: object,
    relu: bool,
    clips: bool,
) -> Tensor | None:
    """Values on the grid where the kernels can do it, else None."""
    if not (runs_on_device(x) and scale.is_cuda and scale.dtype == torch.float32 and scale.is_contiguous()):
        return None
    if zero_point is not None and not (
        zero_point.is_cuda and zero_point.shape == scale.shape and zero_point.is_contiguous()
    ):
        return None
    ends, layout = ends_of(levels, rounding), layout_of(x, scale.shape)
    if ends is None or layout is None:
        return None
    return _applied(DeviceFakeQuant)(x, scale, zero_point, (levels, ends, relu, clips, layout))


def learned_on_device(
    x: Tensor,
    base: Tensor,
    offset: Tensor,
    shape: Sequence[int],
    rest: tuple[float, float, NumberFormat, object, bool, bool],
) -> tuple[Tensor, Tensor] | None:
    """Values and scales of what `DeviceMagnitudeFakeQuant` can do, else None."""
    threshold, floor, levels, rounding, relu, clips = rest
    ends, layout = ends_of(levels, rounding), layout_of(x, shape)
    if ends is None or layout is None or base.dtype != torch.float32 or not (base.is_cuda and offset.is_cuda):
        return None
    return _applied(DeviceMagnitudeFakeQuant)(
        x, base, offset, shape, (threshold, floor, (levels, ends, relu, clips, layout))
    )


def rows_on_device(
    x: Tensor, floor: float, levels: NumberFormat, rounding: object, detached: bool
) -> tuple[Tensor, Tensor] | None:
    """Values and scales of what `DeviceRowsFakeQuant` can do, else None."""
    ends = ends_of(levels, rounding)
    if ends is None or x.numel() > x.shape[0] << 16:  # a program handles a row
        return None
    return _applied(DeviceRowsFakeQuant)(x, floor, levels, ends[1], detached)


class Layout(NamedTuple):
    """How the scales of a tensor lie in its memory: ``outer`` blocks of ``channels`` rows of ``inner`` numbers."""

    outer: int
    channels: int
    inner: int

    @property
    def splits(self) -> int:
        """Programs for each channel."""
        return max(1, min(-(-self.inner // _BLOCK), _PROGRAMS // self.channels))


Rest = tuple[NumberFormat, Ends, bool, bool, Layout]  # with whether a ReLU comes first, and whether clipping counts
Learned = tuple[Tensor, Tensor, float, float]  # base and offset, the smallest magnitude, the level that it stands for


def layout_of(x: Tensor, shape: Sequence[int]) -> Layout | None:
    """The layout for scales of a shape where it is one of these, with rows long enough to be fast; else None."""
    if not shape or math.prod(shape) == 1:
        return Layout(1, 1, x.numel())
    shape = (1,) * (x.ndim - len(shape)) + tuple(shape)
    wide = [dim for dim, size in enumerate(shape) if size != 1]
    if len(wide) != 1 or len(shape) != x.ndim or shape[wide[0]] != x.shape[wide[0]]:
        return None
    dim = wide[0]
    outer, channels = x.shape[:dim].numel(), x.shape[dim]
    layout = Layout(outer, channels, x.numel() // (outer * channels))
    return layout if layout.inner >= 32 or outer == 1 else None


def dense(x: Tensor, layout: Layout) -> Tensor:
    """The tensor, or a copy without gaps whose numbers are in the order that the kernels go through."""
    ordered = x.is_contiguous() or (
        layout.channels == 1 and x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)
    )
    if not ordered:
        return x.contiguous()
    return x.clone(memory_format=torch.preserve_format) if x.data_ptr() % 16 else x


def like(grad: Tensor, x: Tensor) -> Tensor:
    """A gradient laid out as the values are, in their type."""
    if grad.stride() == x.stride() and grad.dtype == x.dtype and not grad.data_ptr() % 16:
        return grad
    return torch.empty_like(x).copy_(grad)


@cache
def _kernels() -> Any:
    from . import triton_kernels  # Triton is there with torch's builds for GPUs only

    return triton_kernels


def _forward(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    learned: Learned | None,
    rest: Rest,
) -> Tensor:
    """Values on the grid; with what is learned, ``scale`` is written."""
    _, (low, high), relu, _, layout = rest
    kernels, y = _kernels(), torch.empty_like(x)
    outer, channels, inner = layout
    base, offset, floor, threshold = (scale, scale, 0.0, 1.0) if learned is None else learned
    zero = scale if zero_point is None else zero_point
    constants = (learned is not None, zero_point is not None, relu, inner % 16 == 0, _BLOCK)
    kinds = (x.dtype, base.dtype, offset.dtype, zero.dtype, *constants)
    arguments = (x, y, scale, zero, base, offset, inner, channels, outer, low, high, floor, threshold, *constants)
    kernels.launch(kernels.quantize, (channels, layout.splits), kinds, *arguments)
    return y


def _backward(
    grad: Tensor,
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    rest: Rest,
    of_scale: bool,
    of_zero_point: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradient of the values, and the parts of the other two."""
    _, (low, high), relu, clips, layout = rest
    kernels, out = _kernels(), torch.empty_like(x)
    outer, channels, inner = layout
    count = channels * layout.splits
    parts = torch.empty(count, dtype=torch.float32, device=x.device) if of_scale else scale
    zero_parts = torch.empty(count, dtype=torch.float32, device=x.device) if of_zero_point else scale
    zero = scale if zero_point is None else zero_point
    constants = (clips, of_scale, zero_point is not None, of_zero_point, relu, inner % 16 == 0, _BLOCK)
    arguments = (grad, x, out, parts, zero_parts, scale, zero, inner, channels, outer, low, high, *constants)
    kinds = (x.dtype, zero.dtype, *constants)
    kernels.launch(kernels.quantize_backward, (channels, layout.splits), kinds, *arguments)
    return out, parts, zero_parts


def _added(parts: Tensor, like: Tensor, layout: Layout, learned: Learned | None) -> Tensor:
    """The sums of parts, in the shape and type of a tensor."""
    kernels, total = _kernels(), torch.empty_like(like, memory_format=torch.contiguous_format)
    base, offset, floor, threshold = (parts, parts, 0.0, 1.0) if learned is None else learned
    constants = (learned is not None, 1024)
    kinds = (total.dtype, base.dtype, offset.dtype, *constants)
    arguments = (parts, total, base, offset, layout.splits, floor, threshold, *constants)
    kernels.launch(kernels.add_parts, (layout.channels, 1), kinds, *arguments)
    return total


class DeviceFakeQuant(torch.autograd.Function):
    """``(x, scale, zero_point) -> y``."""

    @staticmethod
    def forward(
        ctx: Context,
        x: Tensor,
        scale: Tensor,
        zero_point: Tensor | None,
        rest: Rest,
    ) -> Tensor:
        x = dense(x, rest[-1])
        y = _forward(x, scale, zero_point, None, rest)
        ctx.rest = rest
        ctx.save_for_backward(x, scale, zero_point)
        return y

    @staticmethod
    def backward(ctx: Context, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, scale, zero_point = ctx.saved_tensors
        levels, _, relu, clips, layout = ctx.rest
        if differentiated(grad):

            def definition(x: Tensor, scale: Tensor, zero_point: Tensor | None) -> Tensor:
                return composed(x, scale, levels, zero_point, HALF_EVEN, relu=relu, clips=clips)

            return *again(grad, definition, x, scale, zero_point), None
        _, of_scale, of_zero_point, *_ = ctx.needs_input_grad
        if not (clips or relu or of_scale or of_zero_point):
            return grad, None, None, None
        out, parts, zero_parts = _backward(like(grad, x), x, scale, zero_point, ctx.rest, of_scale, of_zero_point)
        scale_grad = _added(parts, scale, layout, None) if of_scale else None
        zero_grad = _added(zero_parts, zero_point, layout, None) if of_zero_point else None
        return out, scale_grad, zero_grad, None


class DeviceMagnitudeFakeQuant(torch.autograd.Function):
    """``(x, base, offset) -> (y, scale)``, with scale = max(|base + offset|, floor) / threshold: learned scales."""

    @staticmethod
    def forward(
        ctx: Context,
        x: Tensor,
        base: Tensor,
        offset: Tensor,
        shape: list[int],
        settings: tuple[float, float, Rest],
    ) -> tuple[Tensor, Tensor]:
        threshold, floor, rest = settings
        x = dense(x, rest[-1])
        scale = torch.empty(shape, dtype=torch.float32, device=x.device)
        y = _forward(x, scale, None, (base, offset, floor, threshold), rest)
        ctx.settings = settings
        ctx.mark_non_differentiable(scale)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, scale, base, offset)
        return y, scale

    @staticmethod
    def backward(ctx: Context, grad: Tensor | None, _: object) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        if grad is None:
            return None, None, None, None, None
        x, scale, base, offset = ctx.saved_tensors
        threshold, floor, rest = ctx.settings
        levels, _, relu, clips, layout = rest
        if differentiated(grad):

            def definition(x: Tensor, base: Tensor, offset: Tensor) -> Tensor:
                step = clamp_through((base + offset).abs(), floor) / threshold
                return composed(x, step.reshape(scale.shape), levels, None, HALF_EVEN, relu=relu, clips=clips)

            return *again(grad, definition, x, base, offset), None, None
        out, parts, _ = _backward(like(grad, x), x, scale, None, rest, True, False)
        pull = _added(parts, offset, layout, (base, offset, floor, threshold))
        return out, pull.to(base.dtype) if ctx.needs_input_grad[1] else None, pull, None, None


class DeviceRowsFakeQuant(torch.autograd.Function):
    """``x -> (y, scale)``, with scale = max(|row|, floor) / threshold for each index of the first dimension: weights.

    Nothing is clipped; detached, gradients pass as they are.
    """

    @staticmethod
    def forward(
        ctx: Context, x: Tensor, floor: float, levels: NumberFormat, threshold: float, detached: bool
    ) -> tuple[Tensor, Tensor]:
        kernels, x = _kernels(), dense(x, Layout(1, 2, 1))
        y = torch.empty_like(x)
        scale = torch.empty([x.shape[0]] + [1] * (x.ndim - 1), dtype=torch.float32, device=x.device)
        inner = x.numel() // x.shape[0]
        constants = (inner % 16 == 0, _row_block(inner))
        arguments = (x, y, scale, inner, floor, threshold, *constants)
        kernels.launch(kernels.quantize_rows, (x.shape[0], 1), (x.dtype, *constants), *arguments)
        ctx.rest = floor, levels, threshold, detached
        ctx.mark_non_differentiable(scale)
        ctx.set_materialize_grads(False)
        if not detached:
            ctx.save_for_backward(x, scale)
        return y, scale

    @staticmethod
    def backward(ctx: Context, grad: Tensor | None, _: object) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        floor, levels, threshold, detached = ctx.rest
        if grad is None or detached:
            return grad, None, None, None, None
        x, scale = ctx.saved_tensors
        if differentiated(grad):

            def definition(x: Tensor) -> Tensor:
                rows = x.reshape(x.shape[0], -1)
                largest = rows.gather(1, rows.detach().abs().argmax(1, keepdim=True)).abs().to(scale.dtype)
                fixed = (largest < floor) | ~largest.isfinite()
                step = torch.where(fixed, scale.reshape(-1, 1), largest / threshold).reshape(scale.shape)
                return composed(x, step, levels, None, HALF_EVEN, clips=False)

            return *again(grad, definition, x), None, None, None, None
        kernels, out, grad = _kernels(), torch.empty_like(x), like(grad, x)
        inner = x.numel() // x.shape[0]
        constants = (inner % 16 == 0, _row_block(inner))
        arguments = (grad, x, out, scale, inner, floor, threshold, *constants)
        kernels.launch(kernels.quantize_rows_backward, (x.shape[0], 1), (x.dtype, *constants), *arguments)
        return out, None, None, None, None


def _row_block(inner: int) -> int:
    return min(max(1 << (inner - 1).bit_length(), 128), 4096)

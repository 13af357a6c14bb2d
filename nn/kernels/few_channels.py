"""Convolutions of images with few channels: the gradient of the input, which only a learned scale asks for.

The first layer of a float network never needs it. Where the network's input is quantized and the scale learned, it is
the most expensive part of the training step on the CPU: oneDNN's kernel is made for eight channels and more. Measured
at batch 64, with one thread: 3 to 6 channels 7.0 ms (2.4 ms here), 3 to 32 channels 6.9 ms (3.6 ms), 1 to 64 channels
24.5 ms (4.3 ms).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ...qcore.aliases import Context
from ...qcore.kernels.fused import apply_eagerly, runs_eagerly

__all__ = ["FEW", "conv2d"]

Geometry = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]  # stride, padding, dilation

FEW = 4  # input channels up to which it pays
_FEW_OUTPUTS = 8  # output channels up to which a convolution with the turned kernel is faster than products
_COLUMNS = 1 << 21  # numbers that the products of one step may take: 8 MB


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
) -> Tensor:
    """`torch.nn.functional.conv2d` without groups, with a faster gradient of the input on the CPU.

    Example:
        >>> x = torch.ones(1, 1, 3, 3, requires_grad=True)
        >>> conv2d(x, torch.ones(2, 1, 2, 2), None, (1, 1), (0, 0), (1, 1)).sum().backward()
        >>> x.grad.tolist()
        [[[[2.0, 4.0, 2.0], [4.0, 8.0, 4.0], [2.0, 4.0, 2.0]]]]
    """
    alike = x.ndim == 4 and x.dtype == weight.dtype and (bias is None or bias.dtype == x.dtype)
    learned = x.requires_grad and torch.is_grad_enabled()
    if alike and learned and runs_eagerly(x) and not torch.is_autocast_enabled("cpu"):
        out = apply_eagerly(_FewChannels, x, weight, bias, (stride, padding, dilation))
        if out is not None:
            return out
    return F.conv2d(x, weight, bias, stride, padding, dilation)


class _FewChannels(torch.autograd.Function):
    """``(x, weight, bias) -> y``; its backward is made of differentiable operations."""

    @staticmethod
    def forward(ctx: Context, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.bias_sizes = None if bias is None else list(bias.shape)
        ctx.geometry = stride, padding, dilation = geometry
        return F.conv2d(x, weight, bias, stride, padding, dilation)

    @staticmethod
    def backward(ctx: Context, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        stride, padding, dilation = ctx.geometry
        of_x = _input_grad(grad, x, weight, ctx.geometry) if ctx.needs_input_grad[0] else None
        wanted = [False, ctx.needs_input_grad[1], ctx.bias_sizes is not None and ctx.needs_input_grad[2]]
        _, of_weight, of_bias = torch.ops.aten.convolution_backward(
            grad, x, weight, ctx.bias_sizes, stride, padding, dilation, False, [0, 0], 1, wanted
        )
        return of_x, of_weight, of_bias, None


def _input_grad(grad: Tensor, x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    stride, padding, dilation = geometry
    kernel = weight.shape[2:]
    around = [dilation[axis] * (kernel[axis] - 1) - padding[axis] for axis in (0, 1)]
    if stride == (1, 1) and min(around) >= 0 and weight.shape[0] <= _FEW_OUTPUTS:
        return F.conv2d(grad, weight.transpose(0, 1).flip(2, 3), padding=around, dilation=dilation)
    turned = weight.flatten(1).t()  # each output spreads over the inputs it was summed from
    at_once = max(1, _COLUMNS // (turned.shape[0] * grad.shape[2:].numel()))
    spread = [
        F.fold(torch.matmul(turned, part.flatten(2)), x.shape[2:], kernel, dilation, padding, stride)
        for part in grad.split(at_once)
    ]
    return spread[0] if len(spread) == 1 else torch.cat(spread)

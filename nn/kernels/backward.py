"""Quantization of what flows backward."""

from typing import Any

import torch
from torch import Tensor

from ...qcore import TensorQuant
from ...qcore.tracing import exporting

__all__ = ["with_quantized_gradient"]


class _Backward(torch.autograd.Function):
    """The tensor itself; its gradient is quantized."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, quant: TensorQuant) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, TensorQuant], output: Tensor) -> None:
        ctx.quant = inputs[1]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return ctx.quant.quantize(grads[0])[0], None


def with_quantized_gradient(x: Tensor, quant: TensorQuant) -> Tensor:
    """The tensor, whose gradient a quantizer moves onto its grid on the way back.

    Example:
        >>> from bitwright.quantizers import Int8Grad
        >>> from bitwright.nn import QuantLinear
        >>> quant = QuantLinear(4, 2, grad_quant=Int8Grad, grad_bit_width=2, grad_rounding="half_even").grad_quant
        >>> x = torch.zeros(3, requires_grad=True)
        >>> with_quantized_gradient(x, quant).backward(torch.tensor([0.1, -0.7, 1.0]))
        >>> x.grad
        tensor([ 0., -1.,  1.])
    """
    if not x.requires_grad or exporting():
        return x
    return _Backward.apply(x, quant)

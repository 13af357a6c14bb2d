"""Matrix products by the faster library of the two that torch has on the CPU.

torch hands products of dense matrices to MKL, and recurrent layers to oneDNN, which is about twice as fast on AMD
processors, beside its choice of a layout for a weight that is used in every step. Measured there with one thread, on 32
rows of 256 numbers and a weight of 1024 x 256: 173 us by MKL, 84 us by oneDNN.
"""

import torch
from torch import Tensor

__all__ = ["Product", "product", "weight_grad"]

_WORTH = 1 << 20  # multiplications from which on oneDNN's start is made up for


class Product:
    """``x @ weight.t()`` for one weight and many ``x``.

    Args:
        weight: (outputs, inputs).
        rows: of ``x``, about.

    Example:
        >>> total = torch.ones(1, 2)
        >>> Product(torch.eye(2), 1).add_to(total, torch.tensor([[1.0, 2.0]]))
        >>> total
        tensor([[2., 3.]])
    """

    def __init__(self, weight: Tensor, rows: int) -> None:
        weight = _in_order(weight)
        self._turned = weight.t()
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight, rows) if _by_onednn(weight, rows) else None

    def add_to(self, total: Tensor, x: Tensor) -> None:
        """Add the product to a total, in place."""
        if self._packed is None:
            total.addmm_(x, self._turned)
        else:
            total.add_(_linear(x, self._packed))

    def sum(self, total: Tensor, x: Tensor, out: Tensor) -> None:
        """Write the sum of a total and the product to ``out``."""
        if self._packed is None:
            torch.addmm(total, x, self._turned, out=out)
        else:
            torch.add(total, _linear(x, self._packed), out=out)

    def of(self, x: Tensor) -> Tensor:
        """The product."""
        return x @ self._turned if self._packed is None else _linear(x, self._packed)


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.t() + bias``.

    Example:
        >>> product(torch.ones(1, 2), torch.ones(3, 2), torch.ones(3))
        tensor([[3., 3., 3.]])
    """
    if _by_onednn(weight, x.shape[0]):
        return _linear(x, _in_order(weight), bias)
    return x @ weight.t() if bias is None else torch.addmm(bias, x, weight.t())


def weight_grad(grad: Tensor, x: Tensor) -> Tensor:
    """The gradient of a weight, ``grad.t() @ x``, from that of ``x @ weight.t()``.

    Worked out transposed, which oneDNN does in half the time.

    Example:
        >>> weight_grad(torch.ones(2, 3), torch.ones(2, 1)).shape
        torch.Size([3, 1])
    """
    return product(x.t(), grad.contiguous().t()).t()


def _by_onednn(weight: Tensor, rows: int) -> bool:
    if weight.dtype != torch.float32 or weight.device.type != "cpu" or rows * weight.numel() < _WORTH:
        return False
    return torch.backends.mkldnn.is_available() and torch._C._get_mkldnn_enabled()


def _in_order(weight: Tensor) -> Tensor:
    """The weight without gaps between its rows or columns: with them oneDNN takes a hundred times as long."""
    return weight if weight.is_contiguous() or weight.t().is_contiguous() else weight.contiguous()


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise.default(x, weight, bias, "none", [], "")

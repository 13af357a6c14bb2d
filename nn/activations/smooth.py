"""Quantized activations that are smooth.

Each takes torch's positional arguments and, by keyword, those of `ActivationLayer`: ``**options`` are the ones that a
layer passes on.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...quantizers import Int8Act, ShiftedUint8Act, Uint8Act
from ..slots import QuantizerLike
from .layer import ActivationLayer

__all__ = ["QuantGELU", "QuantSiLU", "QuantSigmoid", "QuantSoftmax", "QuantTanh"]


class QuantSigmoid(ActivationLayer, nn.Sigmoid):
    """`torch.nn.Sigmoid`, quantized. Unsigned by default.

    Positional arguments are torch's; for the keyword-only ones see `ActivationLayer`.

    Example:
        >>> QuantSigmoid(scale=2**-8)(torch.tensor([0.0]))
        tensor([0.5000])
    """

    def __init__(self, *, act_quant: QuantizerLike = Uint8Act, **options: Any) -> None:
        super().__init__(act_quant=act_quant, **options)

    def _function(self, x: Tensor) -> Tensor:
        return torch.sigmoid(x)


class QuantTanh(ActivationLayer, nn.Tanh):
    """`torch.nn.Tanh`, quantized.

    Positional arguments are torch's; for the keyword-only ones see `ActivationLayer`.

    Example:
        >>> QuantTanh(scale=2**-7)(torch.tensor([-99.0, 0.0]))
        tensor([-1.,  0.])
    """

    def __init__(self, *, act_quant: QuantizerLike = Int8Act, **options: Any) -> None:
        super().__init__(act_quant=act_quant, **options)

    def _function(self, x: Tensor) -> Tensor:
        return torch.tanh(x)


class QuantSiLU(ActivationLayer, nn.SiLU):
    """`torch.nn.SiLU`, quantized; with a zero point by default, for its small negative tail.

    Positional arguments are torch's; for the keyword-only ones see `ActivationLayer`.

    Example:
        >>> QuantSiLU(act_quant=Int8Act, scale=0.125)(torch.tensor([-1.0, 4.0]))
        tensor([-0.2500,  3.8750])
    """

    def __init__(self, inplace: bool = False, *, act_quant: QuantizerLike = ShiftedUint8Act, **options: Any) -> None:
        super().__init__(inplace, act_quant=act_quant, **options)

    def _function(self, x: Tensor) -> Tensor:
        return F.silu(x, self.inplace)


class QuantGELU(ActivationLayer, nn.GELU):
    """`torch.nn.GELU`, quantized; with a zero point by default, for its small negative tail.

    Positional arguments are torch's; for the keyword-only ones see `ActivationLayer`.

    Example:
        >>> QuantGELU(act_quant=Int8Act, scale=0.125)(torch.tensor([-1.0, 4.0]))
        tensor([-0.1250,  4.0000])
    """

    def __init__(
        self, approximate: str = "none", *, act_quant: QuantizerLike = ShiftedUint8Act, **options: Any
    ) -> None:
        super().__init__(approximate, act_quant=act_quant, **options)

    def _function(self, x: Tensor) -> Tensor:
        return F.gelu(x, approximate=self.approximate)


class QuantSoftmax(ActivationLayer, nn.Softmax):
    """`torch.nn.Softmax`, quantized. Unsigned by default.

    Positional arguments are torch's; for the keyword-only ones see `ActivationLayer`.

    Example:
        >>> QuantSoftmax(-1, scale=2**-8)(torch.zeros(1, 4))
        tensor([[0.2500, 0.2500, 0.2500, 0.2500]])
    """

    def __init__(self, dim: int | None = None, *, act_quant: QuantizerLike = Uint8Act, **options: Any) -> None:
        super().__init__(dim, act_quant=act_quant, **options)

    def _function(self, x: Tensor) -> Tensor:
        return F.softmax(x, self.dim)

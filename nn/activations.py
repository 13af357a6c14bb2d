"""Quantized activation layers."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..qcore import IntQuant, TensorQuant
from ..quantizers import Int8Act, ShiftedUint8Act, Uint8Act
from .activation_layer import ActivationLayer

__all__ = [
    "QuantGELU",
    "QuantHardSwish",
    "QuantHardTanh",
    "QuantIdentity",
    "QuantLeakyReLU",
    "QuantReLU",
    "QuantReLU6",
    "QuantSiLU",
    "QuantSigmoid",
    "QuantSoftmax",
    "QuantTanh",
]


class QuantIdentity(ActivationLayer, nn.Identity):
    """Quantizes its input: for model inputs, and where a tensor needs a grid (residual additions).

    Positional arguments are torch's; for the keyword-only ones see `ActivationLayer`.

    Example:
        >>> QuantIdentity(bit_width=4, scale=0.25)(torch.tensor([0.3, 9.0]))
        tensor([0.2500, 1.7500])
    """

    def __init__(
        self,
        *,
        act_quant: Any = Int8Act,
        input_quant: Any = None,
        return_quant_tensor: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
        **overrides: Any,
    ) -> None:
        nn.Identity.__init__(self)
        self._attach(act_quant, input_quant, return_quant_tensor, device, dtype, overrides)

    def _function(self, x: Tensor) -> Tensor:
        return x


class QuantReLU(ActivationLayer, nn.ReLU):
    """`torch.nn.ReLU`, quantized. Unsigned by default.

    Positional arguments are torch's; for the keyword-only ones see `ActivationLayer`.

    Example:
        >>> QuantReLU(bit_width=4, scale=0.25)(torch.tensor([-1.0, 0.3, 9.0]))
        tensor([0.0000, 0.2500, 3.7500])
    """

    def __init__(
        self,
        inplace: bool = False,
        *,
        act_quant: Any = Uint8Act,
        input_quant: Any = None,
        return_quant_tensor: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
        **overrides: Any,
    ) -> None:
        nn.ReLU.__init__(self, inplace)
        self._attach(act_quant, input_quant, return_quant_tensor, device, dtype, overrides)

    def _function(self, x: Tensor) -> Tensor:
        return F.relu(x, self.inplace)

    def _quantized(self, x: Tensor, quant: TensorQuant) -> Any:
        if quant.lowering is None and isinstance(quant, IntQuant) and quant.folds_relu:
            return quant.quantize(x, True)  # the clamp at the smallest integer, 0, is the ReLU
        return super()._quantized(x, quant)


class QuantReLU6(ActivationLayer, nn.ReLU6):
    """`torch.nn.ReLU6`, quantized. Unsigned by default.

    Positional arguments are torch's; for the keyword-only ones see `ActivationLayer`.

    Example:
        >>> QuantReLU6(scale=0.5)(torch.tensor([-1.0, 0.3, 9.0]))
        tensor([0.0000, 0.5000, 6.0000])
    """

    def __init__(
        self,
        inplace: bool = False,
        *,
        act_quant: Any = Uint8Act,
        input_quant: Any = None,
        return_quant_tensor: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
        **overrides: Any,
    ) -> None:
        nn.ReLU6.__init__(self, inplace)
        self._attach(act_quant, input_quant, return_quant_tensor, device, dtype, overrides)

    def _function(self, x: Tensor) -> Tensor:
        return F.relu6(x, self.inplace)


class QuantLeakyReLU(ActivationLayer, nn.LeakyReLU):
    """`torch.nn.LeakyReLU`, quantized.

    Positional arguments are torch's; for the keyword-only ones see `ActivationLayer`.

    Example:
        >>> QuantLeakyReLU(0.5, scale=0.25)(torch.tensor([-1.0, 0.3]))
        tensor([-0.5000,  0.2500])
    """

    def __init__(
        self,
        negative_slope: float = 0.01,
        inplace: bool = False,
        *,
        act_quant: Any = Int8Act,
        input_quant: Any = None,
        return_quant_tensor: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
        **overrides: Any,
    ) -> None:
        nn.LeakyReLU.__init__(self, negative_slope, inplace)
        self._attach(act_quant, input_quant, return_quant_tensor, device, dtype, overrides)

    def _function(self, x: Tensor) -> Tensor:
        return F.leaky_relu(x, self.negative_slope, self.inplace)


class QuantSigmoid(ActivationLayer, nn.Sigmoid):
    """`torch.nn.Sigmoid`, quantized. Unsigned by default.

    Positional arguments are torch's; for the keyword-only ones see `ActivationLayer`.

    Example:
        >>> QuantSigmoid(scale=2**-8)(torch.tensor([0.0]))
        tensor([0.5000])
    """

    def __init__(
        self,
        *,
        act_quant: Any = Uint8Act,
        input_quant: Any = None,
        return_quant_tensor: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
        **overrides: Any,
    ) -> None:
        nn.Sigmoid.__init__(self)
        self._attach(act_quant, input_quant, return_quant_tensor, device, dtype, overrides)

    def _function(self, x: Tensor) -> Tensor:
        return torch.sigmoid(x)


class QuantTanh(ActivationLayer, nn.Tanh):
    """`torch.nn.Tanh`, quantized.

    Positional arguments are torch's; for the keyword-only ones see `ActivationLayer`.

    Example:
        >>> QuantTanh(scale=2**-7)(torch.tensor([-99.0, 0.0]))
        tensor([-1.,  0.])
    """

    def __init__(
        self,
        *,
        act_quant: Any = Int8Act,
        input_quant: Any = None,
        return_quant_tensor: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
        **overrides: Any,
    ) -> None:
        nn.Tanh.__init__(self)
        self._attach(act_quant, input_quant, return_quant_tensor, device, dtype, overrides)

    def _function(self, x: Tensor) -> Tensor:
        return torch.tanh(x)


class QuantHardTanh(ActivationLayer, nn.Hardtanh):
    """`torch.nn.Hardtanh`, quantized.

    Positional arguments are torch's; for the keyword-only ones see `ActivationLayer`.

    Example:
        >>> QuantHardTanh(scale=2**-6)(torch.tensor([-9.0, 0.5]))
        tensor([-1.0000,  0.5000])
    """

    def __init__(
        self,
        min_val: float = -1.0,
        max_val: float = 1.0,
        inplace: bool = False,
        *,
        act_quant: Any = Int8Act,
        input_quant: Any = None,
        return_quant_tensor: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
        **overrides: Any,
    ) -> None:
        nn.Hardtanh.__init__(self, min_val, max_val, inplace)
        self._attach(act_quant, input_quant, return_quant_tensor, device, dtype, overrides)

    def _function(self, x: Tensor) -> Tensor:
        return F.hardtanh(x, self.min_val, self.max_val, self.inplace)


class QuantHardSwish(ActivationLayer, nn.Hardswish):
    """`torch.nn.Hardswish`, quantized; with a zero point by default, for its small negative tail.

    Positional arguments are torch's; for the keyword-only ones see `ActivationLayer`.

    Example:
        >>> QuantHardSwish(act_quant=Int8Act, scale=0.125)(torch.tensor([-1.5, 3.0]))
        tensor([-0.3750,  3.0000])
    """

    def __init__(
        self,
        inplace: bool = False,
        *,
        act_quant: Any = ShiftedUint8Act,
        input_quant: Any = None,
        return_quant_tensor: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
        **overrides: Any,
    ) -> None:
        nn.Hardswish.__init__(self, inplace)
        self._attach(act_quant, input_quant, return_quant_tensor, device, dtype, overrides)

    def _function(self, x: Tensor) -> Tensor:
        return F.hardswish(x, self.inplace)


class QuantSiLU(ActivationLayer, nn.SiLU):
    """`torch.nn.SiLU`, quantized; with a zero point by default, for its small negative tail.

    Positional arguments are torch's; for the keyword-only ones see `ActivationLayer`.

    Example:
        >>> QuantSiLU(act_quant=Int8Act, scale=0.125)(torch.tensor([-1.0, 4.0]))
        tensor([-0.2500,  3.8750])
    """

    def __init__(
        self,
        inplace: bool = False,
        *,
        act_quant: Any = ShiftedUint8Act,
        input_quant: Any = None,
        return_quant_tensor: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
        **overrides: Any,
    ) -> None:
        nn.SiLU.__init__(self, inplace)
        self._attach(act_quant, input_quant, return_quant_tensor, device, dtype, overrides)

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
        self,
        approximate: str = "none",
        *,
        act_quant: Any = ShiftedUint8Act,
        input_quant: Any = None,
        return_quant_tensor: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
        **overrides: Any,
    ) -> None:
        nn.GELU.__init__(self, approximate)
        self._attach(act_quant, input_quant, return_quant_tensor, device, dtype, overrides)

    def _function(self, x: Tensor) -> Tensor:
        return F.gelu(x, approximate=self.approximate)


class QuantSoftmax(ActivationLayer, nn.Softmax):
    """`torch.nn.Softmax`, quantized. Unsigned by default.

    Positional arguments are torch's; for the keyword-only ones see `ActivationLayer`.

    Example:
        >>> QuantSoftmax(-1, scale=2**-8)(torch.zeros(1, 4))
        tensor([[0.2500, 0.2500, 0.2500, 0.2500]])
    """

    def __init__(
        self,
        dim: int | None = None,
        *,
        act_quant: Any = Uint8Act,
        input_quant: Any = None,
        return_quant_tensor: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
        **overrides: Any,
    ) -> None:
        nn.Softmax.__init__(self, dim)
        self._attach(act_quant, input_quant, return_quant_tensor, device, dtype, overrides)

    def _function(self, x: Tensor) -> Tensor:
        return F.softmax(x, self.dim)

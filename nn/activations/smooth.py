"""Quantized activations that are smooth.

Each takes torch's positional arguments and, by keyword, those of `ActivationLayer`: ``**options`` are the ones that a
layer passes on.
"""

from typing import Any

from torch import nn

from ...quantizers import Int8Act, ShiftedUint8Act, Uint8Act
from ..slots import QuantizerLike
from .layer import ActivationLayer

__all__ = [
    "QuantCELU",
    "QuantELU",
    "QuantGELU",
    "QuantLogSigmoid",
    "QuantLogSoftmax",
    "QuantMish",
    "QuantSELU",
    "QuantSiLU",
    "QuantSigmoid",
    "QuantSoftmax",
    "QuantSoftplus",
    "QuantTanh",
]


class QuantSigmoid(ActivationLayer, nn.Sigmoid):
    """`torch.nn.Sigmoid`, quantized. Unsigned by default.

    Positional arguments are torch's; for the keyword-only ones see `ActivationLayer`.

    Example:
        >>> import torch
        >>> QuantSigmoid(scale=2**-8)(torch.tensor([0.0]))
        tensor([0.5000])
    """

    def __init__(self, *, act_quant: QuantizerLike = Uint8Act, **options: Any) -> None:
        super().__init__(act_quant=act_quant, **options)


class QuantTanh(ActivationLayer, nn.Tanh):
    """`torch.nn.Tanh`, quantized.

    Positional arguments are torch's; for the keyword-only ones see `ActivationLayer`.

    Example:
        >>> import torch
        >>> QuantTanh(scale=2**-7)(torch.tensor([-99.0, 0.0]))
        tensor([-1.,  0.])
    """

    def __init__(self, *, act_quant: QuantizerLike = Int8Act, **options: Any) -> None:
        super().__init__(act_quant=act_quant, **options)


class QuantSiLU(ActivationLayer, nn.SiLU):
    """`torch.nn.SiLU`, quantized; with a zero point by default, for its small negative tail.

    Positional arguments are torch's; for the keyword-only ones see `ActivationLayer`.

    Example:
        >>> import torch
        >>> QuantSiLU(act_quant=Int8Act, scale=0.125)(torch.tensor([-1.0, 4.0]))
        tensor([-0.2500,  3.8750])
    """

    def __init__(self, inplace: bool = False, *, act_quant: QuantizerLike = ShiftedUint8Act, **options: Any) -> None:
        super().__init__(inplace, act_quant=act_quant, **options)


class QuantGELU(ActivationLayer, nn.GELU):
    """`torch.nn.GELU`, quantized; with a zero point by default, for its small negative tail.

    Positional arguments are torch's; for the keyword-only ones see `ActivationLayer`.

    Example:
        >>> import torch
        >>> QuantGELU(act_quant=Int8Act, scale=0.125)(torch.tensor([-1.0, 4.0]))
        tensor([-0.1250,  4.0000])
    """

    def __init__(
        self, approximate: str = "none", *, act_quant: QuantizerLike = ShiftedUint8Act, **options: Any
    ) -> None:
        super().__init__(approximate, act_quant=act_quant, **options)


class QuantSoftmax(ActivationLayer, nn.Softmax):
    """`torch.nn.Softmax`, quantized. Unsigned by default.

    Positional arguments are torch's; for the keyword-only ones see `ActivationLayer`.

    Example:
        >>> import torch
        >>> QuantSoftmax(-1, scale=2**-8)(torch.zeros(1, 4))
        tensor([[0.2500, 0.2500, 0.2500, 0.2500]])
    """

    def __init__(self, dim: int | None = None, *, act_quant: QuantizerLike = Uint8Act, **options: Any) -> None:
        super().__init__(dim, act_quant=act_quant, **options)


class QuantLogSigmoid(ActivationLayer, nn.LogSigmoid):
    """`torch.nn.LogSigmoid`, quantized; with a zero point by default, as it is never positive.

    Positional arguments are torch's; for the keyword-only ones see `ActivationLayer`.

    Example:
        >>> import torch
        >>> QuantLogSigmoid(act_quant=Int8Act, scale=0.125)(torch.tensor([-4.0, 0.0]))
        tensor([-4.0000, -0.7500])
    """

    def __init__(self, *, act_quant: QuantizerLike = ShiftedUint8Act, **options: Any) -> None:
        super().__init__(act_quant=act_quant, **options)


class QuantSoftplus(ActivationLayer, nn.Softplus):
    """`torch.nn.Softplus`, quantized. Unsigned by default.

    Positional arguments are torch's; for the keyword-only ones see `ActivationLayer`.

    Example:
        >>> import torch
        >>> QuantSoftplus(scale=0.125)(torch.tensor([-9.0, 0.0, 3.0]))
        tensor([0.0000, 0.7500, 3.0000])
    """

    def __init__(
        self, beta: float = 1.0, threshold: float = 20.0, *, act_quant: QuantizerLike = Uint8Act, **options: Any
    ) -> None:
        super().__init__(beta, threshold, act_quant=act_quant, **options)


class QuantELU(ActivationLayer, nn.ELU):
    """`torch.nn.ELU`, quantized; with a zero point by default, for its small negative tail.

    Positional arguments are torch's; for the keyword-only ones see `ActivationLayer`.

    Example:
        >>> import torch
        >>> QuantELU(act_quant=Int8Act, scale=0.125)(torch.tensor([-9.0, 3.0]))
        tensor([-1.,  3.])
    """

    def __init__(
        self,
        alpha: float = 1.0,
        inplace: bool = False,
        *,
        act_quant: QuantizerLike = ShiftedUint8Act,
        **options: Any,
    ) -> None:
        super().__init__(alpha, inplace, act_quant=act_quant, **options)


class QuantCELU(ActivationLayer, nn.CELU):
    """`torch.nn.CELU`, quantized; with a zero point by default, for its small negative tail.

    Positional arguments are torch's; for the keyword-only ones see `ActivationLayer`.

    Example:
        >>> import torch
        >>> QuantCELU(0.5, act_quant=Int8Act, scale=0.125)(torch.tensor([-9.0, 3.0]))
        tensor([-0.5000,  3.0000])
    """

    def __init__(
        self,
        alpha: float = 1.0,
        inplace: bool = False,
        *,
        act_quant: QuantizerLike = ShiftedUint8Act,
        **options: Any,
    ) -> None:
        super().__init__(alpha, inplace, act_quant=act_quant, **options)


class QuantSELU(ActivationLayer, nn.SELU):
    """`torch.nn.SELU`, quantized; with a zero point by default, for its small negative tail.

    Positional arguments are torch's; for the keyword-only ones see `ActivationLayer`.

    Example:
        >>> import torch
        >>> QuantSELU(act_quant=Int8Act, scale=0.125)(torch.tensor([-9.0, 3.0]))
        tensor([-1.7500,  3.1250])
    """

    def __init__(self, inplace: bool = False, *, act_quant: QuantizerLike = ShiftedUint8Act, **options: Any) -> None:
        super().__init__(inplace, act_quant=act_quant, **options)


class QuantMish(ActivationLayer, nn.Mish):
    """`torch.nn.Mish`, quantized; with a zero point by default, for its small negative tail.

    Positional arguments are torch's; for the keyword-only ones see `ActivationLayer`.

    Example:
        >>> import torch
        >>> QuantMish(act_quant=Int8Act, scale=0.125)(torch.tensor([-1.0, 4.0]))
        tensor([-0.2500,  4.0000])
    """

    def __init__(self, inplace: bool = False, *, act_quant: QuantizerLike = ShiftedUint8Act, **options: Any) -> None:
        super().__init__(inplace, act_quant=act_quant, **options)


class QuantLogSoftmax(ActivationLayer, nn.LogSoftmax):
    """`torch.nn.LogSoftmax`, quantized; with a zero point by default, as it is never positive.

    Positional arguments are torch's; for the keyword-only ones see `ActivationLayer`.

    Example:
        >>> import torch
        >>> QuantLogSoftmax(-1, act_quant=Int8Act, scale=0.125)(torch.zeros(1, 4))
        tensor([[-1.3750, -1.3750, -1.3750, -1.3750]])
    """

    def __init__(self, dim: int | None = None, *, act_quant: QuantizerLike = ShiftedUint8Act, **options: Any) -> None:
        super().__init__(dim, act_quant=act_quant, **options)

"""Quantizers for activations: ``[Shifted](Int|Uint)<bits>Act[PerChannel][kind of scale]``, see docs/quantizers.md."""

from .base import IntBase, PowerOfTwo, Shifted, of_width

__all__ = [
    "Int2Act",
    "Int3Act",
    "Int4Act",
    "Int5Act",
    "Int6Act",
    "Int7Act",
    "Int8Act",
    "Int8ActPerChannel",
    "Int8ActPowerOfTwo",
    "Int16ActPowerOfTwo",
    "ShiftedUint4Act",
    "ShiftedUint8Act",
    "ShiftedUint8ActPerChannel",
    "Uint2Act",
    "Uint3Act",
    "Uint4Act",
    "Uint5Act",
    "Uint6Act",
    "Uint7Act",
    "Uint8Act",
    "Uint8ActPerChannel",
    "Uint8ActPowerOfTwo",
]


class Int8Act(IntBase):
    """Activations as signed 8-bit integers, one scale: calibrated over 300 training batches, then learned.

    Brevitas: ``Int8ActPerTensorFloat``.

    Example:
        >>> import torch, bitwright.nn as qnn
        >>> act = qnn.QuantIdentity(act_quant=Int8Act, scale=0.5, return_quant_tensor=True)
        >>> act(torch.tensor([1.2, -99.0])).int()
        tensor([   2, -128], dtype=torch.int8)
    """

    quantizes = "activation"
    scaling = "calibrated"
    statistic = "percentile"
    percentile = 99.999
    calibration_steps = 300
    momentum = 0.1


class Uint8Act(Int8Act):
    """Activations that are never negative, as integers from 0 to 255. Brevitas: ``Uint8ActPerTensorFloat``.

    Example:
        >>> import torch, bitwright.nn as qnn
        >>> qnn.QuantReLU(act_quant=Uint8Act, scale=0.5)(torch.tensor([1.2, -1.0]))
        tensor([1., 0.])
    """

    signed = False


class Int8ActPerChannel(Int8Act):
    """`Int8Act` with one scale per channel (dimension 1; ``axis=`` selects another)."""

    axis = 1


class Int8ActPowerOfTwo(PowerOfTwo, Int8Act):
    """`Int8Act` with a power-of-two scale. Brevitas: ``Int8ActPerTensorFixedPoint``."""


class Int16ActPowerOfTwo(Int8ActPowerOfTwo):
    """`Int8ActPowerOfTwo` with 16 bits, as the cell states of an LSTM need them.

    Example:
        >>> import torch, bitwright.nn as qnn
        >>> act = qnn.QuantIdentity(act_quant=Int16ActPowerOfTwo, scale=2**-12, return_quant_tensor=True)
        >>> act(torch.tensor([1.0001, -99.0])).int()
        tensor([  4096, -32768], dtype=torch.int16)
    """

    bit_width = 16


class Uint8ActPerChannel(Uint8Act):
    """`Uint8Act` with one scale per channel (dimension 1; ``axis=`` selects another)."""

    axis = 1


class Uint8ActPowerOfTwo(PowerOfTwo, Uint8Act):
    """`Uint8Act` with a power-of-two scale. Brevitas: ``Uint8ActPerTensorFixedPoint``."""


class ShiftedUint8Act(Shifted, Int8Act):
    """Activations as integers from 0 to 255 with a zero point; scale and lower end calibrated, then learned.

    Brevitas: ``ShiftedUint8ActPerTensorFloat``.
    """

    bit_width = 8
    statistic = "percentile_interval"
    low_percentile = 0.001
    high_percentile = 99.999


class ShiftedUint8ActPerChannel(ShiftedUint8Act):
    """`ShiftedUint8Act` with scale and zero point per channel (dimension 1; ``axis=`` selects another)."""

    axis = 1


# The same of other widths

Int2Act = of_width(Int8Act, 2)
Int3Act = of_width(Int8Act, 3)
Int4Act = of_width(Int8Act, 4)
Int5Act = of_width(Int8Act, 5)
Int6Act = of_width(Int8Act, 6)
Int7Act = of_width(Int8Act, 7)
Uint2Act = of_width(Uint8Act, 2)
Uint3Act = of_width(Uint8Act, 3)
Uint4Act = of_width(Uint8Act, 4)
Uint5Act = of_width(Uint8Act, 5)
Uint6Act = of_width(Uint8Act, 6)
Uint7Act = of_width(Uint8Act, 7)
ShiftedUint4Act = of_width(ShiftedUint8Act, 4)

"""Quantizers for activations: ``[Shifted](Int|Uint)<bits>Act[PerChannel][kind of scale]``, see docs/quantizers.md."""

from .base import IntBase, PowerOfTwo, Shifted

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


class Int2Act(Int8Act):
    """Activations as signed 2-bit integers from -2 to 1."""

    bit_width = 2


class Uint2Act(Uint8Act):
    """Activations that are never negative, as integers from 0 to 3."""

    bit_width = 2


class Int3Act(Int8Act):
    """Activations as signed 3-bit integers from -4 to 3."""

    bit_width = 3


class Uint3Act(Uint8Act):
    """Activations that are never negative, as integers from 0 to 7."""

    bit_width = 3


class Int4Act(Int8Act):
    """Activations as signed 4-bit integers from -8 to 7."""

    bit_width = 4


class Uint4Act(Uint8Act):
    """Activations that are never negative, as integers from 0 to 15."""

    bit_width = 4


class Int5Act(Int8Act):
    """Activations as signed 5-bit integers from -16 to 15."""

    bit_width = 5


class Uint5Act(Uint8Act):
    """Activations that are never negative, as integers from 0 to 31."""

    bit_width = 5


class Int6Act(Int8Act):
    """Activations as signed 6-bit integers from -32 to 31."""

    bit_width = 6


class Uint6Act(Uint8Act):
    """Activations that are never negative, as integers from 0 to 63."""

    bit_width = 6


class Int7Act(Int8Act):
    """Activations as signed 7-bit integers from -64 to 63."""

    bit_width = 7


class Uint7Act(Uint8Act):
    """Activations that are never negative, as integers from 0 to 127."""

    bit_width = 7


class Int8ActPerChannel(Int8Act):
    """`Int8Act` with one scale per channel (dimension 1; ``axis=`` selects another)."""

    axis = 1


class Int8ActPowerOfTwo(PowerOfTwo, Int8Act):
    """`Int8Act` with a power-of-two scale. Brevitas: ``Int8ActPerTensorFixedPoint``."""


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


class ShiftedUint4Act(Shifted, Int8Act):
    """Activations as integers from 0 to 15 with a zero point; scale and lower end calibrated, then learned."""

    bit_width = 4
    statistic = "percentile_interval"
    low_percentile = 0.001
    high_percentile = 99.999


class ShiftedUint8ActPerChannel(ShiftedUint8Act):
    """`ShiftedUint8Act` with scale and zero point per channel (dimension 1; ``axis=`` selects another)."""

    axis = 1

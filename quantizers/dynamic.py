"""Activations whose scale follows each tensor: ``[Shifted]<format>DynamicAct[granularity]``, see docs/quantizers.md."""

from ..qcore import E5M2
from .base import Dynamic, FloatBase, IntBase, PerGroup, PerToken, Shifted, of_format, of_width

__all__ = [
    "Fp8e4m3DynamicAct",
    "Fp8e4m3DynamicActPerGroup",
    "Fp8e4m3DynamicActPerToken",
    "Fp8e5m2DynamicAct",
    "Fp8e5m2DynamicActPerToken",
    "Int4DynamicAct",
    "Int4DynamicActPerGroup",
    "Int4DynamicActPerToken",
    "Int8DynamicAct",
    "Int8DynamicActPerGroup",
    "Int8DynamicActPerToken",
    "ShiftedUint4DynamicAct",
    "ShiftedUint4DynamicActPerGroup",
    "ShiftedUint4DynamicActPerToken",
    "ShiftedUint8DynamicAct",
    "ShiftedUint8DynamicActPerGroup",
    "ShiftedUint8DynamicActPerToken",
    "Uint8DynamicAct",
]


class Int8DynamicAct(Dynamic, IntBase):
    """Activations as signed 8-bit integers from -127 to 127, one scale: the largest magnitude over 127, of each tensor.

    Brevitas: ``Int8DynamicActPerTensorFloat``.

    Example:
        >>> import torch, bitwright.nn as qnn
        >>> act = qnn.QuantIdentity(act_quant=Int8DynamicAct, return_quant_tensor=True)
        >>> act(torch.tensor([0.1, -2.54])).int()
        tensor([   5, -127], dtype=torch.int8)
    """

    bit_width = 8
    narrow_range = True


class Int8DynamicActPerToken(PerToken, Int8DynamicAct):
    """The same with one scale for each vector along the last dimension. Brevitas: ``Int8DynamicActPerRowFloat``.

    Example:
        >>> import torch, bitwright.nn as qnn
        >>> act = qnn.QuantIdentity(act_quant=Int8DynamicActPerToken, return_quant_tensor=True)
        >>> act(torch.tensor([[0.1, -2.54], [0.1, -0.0127]])).int()
        tensor([[   5, -127],
                [ 127,  -16]], dtype=torch.int8)
    """


class Int8DynamicActPerGroup(PerGroup, Int8DynamicAct):
    """The same with one scale for each 32 neighbours along the last dimension.

    ``input_group_size=64`` sets another size, ``input_group_axis=1`` another dimension, such as the channels of an
    image. Brevitas: ``Int8DynamicActPerGroupFloat``.

    Example:
        >>> import torch, bitwright.nn as qnn
        >>> act = qnn.QuantIdentity(act_quant=Int8DynamicActPerGroup, group_axis=1, return_quant_tensor=True)
        >>> act(torch.randn(2, 64, 5, 5)).scale.shape
        torch.Size([2, 2, 5, 5])
    """


class Uint8DynamicAct(Int8DynamicAct):
    """Activations that are never negative, as integers from 0 to 255, one scale: the largest value over 255.

    Example:
        >>> import torch, bitwright.nn as qnn
        >>> qnn.QuantReLU(act_quant=Uint8DynamicAct)(torch.tensor([2.55, 0.026, -9.0]))
        tensor([2.5500, 0.0300, 0.0000])
    """

    bit_width = 8
    signed = False
    narrow_range = False


class ShiftedUint8DynamicAct(Shifted, Int8DynamicAct):
    """Activations as integers from 0 to 255 with a zero point; both ends of the range are those of each tensor.

    Brevitas: ``ShiftedUint8DynamicActPerTensorFloat``.

    Example:
        >>> import torch, bitwright.nn as qnn
        >>> act = qnn.QuantIdentity(act_quant=ShiftedUint8DynamicAct, return_quant_tensor=True)
        >>> act(torch.tensor([-0.5, 2.05])).int()
        tensor([  0, 255], dtype=torch.uint8)
    """

    bit_width = 8
    statistic = "min_max"


class ShiftedUint8DynamicActPerToken(PerToken, ShiftedUint8DynamicAct):
    """The same with scale and zero point for each vector along the last dimension.

    Brevitas: ``ShiftedUint8DynamicActPerRowFloat``.
    """


class ShiftedUint8DynamicActPerGroup(PerGroup, ShiftedUint8DynamicAct):
    """The same with scale and zero point for each 32 neighbours along the last dimension.

    Brevitas: ``ShiftedUint8DynamicActPerGroupFloat``.
    """


class Fp8e4m3DynamicAct(Dynamic, FloatBase):
    """Activations as 8-bit floats (OCP E4M3), one scale: the largest magnitude over 448, of each tensor.

    Example:
        >>> import torch, bitwright.nn as qnn
        >>> qnn.QuantIdentity(act_quant=Fp8e4m3DynamicAct)(torch.tensor([-4.48, 0.017]))
        tensor([-4.4800,  0.0175])
    """

    exponent_bits = 4
    mantissa_bits = 3
    nan = True


class Fp8e4m3DynamicActPerToken(PerToken, Fp8e4m3DynamicAct):
    """The same with one scale for each vector along the last dimension."""


class Fp8e4m3DynamicActPerGroup(PerGroup, Fp8e4m3DynamicAct):
    """The same with one scale for each 32 neighbours along the last dimension."""


# The same of other widths and formats

Int4DynamicAct = of_width(Int8DynamicAct, 4)
Int4DynamicActPerToken = of_width(Int8DynamicActPerToken, 4)
Int4DynamicActPerGroup = of_width(Int8DynamicActPerGroup, 4)
ShiftedUint4DynamicAct = of_width(ShiftedUint8DynamicAct, 4)
ShiftedUint4DynamicActPerToken = of_width(ShiftedUint8DynamicActPerToken, 4)
ShiftedUint4DynamicActPerGroup = of_width(ShiftedUint8DynamicActPerGroup, 4)
Fp8e5m2DynamicAct = of_format(Fp8e4m3DynamicAct, E5M2)
Fp8e5m2DynamicActPerToken = of_format(Fp8e4m3DynamicActPerToken, E5M2)

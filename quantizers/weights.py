"""Quantizers for weights: ``[Shifted](Int|Uint)<bits>Weight<granularity>[kind of scale]``, see docs/quantizers.md."""

from .base import IntBase, PerGroup, PerOutputChannel, PowerOfTwo, Shifted, of_width

__all__ = [
    "Int2WeightPerChannel",
    "Int2WeightPerGroup",
    "Int2WeightPerTensor",
    "Int3WeightPerChannel",
    "Int3WeightPerGroup",
    "Int3WeightPerTensor",
    "Int4WeightPerChannel",
    "Int4WeightPerGroup",
    "Int4WeightPerTensor",
    "Int5WeightPerChannel",
    "Int5WeightPerTensor",
    "Int6WeightPerChannel",
    "Int6WeightPerTensor",
    "Int7WeightPerChannel",
    "Int7WeightPerTensor",
    "Int8WeightPerChannel",
    "Int8WeightPerChannelLearned",
    "Int8WeightPerChannelMSE",
    "Int8WeightPerChannelPowerOfTwo",
    "Int8WeightPerGroup",
    "Int8WeightPerTensor",
    "Int8WeightPerTensorLearned",
    "Int8WeightPerTensorMSE",
    "Int8WeightPerTensorPowerOfTwo",
    "ShiftedUint4WeightPerChannel",
    "ShiftedUint4WeightPerGroup",
    "ShiftedUint4WeightPerTensor",
    "ShiftedUint8WeightPerChannel",
    "ShiftedUint8WeightPerGroup",
    "ShiftedUint8WeightPerTensor",
    "Uint4WeightPerChannel",
    "Uint4WeightPerTensor",
    "Uint8WeightPerChannel",
    "Uint8WeightPerTensor",
]


class Int8WeightPerTensor(IntBase):
    """Weights as signed 8-bit integers from -127 to 127, one scale: the largest magnitude over 127, at each forward.

    The default of every layer with a weight. Brevitas: ``Int8WeightPerTensorFloat``.

    Example:
        >>> import bitwright.nn as qnn
        >>> qnn.QuantLinear(4, 2, weight_quant=Int8WeightPerTensor).int_weight().dtype
        torch.int8
    """

    quantizes = "weight"
    narrow_range = True
    scaling = "statistic"
    statistic = "abs_max"
    detach_scale = False


class Int8WeightPerChannel(PerOutputChannel, Int8WeightPerTensor):
    """The same with one scale per output channel. Brevitas: ``Int8WeightPerChannelFloat``.

    Example:
        >>> import bitwright.nn as qnn
        >>> qnn.QuantLinear(4, 2, weight_quant=Int8WeightPerChannel).quant_weight().scale.shape
        torch.Size([2, 1])
    """


class Uint8WeightPerTensor(Int8WeightPerTensor):
    """Weights that are never negative, as integers from 0 to 255, one scale."""

    bit_width = 8
    signed = False
    narrow_range = False


class Uint8WeightPerChannel(Int8WeightPerChannel):
    """Weights that are never negative, as integers from 0 to 255, one scale per output channel."""

    bit_width = 8
    signed = False
    narrow_range = False


class ShiftedUint8WeightPerTensor(Shifted, Int8WeightPerTensor):
    """Weights as integers from 0 to 255 with a zero point, so that the range need not be centred on 0.

    Brevitas: ``ShiftedUint8WeightPerTensorFloat``.
    """

    bit_width = 8
    statistic = "min_max"


class ShiftedUint8WeightPerChannel(PerOutputChannel, ShiftedUint8WeightPerTensor):
    """The same with scale and zero point per output channel. Brevitas: ``ShiftedUint8WeightPerChannelFloat``."""


class Int8WeightPerTensorPowerOfTwo(PowerOfTwo, Int8WeightPerTensor):
    """`Int8WeightPerTensor` with power-of-two scales. Brevitas: ``Int8WeightPerTensorFixedPoint``."""


class Int8WeightPerTensorLearned(Int8WeightPerTensor):
    """`Int8WeightPerTensor` whose scale is a parameter (LSQ) that starts from the largest magnitude."""

    scaling = "learned"


class Int8WeightPerTensorMSE(Int8WeightPerTensorLearned):
    """`Int8WeightPerTensorLearned` whose scale starts from a search for the least squared error.

    Brevitas: ``Int8WeightPerTensorFloatMSE``.
    """

    statistic = "mse"


class Int8WeightPerChannelPowerOfTwo(PowerOfTwo, Int8WeightPerChannel):
    """`Int8WeightPerChannel` with power-of-two scales. Brevitas: ``Int8WeightPerChannelFixedPoint``."""


class Int8WeightPerChannelLearned(Int8WeightPerChannel):
    """`Int8WeightPerChannel` whose scale is a parameter (LSQ) that starts from the largest magnitude."""

    scaling = "learned"


class Int8WeightPerChannelMSE(Int8WeightPerChannelLearned):
    """`Int8WeightPerChannelLearned` whose scale starts from a search for the least squared error.

    Brevitas: ``Int8WeightPerChannelFloatMSE``.
    """

    statistic = "mse"


class Int8WeightPerGroup(PerGroup, Int8WeightPerTensor):
    """Weights as signed 8-bit integers with one scale for each group of 32 neighbours along the input channels.

    ``weight_group_size=64`` sets another size, -1 one group for the whole row; the last group may be shorter.

    Example:
        >>> import bitwright.nn as qnn
        >>> qnn.QuantLinear(80, 2, weight_quant=Int8WeightPerGroup).quant_weight().scale.shape
        torch.Size([2, 3])
    """


class ShiftedUint8WeightPerGroup(PerGroup, ShiftedUint8WeightPerTensor):
    """The same as integers from 0 to 255, with a zero point for each group."""


# The same of other widths

Int2WeightPerTensor = of_width(Int8WeightPerTensor, 2)
Int3WeightPerTensor = of_width(Int8WeightPerTensor, 3)
Int4WeightPerTensor = of_width(Int8WeightPerTensor, 4)
Int5WeightPerTensor = of_width(Int8WeightPerTensor, 5)
Int6WeightPerTensor = of_width(Int8WeightPerTensor, 6)
Int7WeightPerTensor = of_width(Int8WeightPerTensor, 7)
Int2WeightPerChannel = of_width(Int8WeightPerChannel, 2)
Int3WeightPerChannel = of_width(Int8WeightPerChannel, 3)
Int4WeightPerChannel = of_width(Int8WeightPerChannel, 4)
Int5WeightPerChannel = of_width(Int8WeightPerChannel, 5)
Int6WeightPerChannel = of_width(Int8WeightPerChannel, 6)
Int7WeightPerChannel = of_width(Int8WeightPerChannel, 7)
Int2WeightPerGroup = of_width(Int8WeightPerGroup, 2)
Int3WeightPerGroup = of_width(Int8WeightPerGroup, 3)
Int4WeightPerGroup = of_width(Int8WeightPerGroup, 4)
Uint4WeightPerTensor = of_width(Uint8WeightPerTensor, 4)
Uint4WeightPerChannel = of_width(Uint8WeightPerChannel, 4)
ShiftedUint4WeightPerTensor = of_width(ShiftedUint8WeightPerTensor, 4)
ShiftedUint4WeightPerChannel = of_width(ShiftedUint8WeightPerChannel, 4)
ShiftedUint4WeightPerGroup = of_width(ShiftedUint8WeightPerGroup, 4)

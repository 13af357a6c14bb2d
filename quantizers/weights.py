"""Quantizers for weights: ``[Shifted](Int|Uint)<bits>Weight<granularity>[kind of scale]``, see docs/quantizers.md."""

from .base import IntBase, PerOutputChannel, PowerOfTwo, Shifted

__all__ = [
    "Int2WeightPerChannel",
    "Int2WeightPerTensor",
    "Int3WeightPerChannel",
    "Int3WeightPerTensor",
    "Int4WeightPerChannel",
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
    "Int8WeightPerTensor",
    "Int8WeightPerTensorLearned",
    "Int8WeightPerTensorMSE",
    "Int8WeightPerTensorPowerOfTwo",
    "ShiftedUint4WeightPerChannel",
    "ShiftedUint4WeightPerTensor",
    "ShiftedUint8WeightPerChannel",
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


class Int2WeightPerTensor(Int8WeightPerTensor):
    """Weights as signed 2-bit integers from -1 to 1, one scale."""

    bit_width = 2


class Int2WeightPerChannel(Int8WeightPerChannel):
    """Weights as signed 2-bit integers from -1 to 1, one scale per output channel."""

    bit_width = 2


class Int3WeightPerTensor(Int8WeightPerTensor):
    """Weights as signed 3-bit integers from -3 to 3, one scale."""

    bit_width = 3


class Int3WeightPerChannel(Int8WeightPerChannel):
    """Weights as signed 3-bit integers from -3 to 3, one scale per output channel."""

    bit_width = 3


class Int4WeightPerTensor(Int8WeightPerTensor):
    """Weights as signed 4-bit integers from -7 to 7, one scale."""

    bit_width = 4


class Int4WeightPerChannel(Int8WeightPerChannel):
    """Weights as signed 4-bit integers from -7 to 7, one scale per output channel."""

    bit_width = 4


class Int5WeightPerTensor(Int8WeightPerTensor):
    """Weights as signed 5-bit integers from -15 to 15, one scale."""

    bit_width = 5


class Int5WeightPerChannel(Int8WeightPerChannel):
    """Weights as signed 5-bit integers from -15 to 15, one scale per output channel."""

    bit_width = 5


class Int6WeightPerTensor(Int8WeightPerTensor):
    """Weights as signed 6-bit integers from -31 to 31, one scale."""

    bit_width = 6


class Int6WeightPerChannel(Int8WeightPerChannel):
    """Weights as signed 6-bit integers from -31 to 31, one scale per output channel."""

    bit_width = 6


class Int7WeightPerTensor(Int8WeightPerTensor):
    """Weights as signed 7-bit integers from -63 to 63, one scale."""

    bit_width = 7


class Int7WeightPerChannel(Int8WeightPerChannel):
    """Weights as signed 7-bit integers from -63 to 63, one scale per output channel."""

    bit_width = 7


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


class Uint4WeightPerTensor(Int8WeightPerTensor):
    """Weights that are never negative, as integers from 0 to 15, one scale."""

    bit_width = 4
    signed = False
    narrow_range = False


class Uint4WeightPerChannel(Int8WeightPerChannel):
    """Weights that are never negative, as integers from 0 to 15, one scale per output channel."""

    bit_width = 4
    signed = False
    narrow_range = False


class ShiftedUint4WeightPerTensor(Shifted, Int8WeightPerTensor):
    """Weights as integers from 0 to 15 with a zero point, so that the range need not be centred on 0."""

    bit_width = 4
    statistic = "min_max"


class ShiftedUint4WeightPerChannel(PerOutputChannel, ShiftedUint4WeightPerTensor):
    """The same with scale and zero point per output channel."""


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

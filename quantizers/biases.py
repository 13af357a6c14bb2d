"""Quantizers for biases. Names: ``Int<bits>Bias[kind of scale]``, see docs/quantizers.md."""

from .base import BiasBase, IntBase, PowerOfTwo

__all__ = [
    "Int8Bias",
    "Int8BiasOwnScale",
    "Int8BiasOwnScalePowerOfTwo",
    "Int16Bias",
    "Int16BiasOwnScale",
    "Int24Bias",
    "Int32Bias",
]


class Int32Bias(BiasBase):
    """The bias as 32-bit integers at the scale of the products, as integer hardware adds them.

    The layer's input must be quantized: a QuantTensor, or ``input_quant=``. Brevitas: ``Int32Bias``.

    Example:
        >>> import bitwright.nn as qnn
        >>> from bitwright.quantizers import Int8Act
        >>> qnn.QuantLinear(4, 2, bias_quant=Int32Bias, input_quant=Int8Act).bias_quant
        BiasQuant(int32, scale of the products, half_even)
    """


class Int24Bias(BiasBase):
    """The bias as 24-bit integers at the scale of the products. Brevitas: ``Int24Bias``."""

    bit_width = 24


class Int16Bias(BiasBase):
    """The bias as 16-bit integers at the scale of the products. Brevitas: ``Int16Bias``."""

    bit_width = 16


class Int8Bias(BiasBase):
    """The bias as 8-bit integers at the scale of the products; larger values are clipped. Brevitas: ``Int8Bias``."""

    bit_width = 8


class Int8BiasOwnScale(IntBase):
    """The bias as 8-bit integers with their own scale, from the largest magnitude; the input need not be quantized.

    Brevitas: ``Int8BiasPerTensorFloatInternalScaling``.

    Example:
        >>> import bitwright.nn as qnn
        >>> qnn.QuantLinear(4, 2, bias_quant=Int8BiasOwnScale).int_bias().dtype
        torch.int8
    """

    quantizes = "bias"
    narrow_range = True
    scaling = "statistic"
    statistic = "abs_max"


class Int16BiasOwnScale(Int8BiasOwnScale):
    """The same with 16 bits."""

    bit_width = 16


class Int8BiasOwnScalePowerOfTwo(PowerOfTwo, Int8BiasOwnScale):
    """`Int8BiasOwnScale` with a power-of-two scale.

    Brevitas: ``Int8BiasPerTensorFixedPointInternalScaling``.
    """

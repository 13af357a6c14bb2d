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
    """The bias as 32-bit integers on the scale of the products, as integer hardware adds it.

    The layer's input must be quantized: a QuantTensor, or ``input_quant=``. Brevitas: ``Int32Bias``.

    Example:
        >>> import bitwright.nn as qnn
        >>> from bitwright.quantizers import Int8Act
        >>> qnn.QuantLinear(4, 2, bias_quant=Int32Bias, input_quant=Int8Act).bias_quant
        BiasQuant(int32 bias, scale of the products, half_even)
    """


class Int24Bias(BiasBase):
    """The bias as 24-bit integers on the scale of the products. Brevitas: ``Int24Bias``."""

    bit_width = 24


class Int16Bias(BiasBase):
    """The bias as 16-bit integers on the scale of the products. Brevitas: ``Int16Bias``."""

    bit_width = 16


class Int8Bias(BiasBase):
    """The bias as 8-bit integers on the scale of the products; larger ones are clipped. Brevitas: ``Int8Bias``."""

    bit_width = 8


class Int8BiasOwnScale(IntBase):
    """The bias as 8-bit integers with a scale of its own, from its largest magnitude; any input will do.

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
    """`Int8BiasOwnScale` with a scale that is a power of two.

    Brevitas: ``Int8BiasPerTensorFixedPointInternalScaling``.
    """

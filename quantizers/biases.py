"""Quantizers for biases. Names: ``Int<bits>Bias[kind of scale]``, see docs/quantizers.md."""

from .base import BiasBase, IntBase, PowerOfTwo, of_width

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


class Int8BiasOwnScalePowerOfTwo(PowerOfTwo, Int8BiasOwnScale):
    """`Int8BiasOwnScale` with a power-of-two scale.

    Brevitas: ``Int8BiasPerTensorFixedPointInternalScaling``.
    """


# The same of other widths

Int24Bias = of_width(Int32Bias, 24)
Int16Bias = of_width(Int32Bias, 16)
Int8Bias = of_width(Int32Bias, 8)
Int16BiasOwnScale = of_width(Int8BiasOwnScale, 16)

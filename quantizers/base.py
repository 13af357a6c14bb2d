"""Fragments that the shipped quantizers are built from."""

from ..qcore import BiasQuant, IntQuant, IntRange, Quantizer, value

__all__ = ["BiasBase", "IntBase", "PerOutputChannel", "PowerOfTwo", "Shifted"]


class IntBase(Quantizer):
    """Fragment: quantization to integers; only `scaling` is missing.

    Example:
        >>> IntBase.rounding, IntBase.restriction
        ('half_even', 'float')
    """

    quantizes = None
    tensor_quant = IntQuant
    int_range = IntRange
    bit_width = 8
    signed = True
    narrow_range = False
    rounding = "half_even"
    restriction = "float"
    min_scale = 1e-10
    axis = None


class PerOutputChannel(Quantizer):
    """Fragment: one scale per output channel of the layer.

    Example:
        >>> import bitwright.nn as qnn
        >>> from bitwright.quantizers import Int8WeightPerTensor
        >>> class PerChannel(PerOutputChannel, Int8WeightPerTensor):
        ...     pass
        >>> qnn.QuantConv2d(3, 6, 5, weight_quant=PerChannel).quant_weight().scale.shape
        torch.Size([6, 1, 1, 1])
    """

    @value
    def axis(channel_axis):  # noqa: ANN201, N805 - channel_axis is an attribute, not an instance
        """The weight's dimension of output channels."""
        return channel_axis


class PowerOfTwo(Quantizer):
    """Fragment: scales rounded up to powers of two."""

    restriction = "power_of_two"
    power_of_two_rounding = "ceil"


class Shifted(Quantizer):
    """Fragment: unsigned integers with a zero point, for ranges that are not centred on 0."""

    signed = False
    narrow_range = False
    zero_point = "range"


class BiasBase(Quantizer):
    """Fragment: bias quantization at the scale of the products, input scale x weight scale.

    Example:
        >>> BiasBase.bit_width
        32
    """

    quantizes = "bias"
    tensor_quant = BiasQuant
    int_range = IntRange
    bit_width = 32
    signed = True
    narrow_range = False
    rounding = "half_even"

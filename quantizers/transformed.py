"""Quantizers for weights that are transformed before they are scaled and rounded, see docs/quantizers.md."""

from .weights import Int8WeightPerChannelLearned

__all__ = ["Int8WeightPerChannelA2Q", "Int8WeightPerChannelA2QPlus", "Int8WeightPerChannelNorm"]


class Int8WeightPerChannelNorm(Int8WeightPerChannelLearned):
    """`Int8WeightPerChannelLearned` with weight normalization: each output channel's length is learned apart.

    The scale is that of the quantizer, apart from the length; at the start both leave the weight as it is.
    ``norm_order=1`` takes the sum of magnitudes for the Euclidean length. Brevitas:
    ``Int8WeightNormL2PerChannelFixedPoint``.

    Example:
        >>> import torch, bitwright.nn as qnn
        >>> layer, plain = qnn.QuantLinear(4, 2, weight_quant=Int8WeightPerChannelNorm), qnn.QuantLinear(4, 2)
        >>> plain.weight_quant = Int8WeightPerChannelLearned
        >>> _ = layer.load_state_dict(plain.state_dict(), strict=False)
        >>> torch.equal(layer.int_weight(), plain.int_weight())
        True
    """

    transform = "weight_norm"
    norm_order = 2


class Int8WeightPerChannelA2Q(Int8WeightPerChannelLearned):
    """Weights whose sums of products fit an accumulator of ``accumulator_bit_width`` bits, for any input (A2Q).

    The limit follows the grid of the input; ``weight_input_bit_width=8, weight_input_signed=False`` say it where the
    layer doesn't know it. Add `bitwright.nn.accumulator_penalty` to the loss. See `bitwright.qcore.A2Q`. Brevitas:
    ``Int8AccumulatorAwareWeightQuant``.

    Example:
        >>> import bitwright.nn as qnn
        >>> from bitwright.quantizers import Uint4Act
        >>> layer = qnn.QuantLinear(
        ...     8, 2, weight_quant=Int8WeightPerChannelA2Q, weight_accumulator_bit_width=16, input_quant=Uint4Act
        ... )
        >>> layer.weight_quant.rounding, layer.weight_quant.transform.accumulator_bit_width
        (TowardZero(), 16)
    """

    rounding = "toward_zero"
    transform = "a2q"
    accumulator_bit_width = 32


class Int8WeightPerChannelA2QPlus(Int8WeightPerChannelA2Q):
    """`Int8WeightPerChannelA2Q` with a limit for each sign, so that weights may be about twice as large (A2Q+).

    See `bitwright.qcore.A2QPlus`; ``weight_centred=True`` takes off the mean, as the paper does. Brevitas:
    ``Int8AccumulatorAwareZeroCenterWeightQuant``.
    """

    transform = "a2q_plus"

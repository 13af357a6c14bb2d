"""Methods of the literature, each by its paper: ``<format>(Weight|Act)[granularity]<method>``, see docs/recipes.md."""

from typing import Any

from ..qcore import Integers, OddIntegers, value
from .activations import Int4Act, ShiftedUint4Act, Uint4Act
from .base import FormatBase, PerOutputChannel
from .weights import (
    Int4WeightPerGroup,
    Int4WeightPerTensor,
    ShiftedUint4WeightPerChannel,
    ShiftedUint4WeightPerGroup,
    ShiftedUint4WeightPerTensor,
)

__all__ = [
    "Int4ActKL",
    "Int4ActLSQ",
    "Int4WeightPerChannelHQO",
    "Int4WeightPerChannelKL",
    "Int4WeightPerChannelLSQ",
    "Int4WeightPerChannelLSQPlus",
    "Int4WeightPerChannelSAWB",
    "Int4WeightPerGroupHQO",
    "Int4WeightPerGroupLSQ",
    "Int4WeightPerGroupQuantizedScale",
    "Int4WeightPerTensorDoReFa",
    "Int4WeightPerTensorHQO",
    "Int4WeightPerTensorKL",
    "Int4WeightPerTensorLSQ",
    "Int4WeightPerTensorLSQPlus",
    "Int4WeightPerTensorSAWB",
    "Int4WeightPerTensorWRPN",
    "OddInt2WeightPerTensorSAWB",
    "ShiftedUint4ActLSQPlus",
    "ShiftedUint4WeightPerChannelHQO",
    "ShiftedUint4WeightPerGroupHQO",
    "ShiftedUint4WeightPerTensorHQO",
    "Uint4ActDoReFa",
    "Uint4ActKL",
    "Uint4ActLSQ",
    "Uint4ActPACT",
    "Uint4ActWRPN",
]


# LSQ and LSQ+


class Int4WeightPerTensorLSQ(Int4WeightPerTensor):
    """Weights by LSQ: a learned step size that starts at ``2 * mean|w| / sqrt(7)``, its gradient over ``sqrt(7 * N)``.

    Esser et al., "Learned Step Size Quantization", 2020. ``weight_bit_width`` sets another width.

    Example:
        >>> import bitwright.nn as qnn
        >>> qnn.QuantLinear(4, 2, weight_quant=Int4WeightPerTensorLSQ).weight_quant.scheme()
        'int4, per tensor, float scale'
    """

    narrow_range = False
    scaling = "learned"
    statistic = "lsq"
    scale_gradient = "lsq"


class Int4WeightPerChannelLSQ(PerOutputChannel, Int4WeightPerTensorLSQ):
    """The same with a step size per output channel; N is the number of weights of a channel."""


class Int4WeightPerGroupLSQ(Int4WeightPerGroup):
    """The same with a step size for each group of 32 neighbours along the input channels."""

    narrow_range = False
    scaling = "learned"
    statistic = "lsq"
    scale_gradient = "lsq"


class Int4ActLSQ(Int4Act):
    """Activations by LSQ: a learned step size that starts from the first batch, as that of weights.

    Esser et al., "Learned Step Size Quantization", 2020. N is the number of features of one sample.

    Example:
        >>> import bitwright.nn as qnn
        >>> qnn.QuantIdentity(act_quant=Int4ActLSQ, bit_width=3).act_quant.scheme()
        'int3, per tensor, float scale'
    """

    scaling = "learned"
    statistic = "lsq"
    scale_gradient = "lsq"


class Uint4ActLSQ(Int4ActLSQ):
    """The same for activations that are never negative, such as those of a ReLU."""

    signed = False


class Int4WeightPerTensorLSQPlus(Int4WeightPerTensorLSQ):
    """Weights by LSQ+: LSQ, but starting from the range ``max(|mean - 3 * std|, |mean + 3 * std|)``.

    Bhalgat et al., "LSQ+: Improving Low-bit Quantization through Learnable Offsets and Better Initialization", 2020.
    """

    statistic = "lsq_plus"


class Int4WeightPerChannelLSQPlus(PerOutputChannel, Int4WeightPerTensorLSQPlus):
    """The same with a step size per output channel."""


class ShiftedUint4ActLSQPlus(ShiftedUint4Act):
    """Activations by LSQ+: step size and offset are learned; they start where they move the first batch least.

    The offset is rounded to whole steps, so that 0 stays a level. Bhalgat et al., "LSQ+: Improving Low-bit Quantization
    through Learnable Offsets and Better Initialization", 2020; this is configuration 4 (unsigned, asymmetric).

    Example:
        >>> import torch, bitwright.nn as qnn
        >>> act = qnn.QuantSiLU(act_quant=ShiftedUint4ActLSQPlus, return_quant_tensor=True)
        >>> y = act(torch.linspace(-6.0, 6.0, 100))
        >>> y.zero_point.item() > 0
        True
    """

    scaling = "learned"
    statistic = "mse_interval"
    scale_gradient = "lsq"


# PACT, SAWB


class Uint4ActPACT(Uint4Act):
    """Activations by PACT: a learned clipping level that starts at 10, moved by what lies beyond it alone.

    Add ``0.5 * weight_decay * range_penalty(model)`` to the loss: without it the level stays too high. Choi et al.,
    "PACT: Parameterized Clipping Activation for Quantized Neural Networks", 2018.

    Example:
        >>> import torch, bitwright.nn as qnn
        >>> act = qnn.QuantReLU(act_quant=Uint4ActPACT, max_value=3.0)
        >>> act(torch.tensor([1.9, 3.0, 9.0])).detach()
        tensor([2., 3., 3.])
    """

    scaling = "learned"
    max_value = 10.0
    clip_first = True


class Int4WeightPerTensorSAWB(Int4WeightPerTensor):
    """Weights by SAWB: a clipping level from their mean magnitude and mean square. For 2, 4, 7 and 8 bits.

    Choi et al., "Accurate and Efficient 2-bit Quantized Neural Networks", 2019.

    Example:
        >>> import bitwright.nn as qnn
        >>> qnn.QuantLinear(4, 2, weight_quant=Int4WeightPerTensorSAWB, weight_bit_width=2).weight_quant.scaling
        StatisticScaling(StatisticsAwareBinning(2.6, 1.71), per tensor)
    """

    statistic = "sawb"
    detach_scale = True
    clip_first = True


class Int4WeightPerChannelSAWB(PerOutputChannel, Int4WeightPerTensorSAWB):
    """The same with a clipping level per output channel."""


class _OddIntBase(FormatBase):
    """Fragment: odd integers of ``bit_width`` bits, which lie evenly around 0 and leave it out."""

    @value
    def number_format(bit_width: Any):  # noqa: ANN202, N805 - bit_width is an attribute, not an instance
        """The levels."""
        return OddIntegers(bit_width)


class OddInt2WeightPerTensorSAWB(_OddIntBase):
    """Weights by SAWB on the levels of its paper: -1, -1/3, 1/3 and 1 times the clipping level. For 2 to 5 bits.

    Example:
        >>> import bitwright.nn as qnn
        >>> qnn.QuantLinear(4, 2, weight_quant=OddInt2WeightPerTensorSAWB).weight_quant.number_format.levels
        (-3.0, -1.0, 1.0, 3.0)
    """

    quantizes = "weight"
    bit_width = 2
    scaling = "statistic"
    statistic = "sawb"
    detach_scale = True
    clip_first = True


# DoReFa, WRPN


class Int4WeightPerTensorDoReFa(_OddIntBase):
    """Weights by DoReFa-Net: ``tanh(w)`` over its largest magnitude, at 16 levels -1, -13/15 ... 1, without 0.

    Of 2 bits on; the paper's binary weights are signs with a scale. Zhou et al., "DoReFa-Net: Training Low Bitwidth
    Convolutional Neural Networks with Low Bitwidth Gradients", 2016.

    Example:
        >>> import torch
        >>> from bitwright.qcore import resolve
        >>> resolve(Int4WeightPerTensorDoReFa(bit_width=2), {"channel_axis": 0})(torch.tensor([0.1, -0.5, 1.0]))
        tensor([ 0.3333, -0.3333,  1.0000])
    """

    quantizes = "weight"
    bit_width = 4
    transform = "tanh"
    scaling = "constant"
    max_value = 1.0


class Uint4ActDoReFa(Uint4Act):
    """Activations by DoReFa-Net: clipped to 0 to 1, and rounded to 15ths.

    Zhou et al., "DoReFa-Net: Training Low Bitwidth Convolutional Neural Networks with Low Bitwidth Gradients", 2016.

    Example:
        >>> import torch, bitwright.nn as qnn
        >>> qnn.QuantReLU(act_quant=Uint4ActDoReFa)(torch.tensor([-1.0, 0.41, 2.0]))
        tensor([0.0000, 0.4000, 1.0000])
    """

    scaling = "constant"
    max_value = 1.0
    clip_first = True


class Int4WeightPerTensorWRPN(Int4WeightPerTensor):
    """Weights by WRPN: clipped to -1 to 1, and rounded to 7ths.

    Mishra et al., "WRPN: Wide Reduced-Precision Networks", 2018.

    Example:
        >>> import torch, bitwright.nn as qnn
        >>> from bitwright.qcore import resolve
        >>> resolve(Int4WeightPerTensorWRPN, {"channel_axis": 0})(torch.tensor([0.3, -2.0]))
        tensor([ 0.2857, -1.0000])
    """

    scaling = "constant"
    max_value = 1.0
    clip_first = True


class Uint4ActWRPN(Uint4ActDoReFa):
    """Activations by WRPN: clipped to 0 to 1, and rounded to 15ths, as in DoReFa-Net."""


# HQO


class Int4WeightPerTensorHQO(Int4WeightPerTensor):
    """Weights by half-quadratic quantization without zero point: a range that outliers don't set.

    The method of Badri and Shaji, "Half-Quadratic Quantization of Large Machine Learning Models", 2023, for the scale
    in the place of the zero point. It is searched at each forward.
    """

    statistic = "hqo"
    detach_scale = True


class Int4WeightPerChannelHQO(PerOutputChannel, Int4WeightPerTensorHQO):
    """The same with a scale per output channel."""


class Int4WeightPerGroupHQO(Int4WeightPerGroup):
    """The same with a scale for each group of 32 neighbours along the input channels."""

    statistic = "hqo"
    detach_scale = True


class ShiftedUint4WeightPerTensorHQO(ShiftedUint4WeightPerTensor):
    """Weights by half-quadratic quantization: a float zero point that outliers don't set.

    ``weight_round_zero_point=True`` rounds it, which is what integers need. Badri and Shaji,
    "Half-Quadratic Quantization of Large Machine Learning Models", 2023.

    Example:
        >>> import bitwright.nn as qnn
        >>> qnn.QuantLinear(4, 2, weight_quant=ShiftedUint4WeightPerTensorHQO).weight_quant.scheme()
        'uint4, per tensor, float scale, float zero point'
    """

    zero_point = "hqo"
    round_zero_point = False


class ShiftedUint4WeightPerChannelHQO(ShiftedUint4WeightPerChannel):
    """The same with scale and zero point per output channel."""

    zero_point = "hqo"
    round_zero_point = False


class ShiftedUint4WeightPerGroupHQO(ShiftedUint4WeightPerGroup):
    """The same with scale and zero point for each group of 32 neighbours along the input channels; the paper has 64.

    Example:
        >>> import bitwright.nn as qnn
        >>> layer = qnn.QuantLinear(128, 2, weight_quant=ShiftedUint4WeightPerGroupHQO, weight_group_size=64)
        >>> layer.quant_weight().zero_point.shape
        torch.Size([2, 2])
    """

    zero_point = "hqo"
    round_zero_point = False


# Scales that are quantized themselves


class Int4WeightPerGroupQuantizedScale(Int4WeightPerGroup):
    """`Int4WeightPerGroup` whose scales are 8-bit integers times one float scale of the tensor: 4.25 bits a weight.

    Double quantization, as in QLoRA (Dettmers et al., 2023) without the mean. ``weight_scale_format`` sets another
    format. A group whose scale is below a 255th of the largest gets that 255th.

    Example:
        >>> import bitwright.nn as qnn
        >>> scale = qnn.QuantLinear(64, 2, weight_quant=Int4WeightPerGroupQuantizedScale).quant_weight().scale
        >>> (scale / scale.max() * 255).round().max()
        tensor(255.)
    """

    restriction = "two_level"
    scale_format = Integers(8, signed=False)
    detach_scale = True


# Kullback-Leibler divergence


class Int4WeightPerTensorKL(Int4WeightPerTensor):
    """Weights in the range whose quantized distribution diverges least from theirs, with the levels of its width.

    Migacz, "8-bit inference with TensorRT", 2017, with as many cells as there are levels. ``weight_least_percentile``
    says how much of the weights a range must hold, 99 percent by default.

    Example:
        >>> import bitwright.nn as qnn
        >>> qnn.QuantLinear(4, 2, weight_quant=Int4WeightPerTensorKL, weight_bit_width=3).weight_quant.scaling
        StatisticScaling(KullbackLeibler(99.0), per tensor)
    """

    statistic = "kl"
    detach_scale = True


class Int4WeightPerChannelKL(PerOutputChannel, Int4WeightPerTensorKL):
    """The same with a range per output channel."""


class Int4ActKL(Int4Act):
    """Activations in a range by Kullback-Leibler divergence: averaged over 300 training batches, then learned.

    For one range of all data together, which is that of TensorRT: ``calibrate(model, statistic="kl")``.
    """

    statistic = "kl"


class Uint4ActKL(Int4ActKL):
    """The same for activations that are never negative, such as those of a ReLU."""

    signed = False

"""Quantizers to other levels than integers: ``<format>(Weight|Act)[PerTensor|PerChannel]``, see docs/quantizers.md."""

from ..qcore import BINARY, E2M1, E4M3, NF4
from .base import FormatBase, PerGroup, PerOutputChannel

__all__ = [
    "BinaryWeightPerTensor",
    "Fp8e4m3Act",
    "Fp8e4m3WeightPerChannel",
    "Fp8e4m3WeightPerTensor",
    "MXFloat4e2m1Weight",
    "MXFloat8e4m3Weight",
    "NF4Weight",
    "NVFloat4Weight",
]


class _Weight(FormatBase):
    """Weights whose scale follows a statistic, at each forward."""

    quantizes = "weight"
    scaling = "statistic"
    statistic = "abs_max"
    detach_scale = False


class _Act(FormatBase):
    """Activations whose scale is calibrated over 300 training batches, then learned."""

    quantizes = "activation"
    scaling = "calibrated"
    statistic = "percentile"
    percentile = 99.999
    calibration_steps = 300
    momentum = 0.1


class Fp8e4m3WeightPerTensor(_Weight):
    """Weights as 8-bit floats of 4 exponent and 3 mantissa bits (OCP E4M3), one scale: the largest magnitude over 448.

    Brevitas: ``Fp8e4m3OCPWeightPerTensorFloat``.

    Example:
        >>> import bitwright.nn as qnn
        >>> qnn.QuantLinear(4, 2, weight_quant=Fp8e4m3WeightPerTensor).weight_quant.scheme()
        'e4m3fn, per tensor, float scale'
    """

    number_format = E4M3


class Fp8e4m3WeightPerChannel(PerOutputChannel, Fp8e4m3WeightPerTensor):
    """The same with one scale per output channel. Brevitas: ``Fp8e4m3OCPWeightPerChannelFloat``."""


class Fp8e4m3Act(_Act):
    """Activations as 8-bit floats of 4 exponent and 3 mantissa bits (OCP E4M3), one scale, calibrated, then learned.

    Brevitas: ``Fp8e4m3OCPActPerTensorFloat``.

    Example:
        >>> import torch, bitwright.nn as qnn
        >>> qnn.QuantIdentity(act_quant=Fp8e4m3Act, scale=0.5)(torch.tensor([1.2, -9.9]))
        tensor([  1.2500, -10.0000])
    """

    number_format = E4M3


class _MXWeight(PerGroup, _Weight):
    """Weights in groups of 32 along the input channels, each with a scale that is a power of two."""

    restriction = "mx"
    mx_rule = "floor"
    min_scale = 2.0**-127
    detach_scale = True  # a power of two has no slope almost everywhere


class MXFloat8e4m3Weight(_MXWeight):
    """Weights as MXFP8 of OCP's Microscaling 1.0: E4M3 elements, a power-of-two scale for each 32 neighbours.

    ``weight_mx_rule="rceil"`` selects another rule for the scale, see `MXScale`.

    Example:
        >>> import bitwright.nn as qnn
        >>> qnn.QuantLinear(64, 2, weight_quant=MXFloat8e4m3Weight).quant_weight().scale.shape
        torch.Size([2, 2])
    """

    number_format = E4M3


class MXFloat4e2m1Weight(_MXWeight):
    """Weights as MXFP4 of OCP's Microscaling 1.0: E2M1 elements, a power-of-two scale for each 32 neighbours."""

    number_format = E2M1


class NVFloat4Weight(PerGroup, _Weight):
    """Weights as NVFP4: E2M1 elements, for each 16 neighbours an E4M3 scale, under one float32 scale of the tensor.

    Example:
        >>> import bitwright.nn as qnn
        >>> qnn.QuantLinear(64, 2, weight_quant=NVFloat4Weight).quant_weight().scale.shape
        torch.Size([2, 4])
    """

    number_format = E2M1
    group_size = 16
    restriction = "two_level"
    scale_format = E4M3
    detach_scale = True


class NF4Weight(PerGroup, _Weight):
    """Weights as 4-bit NormalFloat (QLoRA): the 16 levels divide a normal distribution, one scale for 64 neighbours.

    Example:
        >>> import bitwright.nn as qnn
        >>> qnn.QuantLinear(128, 2, weight_quant=NF4Weight).quant_weight().grid.number_format.bits
        4
    """

    number_format = NF4
    group_size = 64


class BinaryWeightPerTensor(_Weight):
    """Weights as their signs times one scale, their mean magnitude, which is nearest to them (XNOR-Net).

    Example:
        >>> import bitwright.nn as qnn
        >>> qnn.QuantLinear(4, 2, weight_quant=BinaryWeightPerTensor).quant_weight().unique().numel()
        2
    """

    number_format = BINARY
    statistic = "mean_sigma"
    sigma = 0.0
    pass_clipped = True

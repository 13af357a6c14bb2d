"""Quantizers with a small scale for each group of neighbours: ``(MX|NV)<format>(Weight|Act)``."""

from ..qcore import E2M1, E4M3
from .base import FormatWeight, PerGroup

__all__ = [
    "MXFloat4e2m1Weight",
    "MXFloat8e4m3Weight",
    "NVFloat4Weight",
]


class _MXWeight(PerGroup, FormatWeight):
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


class NVFloat4Weight(PerGroup, FormatWeight):
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

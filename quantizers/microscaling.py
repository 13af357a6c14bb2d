"""Quantizers with a small scale for each few neighbours: ``(MX|NV)(Float<format>|Int<bits>)(Weight|Act)``.

Those of MX are the formats of the OCP's Microscaling 1.0. Scales of activations follow each tensor.
"""

from ..qcore import E2M1, E2M3, E3M2, E4M3, E5M2
from .base import PerGroup, of_format
from .dynamic import Fp8e4m3DynamicAct, Int8DynamicAct
from .floats import Fp4e2m1WeightPerTensor, Fp8e4m3WeightPerTensor
from .weights import Int8WeightPerTensor

__all__ = [
    "MXFloat4e2m1Act",
    "MXFloat4e2m1Weight",
    "MXFloat6e2m3Act",
    "MXFloat6e2m3Weight",
    "MXFloat6e3m2Act",
    "MXFloat6e3m2Weight",
    "MXFloat8e4m3Act",
    "MXFloat8e4m3Weight",
    "MXFloat8e5m2Act",
    "MXFloat8e5m2Weight",
    "MXGroups",
    "MXInt8Act",
    "MXInt8Weight",
    "NVFloat4Act",
    "NVFloat4Weight",
    "NVGroups",
]


class MXGroups(PerGroup):
    """Fragment: a scale that is a power of two for each 32 neighbours, as in Microscaling; see `MXScale` for its rules.

    Example:
        >>> import bitwright.nn as qnn
        >>> from bitwright.quantizers import Int4WeightPerTensor
        >>> class MXInt4Weight(MXGroups, Int4WeightPerTensor):
        ...     pass
        >>> qnn.QuantLinear(64, 2, weight_quant=MXInt4Weight).weight_quant.scheme()
        'int4 narrow, groups of 32 along axis 1, MX (floor) scale'
    """

    group_size = 32
    restriction = "mx"
    mx_rule = "floor"
    min_scale = 2.0**-127
    detach_scale = True  # a power of two has no slope almost everywhere


class NVGroups(PerGroup):
    """Fragment: for each 16 neighbours a scale that is an E4M3 number, under one float32 scale of the tensor.

    Example:
        >>> import bitwright.nn as qnn
        >>> from bitwright.quantizers import Int4WeightPerTensor
        >>> class NVInt4Weight(NVGroups, Int4WeightPerTensor):
        ...     pass
        >>> weight = qnn.QuantLinear(64, 2, weight_quant=NVInt4Weight).quant_weight()
        >>> weight.scale.shape, weight.grid.scales.scale.shape
        (torch.Size([2, 4]), torch.Size([]))
    """

    group_size = 16
    restriction = "two_level"
    scale_format = E4M3
    detach_scale = True


class MXFloat8e4m3Weight(MXGroups, Fp8e4m3WeightPerTensor):
    """Weights as MXFP8: E4M3 elements, a power-of-two scale for each 32 neighbours along the input channels.

    ``weight_mx_rule="rceil"`` selects another rule for the scale, see `MXScale`. Brevitas: ``MXFloat8e4m3Weight``.

    Example:
        >>> import bitwright.nn as qnn
        >>> qnn.QuantLinear(64, 2, weight_quant=MXFloat8e4m3Weight).quant_weight().scale.shape
        torch.Size([2, 2])
    """


class MXFloat8e4m3Act(MXGroups, Fp8e4m3DynamicAct):
    """Activations as MXFP8: E4M3 elements, a power-of-two scale for each 32 neighbours along the last dimension.

    ``input_group_axis=1`` selects another dimension, such as the channels of an image. Brevitas: ``MXFloat8e4m3Act``.

    Example:
        >>> import torch, bitwright.nn as qnn
        >>> layer = qnn.QuantConv2d(64, 2, 3, input_quant=MXFloat8e4m3Act, input_group_axis=1)
        >>> layer.input_quant.grid(torch.randn(1, 64, 5, 5)).scale.shape
        torch.Size([1, 2, 5, 5])
    """


class MXInt8Weight(MXGroups, Int8WeightPerTensor):
    """Weights as MXINT8: 64ths from -127/64 to 127/64, a power-of-two scale for each 32 neighbours along the inputs.

    The scale of the grid is that of the integers, a 64th of the block's. Brevitas' quantizer of that name has half the
    step, and clips what the standard's reaches.

    Example:
        >>> import torch, bitwright.nn as qnn
        >>> layer = qnn.QuantLinear(32, 1, weight_quant=MXInt8Weight)
        >>> _ = torch.nn.init.constant_(layer.weight, 1.5)
        >>> layer.quant_weight().scale, layer.int_weight()[0, 0]
        (tensor([[0.0156]]), tensor(96, dtype=torch.int8))
    """

    min_scale = 2.0**-133


class MXInt8Act(MXGroups, Int8DynamicAct):
    """Activations as MXINT8: 64ths from -127/64 to 127/64, a power-of-two scale for each 32 neighbours.

    See `MXInt8Weight`, and `MXFloat8e4m3Act` for the dimension.
    """

    min_scale = 2.0**-133


class NVFloat4Weight(NVGroups, Fp4e2m1WeightPerTensor):
    """Weights as NVFP4: E2M1 elements, for each 16 neighbours an E4M3 scale, under one float32 scale of the tensor.

    Example:
        >>> import bitwright.nn as qnn
        >>> weight = qnn.QuantLinear(64, 2, weight_quant=NVFloat4Weight).quant_weight()
        >>> weight.scale.shape, str(weight.grid.scale_format)
        (torch.Size([2, 4]), 'e4m3fn')
    """


class NVFloat4Act(NVGroups, Fp8e4m3DynamicAct):
    """Activations as NVFP4: E2M1 elements, for each 16 neighbours along the last dimension an E4M3 scale.

    Scales follow each tensor, and so does the float32 scale above them.

    Example:
        >>> import torch, bitwright.nn as qnn
        >>> act = qnn.QuantIdentity(act_quant=NVFloat4Act, return_quant_tensor=True)
        >>> act(torch.randn(3, 64)).scale.shape
        torch.Size([3, 4])
    """

    exponent_bits = 2
    mantissa_bits = 1
    nan = False


# The same of other formats

MXFloat8e5m2Weight = of_format(MXFloat8e4m3Weight, E5M2)
MXFloat6e3m2Weight = of_format(MXFloat8e4m3Weight, E3M2)
MXFloat6e2m3Weight = of_format(MXFloat8e4m3Weight, E2M3)
MXFloat4e2m1Weight = of_format(MXFloat8e4m3Weight, E2M1)
MXFloat8e5m2Act = of_format(MXFloat8e4m3Act, E5M2)
MXFloat6e3m2Act = of_format(MXFloat8e4m3Act, E3M2)
MXFloat6e2m3Act = of_format(MXFloat8e4m3Act, E2M3)
MXFloat4e2m1Act = of_format(MXFloat8e4m3Act, E2M1)

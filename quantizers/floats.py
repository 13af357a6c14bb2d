"""Quantizers to floats of few bits: ``Fp<format>(Weight|Act)[granularity]``, see docs/quantizers.md."""

from ..qcore import E2M1, E2M3, E3M2, E4M3FNUZ, E5M2, E5M2FNUZ
from .base import FloatBase, FormatAct, FormatWeight, PerOutputChannel, of_format

__all__ = [
    "Fp4e2m1Act",
    "Fp4e2m1WeightPerChannel",
    "Fp4e2m1WeightPerTensor",
    "Fp6e2m3Act",
    "Fp6e2m3WeightPerChannel",
    "Fp6e2m3WeightPerTensor",
    "Fp6e3m2Act",
    "Fp6e3m2WeightPerChannel",
    "Fp6e3m2WeightPerTensor",
    "Fp8e4m3Act",
    "Fp8e4m3WeightPerChannel",
    "Fp8e4m3WeightPerTensor",
    "Fp8e4m3fnuzAct",
    "Fp8e4m3fnuzWeightPerChannel",
    "Fp8e4m3fnuzWeightPerTensor",
    "Fp8e5m2Act",
    "Fp8e5m2WeightPerChannel",
    "Fp8e5m2WeightPerTensor",
    "Fp8e5m2fnuzAct",
    "Fp8e5m2fnuzWeightPerChannel",
    "Fp8e5m2fnuzWeightPerTensor",
]


class Fp8e4m3WeightPerTensor(FloatBase, FormatWeight):
    """Weights as 8-bit floats of 4 exponent and 3 mantissa bits (OCP E4M3), one scale: the largest magnitude over 448.

    ``weight_exponent_bits=3`` and ``weight_mantissa_bits=4`` divide the bits in another way. Brevitas:
    ``Fp8e4m3OCPWeightPerTensorFloat``.

    Example:
        >>> import bitwright.nn as qnn
        >>> qnn.QuantLinear(4, 2, weight_quant=Fp8e4m3WeightPerTensor).weight_quant.scheme()
        'e4m3fn, per tensor, float scale'
    """

    exponent_bits = 4
    mantissa_bits = 3
    nan = True


class Fp8e4m3WeightPerChannel(PerOutputChannel, Fp8e4m3WeightPerTensor):
    """The same with one scale per output channel. Brevitas: ``Fp8e4m3OCPWeightPerChannelFloat``."""


class Fp8e4m3Act(FloatBase, FormatAct):
    """Activations as 8-bit floats of 4 exponent and 3 mantissa bits (OCP E4M3), one scale, calibrated, then learned.

    Brevitas: ``Fp8e4m3OCPActPerTensorFloat``.

    Example:
        >>> import torch, bitwright.nn as qnn
        >>> qnn.QuantIdentity(act_quant=Fp8e4m3Act, scale=0.5)(torch.tensor([1.2, -9.9]))
        tensor([  1.2500, -10.0000])
    """

    exponent_bits = 4
    mantissa_bits = 3
    nan = True


# The same of other formats

Fp8e5m2WeightPerTensor = of_format(Fp8e4m3WeightPerTensor, E5M2)
Fp8e5m2WeightPerChannel = of_format(Fp8e4m3WeightPerChannel, E5M2)
Fp8e5m2Act = of_format(Fp8e4m3Act, E5M2)
Fp8e4m3fnuzWeightPerTensor = of_format(Fp8e4m3WeightPerTensor, E4M3FNUZ)
Fp8e4m3fnuzWeightPerChannel = of_format(Fp8e4m3WeightPerChannel, E4M3FNUZ)
Fp8e4m3fnuzAct = of_format(Fp8e4m3Act, E4M3FNUZ)
Fp8e5m2fnuzWeightPerTensor = of_format(Fp8e4m3WeightPerTensor, E5M2FNUZ)
Fp8e5m2fnuzWeightPerChannel = of_format(Fp8e4m3WeightPerChannel, E5M2FNUZ)
Fp8e5m2fnuzAct = of_format(Fp8e4m3Act, E5M2FNUZ)
Fp6e3m2WeightPerTensor = of_format(Fp8e4m3WeightPerTensor, E3M2)
Fp6e3m2WeightPerChannel = of_format(Fp8e4m3WeightPerChannel, E3M2)
Fp6e3m2Act = of_format(Fp8e4m3Act, E3M2)
Fp6e2m3WeightPerTensor = of_format(Fp8e4m3WeightPerTensor, E2M3)
Fp6e2m3WeightPerChannel = of_format(Fp8e4m3WeightPerChannel, E2M3)
Fp6e2m3Act = of_format(Fp8e4m3Act, E2M3)
Fp4e2m1WeightPerTensor = of_format(Fp8e4m3WeightPerTensor, E2M1)
Fp4e2m1WeightPerChannel = of_format(Fp8e4m3WeightPerChannel, E2M1)
Fp4e2m1Act = of_format(Fp8e4m3Act, E2M1)

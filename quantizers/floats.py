"""Quantizers to small floats: ``Fp<format>(Weight|Act)[PerTensor|PerChannel]``, see docs/quantizers.md."""

from ..qcore import E4M3
from .base import FormatAct, FormatWeight, PerOutputChannel

__all__ = [
    "Fp8e4m3Act",
    "Fp8e4m3WeightPerChannel",
    "Fp8e4m3WeightPerTensor",
]


class Fp8e4m3WeightPerTensor(FormatWeight):
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


class Fp8e4m3Act(FormatAct):
    """Activations as 8-bit floats of 4 exponent and 3 mantissa bits (OCP E4M3), one scale, calibrated, then learned.

    Brevitas: ``Fp8e4m3OCPActPerTensorFloat``.

    Example:
        >>> import torch, bitwright.nn as qnn
        >>> qnn.QuantIdentity(act_quant=Fp8e4m3Act, scale=0.5)(torch.tensor([1.2, -9.9]))
        tensor([  1.2500, -10.0000])
    """

    number_format = E4M3

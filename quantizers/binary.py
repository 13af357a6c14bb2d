"""Quantizers to two levels or three: ``(Binary|Ternary)(Weight|Act)<granularity>``, see docs/quantizers.md."""

from ..qcore import BINARY
from .base import FormatWeight

__all__ = [
    "BinaryWeightPerTensor",
]


class BinaryWeightPerTensor(FormatWeight):
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

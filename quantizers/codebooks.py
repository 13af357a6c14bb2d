"""Quantizers to the levels of a table: ``<table>(Weight|Act)``, see docs/quantizers.md."""

from ..qcore import NF4
from .base import FormatWeight, PerGroup

__all__ = [
    "NF4Weight",
]


class NF4Weight(PerGroup, FormatWeight):
    """Weights as 4-bit NormalFloat (QLoRA): the 16 levels divide a normal distribution, one scale for 64 neighbours.

    Example:
        >>> import bitwright.nn as qnn
        >>> qnn.QuantLinear(128, 2, weight_quant=NF4Weight).quant_weight().grid.number_format.bits
        4
    """

    number_format = NF4
    group_size = 64

"""Quantized attention, and the transformer layers made of it."""

from .multihead import QuantMultiheadAttention
from .scaled_dot_product import QuantScaledDotProductAttention
from .transformer_layers import QuantTransformerDecoderLayer, QuantTransformerEncoderLayer

__all__ = [
    "QuantMultiheadAttention",
    "QuantScaledDotProductAttention",
    "QuantTransformerDecoderLayer",
    "QuantTransformerEncoderLayer",
]

"""Quantized attention, and the transformer layers made of it."""

from .scaled_dot_product import QuantScaledDotProductAttention

__all__ = ["QuantScaledDotProductAttention"]

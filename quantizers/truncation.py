"""Quantizers that drop the low bits of sums."""

from ..qcore import Quantizer, TruncQuant

__all__ = ["TruncTo8bit"]


class TruncTo8bit(Quantizer):
    """Sums cut to their 8 highest bits: a shift to the right in the place of a scale. Brevitas: ``TruncTo8bit``.

    For the output of layers whose products have a scale, and for tensors that arrive with a grid.

    Example:
        >>> import torch, bitwright.nn as qnn
        >>> x = qnn.QuantIdentity(bit_width=12, scale=0.5, return_quant_tensor=True)(torch.tensor([7.0, 8.5, -1.0]))
        >>> cut = qnn.QuantIdentity(act_quant=TruncTo8bit, return_quant_tensor=True)(x)
        >>> cut.int(), cut.scale, cut.bit_width
        (tensor([ 0,  1, -1], dtype=torch.int8), tensor(8.), 8)
    """

    quantizes = "activation"
    tensor_quant = TruncQuant
    bit_width = 8
    rounding = "floor"

"""Quantized linear layer."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.types import Device

from ..quantizers import Int8WeightPerTensor
from .slots import QuantizerLike, checked_flag
from .weight_layer import WeightLayer

__all__ = ["QuantLinear"]


class QuantLinear(WeightLayer, nn.Linear):
    """`torch.nn.Linear` with a quantized weight and, optionally, bias, input and output.

    Positional arguments are torch's. `WeightLayer` documents the keyword-only ones.

    Raises:
        QuantizerError: an unused or impossible setting.

    Example:
        >>> layer = QuantLinear(4, 2, weight_bit_width=4)
        >>> layer.int_weight().abs().max()
        tensor(7, dtype=torch.int8)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        weight_quant: QuantizerLike = Int8WeightPerTensor,
        bias_quant: QuantizerLike = None,
        input_quant: QuantizerLike = None,
        output_quant: QuantizerLike = None,
        grad_quant: QuantizerLike = None,
        return_quant_tensor: bool = False,
        **overrides: object,
    ) -> None:
        nn.Linear.__init__(self, in_features, out_features, checked_flag(self, "bias", bias), device, dtype)
        self._attach(weight_quant, bias_quant, input_quant, output_quant, grad_quant, return_quant_tensor, overrides)

    def _compute(self, x: Tensor, weight: Tensor, bias: Tensor | None, *extra: object) -> Tensor:
        return F.linear(x, weight, bias)

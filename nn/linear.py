"""Quantized linear layer."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ..quantizers import Int8WeightPerTensor
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
        device: Any = None,
        dtype: Any = None,
        *,
        weight_quant: Any = Int8WeightPerTensor,
        bias_quant: Any = None,
        input_quant: Any = None,
        output_quant: Any = None,
        return_quant_tensor: bool = False,
        **overrides: Any,
    ) -> None:
        nn.Linear.__init__(self, in_features, out_features, bias, device, dtype)
        self._attach(weight_quant, bias_quant, input_quant, output_quant, return_quant_tensor, overrides)

    def _compute(self, x: Tensor, weight: Tensor, bias: Tensor | None, *extra: Any) -> Tensor:
        return F.linear(x, weight, bias)

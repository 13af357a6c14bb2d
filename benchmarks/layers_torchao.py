"""The layers of torchao's quantization-aware training: linear layers, and fake quantizers for their inputs.

They do different work: weights have one scale per output channel, and activations have dynamic scales, one per token.
Convolutions are not supported.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torchao.quantization.qat import (  # pyright: ignore[reportMissingImports] - only the benchmarks install it
    FakeQuantizedLinear,
    IntxFakeQuantizeConfig,
    IntxFakeQuantizer,
)

from .layers import Layers

__all__ = ["TorchaoLayers"]

INTEGERS = {4: torch.int4, 8: torch.int8}  # pyright: ignore[reportAttributeAccessIssue] - not in torch's stubs


class TorchaoLayers(Layers):
    """``FakeQuantizedLinear``, and fake quantizers after activations."""

    def identity(self) -> nn.Module:
        return nn.Identity() if self.scheme.act_bits is None else IntxFakeQuantizer(self._act())

    def relu(self) -> nn.Module:
        return nn.ReLU() if self.scheme.act_bits is None else nn.Sequential(nn.ReLU(), self.identity())

    def linear(self, in_features: int, out_features: int, *, input_quant: bool = False) -> nn.Module:
        weight = IntxFakeQuantizeConfig(INTEGERS[self.scheme.weight_bits], "per_channel", is_symmetric=True)
        act = self._act() if input_quant else None
        return FakeQuantizedLinear(in_features, out_features, True, activation_config=act, weight_config=weight)

    def quant_weight(self, layer: nn.Module) -> Tensor:
        quantizer: Any = layer.weight_fake_quantizer
        return quantizer(layer.weight)

    def _act(self) -> IntxFakeQuantizeConfig:
        assert self.scheme.act_bits is not None
        return IntxFakeQuantizeConfig(INTEGERS[self.scheme.act_bits], "per_token", is_symmetric=False)

"""The layers of torch.ao.quantization: the fused fake-quant modules, the fastest in torch itself.

They do less: activation scales are moving averages of the range and are not learned, and no gradient reaches a scale.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.ao.nn import qat
from torch.ao.quantization import (
    FusedMovingAvgObsFakeQuantize,
    MovingAverageMinMaxObserver,
    QConfig,
    disable_observer,
)

from .layers import Layers

__all__ = ["AoLayers"]


class AoLayers(Layers):
    """Layers of ``torch.ao.nn.qat``, and fake-quant modules after activations."""

    def identity(self) -> nn.Module:
        return nn.Identity() if self.scheme.act_bits is None else self._act()()

    def relu(self) -> nn.Module:
        return nn.ReLU() if self.scheme.act_bits is None else nn.Sequential(nn.ReLU(), self._act()())

    def conv(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        padding: int = 0,
        groups: int = 1,
        bias: bool = True,
        input_quant: bool = False,
    ) -> nn.Module:
        layer = qat.Conv2d(
            in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=bias, qconfig=self._qconfig()
        )
        return nn.Sequential(self.identity(), layer) if input_quant else layer

    def linear(self, in_features: int, out_features: int, *, input_quant: bool = False) -> nn.Module:
        layer = qat.Linear(in_features, out_features, qconfig=self._qconfig())
        return nn.Sequential(self.identity(), layer) if input_quant else layer

    def quant_weight(self, layer: nn.Module) -> Tensor:
        assert isinstance(layer, qat.Linear)
        return layer.weight_fake_quant(layer.weight)

    def evaluated(self, model: nn.Module) -> nn.Module:
        return model.eval().apply(disable_observer)

    @cache  # noqa: B019
    def _act(self) -> Any:
        assert self.scheme.act_bits is not None
        return FusedMovingAvgObsFakeQuantize.with_args(
            observer=MovingAverageMinMaxObserver,
            quant_min=0,
            quant_max=2**self.scheme.act_bits - 1,
            dtype=torch.quint8,
            qscheme=torch.per_tensor_affine,
        )

    @cache  # noqa: B019 - settings are written once, not once a layer
    def _qconfig(self) -> QConfig:
        largest = 2 ** (self.scheme.weight_bits - 1) - 1
        weight = FusedMovingAvgObsFakeQuantize.with_args(
            observer=MovingAverageMinMaxObserver,
            quant_min=-largest,
            quant_max=largest,
            dtype=torch.qint8,
            qscheme=torch.per_tensor_symmetric,
        )
        return QConfig(activation=nn.Identity, weight=weight)

"""The layers of bitwright."""

from contextlib import AbstractContextManager
from functools import cache
from typing import Any

from torch import Tensor, nn

import bitwright.nn as qnn
from bitwright.quantizers import Fp8e4m3Act, Int4WeightPerGroup, Int8Act, Int32Bias, MXFloat4e2m1Weight

from .layers import Layers

__all__ = ["BitwrightLayers"]


class BitwrightLayers(Layers):
    """Quantized layers with the default quantizers, at the bit widths of the scheme."""

    def identity(self) -> nn.Module:
        return nn.Identity() if self.scheme.act_bits is None else qnn.QuantIdentity(**self._act())

    def relu(self) -> nn.Module:
        return nn.ReLU() if self.scheme.act_bits is None else qnn.QuantReLU(**self._act())

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
        slots = self._slots(input_quant)
        return qnn.QuantConv2d(
            in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=bias, **slots
        )

    def linear(self, in_features: int, out_features: int, *, input_quant: bool = False) -> nn.Module:
        return qnn.QuantLinear(in_features, out_features, **self._slots(input_quant))

    def grouped_linear(self, in_features: int, out_features: int, *, detached: bool) -> nn.Module:
        quantizer = Int4WeightPerGroup(bit_width=self.scheme.weight_bits, detach_scale=detached)
        return qnn.QuantLinear(in_features, out_features, weight_quant=quantizer)

    def microscaled_linear(self, in_features: int, out_features: int, *, detached: bool) -> nn.Module:
        quantizer = MXFloat4e2m1Weight(detach_scale=detached)
        return qnn.QuantLinear(in_features, out_features, weight_quant=quantizer)

    def float8_identity(self) -> nn.Module:
        return qnn.QuantIdentity(act_quant=Fp8e4m3Act, calibration_steps=1)

    def frozen(self, model: nn.Module) -> AbstractContextManager[nn.Module]:
        return qnn.frozen(model)

    def quant_weight(self, layer: nn.Module) -> Tensor:
        assert isinstance(layer, qnn.WeightLayer)
        assert layer.weight_quant is not None
        return layer.weight_quant(layer.weight)

    @cache  # noqa: B019
    def _act(self) -> dict[str, Any]:
        scheme = self.scheme
        quantized = {"bit_width": scheme.act_bits, "calibration_steps": scheme.calibration_steps}
        return quantized | {"return_quant_tensor": scheme.int_bias}

    @cache  # noqa: B019 - settings are written once, not once a layer
    def _slots(self, input_quant: bool) -> dict[str, Any]:
        scheme = self.scheme
        slots: dict[str, Any] = {"weight_bit_width": scheme.weight_bits}
        if scheme.int_bias:
            slots |= {"bias_quant": Int32Bias}
        if input_quant:
            slots |= {"input_quant": Int8Act, "input_bit_width": scheme.act_bits}
            slots |= {"input_calibration_steps": scheme.calibration_steps}
        return slots

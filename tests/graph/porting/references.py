"""Brevitas' example models, as its package builds them; narrow ones for files of a size to keep."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple
from unittest.mock import patch

import brevitas.nn as qnn  # pyright: ignore[reportMissingImports]
import brevitas.quant as quant  # pyright: ignore[reportMissingImports]
import torch
from brevitas.core.function_wrapper import RoundSte  # pyright: ignore[reportMissingImports]
from brevitas.nn.utils import merge_bn  # pyright: ignore[reportMissingImports]
from brevitas_examples.bnn_pynq.models import CNV, FC, resnet  # pyright: ignore[reportMissingImports]
from torch import Tensor, nn

__all__ = ["REFERENCES", "Reference"]


class Reference(NamedTuple):
    """How a model is made, in its published size or a narrow one, and a batch for it."""

    build: Callable[[bool], nn.Module]
    batch: Callable[[bool], Tensor]
    examples: int = 1  # of a batch, in the file


def image(channels: int, size: int) -> Tensor:
    """A batch of images of 8 bits."""
    return torch.randint(0, 256, (8, channels, size, size)) / 255


def fully_connected(weight_bits: int, act_bits: int, width: int) -> Reference:
    """TFC, SFC and LFC: three hidden layers."""

    def build(full: bool) -> nn.Module:
        features, size = ([width] * 3, (28, 28)) if full else ([32, 24, 16], (8, 8))
        return FC.FC(10, weight_bits, act_bits, act_bits, 1, features, size)

    return Reference(build, lambda full: image(1, 28 if full else 8))


def cnv(weight_bits: int, act_bits: int) -> Reference:
    """The VGG-like network for CIFAR-10."""

    def build(full: bool) -> nn.Module:
        narrow: dict[str, Any] = {
            "CNV_OUT_CH_POOL": [(8, False), (8, True), (12, False), (12, True), (16, False), (16, False)],
            "INTERMEDIATE_FC_FEATURES": [(16, 32), (32, 32)],
            "LAST_FC_IN_FEATURES": 32,
        }
        with nullcontext() if full else patch.multiple(CNV, **narrow):
            return CNV.CNV(10, weight_bits, act_bits, 8, 3)

    return Reference(build, lambda full: image(3, 32))


class Quantizers(nn.Module):
    """Layers with every kind of quantizer that has state, side by side."""

    def __init__(self) -> None:
        super().__init__()
        running = {"scaling_impl_type": "stats"}
        channels = {"scaling_per_output_channel": True, "scaling_stats_permute_dims": (1, 0)}
        learned = {"weight_scaling_impl_type": "parameter_from_stats"}
        bits = {"bit_width_impl_type": "parameter", "bit_width": 5}
        self.acts = nn.ModuleDict({
            "collected": qnn.QuantIdentity(),
            "power_of_two": qnn.QuantIdentity(act_quant=quant.Int8ActPerTensorFixedPoint),
            "rounded_power": qnn.QuantIdentity(
                act_quant=quant.Int8ActPerTensorFixedPoint, restrict_value_float_to_int_impl=RoundSte
            ),
            "logarithm": qnn.QuantIdentity(restrict_scaling_type="log_fp"),
            "running": qnn.QuantIdentity(**running),
            "running_logarithm": qnn.QuantIdentity(restrict_scaling_type="log_fp", **running),
            "running_power_of_two": qnn.QuantIdentity(act_quant=quant.Int8ActPerTensorFixedPoint, **running),
            "shifted": qnn.QuantIdentity(act_quant=quant.ShiftedUint8ActPerTensorFloat),
            "from_range": qnn.QuantIdentity(
                act_quant=quant.Int8ActPerTensorFloatMinMaxInit, min_val=-2.0, max_val=1.5, bit_width=4
            ),
            "constant": qnn.QuantIdentity(scaling_impl_type="const", min_val=-1.0, max_val=1.0),
            "learned_bits": qnn.QuantIdentity(**bits),
            "kept_bits": qnn.QuantIdentity(bit_width_impl_type="stateful_const", bit_width=6),
            "channels": qnn.QuantIdentity(per_channel_broadcastable_shape=(1, 8), bit_width=4, **channels),
            "relu": qnn.QuantReLU(bit_width=4),
            "tanh": qnn.QuantTanh(),
        })
        shared = qnn.QuantReLU(bit_width=3)
        self.first, self.second = shared, shared
        self.linears = nn.ModuleDict({
            "plain": qnn.QuantLinear(8, 6),
            "mse": qnn.QuantLinear(8, 6, weight_quant=quant.Int8WeightPerTensorFloatMSE, weight_bit_width=4),
            "power_of_two": qnn.QuantLinear(8, 6, weight_quant=quant.Int8WeightPerTensorFixedPointMSE),
            "channels": qnn.QuantLinear(8, 6, weight_quant=quant.Int8WeightPerChannelFloat, **learned),
            "rescaled": qnn.QuantLinear(8, 6, weight_scaling_affine_rescaling_init=0.8),
            "learned_bits": qnn.QuantLinear(8, 6, **{f"weight_{name}": each for name, each in bits.items()}),
            "shifted": qnn.QuantLinear(8, 6, weight_quant=quant.ShiftedUint8WeightPerTensorFloatMSE),
            "integer": qnn.QuantLinear(
                8, 6, input_quant=quant.Int8ActPerTensorFloat, bias_quant=quant.Int32Bias,
                output_quant=quant.Int8ActPerTensorFloat,
            ),
            "own_bias": qnn.QuantLinear(8, 6, bias_quant=quant.Int8BiasPerTensorFloatInternalScaling),
            "normed": nn.utils.weight_norm(qnn.QuantLinear(8, 6, weight_bit_width=4, **learned)),
            "parametrized": nn.utils.parametrizations.weight_norm(qnn.QuantLinear(8, 6, weight_bit_width=4)),
            "merged": qnn.QuantLinear(8, 6, bias=False, weight_bit_width=4),
        })
        self.conv = qnn.QuantConv2d(2, 4, 2, weight_quant=quant.Int8WeightPerChannelFloatMSE, weight_bit_width=4)
        self.transposed = qnn.QuantConvTranspose2d(
            4, 2, 2, weight_quant=quant.Int8WeightPerChannelFloatMSE, weight_bit_width=4
        )
        merge_bn(self.linears["merged"], nn.BatchNorm1d(6))

    def forward(self, x: Tensor) -> Tensor:
        """All results in one row."""
        found = [each(x) for each in (*self.acts.values(), *self.linears.values())]
        found += [self.first(x), self.second(x - 0.5), self.transposed(self.conv(x.reshape(-1, 2, 2, 2))).flatten(1)]
        return torch.cat([each.value if hasattr(each, "value") else each for each in found], 1)


REFERENCES = {
    "quantizers": Reference(lambda full: Quantizers(), lambda full: torch.randn(8, 8), 8),
    "tfc_1w1a": fully_connected(1, 1, 64),
    "tfc_1w2a": fully_connected(1, 2, 64),
    "tfc_2w2a": fully_connected(2, 2, 64),
    "cnv_1w1a": cnv(1, 1),
    "cnv_1w2a": cnv(1, 2),
    "cnv_2w2a": cnv(2, 2),
}

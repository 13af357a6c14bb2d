"""Layers with every kind of quantizer that has state, side by side."""

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

import bitwright.nn as qnn
from bitwright.qcore import LearnedBitWidth
from bitwright.quantizers import (
    Int4WeightPerGroup,
    Int8Act,
    Int8ActPowerOfTwo,
    Int8BiasOwnScale,
    Int8WeightPerChannelLearned,
    Int8WeightPerChannelMSE,
    Int8WeightPerTensorMSE,
    Int32Bias,
    ShiftedUint8Act,
    ShiftedUint8WeightPerTensor,
)


class Quantizers(nn.Module):
    """Activations, linear layers and convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.acts = nn.ModuleDict(
            {
                "collected": qnn.QuantIdentity(),
                "power_of_two": qnn.QuantIdentity(act_quant=Int8ActPowerOfTwo),
                "rounded_power": qnn.QuantIdentity(act_quant=Int8ActPowerOfTwo, power_of_two_rounding="round"),
                "logarithm": qnn.QuantIdentity(restriction="log"),
                "running": qnn.QuantIdentity(scaling="running"),
                "running_logarithm": qnn.QuantIdentity(scaling="running", restriction="log"),
                "running_power_of_two": qnn.QuantIdentity(act_quant=Int8ActPowerOfTwo, scaling="running"),
                "shifted": qnn.QuantIdentity(act_quant=ShiftedUint8Act),
                "from_range": qnn.QuantIdentity(scaling="learned", max_value=2.0, bit_width=4),
                "constant": qnn.QuantIdentity(max_value=1.0),
                "learned_bits": qnn.QuantIdentity(bit_width=LearnedBitWidth),
                "kept_bits": qnn.QuantIdentity(bit_width=6),
                "channels": qnn.QuantIdentity(axis=1, bit_width=4),
                "relu": qnn.QuantReLU(bit_width=4),
                "tanh": qnn.QuantTanh(),
            }
        )
        self.first = self.second = qnn.QuantReLU(bit_width=3)
        shifted = {"weight_quant": ShiftedUint8WeightPerTensor, "weight_scaling": "learned"}
        groups = {"weight_quant": Int4WeightPerGroup, "weight_group_size": 4, "weight_scaling": "learned"}
        self.linears = nn.ModuleDict(
            {
                "plain": qnn.QuantLinear(8, 6),
                "grouped": qnn.QuantLinear(8, 6, **groups),
                "mse": qnn.QuantLinear(8, 6, weight_quant=Int8WeightPerTensorMSE, weight_bit_width=4),
                "power_of_two": qnn.QuantLinear(
                    8, 6, weight_quant=Int8WeightPerTensorMSE, weight_restriction="power_of_two"
                ),
                "channels": qnn.QuantLinear(8, 6, weight_quant=Int8WeightPerChannelLearned),
                "rescaled": qnn.QuantLinear(8, 6, weight_scaling="learned"),
                "learned_bits": qnn.QuantLinear(8, 6, weight_bit_width=LearnedBitWidth),
                "shifted": qnn.QuantLinear(8, 6, **shifted),
                "integer": qnn.QuantLinear(8, 6, input_quant=Int8Act, bias_quant=Int32Bias, output_quant=Int8Act),
                "own_bias": qnn.QuantLinear(8, 6, bias_quant=Int8BiasOwnScale, bias_narrow_range=False),
                "normed": qnn.QuantLinear(8, 6, weight_bit_width=4, weight_scaling="learned"),  # its norm is worked in
                "parametrized": weight_norm(qnn.QuantLinear(8, 6, weight_bit_width=4)),
                "merged": qnn.QuantLinear(8, 6, weight_bit_width=4),
            }
        )
        self.conv = qnn.QuantConv2d(2, 4, 2, weight_quant=Int8WeightPerChannelMSE, weight_bit_width=4)
        self.transposed = qnn.QuantConvTranspose2d(4, 2, 2, weight_quant=Int8WeightPerChannelMSE, weight_bit_width=4)

        self.grouped_conv = qnn.QuantConv2d(8, 3, 2, **groups)
        self.grouped_transposed = qnn.QuantConvTranspose2d(8, 3, 2, **groups)

    def forward(self, x: Tensor) -> Tensor:
        """All results in one row."""
        found = [each(x) for each in (*self.acts.values(), *self.linears.values())]
        found += [self.first(x), self.second(x - 0.5), self.transposed(self.conv(x.reshape(-1, 2, 2, 2))).flatten(1)]
        grid = x.reshape(8, 8, 1, 1).expand(8, 8, 2, 2)
        found += [each(grid).reshape(8, -1) for each in (self.grouped_conv, self.grouped_transposed)]
        return torch.cat(found, 1)

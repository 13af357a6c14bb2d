"""Brevitas' networks of one and two bits for PYNQ boards: TFC, SFC, LFC (three hidden layers), and CNV (like VGG)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

import bitwright.nn as qnn
from bitwright.qcore.declare.inject import QuantizerType
from bitwright.quantizers import Int8Act, Int8WeightPerTensor

from .signs import BinaryAct, BinaryWeight


class ConstantWeight(Int8WeightPerTensor):
    """Integers of few bits for weights in [-1, 1]."""

    scaling = "constant"
    max_value = 1.0


class ConstantAct(Int8Act):
    """Integers of few bits for activations in [-1, 1]."""

    narrow_range = True
    scaling = "constant"
    max_value = 1.0


def weights(bits: int) -> QuantizerType:
    """The quantizer for weights of so many bits."""
    return BinaryWeight if bits == 1 else ConstantWeight(bit_width=bits)


def acts(bits: int) -> QuantizerType:
    """The quantizer for activations of so many bits."""
    return BinaryAct if bits == 1 else ConstantAct(bit_width=bits)


class TensorNorm(nn.Module):
    """Batch normalization with one mean and one variance for the whole tensor."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.bias = nn.Parameter(torch.zeros(1))
        self.register_buffer("running_mean", torch.zeros(1))
        self.register_buffer("running_var", torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        """The values in evaluation."""
        return (x - self.running_mean) / (self.running_var + 1e-4).sqrt() * self.weight + self.bias


class FullyConnected(nn.Module):
    """TFC (64 wide), SFC (256) and LFC (1024)."""

    def __init__(self, weight_bits: int, act_bits: int, widths: Sequence[int], inputs: int = 784) -> None:
        super().__init__()
        layers: list[nn.Module] = [qnn.QuantIdentity(act_quant=acts(act_bits)), nn.Dropout(0.2)]
        for width in widths:
            layers += [
                qnn.QuantLinear(inputs, width, bias=False, weight_quant=weights(weight_bits)),
                nn.BatchNorm1d(width),
                qnn.QuantIdentity(act_quant=acts(act_bits)),
                nn.Dropout(0.2),
            ]
            inputs = width
        layers += [qnn.QuantLinear(inputs, 10, bias=False, weight_quant=weights(weight_bits)), TensorNorm()]
        self.features = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Scores for images with values from 0 to 1."""
        return self.features(2 * x.flatten(1) - 1)


class CNV(nn.Module):
    """Six convolutions and three linear layers for CIFAR-10."""

    def __init__(self, weight_bits: int, act_bits: int, convs: Sequence[int], linears: Sequence[int]) -> None:
        super().__init__()
        quantized = {"bias": False, "weight_quant": weights(weight_bits)}
        first = Int8Act(restriction="power_of_two", power_of_two_rounding="round", max_value=1.0, scaling="constant")
        layers: list[nn.Module] = [qnn.QuantIdentity(act_quant=first)]
        channels = 3
        for number, width in enumerate(convs):
            layers += [
                qnn.QuantConv2d(channels, width, 3, **quantized),
                nn.BatchNorm2d(width, eps=1e-4),
                qnn.QuantIdentity(act_quant=acts(act_bits)),
            ]
            layers += [nn.MaxPool2d(2)] if number in (1, 3) else []
            channels = width
        self.conv_features = nn.Sequential(*layers)
        layers = []
        for width in linears:
            layers += [
                qnn.QuantLinear(channels, width, **quantized),
                nn.BatchNorm1d(width, eps=1e-4),
                qnn.QuantIdentity(act_quant=acts(act_bits)),
            ]
            channels = width
        self.linear_features = nn.Sequential(*layers, qnn.QuantLinear(channels, 10, **quantized), TensorNorm())

    def forward(self, x: Tensor) -> Tensor:
        """Scores for images with values from 0 to 1."""
        return self.linear_features(self.conv_features(2 * x - 1).flatten(1))

"""Brevitas' super-resolution network ESPCN: four convolutions, then pixels from channels."""

import torch.nn.functional as F
from torch import Tensor, nn

import bitwright.nn as qnn
from bitwright.quantizers import Int8WeightPerChannel, Int8WeightPerTensor, Uint8Act


class LogAct(Uint8Act):
    """Activations whose range is learned as a logarithm."""

    restriction = "log"


class ESPCN(nn.Module):
    """The network for images that become twice as wide and high; weights and activations of 4 or 8 bits."""

    def __init__(self, bits: int, factor: int = 2) -> None:
        super().__init__()
        inner = {"input_quant": LogAct, "input_bit_width": bits, "weight_bit_width": bits}
        channels = {"weight_quant": Int8WeightPerChannel}
        self.conv1 = qnn.QuantConv2d(3, 64, 5, padding=2, input_quant=LogAct, **channels)
        self.conv2 = qnn.QuantConv2d(64, 64, 3, padding=1, **inner, **channels)
        self.conv3 = qnn.QuantConv2d(64, 32, 3, padding=1, **inner, **channels)
        self.conv4 = qnn.QuantConv2d(
            32,
            3 * factor**2,
            3,
            padding=1,
            bias=False,
            weight_quant=Int8WeightPerTensor,
            input_quant=LogAct,
            input_bit_width=bits,
        )
        self.bn1, self.bn2, self.bn3 = nn.BatchNorm2d(64), nn.BatchNorm2d(64), nn.BatchNorm2d(32)
        self.pixel_shuffle = nn.PixelShuffle(factor)
        self.out = qnn.QuantReLU(act_quant=LogAct, scaling="constant", max_value=1.0)

    def forward(self, x: Tensor) -> Tensor:
        """The enlarged image, with values from 0 to 1."""
        x = F.relu(x)
        for conv, norm in ((self.conv1, self.bn1), (self.conv2, self.bn2), (self.conv3, self.bn3)):
            x = F.relu(norm(conv(x)))
        return self.out(self.pixel_shuffle(self.conv4(x)))

"""Brevitas' QuartzNet: blocks of depthwise and pointwise convolutions over time, and residual ones, for speech."""

from collections.abc import Sequence
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

import bitwright.nn as qnn
from bitwright.quantizers import Int8Act, Int8WeightPerChannel, Uint8Act


class Unsigned(Uint8Act):
    """After a ReLU: a range that is learned from 1 on, as a logarithm."""

    scaling = "learned"
    restriction = "log"
    max_value = 1.0


class Signed(Int8Act):
    """Elsewhere; Brevitas has QuantHardTanh, which applies no hardtanh before the quantizer."""

    scaling = "learned"
    restriction = "log"
    max_value = 1.0


class Shape(NamedTuple):
    """A block: its channels, how often its convolutions are repeated, their kernel, and what else it has."""

    channels: int
    repeat: int
    kernel: int
    stride: int = 1
    dilation: int = 1
    residual: bool = True
    separable: bool = True


QUARTZNET = (
    Shape(256, 1, 33, stride=2, residual=False),
    *[Shape(256, 5, kernel) for kernel in (33, 33, 33, 39, 39, 39)],
    *[Shape(512, 5, kernel) for kernel in (51, 51, 51, 63, 63, 63, 75, 75, 75)],
    Shape(512, 1, 87, dilation=2, residual=False),
    Shape(1024, 1, 1, residual=False, separable=False),
)


class Block(nn.Module):
    """Repeated convolutions, and beside them a pointwise one on the input; both are added on one grid."""

    def __init__(self, inputs: int, shape: Shape, bits: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        self.norm_depthwise = nn.ModuleList()
        channels = inputs
        for number in range(shape.repeat):
            if number > 0:
                inner = qnn.QuantReLU(act_quant=Unsigned, bit_width=bits, axis=1)
                layers += [inner, nn.Dropout(0.0)]
            if shape.separable:
                layers += [_convolution(channels, channels, shape, bits, depthwise=True)]
                self.norm_depthwise.append(qnn.QuantIdentity(act_quant=Signed, bit_width=bits))
                layers += [_convolution(channels, shape.channels, Shape(0, 0, 1), bits)]
            else:
                layers += [_convolution(channels, shape.channels, shape, bits)]
            layers += [nn.BatchNorm1d(shape.channels, eps=1e-3)]
            channels = shape.channels
        self.mconv = nn.ModuleList(layers)
        self.res = None
        if shape.residual:
            beside = [_convolution(inputs, channels, Shape(0, 0, 1), bits), nn.BatchNorm1d(channels, eps=1e-3)]
            self.res = nn.ModuleList([nn.Sequential(*beside)])
            self.quant_normalization = qnn.QuantIdentity(act_quant=Signed, bit_width=bits)
        self.mout = nn.Sequential(qnn.QuantReLU(act_quant=Unsigned, bit_width=bits), nn.Dropout(0.0))

    def forward(self, x: Tensor) -> Tensor:
        """The block's output for (batch, channels, time)."""
        out, norms = x, iter(self.norm_depthwise)
        for layer in self.mconv:
            out = layer(out)
            if isinstance(layer, qnn.QuantConv1d) and layer.groups > 1:
                out = next(norms)(out)
        if self.res is not None:
            out = self.quant_normalization(out)
            for beside in self.res:
                out = out + self.quant_normalization(beside(x))
        return self.mout(out)


def _convolution(inputs: int, outputs: int, shape: Shape, bits: int, depthwise: bool = False) -> nn.Module:
    return qnn.QuantConv1d(
        inputs,
        outputs,
        shape.kernel,
        shape.stride,
        padding=shape.dilation * shape.kernel // 2 - (shape.dilation > 1),
        dilation=shape.dilation,
        groups=inputs if depthwise else 1,
        bias=False,
        weight_quant=Int8WeightPerChannel,
        weight_bit_width=bits,
    )


class Encoder(nn.Module):
    """All blocks; the first one has 8 bits."""

    def __init__(self, features: int, shapes: Sequence[Shape], bits: int) -> None:
        super().__init__()
        inputs = (features, *(shape.channels for shape in shapes))
        blocks = [
            Block(*each, 8 if number == 0 else bits) for number, each in enumerate(zip(inputs, shapes, strict=False))
        ]
        self.encoder = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        """Features of (batch, mels, time)."""
        return self.encoder(x)


class Decoder(nn.Module):
    """Letters from features."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.decoder_layers = nn.Sequential(qnn.QuantConv1d(inputs, 29, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Logarithms of probabilities, (batch, time, letters)."""
        return F.log_softmax(self.decoder_layers(x).transpose(1, 2), dim=-1)


class QuartzNet(nn.Module):
    """From mel spectrograms to letters."""

    def __init__(self, shapes: Sequence[Shape] = QUARTZNET, features: int = 64, bits: int = 4) -> None:
        super().__init__()
        self.encoder = Encoder(features, shapes, bits)
        self.decoder = Decoder(shapes[-1].channels)

    def forward(self, x: Tensor) -> Tensor:
        """Logarithms of probabilities, (batch, time, letters)."""
        return self.decoder(self.encoder(x))

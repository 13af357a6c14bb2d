"""Brevitas' MelGAN: sound from mel spectrograms, by transposed convolutions and residual stacks of dilated ones."""

from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

import bitwright.nn as qnn
from bitwright.quantizers import Int8WeightPerTensorLearned


def conv(inputs: int, outputs: int, kernel: int, padding: int, dilation: int = 1) -> nn.Module:
    """A convolution with a normed weight of 8 bits, whose range is learned."""
    layer = qnn.QuantConv1d(
        inputs, outputs, kernel, padding=padding, dilation=dilation, weight_quant=Int8WeightPerTensorLearned
    )
    return weight_norm(layer)


def upsampled(inputs: int, outputs: int, kernel: int, stride: int, padding: int) -> nn.Module:
    """A transposed convolution of the same kind."""
    layer = qnn.QuantConvTranspose1d(inputs, outputs, kernel, stride, padding, weight_quant=Int8WeightPerTensorLearned)
    return weight_norm(layer)


def clipped(return_quant_tensor: bool = False) -> nn.Module:
    """Integers for [-1, 1]; where Brevitas has QuantHardTanh, which applies no hardtanh before the quantizer."""
    return qnn.QuantIdentity(max_value=1.0, return_quant_tensor=return_quant_tensor)


def leaky() -> nn.Module:
    """A leaky ReLU, clipped to integers."""
    return nn.Sequential(nn.LeakyReLU(), clipped())


class ResidualStack(nn.Module):
    """Three residual blocks, each with a dilated convolution; one quantizer scales everything that is added."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale_norm = clipped(return_quant_tensor=True)
        self.layers = nn.ModuleList(
            nn.Sequential(leaky(), conv(width, width, 3, 3**i, 3**i), leaky(), conv(width, width, 3, 1))
            for i in range(3)
        )

    def forward(self, x: Tensor) -> Tensor:
        """The sum of all blocks."""
        for layer in self.layers:
            x = self.scale_norm(x)
            x = x + self.scale_norm(layer(x))
        return x


class MelGAN(nn.Module):
    """The generator: 256 samples for each frame of the spectrogram."""

    def __init__(self, mels: int = 80, width: int = 512) -> None:
        super().__init__()
        layers = [conv(mels, width, 7, 3)]
        for kernel, stride, padding in ((16, 8, 4), (16, 8, 4), (4, 2, 1), (4, 2, 1)):
            layers += [leaky(), upsampled(width, width // 2, kernel, stride, padding), ResidualStack(width // 2)]
            width //= 2
        layers += [leaky(), conv(width, 1, 7, 3), qnn.QuantTanh(bit_width=16)]
        self.generator = nn.Sequential(*layers)

    def forward(self, mel: Tensor) -> Tensor:
        """Sound, with samples from -1 to 1."""
        return self.generator((mel + 5.0) / 5.0)

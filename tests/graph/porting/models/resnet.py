"""Brevitas' ResNet18 for CIFAR-10: residual blocks whose sums lie on one grid, and a pool that sums integers."""

from torch import Tensor, nn

import bitwright.nn as qnn
from bitwright.quantizers import Int8WeightPerChannel, Int32Bias


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1, bits: int = 4) -> nn.Module:
    """A convolution without a bias, with a scale for each channel."""
    return qnn.QuantConv2d(
        inputs,
        outputs,
        kernel,
        stride,
        kernel // 2,
        bias=False,
        weight_quant=Int8WeightPerChannel,
        weight_bit_width=bits,
    )


def relu() -> nn.Module:
    """A ReLU of four bits, whose outputs can be added."""
    return qnn.QuantReLU(bit_width=4, return_quant_tensor=True)


class Block(nn.Module):
    """Two convolutions, and what they are added to; the last of them shares the quantizer of that."""

    def __init__(self, inputs: int, width: int, stride: int, shared: nn.Module) -> None:
        super().__init__()
        self.conv1, self.bn1, self.relu1 = conv(inputs, width, 3, stride), nn.BatchNorm2d(width), relu()
        self.conv2, self.bn2 = conv(width, width, 3), nn.BatchNorm2d(width)
        self.downsample = nn.Sequential()
        if stride != 1 or inputs != width:
            shared = relu()
            self.downsample = nn.Sequential(conv(inputs, width, 1, stride), nn.BatchNorm2d(width), shared)
        self.relu2 = shared
        self.relu_out = relu()

    def forward(self, x: Tensor) -> Tensor:
        """The sum, quantized."""
        out = self.relu1(self.bn1(self.conv1(x)))
        out = self.relu2(self.bn2(self.conv2(out)))
        return self.relu_out(out + self.downsample(x))


class ResNet18(nn.Module):
    """Eight blocks in four layers, for images of 32 x 32."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.conv1, self.bn1, self.relu = conv(3, width, 3, bits=8), nn.BatchNorm2d(width), relu()
        shared, inputs, layers = self.relu, width, []
        for outputs, stride in ((width, 1), (2 * width, 2), (4 * width, 2), (8 * width, 2)):
            blocks = []
            for each in (stride, 1):
                blocks.append(Block(inputs, outputs, each, shared))
                shared, inputs = blocks[-1].relu_out, outputs
            layers.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = layers
        self.final_pool = qnn.TruncAvgPool2d(4, bit_width=8, rounding="floor", return_quant_tensor=True)
        self.linear = qnn.QuantLinear(8 * width, 10, bias_quant=Int32Bias)

    def forward(self, x: Tensor) -> Tensor:
        """Scores for images."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.linear(self.final_pool(x).flatten(1))

"""Brevitas' MobileNetV1 of four bits: depthwise convolutions between pointwise ones, with scales for each channel."""

from collections.abc import Sequence

from torch import Tensor, nn

import bitwright.nn as qnn
from bitwright.quantizers import Int8WeightPerChannel, Int32Bias, Uint8Act

STAGES = ((64,), (128, 128), (256, 256), (512,) * 6, (1024, 1024))


class Convolution(nn.Module):
    """A convolution, a batch norm, and a ReLU whose range is learned as a logarithm."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        stride: int = 1,
        padding: int = 0,
        groups: int = 1,
        bits: int = 4,
        by_channel: bool = False,
    ) -> None:
        super().__init__()
        self.conv = qnn.QuantConv2d(
            inputs,
            outputs,
            kernel,
            stride,
            padding,
            groups=groups,
            bias=False,
            weight_quant=Int8WeightPerChannel,
            weight_bit_width=bits,
        )
        self.bn = nn.BatchNorm2d(outputs)
        axis = 1 if by_channel else None
        self.activation = qnn.QuantReLU(
            act_quant=Uint8Act, bit_width=4, restriction="log", axis=axis, return_quant_tensor=True
        )

    def forward(self, x: Tensor) -> Tensor:
        """Activations of four bits."""
        return self.activation(self.bn(self.conv(x)))


class Separable(nn.Module):
    """A depthwise convolution, then a pointwise one."""

    def __init__(self, inputs: int, outputs: int, stride: int, by_channel: bool) -> None:
        super().__init__()
        self.dw_conv = Convolution(inputs, inputs, 3, stride, 1, inputs)
        self.pw_conv = Convolution(inputs, outputs, 1, by_channel=by_channel)

    def forward(self, x: Tensor) -> Tensor:
        """Activations of four bits."""
        return self.pw_conv(self.dw_conv(x))


class MobileNetV1(nn.Module):
    """The network for ImageNet."""

    def __init__(self, first: int, stages: Sequence[Sequence[int]], pool: int, classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential()
        self.features.add_module("init_block", Convolution(3, first, 3, 2, bits=8, by_channel=True))
        inputs = first
        for number, widths in enumerate(stages):
            units = nn.Sequential()
            for unit, width in enumerate(widths):
                stride = 2 if unit == 0 and number > 0 else 1
                units.add_module(f"unit{unit + 1}", Separable(inputs, width, stride, number < len(stages) - 1))
                inputs = width
            self.features.add_module(f"stage{number + 1}", units)
        self.final_pool = qnn.TruncAvgPool2d(pool, 1, bit_width=4, return_quant_tensor=True)
        self.output = qnn.QuantLinear(inputs, classes, weight_bit_width=4, bias_quant=Int32Bias)

    def forward(self, x: Tensor) -> Tensor:
        """Scores for normalized images."""
        return self.output(self.final_pool(self.features(x)).flatten(1))

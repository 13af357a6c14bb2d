"""LeNet-5 in float, and quantized three ways. The models differ only in their layers."""

from torch import Tensor, nn
from torch.nn import functional as F

import bitwright.nn as qnn
from bitwright.quantizers import Int32Bias

__all__ = ["FloatLeNet", "LeNet", "WeightActBiasLeNet", "WeightActLeNet", "WeightLeNet"]


class LeNet(nn.Module):
    """The forward of LeNet-5, for 32x32 images of 10 classes. Subclasses create the layers.

    All subclasses load a float checkpoint: ``quantized.load_state_dict(float_model.state_dict())``.
    """

    quant_inp: nn.Module
    conv1: nn.Module
    relu1: nn.Module
    conv2: nn.Module
    relu2: nn.Module
    fc1: nn.Module
    relu3: nn.Module
    fc2: nn.Module
    relu4: nn.Module
    fc3: nn.Module

    def forward(
        self,
        images: Tensor,  # (N, C, 32, 32)
    ) -> Tensor:
        """The logits, (N, 10)."""
        out = self.quant_inp(images)
        out = self.relu1(self.conv1(out))
        out = F.max_pool2d(out, 2)
        out = self.relu2(self.conv2(out))
        out = F.max_pool2d(out, 2)
        out = out.reshape(out.shape[0], -1)
        out = self.relu3(self.fc1(out))
        out = self.relu4(self.fc2(out))
        return self.fc3(out)


class FloatLeNet(LeNet):
    """Plain torch layers."""

    def __init__(self, in_channels: int = 1) -> None:
        super().__init__()
        self.quant_inp = nn.Identity()
        self.conv1 = nn.Conv2d(in_channels, 6, 5)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.relu2 = nn.ReLU()
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.relu3 = nn.ReLU()
        self.fc2 = nn.Linear(120, 84)
        self.relu4 = nn.ReLU()
        self.fc3 = nn.Linear(84, 10)


class WeightLeNet(LeNet):
    """Weights at 4 bits; activations and biases stay float."""

    def __init__(self, in_channels: int = 1) -> None:
        super().__init__()
        self.quant_inp = nn.Identity()
        self.conv1 = qnn.QuantConv2d(in_channels, 6, 5, weight_bit_width=4)
        self.relu1 = nn.ReLU()
        self.conv2 = qnn.QuantConv2d(6, 16, 5, weight_bit_width=4)
        self.relu2 = nn.ReLU()
        self.fc1 = qnn.QuantLinear(16 * 5 * 5, 120, weight_bit_width=4)
        self.relu3 = nn.ReLU()
        self.fc2 = qnn.QuantLinear(120, 84, weight_bit_width=4)
        self.relu4 = nn.ReLU()
        self.fc3 = qnn.QuantLinear(84, 10, weight_bit_width=4)


class WeightActLeNet(LeNet):
    """Weights and activations at 4 bits, the images included; biases stay float."""

    def __init__(self, in_channels: int = 1) -> None:
        super().__init__()
        self.quant_inp = qnn.QuantIdentity(bit_width=4)
        self.conv1 = qnn.QuantConv2d(in_channels, 6, 5, weight_bit_width=4)
        self.relu1 = qnn.QuantReLU(bit_width=4)
        self.conv2 = qnn.QuantConv2d(6, 16, 5, weight_bit_width=4)
        self.relu2 = qnn.QuantReLU(bit_width=4)
        self.fc1 = qnn.QuantLinear(16 * 5 * 5, 120, weight_bit_width=4)
        self.relu3 = qnn.QuantReLU(bit_width=4)
        self.fc2 = qnn.QuantLinear(120, 84, weight_bit_width=4)
        self.relu4 = qnn.QuantReLU(bit_width=4)
        self.fc3 = qnn.QuantLinear(84, 10, weight_bit_width=4)


class WeightActBiasLeNet(LeNet):
    """Weights and activations at 4 bits, and biases as integers at the scale of the products.

    Activations are returned as a `QuantTensor`, which tells the next layer the scale of its input.
    """

    def __init__(self, in_channels: int = 1) -> None:
        super().__init__()
        self.quant_inp = qnn.QuantIdentity(bit_width=4, return_quant_tensor=True)
        self.conv1 = qnn.QuantConv2d(in_channels, 6, 5, weight_bit_width=4, bias_quant=Int32Bias)
        self.relu1 = qnn.QuantReLU(bit_width=4, return_quant_tensor=True)
        self.conv2 = qnn.QuantConv2d(6, 16, 5, weight_bit_width=4, bias_quant=Int32Bias)
        self.relu2 = qnn.QuantReLU(bit_width=4, return_quant_tensor=True)
        self.fc1 = qnn.QuantLinear(16 * 5 * 5, 120, weight_bit_width=4, bias_quant=Int32Bias)
        self.relu3 = qnn.QuantReLU(bit_width=4, return_quant_tensor=True)
        self.fc2 = qnn.QuantLinear(120, 84, weight_bit_width=4, bias_quant=Int32Bias)
        self.relu4 = qnn.QuantReLU(bit_width=4, return_quant_tensor=True)
        self.fc3 = qnn.QuantLinear(84, 10, weight_bit_width=4, bias_quant=Int32Bias)

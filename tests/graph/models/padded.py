"""Convolutions that pad as TensorFlow does: a subclass of nn.Conv2d with a forward of its own."""

from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["PaddedConv2d", "PaddedNet"]


class PaddedConv2d(nn.Conv2d):
    """The padding is fixed at construction, for images of one size, and may be uneven."""

    def __init__(
        self, channels: int, out_channels: int, kernel: int, size: int, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__(channels, out_channels, kernel, stride, groups=groups, bias=False)
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        before, after = total // 2, total - total // 2
        self.static_padding = nn.ZeroPad2d((before, after, before, after)) if total else nn.Identity()

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        x = self.static_padding(input)
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Block(nn.Module):
    """A depthwise block of EfficientNet-Lite, with its shortcut."""

    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        self.expand_conv = PaddedConv2d(width, 4 * width, 1, size)
        self.bn0 = nn.BatchNorm2d(4 * width)
        self.depthwise_conv = PaddedConv2d(4 * width, 4 * width, 3, size, groups=4 * width)
        self.bn1 = nn.BatchNorm2d(4 * width)
        self.project_conv = PaddedConv2d(4 * width, width, 1, size)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU6()

    def forward(self, inputs: Tensor) -> Tensor:
        x = self.relu(self.bn0(self.expand_conv(inputs)))
        x = self.relu(self.bn1(self.depthwise_conv(x)))
        x = self.bn2(self.project_conv(x))
        return x + inputs


class PaddedNet(nn.Module):
    """A stem, one block and a head."""

    def __init__(self, width: int = 8, size: int = 16, classes: int = 4) -> None:
        super().__init__()
        self.stem = PaddedConv2d(3, width, 3, size, stride=2)
        self.bn = nn.BatchNorm2d(width)
        self.block = Block(width, size // 2)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.bn(self.stem(x)))
        x = F.adaptive_avg_pool2d(self.block(x), 1)
        return self.head(x.flatten(1))

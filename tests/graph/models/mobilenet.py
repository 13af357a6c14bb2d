"""MobileNetV2 (Sandler et al., 2018), under the state-dict keys of torchvision."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["InvertedResidual", "MobileNetV2"]

# Of each stage: expansion, channels, blocks, stride of the first block
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def _conv(channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution, BatchNorm and ReLU6."""
    conv = nn.Conv2d(channels, out_channels, kernel, stride, (kernel - 1) // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), nn.ReLU6(inplace=True))


class InvertedResidual(nn.Module):
    """Expand, convolve each channel by itself, project; with a shortcut where input and output are alike."""

    def __init__(self, channels: int, out_channels: int, expansion: int, stride: int) -> None:
        super().__init__()
        hidden = channels * expansion
        self.shortcut = stride == 1 and channels == out_channels
        layers: list[nn.Module] = [_conv(channels, hidden, 1)] if expansion != 1 else []
        layers += [_conv(hidden, hidden, 3, stride, groups=hidden)]
        layers += [nn.Conv2d(hidden, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels)]
        self.conv = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        if self.shortcut:
            return x + self.conv(x)
        return self.conv(x)


class MobileNetV2(nn.Module):
    """The classifier. `stages` holds expansion, channels, blocks and stride of each stage."""

    def __init__(
        self,
        stages: Sequence[tuple[int, int, int, int]] = STAGES,
        stem: int = 32,
        head: int = 1280,
        classes: int = 1000,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [_conv(3, stem, 3, 2)]
        channels = stem
        for expansion, out_channels, blocks, stride in stages:
            for place in range(blocks):
                layers.append(InvertedResidual(channels, out_channels, expansion, 1 if place else stride))
                channels = out_channels
        layers.append(_conv(channels, head, 1))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(head, classes))

    def forward(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(self.features(x), (1, 1)).flatten(1)
        return self.classifier(x)

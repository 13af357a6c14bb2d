"""The networks. Each is written once; `Layers` decides what its layers are."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .layers import Layers

__all__ = ["ENCODER", "LENET", "MLP_512", "RESNET18", "Encoder", "LeNet", "Mlp", "MobileNetV2", "Network", "ResNet18"]


class LeNet(nn.Module):
    """LeNet-5 for 32x32 colour images of 10 classes."""

    def __init__(self, layers: Layers) -> None:
        super().__init__()
        self.entry = layers.identity()
        self.conv1 = layers.conv(3, 6, 5)
        self.relu1 = layers.relu()
        self.conv2 = layers.conv(6, 16, 5)
        self.relu2 = layers.relu()
        self.fc1 = layers.linear(16 * 5 * 5, 120)
        self.relu3 = layers.relu()
        self.fc2 = layers.linear(120, 84)
        self.relu4 = layers.relu()
        self.fc3 = layers.linear(84, 10)

    def forward(
        self,
        images: Tensor,  # (N, 3, 32, 32)
    ) -> Tensor:
        out = self.relu1(self.conv1(self.entry(images)))
        out = F.max_pool2d(out, 2)
        out = self.relu2(self.conv2(out))
        out = F.max_pool2d(out, 2)
        out = out.reshape(out.shape[0], -1)
        out = self.relu3(self.fc1(out))
        out = self.relu4(self.fc2(out))
        return self.fc3(out)


class ResidualBlock(nn.Module):
    """Two convolutions and a shortcut, which is a convolution where the shape changes."""

    def __init__(self, layers: Layers, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = layers.conv(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.relu1 = layers.relu()
        self.conv2 = layers.conv(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.relu2 = layers.relu()
        self.shortcut: nn.Module | None = None
        if stride != 1 or in_channels != channels:
            conv = layers.conv(in_channels, channels, 1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(channels))

    def forward(
        self,
        x: Tensor,  # (N, in_channels, H, W)
    ) -> Tensor:
        out = self.relu1(self.norm1(self.conv1(x)))
        out = self.norm2(self.conv2(out))
        return self.relu2(out + (x if self.shortcut is None else self.shortcut(x)))


class ResNet18(nn.Module):
    """ResNet-18 for 32x32 images of 10 classes: a first convolution of 3x3 and no pooling after it."""

    def __init__(self, layers: Layers) -> None:
        super().__init__()
        self.entry = layers.identity()
        self.conv = layers.conv(3, 64, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(64)
        self.relu = layers.relu()
        blocks: list[nn.Module] = []
        in_channels = 64
        for channels, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
            blocks.append(ResidualBlock(layers, in_channels, channels, stride))
            blocks.append(ResidualBlock(layers, channels, channels, 1))
            in_channels = channels
        self.blocks = nn.Sequential(*blocks)
        self.head = layers.linear(512, 10)

    def forward(
        self,
        images: Tensor,  # (N, 3, 32, 32)
    ) -> Tensor:
        out = self.relu(self.norm(self.conv(self.entry(images))))
        out = self.blocks(out)
        return self.head(out.mean((2, 3)))


class MobileNetV2(nn.Module):
    """MobileNetV2 of width 1 for 224x224 images of 1000 classes: 52 convolutions, a linear layer, 35 activations."""

    STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))

    def __init__(self, layers: Layers) -> None:
        super().__init__()
        self.entry = _normed(layers, 3, 32, 3, stride=2)
        channels = 32
        self.blocks = nn.ModuleList()
        for expansion, out_channels, repeats, first_stride in self.STAGES:
            for index in range(repeats):
                wide, stride = expansion * channels, first_stride if index == 0 else 1
                block = nn.Sequential() if expansion == 1 else _normed(layers, channels, wide, 1)
                block.extend(_normed(layers, wide, wide, 3, stride=stride, groups=wide))
                block.extend([*_normed(layers, wide, out_channels, 1)][:2])
                self.blocks.append(block)
                channels = out_channels
        self.exit = _normed(layers, channels, 1280, 1)
        self.head = layers.linear(1280, 1000)

    def forward(
        self,
        images: Tensor,  # (N, 3, H, W)
    ) -> Tensor:
        out = self.entry(images)
        for block in self.blocks:
            passed = block(out)
            out = out + passed if passed.shape == out.shape else passed
        return self.head(self.exit(out).mean((2, 3)))


def _normed(
    layers: Layers, in_channels: int, channels: int, kernel_size: int, *, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    """A convolution, its normalisation and an activation."""
    conv = layers.conv(
        in_channels, channels, kernel_size, stride=stride, padding=kernel_size // 2, groups=groups, bias=False
    )
    return nn.Sequential(conv, nn.BatchNorm2d(channels), layers.relu())


class Mlp(nn.Module):
    """Three linear layers of width 512."""

    def __init__(self, layers: Layers) -> None:
        super().__init__()
        self.entry = layers.identity()
        self.fc1 = layers.linear(512, 512)
        self.relu1 = layers.relu()
        self.fc2 = layers.linear(512, 512)
        self.relu2 = layers.relu()
        self.fc3 = layers.linear(512, 512)

    def forward(
        self,
        x: Tensor,  # (N, 512)
    ) -> Tensor:
        out = self.relu1(self.fc1(self.entry(x)))
        out = self.relu2(self.fc2(out))
        return self.fc3(out)


class EncoderBlock(nn.Module):
    """Self-attention and a feed-forward net, each after a normalisation; all linears have quantized inputs."""

    def __init__(self, layers: Layers, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.act1 = layers.identity()
        self.query = layers.linear(width, width)
        self.key = layers.linear(width, width)
        self.value = layers.linear(width, width)
        self.act2 = layers.identity()
        self.out = layers.linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.act3 = layers.identity()
        self.up = layers.linear(width, 4 * width)
        self.gelu = nn.GELU()
        self.act4 = layers.identity()
        self.down = layers.linear(4 * width, width)

    def forward(
        self,
        x: Tensor,  # (N, tokens, width)
    ) -> Tensor:
        normed = self.act1(self.norm1(x))
        query, key, value = (
            layer(normed).unflatten(2, (self.heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        attended = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        x = x + self.out(self.act2(attended))
        hidden = self.gelu(self.up(self.act3(self.norm2(x))))
        return x + self.down(self.act4(hidden))


class Encoder(nn.Module):
    """A transformer encoder: 12 layers of width 768 by default; the mean over tokens is classified."""

    def __init__(self, layers: Layers, depth: int = 12, width: int = 768, heads: int = 12) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*[EncoderBlock(layers, width, heads) for _ in range(depth)])
        self.head = nn.Linear(width, 10)

    def forward(
        self,
        x: Tensor,  # (N, tokens, width)
    ) -> Tensor:
        return self.head(self.blocks(x).mean(1))


@dataclass(frozen=True)
class Network:
    """A network and the batches that it is measured with."""

    name: str
    build: Callable[[Layers], nn.Module]
    shape: tuple[int, ...]  # of a batch
    classes: int
    momentum: float = 0.9

    def batch(self) -> tuple[Tensor, Tensor]:
        """Inputs and labels, the same at each call."""
        generator = torch.Generator().manual_seed(0)
        inputs = torch.randn(self.shape, generator=generator)
        return inputs, torch.randint(self.classes, self.shape[:1], generator=generator)


LENET = Network("LeNet-5, batch 64", LeNet, (64, 3, 32, 32), 10)
RESNET18 = Network("ResNet-18, 32x32, batch 16", ResNet18, (16, 3, 32, 32), 10)
MLP_512 = Network("MLP 3 x 512, batch 64", Mlp, (64, 512), 512)
ENCODER = Network("12-layer encoder of width 768, 2 x 32 tokens", Encoder, (2, 32, 768), 10, momentum=0.0)

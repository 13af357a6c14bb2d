"""Small models, each with one thing that a pass over whole models may get wrong."""

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

__all__ = ["Decoder", "Late", "Normed", "Uneven"]


class Normed(nn.Module):
    """Parametrized weights: weight normalization of 1-D convolutions, as in vocoders."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.first = weight_norm(nn.Conv1d(4, width, 3, padding=1))
        self.second = weight_norm(nn.Conv1d(width, width, 3, padding=2, dilation=2))
        self.last = nn.Conv1d(width, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.first(x), 0.1)
        x = F.leaky_relu(self.second(x), 0.1)
        return self.last(x)


class Late(nn.Module):
    """BatchNorm after ReLU, as in CREPE: it must not be folded into the convolution before."""

    def __init__(self, width: int = 8, classes: int = 4) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3)
        self.bn2 = nn.BatchNorm2d(width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.bn1(F.relu(self.conv1(x))), 2)
        x = self.bn2(F.relu(self.conv2(x)))
        return self.head(x.mean((2, 3)))


class Uneven(nn.Module):
    """Padding by a function, PReLU, and pooling that rounds its size up."""

    def __init__(self, width: int = 8, classes: int = 4) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, stride=2)
        self.prelu1 = nn.PReLU(width)
        self.pool = nn.MaxPool2d(2, 2, ceil_mode=True)
        self.conv2 = nn.Conv2d(width, width, 2)
        self.prelu2 = nn.PReLU()
        self.head = nn.Linear(width * 16, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.prelu1(self.conv1(F.pad(x, (0, 1, 0, 1)))))
        x = self.prelu2(self.conv2(F.pad(x, (0, 1, 0, 1))))
        return self.head(F.adaptive_max_pool2d(x, 4).flatten(1))


class Decoder(nn.Module):
    """Grouped and transposed convolutions, with a BatchNorm after each."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.encode = nn.Conv2d(3, width, 3, stride=2, padding=1, groups=1)
        self.bn1 = nn.BatchNorm2d(width)
        self.mix = nn.Conv2d(width, 2 * width, 3, padding=1, groups=4, bias=False)
        self.bn2 = nn.BatchNorm2d(2 * width)
        self.up1 = nn.ConvTranspose2d(2 * width, width, 2, stride=2, groups=2)
        self.bn3 = nn.BatchNorm2d(width)
        self.up2 = nn.ConvTranspose2d(width, 3, 2, stride=2, bias=False)
        self.bn4 = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.encode(x)))
        x = F.relu(self.bn2(self.mix(x)))
        x = F.relu(self.bn3(self.up1(x)))
        return self.bn4(self.up2(x))

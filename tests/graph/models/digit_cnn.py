"""A small convolutional network, under the state-dict keys of digit-recognizer-py."""

from itertools import pairwise

from torch import Tensor, nn

__all__ = ["DigitCNN"]


class DigitCNN(nn.Module):
    """28 x 28 grey images to ten classes. `width` channels in the first convolution, 32 as published."""

    def __init__(self, width: int = 32, hidden: int = 256) -> None:
        super().__init__()
        channels = [1, width, 2 * width, 4 * width]
        layers: list[nn.Module] = []
        for few, many in pairwise(channels):
            layers += [nn.Conv2d(few, many, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        self.conv_layers = nn.Sequential(*layers)
        self.fc_layers = nn.Sequential(nn.Linear(9 * channels[-1], hidden), nn.ReLU(), nn.Linear(hidden, 10))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_layers(x)
        return self.fc_layers(x.view(x.size(0), -1))

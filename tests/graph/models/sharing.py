"""Modules and parameters that serve in several places."""

import torch
from torch import Tensor, nn

__all__ = ["CalledTwice", "Tied"]


class CalledTwice(nn.Module):
    """Two images through the same branch, as a Siamese network; one ReLU serves everywhere."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.relu = nn.ReLU()
        self.conv1 = nn.Conv2d(3, width, 3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.head = nn.Linear(2 * width, 2)

    def branch(self, x: Tensor) -> Tensor:
        x = self.relu(self.conv1(x))
        x = self.relu(self.conv2(x))
        x = self.relu(self.conv2(x) + x)  # the same weights again
        return x.mean((2, 3))

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.head(torch.cat([self.branch(left), self.branch(right)], dim=1))


class Tied(nn.Module):
    """A language model whose output layer has the weight of its embedding."""

    def __init__(self, words: int = 32, width: int = 16) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, width)
        self.mix = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, words, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        x = self.norm(x + torch.tanh(self.mix(x)))
        return self.head(x)

"""Control flow that depends on data."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Branching"]


class Branching(nn.Module):
    """Dark images take another way than bright ones; both ways add, and a loop runs as often as asked."""

    def __init__(self, width: int = 8, classes: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.dark = nn.Conv2d(width, width, 3, padding=1)
        self.bright = nn.Conv2d(width, width, 1)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor, repeats: int = 1) -> Tensor:
        bright = x.mean() > 0
        x = F.relu(self.stem(x))
        for _ in range(repeats):
            if bright:  # noqa: SIM108 - statements, to be told apart by their lines
                x = F.relu(x + self.bright(x))
            else:
                x = torch.relu(torch.add(self.dark(x), x))
        return self.head(x.mean((2, 3)))

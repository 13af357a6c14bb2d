"""A model that takes a dict and returns several things."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Detector"]


class Detector(nn.Module):
    """Image and text features to a dict of scores, boxes and a pair of feature maps."""

    def __init__(self, width: int = 8, words: int = 16, classes: int = 3) -> None:
        super().__init__()
        self.low = nn.Sequential(nn.Conv2d(3, width, 3, stride=2, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.high = nn.Sequential(nn.Conv2d(width, width, 3, stride=2, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.words = nn.Embedding(words, width)
        self.scores = nn.Conv2d(2 * width, classes, 1)
        self.boxes = nn.Conv2d(2 * width, 4, 1)
        self.caption = nn.Linear(width, classes)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor | tuple[Tensor, Tensor]]:
        low = self.low(batch["image"])
        high = self.high(low)
        merged = torch.cat([low, F.interpolate(high, scale_factor=2.0, mode="nearest")], dim=1)
        caption = self.words(batch["tokens"]).mean(1)
        return {
            "scores": self.scores(merged),
            "boxes": torch.sigmoid(self.boxes(merged)),
            "caption": self.caption(caption),
            "maps": (low, high),
        }

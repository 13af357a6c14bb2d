"""Photos as a classifier of ImageNet takes them."""

from pathlib import Path

import numpy
import torch
from PIL import Image
from torch import Tensor

__all__ = ["centre_crop", "random_crops"]

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def _tensor(image: Image.Image) -> Tensor:
    """(3, height, width), normalized."""
    pixels = torch.from_numpy(numpy.asarray(image.convert("RGB"), dtype=numpy.float32) / 255)
    return ((pixels - torch.tensor(MEAN)) / torch.tensor(DEVIATION)).permute(2, 0, 1).contiguous()


def centre_crop(path: Path, side: int = 232, size: int = 224) -> Tensor:
    """The middle of a photo whose shorter side has been resized to `side`."""
    image = Image.open(path).convert("RGB")
    factor = side / min(image.size)
    image = image.resize([round(factor * each) for each in image.size], Image.Resampling.BILINEAR)
    left, top = ((each - size) // 2 for each in image.size)
    return _tensor(image.crop((left, top, left + size, top + size)))


def random_crops(path: Path, count: int, chance: torch.Generator, size: int = 224) -> Tensor:
    """Squares of 25 to 100 % of the shorter side's area, resized: (count, 3, size, size)."""
    image = Image.open(path).convert("RGB")
    crops = []
    for _ in range(count):
        share, across, down = torch.rand(3, generator=chance).tolist()
        side = round(min(image.size) * (0.25 + 0.75 * share) ** 0.5)
        left, top = int(across * (image.width - side)), int(down * (image.height - side))
        crop = image.crop((left, top, left + side, top + side))
        crops.append(_tensor(crop.resize((size, size), Image.Resampling.BILINEAR)))
    return torch.stack(crops)

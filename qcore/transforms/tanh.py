"""The weights of DoReFa-Net."""

import torch
from torch import Tensor, nn

from ..grid import Grid

__all__ = ["Tanh"]


class Tanh(nn.Module):
    """``tanh(w)`` over its largest magnitude: weights from -1 to 1, however large they grow.

    Zhou et al., "DoReFa-Net: Training Low Bitwidth Convolutional Neural Networks with Low Bitwidth Gradients", 2016.

    Example:
        >>> Tanh()(torch.tensor([0.5, -1.0, 0.0]))
        tensor([ 0.6068, -1.0000,  0.0000])
    """

    def forward(self, weight: Tensor, inputs: Grid | None = None) -> Tensor:
        """The transformed weight; of zeros, zeros. Gradients pass through the largest magnitude, too."""
        squashed = torch.tanh(weight)
        if weight.numel() == 0:
            return squashed
        largest = squashed.abs().amax()
        return squashed / torch.where(largest > 0, largest, 1.0)

    def scheme(self) -> str:
        """What a file says of it."""
        return "tanh"

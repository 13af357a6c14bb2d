"""Weight normalization: direction and length of each output channel's weights are learned apart."""

import torch
from torch import Tensor, nn
from torch.types import Device

from ..grid import Grid
from .norms import ChannelNorm, LearnedNorm, beside, by_channel

__all__ = ["WeightNorm"]


class WeightNorm(nn.Module):
    """``g * w / ||w||`` for each output channel, with a learned length ``g`` that starts as the norm of ``w``.

    The scale of the quantizer is measured on the result, and is apart from ``g``. At the start the result is ``w``.
    (Salimans and Kingma, "Weight Normalization", 2016; ``g`` is learned by its logarithm.)

    Args:
        channel_axis: the dimension that counts output channels.
        norm_order: 2, the Euclidean length, or 1, the sum of magnitudes.
        channels: how many output channels there are.

    Raises:
        SettingError: another order.

    Example:
        >>> norm = WeightNorm(channel_axis=0, channels=1)
        >>> _ = norm(torch.tensor([[3.0, -4.0]]), None)
        >>> norm(torch.tensor([[30.0, -40.0]]), None)  # its direction is the same, and so is the result
        tensor([[ 3., -4.]], grad_fn=<MulBackward0>)
    """

    def __init__(
        self,
        channel_axis: int,
        norm_order: int = 2,
        channels: int | None = None,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.channel_axis = channel_axis
        self.order = ChannelNorm(norm_order)
        self.norm = LearnedNorm(self.order, channels, device, dtype)

    def forward(self, weight: Tensor, inputs: Grid | None) -> Tensor:
        """The weight with the length that was learned."""
        rows = by_channel(weight, self.channel_axis)
        ratio = self.norm(rows).reshape(-1) / self.order.above_zero(rows)
        return weight * beside(ratio, weight, self.channel_axis)

    def scheme(self) -> str:
        """What a file says of it."""
        return f"L{self.order.order} norm"

    def reset_parameters(self) -> None:
        """Let the length follow the weight again, until training starts."""
        self.norm.reset_parameters()

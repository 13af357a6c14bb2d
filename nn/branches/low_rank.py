"""A low-rank branch of floats beside a quantized weight."""

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["LowRank", "adopt_branch"]

_PRODUCTS: Mapping[int, Callable[[Tensor, Tensor], Tensor]] = {2: F.linear, 3: F.conv1d, 4: F.conv2d, 5: F.conv3d}


class LowRank(nn.Module):
    """A branch of floats that adds ``up @ down @ x`` to what a layer computes with its quantized weight.

    As a layer's child ``correction`` it works on the layer's input as quantized, and its result is added to the
    products, before the output is quantized. Where the weight's quantizer is off, so is the branch. Both matrices are
    parameters of r numbers for each output and input; they can be trained, as in LoRA. `bitwright.graph.lqer` finds
    them.

    Args:
        down: a weight like the layer's with r outputs: (r, in) for linear layers, (r, in, *kernel) for convolutions.
        up: (outputs, r).

    Example:
        >>> import bitwright.nn as qnn
        >>> layer = qnn.QuantLinear(3, 2, bias=False, weight_bit_width=2)
        >>> _ = layer.weight.data.fill_(1)
        >>> layer.correction = LowRank(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[1.0], [0.0]]))
        >>> layer(torch.ones(3)).tolist()
        [9.0, 3.0]
        >>> with qnn.unquantized(layer):
        ...     layer(torch.ones(3)).tolist()
        [3.0, 3.0]
    """

    def __init__(self, down: Tensor, up: Tensor) -> None:
        super().__init__()
        self.down = nn.Parameter(down.detach().clone())
        self.up = nn.Parameter(up.detach().clone().reshape(*up.shape[:2], *[1] * (down.ndim - 2)))

    @property
    def rank(self) -> int:
        """The number of inner channels."""
        return self.up.shape[1]

    def forward(self, x: Tensor) -> Tensor:
        """The result for what ``down`` makes of the layer's input."""
        return _PRODUCTS[self.up.ndim](x, self.up)

    def extra_repr(self) -> str:
        return f"rank={self.rank}"


def adopt_branch(layer: nn.Module, state_dict: Mapping[str, Tensor], prefix: str) -> None:
    """Give a layer the branch that a state dict has for it, so that the state dict loads."""
    parts = [state_dict.get(f"{prefix}correction.{name}") for name in ("down", "up")]
    if "correction" in layer._modules or any(each is None for each in parts):
        return
    like = next(layer.parameters(recurse=False))
    down, up = (torch.empty_like(each, device=like.device, dtype=like.dtype) for each in parts if each is not None)
    layer.add_module("correction", LowRank(down, up).train(layer.training))

"""Weights of convolutions and linear layers by channel: one view for grouped, transposed and linear ones."""

from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

__all__ = ["Side", "WeightedLayer", "channel_maxima", "channels_of", "is_weighted", "per_channel", "scale_channels"]

WeightedLayer: TypeAlias = nn.Linear | _ConvNd
Side: TypeAlias = Literal["outputs", "inputs"]


def is_weighted(module: object) -> bool:
    """Whether a module is a linear layer or a convolution.

    Example:
        >>> is_weighted(nn.Conv1d(1, 2, 3)), is_weighted(nn.ReLU())
        (True, False)
    """
    return isinstance(module, (nn.Linear, _ConvNd))


def _groups(layer: WeightedLayer) -> int:
    return layer.groups if isinstance(layer, _ConvNd) else 1


def _first(layer: WeightedLayer, side: Side) -> bool:
    """Whether the weight's first dimension runs over the channels of this side."""
    return (side == "inputs") == isinstance(layer, _ConvTransposeNd)


def channels_of(layer: WeightedLayer, side: Side) -> int:
    """The number of output or input channels of a layer.

    Example:
        >>> channels_of(nn.Conv2d(4, 6, 3), "outputs"), channels_of(nn.Linear(3, 2), "inputs")
        (6, 3)
    """
    if isinstance(layer, nn.Linear):
        return layer.out_features if side == "outputs" else layer.in_features
    return layer.out_channels if side == "outputs" else layer.in_channels


def per_channel(layer: WeightedLayer, side: Side, numbers: Tensor, ndim: int | None = None) -> Tensor:
    """Numbers of a layer's channels in the shape that multiplies its weight.

    Args:
        layer: the layer.
        side: which channels the numbers belong to.
        numbers: one for each channel.
        ndim: the dimensions of what they multiply, if that is not the weight itself.

    Example:
        >>> layer = nn.Conv1d(4, 2, 1, groups=2)  # its weight is 2 x 2 x 1
        >>> per_channel(layer, "inputs", torch.tensor([1.0, 2.0, 3.0, 4.0])).squeeze(-1)
        tensor([[1., 2.],
                [3., 4.]])
    """
    kernel = (1,) * ((layer.weight.ndim if ndim is None else ndim) - 2)
    if _first(layer, side):
        return numbers.reshape(-1, 1, *kernel)
    rows, groups = layer.weight.shape[0], _groups(layer)
    spread = numbers.reshape(groups, 1, -1).expand(-1, rows // groups, -1)
    return spread.reshape(rows, -1, *kernel)


def channel_maxima(layer: WeightedLayer, side: Side, matrix: Tensor) -> Tensor:
    """The largest number of each channel.

    Args:
        layer: the layer.
        side: which channels.
        matrix: numbers not below zero in the first two dimensions of the layer's weight.

    Example:
        >>> layer = nn.ConvTranspose1d(2, 3, 1)
        >>> channel_maxima(layer, "outputs", torch.tensor([[1.0, 2.0, 3.0], [0.0, 5.0, 0.0]]))
        tensor([1., 5., 3.])
    """
    if _first(layer, side):
        return matrix.amax(1)
    groups = _groups(layer)
    return matrix.reshape(groups, matrix.shape[0] // groups, -1).amax(1).flatten()


@torch.no_grad()
def scale_channels(layer: WeightedLayer, outputs: Tensor | None = None, inputs: Tensor | None = None) -> None:
    """Multiply a layer's weight by one number a channel, in place and in float64; the bias goes with the outputs.

    Example:
        >>> layer = nn.Linear(1, 2)
        >>> with torch.no_grad():
        ...     _ = layer.weight.fill_(1)
        >>> scale_channels(layer, outputs=torch.tensor([2.0, 3.0]), inputs=torch.tensor([10.0]))
        >>> layer.weight.flatten().tolist()
        [20.0, 30.0]
    """
    weight = layer.weight.double()
    if outputs is not None:
        weight = weight * per_channel(layer, "outputs", outputs.double())
    if inputs is not None:
        weight = weight * per_channel(layer, "inputs", inputs.double())
    layer.weight.copy_(weight)
    if outputs is not None and layer.bias is not None:
        layer.bias.copy_(layer.bias.double() * outputs.double())

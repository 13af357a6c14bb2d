"""Weights of convolutions and linear layers by channel: one view for grouped, transposed and linear ones."""

from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

__all__ = [
    "Side",
    "WeightedLayer",
    "channel_maxima",
    "channels_of",
    "magnitudes",
    "per_channel",
    "scale_channels",
    "weighted",
]

WeightedLayer: TypeAlias = nn.Linear | _ConvNd
Side: TypeAlias = Literal["outputs", "inputs"]


def weighted(model: nn.Module, path: str) -> WeightedLayer:
    """The linear layer or convolution at a path.

    Example:
        >>> weighted(nn.Sequential(nn.Linear(2, 3)), "0")
        Linear(in_features=2, out_features=3, bias=True)
    """
    layer = model.get_submodule(path)
    assert isinstance(layer, (nn.Linear, _ConvNd))
    return layer


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


def magnitudes(layer: WeightedLayer) -> Tensor:
    """The largest magnitude of each kernel of a layer, in float64: the first two dimensions of its weight.

    Example:
        >>> magnitudes(nn.Conv2d(4, 6, 3)).shape
        torch.Size([6, 4])
    """
    weight = layer.weight.detach().double().abs().cpu()
    return weight.flatten(2).amax(2) if weight.ndim > 2 else weight


@torch.no_grad()
def scale_channels(layer: WeightedLayer, outputs: Tensor | None = None, inputs: Tensor | None = None) -> None:
    """Multiply a layer's weight by one number a channel, in place and in float64.

    The bias goes with the outputs, and so do the statistics that `fold_batch_norms` kept.

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
        weight = weight * per_channel(layer, "outputs", outputs.to(weight))
    if inputs is not None:
        weight = weight * per_channel(layer, "inputs", inputs.to(weight))
    layer.weight.copy_(weight)
    if outputs is not None:
        if layer.bias is not None:
            layer.bias.copy_(layer.bias.double() * outputs.to(weight))
        for name, size in (("folded_mean", outputs), ("folded_std", outputs.abs())):
            kept = layer._buffers.get(name)
            if kept is not None:
                kept.copy_(kept.double() * size.to(weight))

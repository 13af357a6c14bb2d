"""How often the weights of a layer are multiplied."""

import math
from collections.abc import Callable

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils.rnn import PackedSequence

__all__ = ["PRODUCTS", "products_of"]


def _vectors(weight: Tensor, entering: Tensor, leaving: Tensor) -> int:
    """Of a layer that multiplies each vector along the last dimension with the whole matrix."""
    return weight.numel() * math.prod(entering.shape[:-1])


# By the layer of torch: from a weight, what enters the layer and what leaves it
PRODUCTS: dict[type[nn.Module], Callable[[Tensor, Tensor, Tensor], int]] = {
    nn.Linear: _vectors,
    nn.RNNBase: _vectors,
    nn.RNNCellBase: _vectors,
    nn.MultiheadAttention: _vectors,
    _ConvTransposeNd: lambda weight, entering, leaving: entering.numel() * (weight.numel() // weight.shape[0]),
    _ConvNd: lambda weight, entering, leaving: leaving.numel() * (weight.numel() // weight.shape[0]),
    nn.Embedding: lambda weight, entering, leaving: 0,
    nn.EmbeddingBag: lambda weight, entering, leaving: 0,
}


def products_of(layer: nn.Module, weight: Tensor, entering: object, leaving: object) -> int:
    """How many products of a weight and an input there are in one forward of a layer.

    Layers that `PRODUCTS` doesn't know, such as norms, multiply each value that enters once.

    Args:
        layer: quantized or not.
        weight: one of its weights, as it is stored.
        entering: the first argument of the forward.
        leaving: the first result.

    Example:
        >>> import torch
        >>> layer = nn.Conv2d(3, 8, 3, padding=1)
        >>> x = torch.zeros(1, 3, 4, 4)
        >>> products_of(layer, layer.weight, x, layer(x))  # 8 * 4 * 4 results of 27 products
        3456
    """
    x = entering.data if isinstance(entering, PackedSequence) else entering
    assert isinstance(x, Tensor)
    assert isinstance(leaving, (Tensor, PackedSequence))
    out = leaving.data if isinstance(leaving, PackedSequence) else leaving
    for kind in type(layer).__mro__:
        if kind in PRODUCTS:
            return PRODUCTS[kind](weight, x, out)
    return x.numel()

"""Sums of products: how large they are, and how large they may become."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .layers import LayerIntegers

__all__ = ["AccumulatorRange", "on_products", "signed_bits", "worst_sums"]


@dataclass
class AccumulatorRange:
    """The smallest and the largest sum that a layer had, for each output channel.

    Attributes:
        low: int64, 1-d: one for each channel, or a single one.
        high: the same for the largest.

    Example:
        >>> AccumulatorRange(torch.tensor([-129, 0]), torch.tensor([5, 100])).bits
        9
    """

    low: Tensor
    high: Tensor

    @property
    def bits(self) -> int:
        """Bits that hold all of them, in two's complement."""
        return signed_bits(int(self.low.min()), int(self.high.max()))


def signed_bits(low: int, high: int) -> int:
    """Bits of two's complement that hold every integer from ``low`` to ``high``.

    Example:
        >>> signed_bits(-128, 127), signed_bits(0, 128), signed_bits(0, 0)
        (8, 9, 1)
    """
    return max(high.bit_length() if high > 0 else 0, (-low - 1).bit_length() if low < 0 else 0) + 1


def worst_sums(layer: LayerIntegers) -> AccumulatorRange | None:
    """The smallest and largest sum of products and bias that a layer can reach, for each output channel.

    Returns:
        None where the input has no grid, or several scales.
    """
    weight, given = layer.weight, layer.input
    if weight is None or weight.codes is None or given is None or given.axis is not None:
        return None
    if weight.grid.block is not None:  # integers of several scales don't add up
        return None
    centred = weight.codes.to(torch.int64) - weight.grid.spread(weight.codes)[1]
    ungrouped = "output_padding" in layer.settings and "Transpose" in layer.kind and layer.settings["groups"] == 1
    rows = (centred.transpose(0, 1) if ungrouped else centred).flatten(1)  # (out, products)
    low, high = (bound - int(given.zero_point) for bound in given.bounds)
    low, high = min(low, 0), max(high, 0)  # padding, and partial sums
    up, down = rows.clamp_min(0).sum(1), rows.clamp_max(0).sum(1)
    smallest, largest = up * low + down * high, up * high + down * low
    bias = layer.bias
    if bias is not None and bias.codes is not None and on_products(layer):
        own = bias.codes.to(torch.int64)
        smallest, largest = smallest + own.clamp_max(0), largest + own.clamp_min(0)
    return AccumulatorRange(smallest, largest)


def on_products(layer: LayerIntegers) -> bool:
    """Whether the bias is on the scale of the products, and so added to them."""
    assert layer.bias is not None
    assert layer.weight is not None
    assert layer.input is not None
    products = layer.input.scale.reshape(()) * layer.weight.grid.scale.reshape(-1)
    own = layer.bias.grid.scale.reshape(-1)
    return own.numel() in (1, products.numel()) and bool((own == products).all())

"""Sums of products: how large they are, and how large they may become."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..capture.grid import IntegerGrid
from .layers import LayerIntegers, LayerProduct

__all__ = ["AccumulatorRange", "on_products", "products_of", "signed_bits", "worst_sums"]


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


def products_of(layer: LayerIntegers) -> tuple[LayerProduct, ...]:
    """The products with parameters that a layer sums, as far as their input has a grid.

    Example:
        >>> products_of(LayerIntegers("relu", "QuantReLU", {}))
        ()
    """
    weight = layer.weight
    if layer.products or weight is None or weight.codes is None or weight.codes.ndim < 2 or layer.input is None:
        return layer.products
    return (LayerProduct("weight", None if layer.bias is None else "bias", layer.input),)  # of a file of version 0.1


def worst_sums(layer: LayerIntegers, product: LayerProduct | None = None) -> AccumulatorRange | None:
    """The smallest and largest sum of products and bias that a layer can reach, for each output channel.

    No partial sum, in whatever order, is smaller or larger. Of a transposed convolution with a stride, an output sums
    the products of one phase of the kernel: that with the largest sums counts.

    Args:
        layer: the layer.
        product: one of those that it sums; by default the only one.

    Returns:
        None where the input has no grid, or one sum has several scales; and for several products.
    """
    if product is None:
        products = products_of(layer)
        return worst_sums(layer, products[0]) if len(products) == 1 else None
    weight, given = layer.quantizers[product.weight], product.input
    if weight.codes is None or (given.axis is not None and not _one_scale_each(layer, weight.codes, given)):
        return None
    if weight.grid.block is not None:  # integers of several scales don't add up
        return None
    centred = weight.codes.to(torch.int64) - weight.grid.spread(weight.codes)[1]
    ungrouped = "output_padding" in layer.settings and "Transpose" in layer.kind and layer.settings["groups"] == 1
    outputs = centred.transpose(0, 1) if ungrouped else centred  # (out, in / groups, *kernel)
    zero_point = _each_output(given.zero_point.to(torch.int64), outputs)
    low, high = (bound - zero_point for bound in given.bounds)
    low, high = low.clamp_max(0), high.clamp_min(0)  # padding, and partial sums
    sides = []
    for rows in _phases(layer, outputs):
        up, down = rows.clamp_min(0).sum(1), rows.clamp_max(0).sum(1)
        sides.append((up * low + down * high, up * high + down * low))
    smallest = torch.stack([each for each, _ in sides]).amin(0)
    largest = torch.stack([each for _, each in sides]).amax(0)
    bias = None if product.bias is None else layer.quantizers[product.bias]
    if bias is not None and bias.codes is not None and on_products(layer, product):
        own = bias.codes.to(torch.int64)
        smallest, largest = smallest + own.clamp_max(0), largest + own.clamp_min(0)
    return AccumulatorRange(smallest, largest)


def _one_scale_each(layer: LayerIntegers, codes: Tensor, given: IntegerGrid) -> bool:
    """Whether each output reads one channel of an input with a scale for each."""
    return codes.ndim > 2 and codes.shape[1] == 1 and layer.settings.get("groups") == given.scale.numel()


def _each_output(numbers: Tensor, outputs: Tensor) -> Tensor:
    """Numbers of the input's channels, one for each output, or one for all."""
    flat = numbers.reshape(-1)
    return flat if flat.numel() == 1 else flat.repeat_interleave(outputs.shape[0] // flat.numel())


def _phases(layer: LayerIntegers, outputs: Tensor) -> list[Tensor]:
    """The weights that are summed together, as (out, products): all, or those of each phase of the stride."""
    parts = [outputs]
    if "output_padding" in layer.settings and "Transpose" in layer.kind:
        steps = zip(layer.settings["stride"], layer.settings["dilation"], strict=True)
        for dim, (stride, dilation) in enumerate(steps, 2):
            offsets = torch.arange(outputs.shape[dim]) * dilation % stride
            places = [(offsets == phase).nonzero().reshape(-1) for phase in offsets.unique()]
            parts = [each.index_select(dim, place) for each in parts for place in places]
    return [each.flatten(1) for each in parts]


def on_products(layer: LayerIntegers, product: LayerProduct) -> bool:
    """Whether the bias is on the scale of the products, and so added to them."""
    if product.bias is None:
        return False
    weight, bias = layer.quantizers[product.weight], layer.quantizers[product.bias]
    inputs = product.input.scale.reshape(-1)
    if inputs.numel() > 1 and weight.codes is not None:  # of a depthwise layer
        inputs = _each_output(inputs, weight.codes)
    products = inputs * weight.grid.scale.reshape(-1)
    own = bias.grid.scale.reshape(-1)
    return own.numel() in (1, products.numel()) and bool((own == products).all())

"""Layers that compute nothing but one product with their weight."""

from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from ....nn.conv import QuantConv1d, QuantConv2d, QuantConv3d
from ....nn.conv_transpose import QuantConvTranspose1d, QuantConvTranspose2d, QuantConvTranspose3d
from ....nn.linear import QuantLinear
from ..walking.products import Convolution, Linear, Product, Transposed
from ..walking.sites import Site

__all__ = ["product_in", "why_no_product"]

_LAYERS = (
    QuantLinear,
    QuantConv1d,
    QuantConv2d,
    QuantConv3d,
    QuantConvTranspose1d,
    QuantConvTranspose2d,
    QuantConvTranspose3d,
)


def why_no_product(site: Site) -> str | None:
    """Why a layer's result is not just a product with its weight, and a bias; None if it is.

    Example:
        >>> import bitwright.nn as qnn
        >>> from bitwright.graph.layerwise.walking.sites import sites_of
        >>> [why_no_product(site) for site in sites_of(nn.Sequential(qnn.QuantLinear(2, 2), qnn.QuantEmbedding(2, 2)))]
        [None, 'a QuantEmbedding is neither a linear layer nor a convolution']
    """
    kind = type(site.layer)
    computes = getattr(kind, "_compute", None)
    if site.slot.name == "weight" and any(isinstance(site.layer, each) for each in _LAYERS):
        if any(computes is each._compute for each in _LAYERS):
            return None
        return f"a {kind.__name__} computes its result by a forward of its own"
    return f"a {kind.__name__} is neither a linear layer nor a convolution"


def product_in(layer: nn.Module) -> Product:
    """What such a layer multiplies, as far as its weight goes.

    Example:
        >>> product_in(nn.Conv1d(4, 6, 3, groups=2)).matrix(nn.Conv1d(4, 6, 3, groups=2).weight).shape
        torch.Size([2, 3, 6])
    """
    if not isinstance(layer, _ConvNd):
        return Linear()
    kernel, stride, dilation = layer.kernel_size, layer.stride, layer.dilation
    zeros = (0,) * len(kernel)
    if isinstance(layer, _ConvTransposeNd):
        return Transposed(kernel, stride, dilation, zeros, zeros, layer.groups)
    return Convolution(kernel, stride, dilation, tuple((0, 0) for _ in kernel), layer.groups)

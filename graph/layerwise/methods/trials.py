"""What a layer's quantizer would make of other weights, tried on a copy."""

import copy

import torch
from torch import Tensor

from ....nn.contexts.intercepting import quantizers_of
from ....qcore import GridQuant
from ..walking.sites import Site
from .layers import product_in

__all__ = ["Trial"]


class Trial:
    """A copy of a layer that quantizes whatever weight it is given, on a grid that follows it.

    Args:
        site: the weight; the layer stays as it is.

    Attributes:
        weight: the weight as matrices, in float64: (G, O, n).

    Example:
        >>> import bitwright.nn as qnn
        >>> from bitwright.graph.layerwise.walking.sites import sites_of
        >>> trial = Trial(sites_of(qnn.QuantLinear(2, 1, weight_bit_width=2))[0])
        >>> trial.quantized(torch.tensor([[[8.0, 3.0]]])), trial.quantized(torch.tensor([[[4.0, 3.0]]]))
        (tensor([[[8., 0.]]], dtype=torch.float64), tensor([[[4., 4.]]], dtype=torch.float64))
    """

    def __init__(self, site: Site) -> None:
        layer = copy.deepcopy(site.layer).eval()
        for each in quantizers_of(layer).values():
            vars(each).pop("intercept", None)
        quant = getattr(layer, f"{site.slot.name}_quant")
        assert isinstance(quant, GridQuant)
        self.site = Site(site.path, layer, site.slot, quant)
        self.product = product_in(layer)
        self.weight = self.matrix(site.parameter.detach()).double()
        self._quant = quant

    def matrix(self, stored: Tensor) -> Tensor:
        """Numbers for a weight as the layer keeps it, as matrices."""
        return self.product.matrix(stored.expand(self.site.parameter.shape))

    def stored(self, matrix: Tensor) -> Tensor:
        """The way back."""
        return self.product.stored(matrix, self.site.parameter.shape)

    @torch.no_grad()
    def quantized(self, matrix: Tensor) -> Tensor:
        """What a weight becomes: (G, O, n) to the same, in float64."""
        self.site.parameter.copy_(self.stored(matrix))
        self._quant.rederive()
        values = self.site.layer.take(self.site.slot.name)[0]
        return self.matrix(self.site.as_stored(values)).double()

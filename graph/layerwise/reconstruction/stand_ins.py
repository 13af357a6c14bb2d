"""What stands in for the quantizers of a model while the weights of a block are learned."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ....nn.contexts.intercepting import intercepted, quantizers_of
from ....qcore import Grid, TensorQuant
from ....qcore.tensor_quant import Intercept
from ..walking.sites import Site
from .soft_weights import SoftWeight

__all__ = ["StandIns", "kept_apart"]


class StandIns:
    """What stands in for quantizers: chosen weights, weights that are being learned, activations that are dropped.

    Args:
        sites: the weights, by their quantizers.
        generator: decides which activations stay floats.

    Attributes:
        chosen: what stands in for quantized weights, as their quantizers see them.
        soft: the weights that are being learned.
        drop: the probability that a number stays a float instead of being quantized, where activations are.
        grids: those of the weights that were met.
        met: the quantizers of activations that were met.

    Example:
        >>> import bitwright.nn as qnn
        >>> from bitwright.graph.layerwise.walking.sites import sites_of
        >>> layer = qnn.QuantLinear(2, 1, bias=False)
        >>> site = sites_of(layer)[0]
        >>> stand_ins = StandIns({site.quant: site}, torch.Generator())
        >>> stand_ins.chosen[site] = torch.tensor([[3.0, 4.0]])
        >>> with stand_ins.standing(layer):
        ...     print(layer(torch.ones(2)).item())
        7.0
        >>> list(stand_ins.grids) == [site]
        True
    """

    def __init__(self, sites: dict[TensorQuant, Site], generator: torch.Generator) -> None:
        self._sites, self.generator = sites, generator
        self.chosen: dict[Site, Tensor] = {}
        self.soft: dict[Site, SoftWeight] = {}
        self.drop = 0.0
        self.grids: dict[Site, Grid] = {}
        self.met: dict[TensorQuant, None] = {}

    @contextmanager
    def standing(self, model: nn.Module) -> Iterator[None]:
        """They stand in for the length of the block."""
        quantizers = quantizers_of(model)

        def intercept(path: str) -> Intercept:
            quant = quantizers[path]
            before = quant.__dict__.get("intercept")
            site = self._sites.get(quant)

            def stand_in(quant: TensorQuant, x: Tensor, *context: object) -> tuple[Tensor, Grid | None]:
                if site is not None:
                    if site in self.soft:
                        return self.soft[site].seen(x.dtype), self.soft[site].grid
                    if site in self.chosen and site in self.grids:
                        return self.chosen[site].to(x.dtype), self.grids[site]
                values, grid = quant._quantize(x, *context) if before is None else before(quant, x, *context)
                if site is not None:
                    if grid is not None:
                        self.grids[site] = grid
                    return (self.chosen[site].to(x.dtype) if site in self.chosen else values), grid
                if quant.of_parameter or quant.follows_input or quant.truncates:
                    return values, grid
                self.met.setdefault(quant)
                floats = x.relu() if self.drop > 0 and True in context[:1] else x  # a ReLU that the quantizer does
                return kept_apart(values, floats, self.drop, self.generator), grid

            return stand_in

        with intercepted(quantizers, intercept):
            yield


def kept_apart(values: Tensor, floats: Tensor, drop: float, generator: torch.Generator) -> Tensor:
    """Quantized values of which each is replaced by a float with some probability (QDrop).

    Example:
        >>> kept_apart(torch.zeros(8), torch.ones(8), 0.5, torch.Generator().manual_seed(0)).sum()
        tensor(5.)
    """
    if drop <= 0 or values.shape != floats.shape or not values.is_floating_point():
        return values
    drawn = torch.rand(values.shape, generator=generator, device=generator.device)
    return torch.where(drawn.to(values.device) < drop, floats, values)

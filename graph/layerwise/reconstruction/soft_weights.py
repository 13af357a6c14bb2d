"""A weight between the two levels around each of its entries, by a share that is learned."""

import copy

import torch
from torch import Tensor

from ....qcore import Grid, GridQuant
from ....qcore.rounding.learned import stretched_logit, stretched_sigmoid, stretched_slope
from ..walking.sites import Site
from .adam import Adam

__all__ = ["SoftWeight"]

_DECIDED = 0.05  # how near to 0 or 1 a share counts as decided


class SoftWeight:
    """A weight on its way to a grid: each entry lies between two levels, at the lower one plus a share of the gap.

    Args:
        site: the weight, which stays as it is.
        grid: that it has.
        learning_rate: of Adam.

    Attributes:
        values: the weight as it stands, shaped as the layer keeps it; a leaf that gradients are taken by.

    Example:
        >>> import bitwright.nn as qnn
        >>> from bitwright.graph.layerwise.walking.sites import sites_of
        >>> layer = qnn.QuantLinear(2, 1, bias=False, weight_bit_width=2, weight_scale=1.0)
        >>> _ = layer.weight.data.copy_(torch.tensor([[0.25, -0.75]]))
        >>> soft = SoftWeight(sites_of(layer)[0], layer.weight_quant.grid(layer.weight), learning_rate=0.5)
        >>> soft.values, soft.rounded()
        (tensor([[ 0.2500, -0.7500]], requires_grad=True), tensor([[ 0., -1.]]))
        >>> for _ in range(4):
        ...     soft.step(torch.tensor([[-1.0, -1.0]]))
        >>> soft.rounded()
        tensor([[1., -0.]])
    """

    def __init__(self, site: Site, grid: Grid, learning_rate: float) -> None:
        self.site, self.grid = site, grid
        weight = site.as_stored(site.seen())
        weight = weight if weight.dtype == torch.float64 else weight.float()
        levels = site.weight_grid(grid)
        self._spread = levels.spread(levels.scales.to(weight))
        steps = weight / self._spread
        self._nearest = levels.rounded(steps)
        self._lower, self._upper = levels.rounded(steps, torch.floor), levels.rounded(steps, torch.ceil)
        gap = self._upper - self._lower  # 0 at a level and beyond the ends
        fraction = ((steps - self._lower) / torch.where(gap > 0, gap, 1)).clamp_(0, 1).masked_fill_(gap == 0, 0)
        self.between = int((gap > 0).sum())
        self._gap = gap * self._spread
        self._start = stretched_logit(fraction)
        self._parameter = self._start.clone()
        self._adam = Adam(self._parameter, learning_rate)
        self._share = torch.empty_like(self._start)
        self.values = torch.empty_like(self._start)
        self._renew()

    def _renew(self) -> None:
        stretched_sigmoid(self._parameter, out=self._share)
        self.values = torch.addcmul(self._lower * self._spread, self._gap, self._share).requires_grad_()

    def seen(self, dtype: torch.dtype) -> Tensor:
        """The weight as it stands, as its quantizer sees it; gradients go to ``values``."""
        return self.site.as_seen(self.values).to(dtype)

    @torch.no_grad()
    def step(self, gradient: Tensor | None, penalty: float = 0.0, exponent: float | None = None) -> None:
        """Move by one step of Adam.

        Args:
            gradient: of the loss by ``values``; None for 0.
            penalty: what an undecided entry costs.
            exponent: of that penalty; None for no penalty.
        """
        slope = torch.zeros_like(self._gap) if gradient is None else gradient * self._gap
        if penalty and exponent is not None:
            centered = 2 * self._share - 1
            slope -= 2 * exponent * penalty * centered.abs().pow_(exponent - 1).copysign_(centered)
        self._adam.step(slope.mul_(stretched_slope(self._share)))
        self._renew()

    @torch.no_grad()
    def rounded(self) -> Tensor:
        """The weight on its grid, as its quantizer sees it: up where a share is above one half."""
        levels = torch.where(self._share > 0.5, self._upper, self._lower)
        levels = torch.where(self._parameter == self._start, self._nearest, levels)
        return self.site.as_seen(levels * self._spread).to(self.site.parameter.dtype).contiguous()

    def figures(self, values: Tensor) -> dict[str, float]:
        """What the report says of the weight.

        Args:
            values: what was chosen, as its quantizer sees it.
        """
        nearest = self.site.as_seen(self._nearest * self._spread).to(values)
        free = max(1, self.between)
        undecided = (self._share > _DECIDED) & (self._share < 1 - _DECIDED) & (self._gap != 0)
        return {"moved": int((values != nearest).sum()) / free, "undecided": int(undecided.sum()) / free}

    def stays(self, values: Tensor) -> bool:
        """Whether the quantizer, with its grid fixed, leaves these values where they are."""
        probe = copy.deepcopy(self.site.quant)
        assert isinstance(probe, GridQuant)
        vars(probe).pop("intercept", None)
        probe.fix(self.grid)
        return torch.equal(probe.eval()._quantize(values)[0], values)

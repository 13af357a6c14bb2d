"""From the moments of a weight's inputs to codes: the problem that a solver gets, and what becomes of its solution."""

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ....qcore import Grid, GridQuant, PerGroup
from ...passes.reports import Entry
from ..problem import Problem, Solution, WeightGrid
from .moments import Moments
from .products import Linear, Product
from .sites import Site

__all__ = ["Choice", "Solver", "choose", "problem_of"]

Solver = Callable[[str, Problem], Solution | None]
"""Called with the path of a weight and its problem; None leaves the weight as it is."""


@dataclass
class Choice:
    """What was chosen for one weight, and is written to the model at the end.

    Attributes:
        site: the weight.
        entry: of the report.
        grid: that is fixed; None where it isn't.
        rounded: whether the values lie on it.
        values: as the quantizer sees the weight; None where only the codes are kept, or nothing was chosen.
        codes: on ``grid``.
    """

    site: Site
    entry: Entry
    grid: Grid | None = None
    rounded: bool = True
    values: Tensor | None = None
    codes: Tensor | None = field(default=None, repr=False)

    @property
    def chosen(self) -> Tensor | None:
        """The values; None where the weight stays as it is."""
        if self.values is None and self.codes is not None and self.grid is not None:
            return self.grid.from_int(self.codes).to(self.site.parameter.dtype)
        return self.values

    def pack(self) -> None:
        """Keep the codes alone."""
        if self.values is not None and self.grid is not None and self.rounded:
            self.codes = self.grid.to_int(self.values)
            self.values = None

    @torch.no_grad()
    def write(self) -> None:
        """Put what was chosen into the model."""
        values = self.chosen
        if values is None:
            return
        if self.grid is not None and isinstance(self.site.quant, GridQuant):
            self.site.quant.fix(self.grid)
        self.site.parameter.copy_(self.site.as_stored(values))


def problem_of(site: Site, grid: Grid, product: Product, moments: Moments) -> Problem:
    """The matrices of a weight, its grid and its inputs."""
    stored = site.as_stored(site.seen())
    weight = product.matrix(stored)
    weight = weight if weight.dtype == torch.float64 else weight.float()
    found = site.weight_grid(grid)
    if found.scales.numel() > 1:
        index = product.matrix(found.index)
        first = index[:, :, :1]
        index = first.clone() if torch.equal(first.expand_as(index), index) else index
    else:
        index = found.index.reshape(1, 1, 1)
    grid_here = found._replace(index=index)
    rescale = _rescaling(site, grid, product)
    return Problem(weight, grid_here, moments.gram, moments.cross, moments.signal(weight), moments.count, rescale)


def _rescaling(site: Site, grid: Grid, product: Product) -> Callable[[Tensor, int], Tensor] | None:
    """What gives new scales for a group of columns, where columns in a row share them."""
    quant, ndim = site.quant, site.seen().ndim
    granularity = grid.granularity
    if not isinstance(quant, GridQuant) or not isinstance(granularity, PerGroup) or not isinstance(product, Linear):
        return None
    if granularity.group_axis % ndim != ndim - 1 or not quant.dynamic or grid.scale_format is not None:
        return None
    return lambda columns, first: quant.grid(columns.squeeze(0)).scale.unsqueeze(0)


@torch.no_grad()
def choose(
    asked: str,
    site: Site,
    grid: Grid,
    product: Product,
    moments: Moments,
    solve: Solver,
    rounds: bool = True,
) -> Choice:
    """Solve one problem, and keep what is better than rounding to nearest.

    Args:
        asked: the algorithm, for the report.
        site: the weight.
        grid: that the weight has.
        product: what multiplies it.
        moments: of its inputs.
        solve: the solver.
        rounds: whether weights are rounded; else only the grid is fixed.
    """
    start = time.perf_counter()
    problem = problem_of(site, grid, product, moments)
    before = problem.loss(problem.nearest())  # (G, O)
    signal = problem.loss(torch.zeros_like(problem.weight)) if problem.signal is None else problem.signal
    power = float(signal.double().sum())
    solution = solve(site.path, problem)
    figures = {"before": _share(float(before.sum()), power), "rows": float(problem.rows)}
    if solution is None:
        return Choice(site, Entry(site.path, "left", "the algorithm leaves it", figures))
    after = problem.loss(solution.weight)
    figures |= {"after": _share(float(after.sum()), power), **solution.figures}
    note = solution.note
    if not solution.on_grid:
        figures["seconds"] = time.perf_counter() - start
        values = site.as_seen(product.stored(solution.weight, site.parameter.shape)).to(site.parameter.dtype)
        return Choice(site, Entry(site.path, asked, note, figures), None, False, values)
    weight, own = solution.weight, problem.grid if solution.grid is None else solution.grid
    if solution.grid is None:
        better = after < before
        kept = 1 - float(better.double().mean())
        weight = torch.where(better.unsqueeze(-1), weight.to(problem.weight), problem.nearest())
        after = torch.where(better, after, before)
        figures |= {"after": _share(float(after.sum()), power)} | ({"kept": kept} if 0 < kept < 1 else {})
    if not float(after.sum()) < float(before.sum()):
        figures["after"] = figures["before"]
        figures["seconds"] = time.perf_counter() - start
        reason = note or f"{asked} is not better than round-to-nearest"
        return Choice(site, Entry(site.path, "left", reason, figures))
    values = own.levels(weight) * own.spread(own.scales.to(weight))
    seen = site.as_seen(product.stored(values, site.parameter.shape)).to(site.parameter.dtype).contiguous()
    grid = _regridded(grid, own)
    figures["seconds"] = time.perf_counter() - start
    if not _stays(site, seen, grid):
        reason = "its quantizer would move weights that lie on its grid already"
        return Choice(site, Entry(site.path, "left", reason, figures | {"after": figures["before"]}))
    values = seen if rounds else site.seen().to(site.parameter.dtype)
    return Choice(site, Entry(site.path, asked, note, figures), grid, rounds, values)


def _share(loss: float, power: float) -> float:
    return max(loss, 0.0) / power if power > 0 else (0.0 if loss <= 0 else math.inf)


def _regridded(grid: Grid, own: WeightGrid) -> Grid:
    """The grid with the scales that a solver chose."""
    scale = own.scales.to(grid.scale).reshape(grid.scale.shape)
    if torch.equal(scale, grid.scale):
        return grid
    return grid.replace(scale=scale)


def _stays(site: Site, values: Tensor, grid: Grid) -> bool:
    """Whether the quantizer with this grid leaves these values where they are."""
    probe = copy.deepcopy(site.quant)
    assert isinstance(probe, GridQuant)
    probe.fix(grid)
    return torch.equal(probe.eval()._quantize(values)[0], values)

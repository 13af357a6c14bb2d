"""From the moments of a weight's inputs to codes: the problem that a solver gets, and what becomes of its solution."""

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ....qcore import Grid, GridQuant, PerGroup
from ...errors import GraphError
from ...passes.reports import Entry
from ..problem import Problem, Solution, WeightGrid
from .gathering import Gathered
from .moments import Moments
from .products import Linear, Product
from .sites import Site

__all__ = ["Choice", "Solver", "choose", "problem_of", "quantized"]

_RELATIVE = 1e-4  # how far from its grid a weight may be: arithmetic of another precision

Solver = Callable[[str, Problem], Solution | None]
"""Called with the path of a weight and its problem; None leaves the weight as it is."""


@dataclass
class Choice:
    """What was chosen for one weight, and is written to the model at the end.

    Attributes:
        site: the weight.
        entry: of the report.
        grid: that is fixed; None where it isn't.
        values: what the quantized weight is from now on, as the quantizer sees it; None where only the codes are kept,
            or nothing was chosen.
        codes: on ``grid``.
        weight: a float weight that is written, as the layer keeps it; None where the values are, which lie on ``grid``.
        stays: whether the weight stays as it is, and only its grid is fixed.
        as_is: whether ``weight`` runs as it is in the walk, and not quantized.
    """

    site: Site
    entry: Entry
    grid: Grid | None = None
    values: Tensor | None = None
    codes: Tensor | None = field(default=None, repr=False)
    weight: Tensor | None = field(default=None, repr=False)
    stays: bool = False
    as_is: bool = False

    @property
    def chosen(self) -> Tensor | None:
        """The values; None where the weight stays as it is."""
        if self.values is None and self.codes is not None and self.grid is not None:
            return self.grid.from_int(self.codes).to(self.site.parameter.dtype)
        if self.values is None and self.weight is not None:
            seen = self.site.as_seen(self.weight)
            return seen if self.as_is else quantized(self.site, seen)
        return self.values

    def pack(self) -> None:
        """Keep the codes alone."""
        if self.values is not None and self.grid is not None:
            self.codes = self.grid.to_int(self.values)
        self.values = None

    @torch.no_grad()
    def fix(self) -> None:
        """Fix the grid."""
        if self.grid is not None and isinstance(self.site.quant, GridQuant):
            self.site.quant.fix(self.grid)

    @torch.no_grad()
    def write(self) -> None:
        """Put the weight into the model."""
        weight = self.weight
        if weight is None and not self.stays:
            values = self.chosen
            weight = None if values is None else self.site.as_stored(values)
        if weight is not None:
            self.site.parameter.copy_(weight)


@torch.no_grad()
def quantized(site: Site, seen: Tensor) -> Tensor:
    """What the quantizer of a weight makes of another, in the shape in which it sees it."""
    return site.quant._quantize(seen.to(site.parameter.dtype))[0]


def problem_of(site: Site, grid: Grid, product: Product, moments: Moments) -> Problem:
    """The matrices of a weight, its grid and its inputs."""
    stored = site.as_stored(site.seen())
    weight = product.matrix(stored)
    weight = weight if weight.dtype == torch.float64 else weight.float()
    if weight.untyped_storage().data_ptr() == site.parameter.untyped_storage().data_ptr():
        weight = weight.clone()  # so that no solver can change the model
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


Scales = Tensor | tuple[Tensor, Tensor]


def _rescaling(site: Site, grid: Grid, product: Product) -> Callable[[Tensor, int], Scales] | None:
    """What gives new scales, and zero points, for a group of columns, where columns in a row share them."""
    quant, ndim = site.quant, site.seen().ndim
    granularity = grid.granularity
    if not isinstance(quant, GridQuant) or not isinstance(granularity, PerGroup) or not isinstance(product, Linear):
        return None
    if granularity.group_axis % ndim != ndim - 1 or not quant.dynamic or grid.scale_format is not None:
        return None

    def rescale(columns: Tensor, first: int) -> Scales:
        found = quant.grid(columns.flatten(0, 1))
        return found.scale if found.zero_point is None else (found.scale, found.zero_point)

    return rescale


@torch.no_grad()
def choose(
    asked: str,
    site: Site,
    grid: Grid,
    gathered: Gathered,
    solve: Solver,
    rounds: bool = True,
) -> Choice:
    """Solve one problem, and keep what is better than rounding to nearest.

    Args:
        asked: the algorithm, for the report.
        site: the weight.
        grid: that the weight has.
        gathered: what is known of its inputs.
        solve: the solver.
        rounds: whether weights are rounded; else only the grid is fixed.
    """
    start = time.perf_counter()
    product = gathered.product
    problem = problem_of(site, grid, product, gathered.moments)
    before = problem.loss(problem.nearest())  # (G, O)
    signal = problem.loss(torch.zeros_like(problem.weight)) if problem.signal is None else problem.signal
    power = float(signal.double().sum())
    figures = {"before": _share(float(before.sum()), power), "rows": float(problem.rows)}
    solution = _solved(asked, site.path, problem, solve)
    if solution is None:
        return Choice(site, Entry(site.path, "left", _said(gathered.note, "the algorithm leaves it"), figures))
    after = problem.loss(solution.weight)
    figures |= {"after": _share(float(after.sum()), power), **solution.figures}
    note = _said(gathered.note, solution.note)

    def left(reason: str) -> Choice:
        found = figures | {"after": figures["before"], "seconds": time.perf_counter() - start}
        return Choice(site, Entry(site.path, "left", _said(note, reason), found))

    if not solution.on_grid:
        weight = product.stored(solution.weight, site.parameter.shape).to(site.parameter.dtype)
        figures["seconds"] = time.perf_counter() - start
        choice = Choice(site, Entry(site.path, asked, note, figures), weight=weight, as_is=solution.as_is)
        return replace(choice, values=choice.chosen)
    if isinstance(site.quant, GridQuant) and site.quant.fixed and _is_rounded(problem):
        return left(ROUNDED)  # the error would be measured against weights that are rounded, not the float ones
    weight, own = solution.weight, problem.grid if solution.grid is None else solution.grid
    if solution.grid is None:
        better = after < before
        kept = 1 - float(better.double().mean())
        weight = torch.where(better.unsqueeze(-1), weight.to(problem.weight), problem.nearest())
        after = torch.where(better, after, before)
        figures |= {"after": _share(float(after.sum()), power)} | ({"kept": kept} if 0 < kept < 1 else {})
    if not float(after.sum()) < float(before.sum()):
        return left(_not_better(asked, problem, float(before.sum())))
    values = own.levels(weight) * own.spread(own.scales.to(weight))
    seen = site.as_seen(product.stored(values, site.parameter.shape)).to(site.parameter.dtype).contiguous()
    grid = _regridded(grid, own)
    if not _stays(site, seen, grid):
        return left("its quantizer would move weights that lie on its grid already")
    figures["seconds"] = time.perf_counter() - start
    return Choice(site, Entry(site.path, asked, note, figures), grid, seen, stays=not rounds)


ROUNDED = "its weight lies on its grid already"


def _is_rounded(problem: Problem) -> bool:
    return torch.equal(problem.nearest(), problem.weight) and bool(problem.weight.any())


def _not_better(asked: str, problem: Problem, before: float) -> str:
    if _is_rounded(problem):
        return ROUNDED
    if not math.isfinite(before):
        return "its weight or its inputs aren't finite"
    return (
        f"{asked} is not better than round-to-nearest"
        if before > 0
        else "round-to-nearest makes no error with this data"
    )


def _solved(asked: str, path: str, problem: Problem, solve: Solver) -> Solution | None:
    """What a solver returns, if it may.

    Raises:
        GraphError: it is no solution of the problem, or the solver changed the problem, which others have a part in.
    """
    given = {
        name: each for name in ("weight", "gram", "cross", "signal") if (each := getattr(problem, name)) is not None
    }
    versions = {name: each._version for name, each in given.items() if not each.is_inference()}
    found = solve(path, problem)
    for name, version in versions.items():
        if given[name]._version != version:
            raise GraphError(
                f"{asked}: {path}: the solver changed problem.{name} in place, which is measured against, and may "
                f"serve other weights, too. Work on problem.{name}.clone()."
            )
    if found is None:
        return None
    if not isinstance(found, Solution):
        raise GraphError(
            f"{asked}: {path}: the solver returned {type(found).__name__}, which is no solution. Return "
            "Solution(weight), or None to leave the weight."
        )
    weight, wanted = found.weight, tuple(problem.weight.shape)
    if tuple(weight.shape) != wanted:
        raise GraphError(
            f"{asked}: {path}: the solver's weight has the shape {tuple(weight.shape)}, and problem.weight has "
            f"{wanted}: (groups, outputs, inputs)."
        )
    if not found.on_grid:
        return found
    grid = problem.grid if found.grid is None else found.grid
    nearest = grid.nearest(weight)
    sound = bool(problem.weight.isfinite().all())
    if sound and not torch.allclose(weight, nearest, _RELATIVE, _RELATIVE * float(problem.weight.abs().amax())):
        raise GraphError(
            f"{asked}: {path}: the solver's weight is not on its grid: {_farthest(weight, nearest)}. End with "
            "problem.grid.nearest(weight), or write Solution(weight, on_grid=False) for float weights."
        )
    return replace(found, weight=nearest)


def _farthest(weight: Tensor, nearest: Tensor) -> str:
    place = int((weight - nearest).abs().nan_to_num(nan=math.inf).argmax())
    return f"{float(weight.flatten()[place]):.6g} is {float(nearest.flatten()[place]):.6g} there"


def _said(*notes: str) -> str:
    return "; ".join(filter(None, notes))


def _share(loss: float, power: float) -> float:
    return max(loss, 0.0) / power if power > 0 else (0.0 if loss <= 0 else math.inf)


def _regridded(grid: Grid, own: WeightGrid) -> Grid:
    """The grid with the scales and zero points that a solver chose."""
    scale = own.scales.to(grid.scale).reshape(grid.scale.shape)
    zero_point = grid.zero_point
    if zero_point is not None and own.zero_points is not None:
        zero_point = own.zero_points.to(zero_point).reshape(zero_point.shape)
    same = torch.equal(scale, grid.scale)
    if same and (zero_point is None or grid.zero_point is None or torch.equal(zero_point, grid.zero_point)):
        return grid
    return grid.replace(scale=scale, zero_point=zero_point)


def _stays(site: Site, values: Tensor, grid: Grid) -> bool:
    """Whether the quantizer with this grid leaves these values where they are."""
    probe = copy.deepcopy(site.quant)
    assert isinstance(probe, GridQuant)
    probe.fix(grid)
    return torch.equal(probe.eval()._quantize(values)[0], values)

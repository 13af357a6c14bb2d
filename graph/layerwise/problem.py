"""What a layer-wise algorithm works on: weights as matrices, their grid, and the second moments of their inputs."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from ...qcore.formats.number_format import NumberFormat
from ...qcore.rounding import HalfEven
from ..errors import GraphError

__all__ = ["ColumnGrid", "Problem", "Solution", "WeightGrid"]

_HALF_EVEN = HalfEven()


class WeightGrid(NamedTuple):  # `index` hides a method of tuples, which has no use here
    """Where the weights of a `Problem` may lie: ``(level - zero_point) * scale``, with one scale for many weights.

    Args:
        scales: one number for each scale: (S,).
        index: which scale each weight has, broadcastable to the weight matrices: (G | 1, O | 1, n | 1).
        number_format: the levels.
        zero_points: whole numbers like ``scales``, or None for 0.
        allowed: moves scales onto those that the quantizer can have; None where only these are possible.

    Example:
        >>> from bitwright.qcore import Integers
        >>> grid = WeightGrid(torch.tensor([0.5, 2.0]), torch.tensor([[[0], [1]]]), Integers(4))
        >>> grid.nearest(torch.tensor([[[0.7, 9.0], [0.7, 9.0]]]))
        tensor([[[0.5000, 3.5000],
                 [0.0000, 8.0000]]])
    """

    scales: Tensor
    index: Tensor  # type: ignore[assignment]  # a tuple's method has the name
    number_format: NumberFormat
    zero_points: Tensor | None = None
    allowed: Callable[[Tensor], Tensor] | None = None

    def spread(self, numbers: Tensor) -> Tensor:
        """Numbers like ``scales``, broadcastable to the weight matrices."""
        return numbers[self.index]

    def gathered(self, x: Tensor) -> Tensor:
        """The sum of a matrix's entries over the weights that share a scale: (S,)."""
        sums = torch.zeros(self.scales.shape, dtype=x.dtype, device=x.device)
        return sums.index_add_(0, self.index.expand(x.shape).reshape(-1), x.reshape(-1))

    def columns(self, start: int, stop: int) -> "WeightGrid":
        """The same for some columns of the matrices."""
        return self if self.index.shape[2] == 1 else self._replace(index=self.index[:, :, start:stop])

    def permuted(self, order: Tensor) -> "WeightGrid":
        """The same for matrices whose columns were put into another order: (G, n)."""
        if self.index.shape[2] == 1:
            return self
        groups, outputs = max(self.index.shape[0], order.shape[0]), self.index.shape[1]
        index = self.index.expand(groups, -1, -1)
        return self._replace(index=index.gather(2, order.unsqueeze(1).expand(groups, outputs, -1)))

    def sharing(self, inputs: int) -> Tensor:
        """Which columns share their scales: a number for each, from 0 on in order of appearance: (n,).

        Raises:
            GraphError: rows share them in different ways.
        """
        if self.index.shape[2] == 1:
            return torch.zeros(inputs, dtype=torch.int64, device=self.index.device)
        values, of_each = torch.unique(self.index[0, 0], return_inverse=True)
        places = torch.arange(inputs, device=of_each.device)
        starts = torch.full_like(values, inputs).scatter_reduce_(0, of_each, places, "amin")  # where each first appears
        ordered = self.index[:, :, starts].sort(-1).values
        first = starts[of_each]
        alike = torch.equal(self.index[:, :, first], self.index)
        if not alike or bool((ordered[:, :, 1:] == ordered[:, :, :-1]).any()):
            raise GraphError(
                "The scales of a layer's weights are shared by other columns in one row than in another; an algorithm "
                "that takes columns in groups wants PerTensor, PerAxis, PerGroup or PerBlock."
            )
        return torch.argsort(torch.argsort(starts))[of_each]

    def by_column(self, dtype: torch.dtype) -> "ColumnGrid":
        """The same for a loop over columns."""
        zero_points = None if self.zero_points is None else _columns_first(self.spread(self.zero_points.to(dtype)))
        return ColumnGrid(_columns_first(self.spread(self.scales.to(dtype))), self.number_format, zero_points)

    def scaled(self, factors: Tensor) -> "WeightGrid":
        """The same with scales multiplied by factors, (S,) or 0-d, and moved onto those that are allowed."""
        assert self.allowed is not None
        return self._replace(scales=self.allowed(self.scales * factors))

    def levels(self, weight: Tensor) -> Tensor:
        """The levels that weights are moved to, counted from the zero point: what the scale multiplies."""
        return self.rounded(weight / self.spread(self.scales.to(weight)))

    def rounded(self, steps: Tensor, rounding: Callable[[Tensor], Tensor] = _HALF_EVEN) -> Tensor:
        """The same for weights in units of their scale; another rounding decides between the two levels around one."""
        if self.zero_points is None:
            return self.number_format.nearest(steps, rounding)
        return self.number_format.near(steps, rounding, self.spread(self.zero_points.to(steps)))

    def inside(self, steps: Tensor) -> Tensor:
        """Where weights in units of their scale are not clipped, as truth values."""
        if self.zero_points is None:
            return self.number_format.inside(steps, _HALF_EVEN)
        return self.number_format.within(steps, _HALF_EVEN, self.spread(self.zero_points.to(steps)))

    def nearest(self, weight: Tensor) -> Tensor:
        """The values on the grid next to weights."""
        return self.levels(weight) * self.spread(self.scales.to(weight))


class ColumnGrid(NamedTuple):
    """A `WeightGrid` laid out for loops over columns: 512 weights take 11 us instead of 31.

    Args:
        scales: (n | 1, G | 1, O | 1).
        number_format: the levels.
        zero_points: like ``scales``, or None for 0.

    Example:
        >>> from bitwright.qcore import Integers
        >>> grid = WeightGrid(torch.tensor([0.5, 2.0]), torch.tensor([[[0, 1]]]), Integers(4)).by_column(torch.float32)
        >>> grid.nearest(torch.tensor([[0.7, 9.0]]), 0), grid.nearest(torch.tensor([[0.7, 9.0]]), 1)
        (tensor([[0.5000, 3.5000]]), tensor([[0., 8.]]))
    """

    scales: Tensor
    number_format: NumberFormat
    zero_points: Tensor | None

    def nearest(self, weight: Tensor, column: int) -> Tensor:
        """The values on the grid next to one column's weights: (G, O)."""
        column = column if len(self.scales) > 1 else 0
        scales = self.scales[column]
        if self.zero_points is None:
            return self.number_format.inplace(weight / scales, _HALF_EVEN).mul_(scales)
        return self.number_format.near(weight / scales, _HALF_EVEN, self.zero_points[column]) * scales


def _columns_first(spread: Tensor) -> Tensor:
    """(G, O, n) as (n, G, O)."""
    return spread.movedim(2, 0).contiguous()


@dataclass(frozen=True)
class Problem:
    """The weights of a layer and what is known of its inputs; the error of an output is ``W xf - Q xq``.

    All matrices come in groups, as those of a grouped convolution: G of them, each with O outputs and n inputs.

    Args:
        weight: W: (G, O, n), a float matrix, which solvers leave as it is.
        grid: where Q must lie.
        gram: ``E[xq xq']`` of the inputs that the quantized model has there: (G, n, n).
        cross: ``E[xf xq']`` with the inputs of the float model: (G, n, n); None where both have the same.
        signal: ``E[(W xf)**2]`` of each output: (G, O); None for what ``weight`` and ``gram`` say.
        rows: how many inputs the expectations are over.
        rescale: the scales that the quantizer would give columns that share theirs, or these and their zero points;
            called with what these columns have become and the number of the first. None where scales are fixed, or no
            columns share one.

    Example:
        >>> from bitwright.qcore import Integers
        >>> grid = WeightGrid(torch.tensor([1.0]), torch.zeros(1, 1, 1, dtype=torch.int64), Integers(4))
        >>> problem = Problem(torch.tensor([[[0.4, 1.6]]]), grid, torch.eye(2).unsqueeze(0))
        >>> problem.nearest(), problem.loss(problem.nearest())
        (tensor([[[0., 2.]]]), tensor([[0.3200]], dtype=torch.float64))
    """

    weight: Tensor
    grid: WeightGrid
    gram: Tensor
    cross: Tensor | None = None
    signal: Tensor | None = None
    rows: int = 0
    rescale: Callable[[Tensor, int], Tensor | tuple[Tensor, Tensor]] | None = field(default=None, repr=False)

    def nearest(self) -> Tensor:
        """Round to nearest: what the quantizer itself does."""
        return self.grid.nearest(self.weight)

    @property
    def diagonal(self) -> Tensor:
        """The power of each input: (G, n)."""
        return torch.diagonal(self.gram, dim1=-2, dim2=-1)

    @property
    def target(self) -> Tensor:
        """``W C``, what ``Q H`` should come to: (G, O, n)."""
        return self.weight @ (self.gram if self.cross is None else self.cross).to(self.weight)

    def loss(self, weight: Tensor) -> Tensor:
        """The mean squared error of each output with other weights: (G, O), in float64."""
        q, w, gram = weight.double(), self.weight.double(), self.gram.double()
        if self.cross is None:
            return (((q - w) @ gram) * (q - w)).sum(-1)
        signal = ((w @ gram) * w).sum(-1) if self.signal is None else self.signal.double()
        return ((q @ gram - 2 * (w @ self.cross.double())) * q).sum(-1) + signal

    def with_grid(self, grid: WeightGrid) -> "Problem":
        """The same with another grid."""
        return replace(self, grid=grid)


@dataclass(frozen=True)
class Solution:
    """What a solver found.

    Args:
        weight: Q: (G, O, n).
        grid: where it lies, if that is not the grid of the problem: another ``scales``, the rest alike.
        on_grid: whether it lies on a grid: False for a solver that prepares float weights, such as MagR.
        as_is: whether, off the grid, it is what the layer multiplies by in the rest of the walk, and not quantized: for
            a weight with a branch of floats beside it.
        figures: numbers for the report, such as ``damping``.
        note: what a user should know.

    Example:
        >>> Solution(torch.zeros(1, 2, 3), figures={"damping": 0.01}).on_grid
        True
    """

    weight: Tensor
    grid: WeightGrid | None = None
    on_grid: bool = True
    as_is: bool = False
    figures: dict[str, float] = field(default_factory=dict)
    note: str = ""

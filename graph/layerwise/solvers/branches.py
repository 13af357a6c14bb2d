"""Low-rank corrections: what quantization takes from a weight, given back by two thin matrices of floats."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from ...errors import GraphError
from ..problem import Problem, WeightGrid
from .factors import factorize, is_dead
from .ranges import largest_of

__all__ = ["Branch", "LowRankMethod", "first_directions", "low_rank"]

LowRankMethod: TypeAlias = Literal["lqer", "qera", "lorc", "svd"]
DAMPING = 0.01  # of what is divided by, see `factorize`


@dataclass(frozen=True)
class Branch:
    """Two thin matrices whose product is added to a quantized weight: ``(Q + up @ down) xq``.

    Args:
        up: (G, O, r), with orthonormal columns.
        down: (G, r, n).
        rest: what is to be quantized: the weight, or what the branch leaves of it, by ``method="svd"``: (G, O, n).
        figures: numbers for the report: ``rank``, and ``left``, the share of the mean squared error of the quantized
            weight that the branch leaves.

    Example:
        >>> branch = Branch(torch.ones(1, 2, 1), torch.tensor([[[1.0, 2.0, 3.0]]]), torch.zeros(1, 2, 3))
        >>> branch.weight
        tensor([[[1., 2., 3.],
                 [1., 2., 3.]]])
    """

    up: Tensor
    down: Tensor
    rest: Tensor
    figures: dict[str, float] = field(default_factory=dict)

    @property
    def weight(self) -> Tensor:
        """The product of both: (G, O, n)."""
        return self.up @ self.down


def low_rank(problem: Problem, rank: int, method: LowRankMethod = "lqer", *, quantized: Tensor | None = None) -> Branch:
    """The matrix of a given rank that corrects a quantized weight best.

    Of all matrices of rank r, ``U U' E`` brings the outputs nearest to ``E x``, where the columns of U are the first r
    eigenvectors of ``E H E'``, the second moments of the outputs' error. The methods differ in H and E:

    - ``qera``: H is the Gram matrix of the inputs: the optimum. Where the quantized model has other inputs than the
      float one, E leads to the outputs of the float model.
    - ``lqer``: H is its diagonal, which fewer samples determine.
    - ``lorc``: H is the identity: the error of the weight counts, whatever the inputs are.
    - ``svd``: likewise, and E is the weight itself instead of its error. What this branch leaves is quantized, on a
      grid that follows its smaller range.

    Only ``qera`` with two kinds of inputs divides by H: inputs that are always zero do no harm. Everything is computed
    in float64.

    Args:
        problem: the weight, its grid, and its inputs.
        rank: r, not above the number of outputs or inputs.
        method: see above.
        quantized: what the weight was quantized to, (G, O, n); round to nearest by default. Not for ``svd``.

    Raises:
        GraphError: a rank that is no whole number from 1 to the smaller side of the weight, another method, or
            ``quantized`` with ``svd``.

    References:
        Yao et al., "ZeroQuant-V2", 2023 (LoRC); Zhang et al., "LQER: Low-Rank Quantization Error Reconstruction for
        LLMs", 2024; Zhang et al., "QERA: an Analytical Framework for Quantization Error Reconstruction", 2024; Li et
        al., "SVDQuant", 2024.

    Example:
        >>> from bitwright.qcore import Integers
        >>> grid = WeightGrid(torch.tensor([1.0]), torch.zeros(1, 1, 1, dtype=torch.int64), Integers(4))
        >>> weight = torch.tensor([[[1.25, 2.25], [3.0, 1.0]]])
        >>> low_rank(Problem(weight, grid, torch.eye(2).unsqueeze(0)), rank=1).weight
        tensor([[[0.2500, 0.2500],
                 [0.0000, 0.0000]]])
    """
    if method not in METHODS:
        raise GraphError(f"low_rank: method={method!r} is none of {', '.join(METHODS)}.")
    outputs, inputs = problem.weight.shape[1:]
    if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= min(outputs, inputs):
        raise GraphError(
            f"low_rank: rank={rank!r} is not possible for a weight of {outputs} outputs and {inputs} inputs. Pass a "
            f"whole number from 1 to {min(outputs, inputs)}."
        )
    if method == "svd" and quantized is not None:
        raise GraphError('low_rank: method="svd" quantizes what the branch leaves. Leave quantized out.')
    before = problem.nearest() if quantized is None else quantized
    missing, spread = METHODS[method](problem, before.double())
    up = first_directions(spread, rank)
    down = (up.mT @ missing).to(problem.weight)
    up = up.to(problem.weight)
    rest, after = problem.weight, before
    if method == "svd":
        rest = problem.weight - up @ down
        after = _following(problem, rest).nearest(rest)
    losses = [float(problem.loss(each).sum()) for each in (before, after + up @ down)]
    return Branch(up, down, rest, {"rank": rank, "left": losses[1] / losses[0] if losses[0] > 0 else 1.0})


# What is missing, (G, O, n), and a matrix whose product with itself transposed is the second moments of the outputs


def _by_weight(problem: Problem, before: Tensor) -> tuple[Tensor, Tensor]:
    missing = problem.weight.double() - before
    return missing, missing


def _by_power(problem: Problem, before: Tensor) -> tuple[Tensor, Tensor]:
    missing = problem.weight.double() - before
    return missing, missing * problem.diagonal.double().clamp(min=0).sqrt().unsqueeze(1)


def _by_gram(problem: Problem, before: Tensor) -> tuple[Tensor, Tensor]:
    weight, gram = problem.weight.double(), problem.gram.double()
    missing = weight - before
    if problem.cross is not None:
        factor = factorize(problem.gram, DAMPING)
        more = factor.solved(weight @ (problem.cross.double() - gram)).double()
        missing = missing + torch.where(factor.failed.reshape(-1, 1, 1), 0, more)
    alive = ~is_dead(problem.gram).unsqueeze(1)
    return missing, (missing * alive) @ factorize(problem.gram, 0.0).upper.double()


def _whole(problem: Problem, before: Tensor) -> tuple[Tensor, Tensor]:
    return problem.weight.double(), problem.weight.double()


METHODS: dict[str, Callable[[Problem, Tensor], tuple[Tensor, Tensor]]] = {
    "lqer": _by_power,
    "qera": _by_gram,
    "lorc": _by_weight,
    "svd": _whole,
}


def first_directions(spread: Tensor, rank: int) -> Tensor:
    """The first left singular vectors of a matrix, by the smaller of its two products with itself: (G, O, r)."""
    if spread.shape[1] <= spread.shape[2]:
        return torch.linalg.eigh(spread @ spread.mT).eigenvectors[..., -rank:].flip(-1)
    right = torch.linalg.eigh(spread.mT @ spread).eigenvectors[..., -rank:].flip(-1)
    return torch.linalg.qr(spread @ right).Q


def _following(problem: Problem, rest: Tensor) -> WeightGrid:
    """The grid with scales that shrink like the largest magnitude of the weights that have them."""
    ranges = [largest_of(problem.grid, each) for each in (problem.weight, rest)]
    ratio = torch.where((ranges[0] > 0) & (ranges[1] > 0), ranges[1] / ranges[0], 1)
    return problem.grid._replace(scales=problem.grid.scales * ratio)

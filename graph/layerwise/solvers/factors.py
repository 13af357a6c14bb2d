"""Cholesky factors of second moments: damping, inputs that are always 0, and what is done where there is no factor."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ...errors import GraphError

__all__ = ["Factor", "check_damping", "exact_dtype", "factorize", "is_dead", "is_finite", "mean_power", "unusable"]

_EXACT = 2048  # inputs up to which float64 costs little; beyond, it is for what fails in float32
_LEAST = 1e-4  # the damping that follows 0


class Factor(NamedTuple):
    """Upper triangular factors, ``H + damping * mean_power(H) * I = upper @ upper.T``.

    The factor of the second moments of the last k inputs alone is the last k rows and columns of it.

    Args:
        upper: (G, n, n); the identity where there is no factor.
        damping: what was added, in units of the mean power of the inputs: (G,).
        failed: for which groups there is no factor: (G,).
        finite: for which groups the second moments are numbers: (G,).

    Example:
        >>> factor = factorize(torch.tensor([[[2.0, 1.0], [1.0, 1.0]]]), damping=0.0)
        >>> factor.upper
        tensor([[[1., 1.],
                 [0., 1.]]], dtype=torch.float64)
    """

    upper: Tensor
    damping: Tensor
    failed: Tensor
    finite: Tensor

    def feedback(self, dtype: torch.dtype) -> Tensor:
        """How much of the error of column i column j is to take in: row j, column i < j: (G, n, n)."""
        diagonal = torch.diagonal(self.upper, dim1=-2, dim2=-1)
        return (self.upper / diagonal.unsqueeze(-2)).to(dtype).mT.contiguous()

    def solved(self, right: Tensor) -> Tensor:
        """``right @ inverse(upper @ upper.T)``: (G, O, n)."""
        half = torch.linalg.solve_triangular(self.upper.mT, right.to(self.upper), upper=False, left=False)
        return torch.linalg.solve_triangular(self.upper, half, upper=True, left=False)

    def trailing(self) -> "Factor":
        """The factor without the first input."""
        return self._replace(upper=self.upper[:, 1:, 1:])

    def figures(self) -> dict[str, float]:
        """The largest damping, for a report."""
        return {"damping": float(self.damping.max())} if len(self.damping) else {}

    def note(self, damping: float) -> str:
        """What became of the damping that was asked for."""
        groups, failed = len(self.failed), int((self.failed & self.finite).sum())
        raised = int((~self.failed & (self.damping > damping)).sum())
        notes = []
        if raised:
            most = float(self.damping[~self.failed].max())
            notes.append(f"damping raised from {damping:g}, up to {most:g}{_of(raised, groups)}")
        if failed:
            why = "the second moments of the inputs have no Cholesky factor, even with damping 1"
            notes.append(f"rounded to nearest{_of(failed, groups)}: {why}")
        return "; ".join([*notes, *unusable(self.finite, "rounded to nearest")])


def unusable(finite: Tensor, outcome: str) -> list[str]:
    """A note on second moments that aren't numbers, where there are such.

    Example:
        >>> unusable(torch.tensor([True, False]), "rounded to nearest")
        ["rounded to nearest for 1 of 2 groups: the second moments of the inputs aren't finite"]
    """
    some = int((~finite).sum())
    where = _of(some, len(finite))
    return [f"{outcome}{where}: the second moments of the inputs aren't finite"] if some else []


def _of(some: int, groups: int) -> str:
    """How many of a layer's groups, if it has several."""
    return "" if groups == 1 else f" for {some} of {groups} groups"


def check_damping(algorithm: str, damping: float) -> None:
    """Raise a `GraphError` where a damping is no number from 0 to 1."""
    if isinstance(damping, bool) or not isinstance(damping, (int, float)) or not 0 <= damping <= 1:
        raise GraphError(
            f"{algorithm}: damping={damping!r} is not a number from 0 to 1, in units of the mean power of a layer's "
            "inputs; 0.01 is usual."
        )


def is_dead(gram: Tensor) -> Tensor:
    """Which inputs are 0 always: their weights change nothing: (G, n)."""
    return torch.diagonal(gram, dim1=-2, dim2=-1) == 0


def is_finite(gram: Tensor, cross: Tensor | None = None) -> Tensor:
    """For which groups all second moments are numbers: (G,)."""
    sums = gram.sum((-2, -1), dtype=torch.float64)
    return (sums if cross is None else sums + cross.sum((-2, -1), dtype=torch.float64)).isfinite()


def exact_dtype(inputs: int) -> torch.dtype:
    """What factors and products of so many inputs are worked out in: float64 where it costs little."""
    return torch.float64 if inputs <= _EXACT else torch.float32


def mean_power(gram: Tensor) -> Tensor:
    """The mean power of the inputs, in float64; 1 where all are 0: (G,)."""
    mean = torch.diagonal(gram, dim1=-2, dim2=-1).double().mean(-1)
    return torch.where(mean == 0, 1.0, mean)


def factorize(gram: Tensor, damping: float, finite: Tensor | None = None) -> Factor:
    """Factors of second moments with some damping; the first that there is of a ladder of tries.

    Float64 comes first, float32 before it beyond 2048 inputs; then ten times the damping, and again, up to 1. Inputs
    that are 0 always are given the mean power, which changes nothing for the others.

    Args:
        gram: H: (G, n, n).
        damping: what to add to the diagonal, in units of `mean_power`.
        finite: for which groups all second moments are numbers; None for those where ``gram`` is: (G,).

    Example:
        >>> factor = factorize(torch.full((1, 2, 2), 4.0), damping=0.0)
        >>> factor.note(0.0)
        'damping raised from 0, up to 0.0001'
    """
    groups, inputs = gram.shape[:2]
    power, dead = mean_power(gram), is_dead(gram)
    exact = exact_dtype(inputs)
    upper = torch.eye(inputs, dtype=exact, device=gram.device).repeat(groups, 1, 1)
    used = torch.full((groups,), float(damping), dtype=torch.float64, device=gram.device)
    finite = is_finite(gram) if finite is None else finite
    left = finite.nonzero().squeeze(1)  # groups without a factor so far
    failed = torch.ones(groups, dtype=torch.bool, device=gram.device)
    for dtype, added in _ladder(damping, exact):
        if not len(left):
            break
        tried = gram[left].to(dtype, copy=True)
        diagonal = torch.diagonal(tried, dim1=-2, dim2=-1)
        diagonal += torch.where(dead[left], power[left].unsqueeze(1), 0.0).to(dtype)
        diagonal += (added * power[left]).to(dtype).unsqueeze(1)
        lower, info = torch.linalg.cholesky_ex(tried.flip(-2, -1))
        found = (info == 0) & torch.diagonal(lower, dim1=-2, dim2=-1).sum(-1).isfinite()
        upper[left[found]] = lower[found].flip(-2, -1).to(exact)
        used[left[found]], failed[left[found]] = added, False
        left = left[~found]
    used[failed] = 1.0
    return Factor(upper, used, failed, finite)


def _ladder(damping: float, exact: torch.dtype) -> Iterator[tuple[torch.dtype, float]]:
    """What to try, one after the other."""
    if exact != torch.float64:
        yield exact, damping
    yield torch.float64, damping
    while damping < 1:
        damping = min(1.0, max(10 * damping, _LEAST))
        yield torch.float64, damping

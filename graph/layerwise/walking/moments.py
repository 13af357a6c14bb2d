"""Second moments of a layer's inputs, gathered batch by batch."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ....qcore.scaling.pooling import distributed, summed

__all__ = ["Moments", "Sums"]


@dataclass(frozen=True)
class Sums:
    """The products of some inputs, summed up: what several weights that read the same have in common.

    Attributes:
        count: how many inputs.
        gram, cross, power: sums of ``xq xq'``, ``xf xq'`` and ``xf xf'``: (G, n, n).

    Example:
        >>> sums = Sums.of(torch.tensor([[[1.0, 2.0]], [[3.0, 0.0]]]))
        >>> sums.count, sums.gram.tolist()
        (2, [[[10.0, 2.0], [2.0, 4.0]]])
    """

    count: int
    gram: Tensor
    cross: Tensor | None = None
    power: Tensor | None = None

    @staticmethod
    @torch.no_grad()
    def of(rows: Tensor, floats: Tensor | None = None) -> "Sums":
        """Sum up.

        Args:
            rows: of the quantized model: (R, G, n).
            floats: those of the float model in their place, or None.
        """
        inputs = rows.float().permute(1, 2, 0)  # (G, n, R)
        gram = inputs @ inputs.mT
        if floats is None:
            return Sums(rows.shape[0], gram)
        wanted = floats.float().permute(1, 2, 0)
        return Sums(rows.shape[0], gram, wanted @ inputs.mT, wanted @ wanted.mT)


class Moments:
    """What `Problem` needs to know of the inputs of a weight; each row of data weighs the same, however it comes.

    Attributes:
        count: rows so far.

    Example:
        >>> moments = Moments()
        >>> moments.add(Sums.of(torch.tensor([[[1.0, 2.0]], [[3.0, 0.0]]])))
        >>> moments.add(Sums.of(torch.tensor([[[2.0, 1.0]]])))
        >>> moments.count, moments.gram
        (3, tensor([[[4.6667, 1.3333],
                 [1.3333, 1.6667]]]))
    """

    def __init__(self) -> None:
        self.count = 0
        self._gram: Tensor | None = None
        self._cross: Tensor | None = None
        self._power: Tensor | None = None

    @torch.no_grad()
    def add(self, sums: Sums) -> None:
        """Count inputs in."""
        if not sums.count:
            return
        self.count += sums.count
        share = sums.count / self.count
        self._gram = _averaged(self._gram, sums.gram, share, sums.count)
        if sums.cross is not None and sums.power is not None:
            self._cross = _averaged(self._cross, sums.cross, share, sums.count)
            self._power = _averaged(self._power, sums.power, share, sums.count)

    def pool(self, groups: int, inputs: int, device: torch.device, crossed: bool) -> None:
        """Join what several processes gathered, so that each has the whole.

        Args:
            groups: G, for a process that saw nothing.
            inputs: n, for the same.
            device: for the same.
            crossed: whether there are inputs of the float model.
        """
        if not distributed():
            return
        counts = summed(torch.tensor([float(self.count)], dtype=torch.float64, device=device))
        share = self.count / max(float(counts), 1.0)
        parts = [self._gram, self._cross, self._power] if crossed else [self._gram]
        empty = torch.zeros(groups, inputs, inputs, device=device)
        pooled = [summed(empty if each is None else each * share) for each in parts]
        self.count = int(counts)
        self._gram, self._cross, self._power = (*pooled, None, None)[:3] if self.count else (None, None, None)

    @staticmethod
    def stacked(parts: Sequence[tuple["Moments", int]]) -> "Moments":
        """The moments of groups that were gathered one by one, each for some groups of a weight."""
        if len(parts) == 1 and parts[0][1] == 1:
            return parts[0][0]
        found = Moments()
        found.count = min(each.count for each, _ in parts)
        lists = [[each._gram, each._cross, each._power] for each, copies in parts for _ in range(copies)]
        joined = [_joined([each[k] for each in lists]) for k in range(3)] if found.count else [None] * 3
        found._gram, found._cross, found._power = joined
        return found

    @property
    def gram(self) -> Tensor:
        """``E[xq xq']``: (G, n, n)."""
        assert self._gram is not None
        return self._gram

    @property
    def cross(self) -> Tensor | None:
        """``E[xf xq']``: (G, n, n); None where no inputs of the float model were added."""
        return self._cross

    def signal(self, weight: Tensor) -> Tensor | None:
        """``E[(W xf)**2]`` of each output of a weight: (G, O); None without the inputs of the float model."""
        if self._power is None:
            return None
        wide = weight.double()
        return ((wide @ self._power.double()) * wide).sum(-1)


def _averaged(before: Tensor | None, total: Tensor, share: float, rows: int) -> Tensor:
    """The mean so far, with the sum over some rows more, which are a share of all."""
    mean = total / rows
    return mean if before is None else before.lerp_(mean, share)


def _joined(matrices: Sequence[Tensor | None]) -> Tensor | None:
    found = [each for each in matrices if each is not None]
    return torch.cat(found) if len(found) == len(matrices) else None

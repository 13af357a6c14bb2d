"""Second moments of a layer's inputs, gathered batch by batch."""

import torch
from torch import Tensor

from ....qcore.scaling.pooling import distributed, summed

__all__ = ["Moments"]


class Moments:
    """What `Problem` needs to know of the inputs of a weight; each row of data weighs the same, however it comes.

    Attributes:
        count: rows so far.

    Example:
        >>> moments = Moments()
        >>> moments.add(torch.tensor([[[1.0, 2.0]], [[3.0, 0.0]]]))
        >>> moments.add(torch.tensor([[[2.0, 1.0]]]))
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
    def add(self, rows: Tensor, floats: Tensor | None = None) -> None:
        """Count rows in.

        Args:
            rows: of the quantized model: (R, G, n).
            floats: those of the float model in their place, or None.
        """
        count = rows.shape[0]
        if not count:
            return
        self.count += count
        share = count / self.count
        inputs = rows.float().permute(1, 2, 0)  # (G, n, R)
        self._gram = _averaged(self._gram, inputs @ inputs.mT, share, count)
        if floats is not None:
            wanted = floats.float().permute(1, 2, 0)
            self._cross = _averaged(self._cross, wanted @ inputs.mT, share, count)
            self._power = _averaged(self._power, wanted @ wanted.mT, share, count)

    def pool(self) -> None:
        """Join what several processes gathered, so that each has the whole."""
        if not distributed():
            return
        some = next(each for each in (self._gram, self._cross, self._power) if each is not None)
        counts = summed(torch.tensor([float(self.count)], dtype=torch.float64, device=some.device))
        share = self.count / float(counts)
        self._gram, self._cross, self._power = (
            None if each is None else summed(each * share) for each in (self._gram, self._cross, self._power)
        )
        self.count = int(counts)

    def split(self) -> "Moments":
        """A copy that goes its own way."""
        other = Moments()
        parts = (self._gram, self._cross, self._power)
        other._gram, other._cross, other._power = (None if each is None else each.clone() for each in parts)
        other.count = self.count
        return other

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

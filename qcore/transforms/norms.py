"""Norms of a weight's output channels: measured first, then learned."""

import torch
from torch import Tensor
from torch.types import Device

from ..errors import SettingError
from ..formats.odd_integers import BINARY
from ..granularity import PerAxis
from ..scaling.stored import LearnedScaling

__all__ = ["ChannelNorm", "LearnedNorm", "above_zero", "beside", "by_channel"]

_PER_ROW = PerAxis(0)
_SMALLEST = 1e-30  # what norms are divided by at least: a channel of zeros stays one


class ChannelNorm:
    """A norm of each row: the sum of magnitudes, or the Euclidean length.

    Args:
        norm_order: 1 or 2.

    Raises:
        SettingError: another order.

    Example:
        >>> rows = torch.tensor([[3.0, -4.0]])
        >>> ChannelNorm(1)(rows), ChannelNorm(2)(rows)
        (tensor([7.]), tensor([5.]))
    """

    def __init__(self, norm_order: int = 2) -> None:
        if isinstance(norm_order, bool) or norm_order not in (1, 2):
            raise SettingError("norm_order", norm_order, "1, the sum of magnitudes, or 2, the Euclidean length")
        self.order = norm_order

    def __call__(self, rows: Tensor) -> Tensor:
        """The norm of each row."""
        return rows.abs().sum(1) if self.order == 1 else torch.linalg.vector_norm(rows, dim=1)

    def above_zero(self, rows: Tensor) -> Tensor:
        """The same, fit to divide by."""
        return above_zero(self(rows))

    def __repr__(self) -> str:
        return f"ChannelNorm({self.order})"


class LearnedNorm(LearnedScaling):
    """A number for each output channel that starts as the norm of its weights, and is learned by its logarithm.

    Until the first training forward it follows the weight. What is learned is the base-2 logarithm of its ratio to the
    start, which is 0 at first, so that nothing is rounded at the start.

    Args:
        norm: what the start is measured by: rows to one number each.
        channels: how many rows there are.

    Example:
        >>> norm = LearnedNorm(ChannelNorm(1), channels=1)
        >>> norm(torch.tensor([[3.0, -4.0]])), norm.magnitude_offset
        (tensor([[7.]], grad_fn=<ViewBackward0>), Parameter containing:
        tensor([0.], requires_grad=True))
    """

    def __init__(
        self,
        norm: ChannelNorm,
        channels: int | None = None,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(BINARY, _Start(norm), granularity=_PER_ROW, channels=channels, device=device, dtype=dtype)

    def _in_use(self, name: str) -> Tensor:
        base, ratio = self._measurement(name), self.magnitude_offset
        assert ratio is not None
        return base * torch.exp2(ratio)

    def extra_repr(self) -> str:
        return f"{self.statistic!r}, {self.progress()}"


class _Start:
    """The norm that a channel starts with; one of zeros, which has no length to keep, starts with 1."""

    def __init__(self, norm: ChannelNorm) -> None:
        self.norm = norm

    def __call__(self, rows: Tensor) -> Tensor:
        found = self.norm(rows)
        return torch.where(found < _SMALLEST, 1.0, found)

    def __repr__(self) -> str:
        return repr(self.norm)


def above_zero(norms: Tensor) -> Tensor:
    """Norms fit to divide by: none is 0, and one of values that are no numbers is infinite.

    Example:
        >>> above_zero(torch.tensor([2.0, 0.0, float("nan")]))
        tensor([2.0000e+00, 1.0000e-30,        inf])
    """
    return torch.where(norms < _SMALLEST, _SMALLEST, torch.nan_to_num(norms, torch.inf, torch.inf))


def by_channel(weight: Tensor, channel_axis: int) -> Tensor:
    """The weights as rows: one for each output channel.

    Example:
        >>> by_channel(torch.ones(4, 3, 5, 5), 1).shape, by_channel(torch.ones(6), 0).shape
        (torch.Size([3, 100]), torch.Size([6, 1]))
    """
    return PerAxis(channel_axis).rows(weight)


def beside(numbers: Tensor, weight: Tensor, channel_axis: int) -> Tensor:
    """A number for each output channel, shaped to multiply a weight.

    Example:
        >>> beside(torch.tensor([2.0, 3.0]), torch.ones(4, 2, 5), 1).shape
        torch.Size([1, 2, 1])
    """
    return PerAxis(channel_axis).compact(numbers, weight.shape)

"""Rounding up or down as training decides for each weight."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.types import Device

from ..errors import SettingError
from ..granularity import Granularity, PerTensor

__all__ = ["LearnedRounding", "stretched_logit", "stretched_sigmoid", "stretched_slope"]

_LOW, _HIGH = -0.1, 1.1  # the sigmoid is stretched to these, so that it reaches 0 and 1


def stretched_sigmoid(parameter: Tensor, out: Tensor | None = None) -> Tensor:
    """AdaRound's ``h`` from 0 to 1: a sigmoid stretched to -0.1 and 1.1, and clipped.

    Args:
        parameter: any numbers.
        out: where the result is written, without gradients.

    Example:
        >>> stretched_sigmoid(torch.tensor([-9.0, 0.0, 9.0]))
        tensor([0.0000, 0.5000, 1.0000])
    """
    if out is None:
        return (torch.sigmoid(parameter) * (_HIGH - _LOW) + _LOW).clamp(0, 1)
    return torch.sigmoid(parameter, out=out).mul_(_HIGH - _LOW).add_(_LOW).clamp_(0, 1)


def stretched_slope(share: Tensor, out: Tensor | None = None) -> Tensor:
    """The derivative of `stretched_sigmoid` where it is ``share``: 0 where it is clipped.

    Example:
        >>> stretched_slope(torch.tensor([0.0, 0.5, 1.0]))
        tensor([0.0000, 0.3000, 0.0000])
    """
    slope = torch.mul(share - _LOW, _HIGH - share, out=out).mul_(1 / (_HIGH - _LOW))
    return slope.masked_fill_((share == 0) | (share == 1), 0)


def stretched_logit(share: Tensor) -> Tensor:
    """The inverse of `stretched_sigmoid`.

    Example:
        >>> stretched_sigmoid(stretched_logit(torch.tensor([0.0, 0.3, 1.0])))
        tensor([0.0000, 0.3000, 1.0000])
    """
    return torch.logit((share - _LOW) / (_HIGH - _LOW))


class LearnedRounding(nn.Module):
    """Up or down, as training decides for each weight: AdaRound (Nagel et al., Up or Down?, 2020).

    In training a number is ``floor(x) + h`` with ``h`` from 0 to 1, a stretched and clipped sigmoid of a parameter; it
    starts where numbers stay as they are. `penalty` pulls each ``h`` to 0 or 1. In evaluation numbers go up where ``h``
    is above one half: at the start, to nearest, ties to even.

    The parameter is the distance from that start, 0 for every weight, and so depends on no data. It is meant for
    weights that stay as they are, while their rounding is learned.

    Args:
        shape: of the weight.
        granularity: which weights share a scale.
        device: of the parameter.
        dtype: of the parameter, float32 or float64; narrower ones are widened.

    Raises:
        SettingError: no shape: what is quantized is no weight.

    Example:
        >>> rounding = LearnedRounding((3,))
        >>> x = torch.tensor([0.25, 1.75, 2.0])
        >>> rounding(x)
        tensor([0.2500, 1.7500, 2.0000], grad_fn=<AddBackward0>)
        >>> with torch.no_grad():
        ...     _ = rounding.offset.copy_(torch.tensor([9.0, 0.0, 0.0]))
        >>> rounding.eval()(x)
        tensor([1., 2., 2.])
    """

    name = "learned"
    deterministic = True
    straight_through = False

    def __init__(
        self,
        shape: Sequence[int] | None = None,
        granularity: Granularity | None = None,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if shape is None:
            expected = "another rounding: there is one parameter for each number of a weight"
            raise SettingError("rounding", "learned", expected, "Write rounding='half_even'.")
        self.granularity = PerTensor() if granularity is None else granularity
        wide = torch.promote_types(dtype or torch.float32, torch.float32)
        self.offset = nn.Parameter(torch.zeros(tuple(shape), device=device, dtype=wide))

    def reset_parameters(self) -> None:
        """Go back to the start: each number to nearest."""
        with torch.no_grad():
            self.offset.zero_()

    def share(self, x: Tensor) -> Tensor:
        """What is added to ``floor(x)``, from 0 to 1; differentiable by the parameter.

        Args:
            x: the weight in units of its scale, shaped like the weight, or its rows of one scale each.
        """
        offset = self.offset.to(x.dtype) if x.shape == self.offset.shape else self._rows().to(x.dtype)
        fraction = (x - torch.floor(x)).detach()
        return stretched_sigmoid(stretched_logit(fraction) + offset)

    def _rows(self) -> Tensor:
        return self.granularity.view(self.offset)

    def forward(self, x: Tensor) -> Tensor:
        """The numbers between ``floor(x)`` and the next, in training; one of both in evaluation."""
        floor = torch.floor(x)
        share = self.share(x)
        if self.training:
            return floor.detach() + share + (x - x.detach())
        offset = self.offset if x.shape == self.offset.shape else self._rows()
        return torch.where(offset == 0, torch.round(x), floor + (share > 0.5).to(x.dtype)).detach()

    def penalty(self, x: Tensor, beta: float = 20.0) -> Tensor:
        """How undecided the rounding is: the sum of ``1 - |2 h - 1|**beta``, AdaRound's regularizer; 0-d.

        Args:
            x: the weight in units of its scale.
            beta: large at the start, when nearly every ``h`` is free, and small at the end; AdaRound goes from 20 to 2.

        Example:
            >>> LearnedRounding((2,)).penalty(torch.tensor([0.5, 2.0]), beta=2.0)
            tensor(1., grad_fn=<SumBackward0>)
        """
        return (1 - (2 * self.share(x) - 1).abs().pow(beta)).sum()

    def extra_repr(self) -> str:
        return f"{tuple(self.offset.shape)}"

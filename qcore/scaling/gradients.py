"""How strongly a learned scale follows its gradient."""

import math
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from ..declare.inject import register_choices
from ..errors import SettingError
from ..granularity import Granularity
from ..protocols import Levels
from .restriction import FloatScale

__all__ = ["SCALE_GRADIENTS", "LSQGradient", "ScaleGradient", "checked_gradient", "scaled_gradient"]


@runtime_checkable
class ScaleGradient(Protocol):
    """What the gradient of a learned range is multiplied by.

    The parameter of a learned range is the magnitude M that the largest level T stands for: the scale is M / T.

    Example:
        >>> from bitwright.qcore import SCALE_GRADIENTS
        >>> all(isinstance(each(), ScaleGradient) for each in SCALE_GRADIENTS.values())
        True
    """

    def factor(self, sharing: int, number_format: Levels) -> float | Tensor:
        """The factor for the gradient of M, where ``sharing`` values have one scale."""
        ...


class LSQGradient:
    """The factor of LSQ: ``1 / sqrt(N * Qp)`` for the step size, where N values share it and Qp is the highest level.

    The paper's parameter is the step s, and that of a learned range is the magnitude ``M = T * s``. So that SGD moves s
    by the paper's amount, M moves T times as far, and its gradient, which is that of s over T, is multiplied by
    ``T**2 / sqrt(N * Qp)``. N counts the weights of a parameter, and the features of one sample of an activation,
    whose first dimension is the batch. Esser et al., "Learned Step Size Quantization", 2020, section 2.2.

    Example:
        >>> from bitwright.qcore import IntRange
        >>> LSQGradient().factor(700, IntRange(4, signed=True))  # 8 * 8 / sqrt(700 * 7)
        0.9142857142857143
    """

    def factor(self, sharing: int, number_format: Levels) -> float | Tensor:
        """The factor for the gradient of the magnitude."""
        threshold, high = number_format.threshold, number_format.settled().high
        if isinstance(threshold, Tensor) or isinstance(high, Tensor):
            return torch.as_tensor(threshold).detach() ** 2 / torch.as_tensor(high * sharing).detach().sqrt()
        return threshold**2 / math.sqrt(sharing * high)

    def __repr__(self) -> str:
        return "LSQGradient()"


SCALE_GRADIENTS = register_choices("scale_gradient", {"lsq": LSQGradient})


def checked_gradient(found: object, restriction: object) -> ScaleGradient | None:
    """What multiplies the gradient of a learned range, or a `SettingError`."""
    if found is None:
        return None
    if not isinstance(found, ScaleGradient) or isinstance(found, type):
        names = ", ".join(map(repr, SCALE_GRADIENTS))
        expected = f"one of {names}, None, or a class of your own with a method `factor(sharing, number_format)`"
        raise SettingError("scale_gradient", found, expected)
    if getattr(type(restriction), "store", None) is not FloatScale.store:
        expected = f"None: {restriction!r} stores another number than the range itself, which has another gradient"
        raise SettingError("scale_gradient", found, expected, "Write restriction='float'.")
    return found


def sharing_one_scale(granularity: Granularity, shape: Sequence[int], of_parameter: bool) -> int:
    """How many values share a scale: of a parameter, or of one sample of an activation.

    Example:
        >>> from bitwright.qcore import PerAxis, PerTensor
        >>> sharing_one_scale(PerTensor(), (16, 3, 4), False), sharing_one_scale(PerAxis(0), (16, 3, 4), True)
        (12, 12)
    """
    block = granularity.block(shape)
    return max(math.prod(block if of_parameter or len(block) < 2 else block[1:]), 1)


def scaled_gradient(x: Tensor, factor: float | Tensor) -> Tensor:
    """The same values, whose gradient is multiplied by a factor.

    Example:
        >>> x = torch.tensor(3.0, requires_grad=True)
        >>> torch.autograd.grad(scaled_gradient(x, 0.5), x)
        (tensor(0.5000),)
    """
    known = x.detach()
    return known + (x - known) * factor

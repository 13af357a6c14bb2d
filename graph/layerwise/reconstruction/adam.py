"""Adam for parameters whose gradients are at hand."""

import math

import torch
from torch import Tensor

__all__ = ["Adam"]

_MEAN, _SQUARE = 0.9, 0.99  # not 0.999: a block takes some hundred steps, and its gradients shrink on the way


class Adam:
    """Adam (Kingma and Ba, 2014), in place.

    Args:
        parameter: what is learned.
        learning_rate: how far it moves in one step, about.

    Example:
        >>> parameter = torch.zeros(2)
        >>> Adam(parameter, 0.5).step(torch.tensor([3.0, -0.1]))
        >>> parameter
        tensor([-0.5000,  0.5000])
    """

    def __init__(self, parameter: Tensor, learning_rate: float) -> None:
        self.parameter, self.learning_rate = parameter, learning_rate
        self._mean, self._square = torch.zeros_like(parameter), torch.zeros_like(parameter)
        self._steps = 0

    @torch.no_grad()
    def step(self, gradient: Tensor) -> None:
        """Move against a gradient."""
        self._steps += 1
        self._mean.lerp_(gradient, 1 - _MEAN)
        self._square.mul_(_SQUARE).addcmul_(gradient, gradient, value=1 - _SQUARE)
        unbiased = math.sqrt(1 - _SQUARE**self._steps)
        root = self._square.sqrt().add_(1e-8 * unbiased)
        self.parameter.addcdiv_(self._mean, root, value=-self.learning_rate * unbiased / (1 - _MEAN**self._steps))

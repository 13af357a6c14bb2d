"""What every kind of recurrent step brings for a whole sequence of them."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Form", "Kernel", "Tensors"]

Tensors = Sequence[Tensor | None]


class Form(NamedTuple):
    """What a sequence has beside its tensors.

    Args:
        sizes: rows of each step, which never grow; None where every step has as many as there are sequences.
        reverse: from the last step to the first.
        ends: the smallest and the largest integer of the hidden state, and of the cell where there is one.
    """

    sizes: Sequence[int] | None
    reverse: bool
    ends: Sequence[float]


class Kernel(ABC):
    """A kind of recurrent step, for all steps of a sequence at once, without autograd.

    The tensors are ``x, h, [c,] w_ih, w_hh, b_ih, b_hh, scale, zero_point, [scale, zero_point of c]``; the results are
    the states after all steps, then the last ones.

    Attributes:
        name: what its operators are called.
        states: 2 with a cell, else 1.
    """

    name: str
    states: int

    @abstractmethod
    def forward(self, tensors: Tensors, form: Form, keep: bool) -> tuple[list[Tensor], list[Tensor | None]]:
        """The results; and what `backward` needs beside the tensors and them, where it is to be kept."""

    @abstractmethod
    def backward(
        self, grads: Sequence[Tensor], tensors: Tensors, out: Tensor, kept: Tensors, form: Form, needed: Sequence[bool]
    ) -> list[Tensor | None]:
        """The gradients of those tensors that need one."""

    @abstractmethod
    def widths(self, tensors: Tensors) -> list[int]:
        """The columns of what `forward` keeps, in units of the hidden size; 0 for what it doesn't."""

    @abstractmethod
    def step(
        self, x: Tensor, states: Sequence[Tensor], weights: Tensors, grids: Sequence[Callable[[Tensor], Tensor]]
    ) -> list[Tensor]:
        """One step in torch's own operations: the definition.

        Args:
            x: input, (rows, input size).
            states: before the step.
            weights: ``w_ih, w_hh, b_ih, b_hh``.
            grids: for each state, what moves it onto its grid.
        """


def project(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """Write ``x @ weight.t() + bias`` to columns of a table.

    Example:
        >>> table = torch.zeros(1, 3)
        >>> project(torch.ones(1, 2), torch.ones(2, 2), None, table[:, :2])
        >>> table
        tensor([[2., 2., 0.]])
    """
    if bias is None:
        torch.mm(x, weight.t(), out=out)
    else:
        torch.addmm(bias, x, weight.t(), out=out)

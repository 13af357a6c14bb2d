"""What every kind of recurrent step brings for a whole sequence of them."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor

from .grids import StateGrid, state_grid
from .order import Order

__all__ = ["Form", "Inputs", "Kernel", "Results", "Tensors", "inputs_of"]

Tensors = Sequence[Tensor | None]


class Form(NamedTuple):
    """What a sequence has beside its tensors.

    Args:
        sizes: rows of each step, which never grow; None where every step has as many as there are sequences.
        reverse: from the last step to the first.
        ends: the smallest and the largest integer of each state.
    """

    sizes: Sequence[int] | None
    reverse: bool
    ends: Sequence[float]


class Inputs(NamedTuple):
    """What a sequence is computed from.

    As a flat list, for autograd, the tensors are ``x, w_ih, w_hh, b_ih, b_hh``, the states before the first step, and
    scale and zero point of each state.
    """

    x: Tensor  # (rows, input size)
    w_ih: Tensor  # (gates x hidden size, input size)
    w_hh: Tensor  # (gates x hidden size, hidden size)
    b_ih: Tensor | None
    b_hh: Tensor | None
    states: Sequence[Tensor]  # each (sequences, hidden size)
    grids: Sequence[StateGrid | None]
    order: Order

    def total_bias(self) -> Tensor | None:
        """The sum of both biases."""
        return self.b_ih if self.b_hh is None else self.b_hh if self.b_ih is None else self.b_ih + self.b_hh


class Results(NamedTuple):
    """The hidden states after all steps, the last states of each sequence, and what backward needs beside them."""

    out: Tensor  # (rows, hidden size)
    last: list[Tensor]  # each (sequences, hidden size)
    kept: list[Tensor | None]


def inputs_of(tensors: Tensors, form: Form) -> Inputs:
    """The inputs in a flat list of tensors.

    Example:
        >>> import torch
        >>> x, w = torch.ones(2, 1), torch.eye(1)
        >>> inputs_of([x, w, w, None, None, x, torch.tensor(0.5), None], Form(None, False, (0, 255))).grids
        [StateGrid(scale=tensor(0.5000), low=0, high=255)]
    """
    x, w_ih, w_hh, b_ih, b_hh, *rest = tensors
    count = len(rest) // 3
    states = [each for each in rest[:count] if each is not None]
    settings = rest[count:]
    grids = [state_grid(settings[k], settings[k + 1], form.ends[k : k + 2]) for k in range(0, 2 * count, 2)]
    assert x is not None
    assert w_ih is not None
    assert w_hh is not None
    return Inputs(
        x, w_ih, w_hh, b_ih, b_hh, states, grids, Order(x.shape[0], states[0].shape[0], form.sizes, form.reverse)
    )


class Kernel(ABC):
    """A kind of recurrent step, for all steps of a sequence at once, without autograd.

    Attributes:
        name: what its operators are called.
        states: 2 with a cell, else 1.
    """

    name: str
    states: int

    @abstractmethod
    def forward(self, inputs: Inputs, keep: bool) -> Results:
        """The results; nothing is kept where there is no backward."""

    @abstractmethod
    def widths(self, grids: Sequence[bool]) -> list[int]:
        """The columns of what `forward` keeps, in units of the hidden size, 0 for None.

        Args:
            grids: which states have one.
        """

    @abstractmethod
    def backward(
        self, grads: Sequence[Tensor], inputs: Inputs, out: Tensor, kept: Tensors, needed: Sequence[bool]
    ) -> list[Tensor | None]:
        """The gradients of the flat list of tensors, of those that need one."""

    @abstractmethod
    def step(self, x: Tensor, inputs: Inputs, grids: Sequence[Callable[[Tensor], Tensor]]) -> list[Tensor]:
        """One step in torch's own operations, the definition: the states after it.

        Args:
            x: its rows of the input.
            inputs: of the sequence, with the states before the step.
            grids: for each state, what moves it onto its grid.
        """

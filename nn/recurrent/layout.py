"""The forms in which recurrent layers take sequences, and the one in which they compute."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from .scan import Step, Tensors, scan

__all__ = ["Layout", "packed_scan"]


class Layout(NamedTuple):
    """How sequences lie in the tensor that a layer was given. Inside, time comes first.

    Args:
        batched: whether there is a batch dimension.
        batch_first: whether it comes before time.
        sizes: of a packed sequence, how many sequences have each step: the rows of a step are neighbours. None for
            others.
        packed: the packed sequence itself.

    Example:
        >>> layout = Layout(batched=True, batch_first=True)
        >>> x = torch.zeros(3, 5, 2)
        >>> layout.time_first(x).shape, layout.given_back(layout.time_first(x)).shape
        (torch.Size([5, 3, 2]), torch.Size([3, 5, 2]))
    """

    batched: bool
    batch_first: bool
    sizes: list[int] | None = None
    packed: PackedSequence | None = None

    @classmethod
    def of(cls, given: Tensor | PackedSequence, batch_first: bool) -> "Layout":
        """The layout of what a layer was given."""
        if isinstance(given, PackedSequence):
            return cls(True, batch_first, given.batch_sizes.tolist(), given)
        return cls(given.dim() == 3, batch_first)

    def batch_of(self, x: Tensor) -> int:
        """How many sequences there are, by the input as `time_first` gives it."""
        return self.sizes[0] if self.sizes is not None else x.shape[1]

    def time_first(self, x: Tensor) -> Tensor:
        """(T, B, F) of a plain tensor; the rows of a packed sequence as they are."""
        if self.packed is not None:
            return x
        if not self.batched:
            return x.unsqueeze(1)
        return x.transpose(0, 1) if self.batch_first else x

    def given_back(self, x: Tensor) -> Tensor:
        """The way back from `time_first`."""
        if self.packed is not None:
            return x
        if not self.batched:
            return x.squeeze(1)
        return x.transpose(0, 1) if self.batch_first else x

    def state(self, state: Tensor) -> Tensor:
        """A state as it was given, (L, B, H): with a batch dimension, and in the order of the packed sequences."""
        if self.packed is not None:
            order = self.packed.sorted_indices
            return state if order is None else state.index_select(1, order)
        return state if self.batched else state.unsqueeze(1)

    def state_given_back(self, state: Tensor) -> Tensor:
        """The way back from `state`."""
        if self.packed is not None:
            order = self.packed.unsorted_indices
            return state if order is None else state.index_select(1, order)
        return state if self.batched else state.squeeze(1)

    def rows(self, x: Tensor) -> tuple[Tensor, list[int] | None]:
        """All steps below each other, those of a step as neighbours; and how many each has, None for all as many."""
        return (x, self.sizes) if self.sizes is not None else (x.flatten(0, 1), None)

    def as_before(self, rows: Tensor, x: Tensor) -> Tensor:
        """Rows as ``x`` lies, which `rows` was given."""
        return rows if self.sizes is not None else rows.unflatten(0, x.shape[:2])

    def run(self, step: Step, states: Tensors, x: Tensor, constants: Tensors, reverse: bool) -> tuple[Tensors, Tensor]:
        """The general loop over sequences that lie as `time_first` gives them.

        Args:
            step: see `scan`; with one input, and one output.
            states: (B, H) each.
            x: the input.
            constants: what every step gets.
            reverse: whether the last step comes first.

        Returns:
            The states at the end, and the output, which lies as the input.
        """
        if self.sizes is not None:
            return packed_scan(step, states, x, constants, self.sizes, reverse)
        states, (out,) = scan(step, states, (x.flip(0) if reverse else x,), constants)
        return states, out.flip(0) if reverse else out


def packed_scan(
    step: Step, states: Tensors, rows: Tensor, constants: Tensors, sizes: list[int], reverse: bool
) -> tuple[Tensors, Tensor]:
    """The general loop over a packed sequence, whose later steps have fewer rows.

    Example:
        >>> def add(states, inputs, constants):
        ...     return (states[0] + inputs[0],), (states[0] + inputs[0],)
        >>> rows = torch.tensor([[1.0], [10.0], [2.0]])  # 1, 2 and 10
        >>> packed_scan(add, (torch.zeros(2, 1),), rows, (), [2, 1], reverse=False)
        ((tensor([[ 3.],
                [10.]]),), tensor([[ 1.],
                [10.],
                [ 3.]]))
    """
    parts = rows.split(sizes)
    outputs: list[Tensor] = []
    ended: list[Tensors] = []  # states of sequences that are over
    first = states
    if reverse:
        states = tuple(each[: sizes[-1]] for each in first)
        for part in reversed(parts):
            before, now = states[0].shape[0], part.shape[0]
            if now > before:  # sequences that end here begin
                pairs = zip(states, first, strict=True)
                states = tuple(torch.cat([each, initial[before:now]]) for each, initial in pairs)
            states, (out,) = step(states, (part,), constants)
            outputs.insert(0, out)
        return states, torch.cat(outputs)
    for part in parts:
        now = part.shape[0]
        if now < states[0].shape[0]:
            ended.insert(0, tuple(each[now:] for each in states))
            states = tuple(each[:now] for each in states)
        states, (out,) = step(states, (part,), constants)
        outputs.append(out)
    return tuple(torch.cat(each) for each in zip(states, *ended, strict=True)), torch.cat(outputs)

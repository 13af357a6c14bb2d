"""The steps of packed rows, in the order in which they are computed."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from .products import weight_grad

__all__ = ["Order"]

_split = torch.unsafe_split_with_sizes  # a quarter faster: autograd is not told that they are views


class Order:
    """The steps of sequences whose rows lie one step after the other, the longest sequence first.

    Args:
        rows: how many there are, of all steps.
        batch: sequences.
        sizes: rows of each step, which never grow; None for as many as there are sequences.
        reverse: from the last step to the first.

    Attributes:
        sizes: rows of each step, as they are computed.
        even: whether every step has the same.

    Example:
        >>> order = Order(5, 3, [3, 2], reverse=True)
        >>> order.sizes, [each.tolist() for each in order.each(torch.arange(5))]
        ([2, 3], [[3, 4], [0, 1, 2]])
    """

    def __init__(self, rows: int, batch: int, sizes: Sequence[int] | None, reverse: bool) -> None:
        self._stored = [batch] * (rows // max(batch, 1)) if sizes is None else list(sizes)
        self.sizes = self._stored[::-1] if reverse else self._stored
        self.reverse = reverse
        self.even = not self.sizes or self.sizes[0] == self.sizes[-1] == batch

    def each(self, rows: Tensor, dim: int = 0) -> tuple[Tensor, ...]:
        """The rows of each step."""
        views = rows.split(self._stored, dim) if torch.is_grad_enabled() else _split(rows, self._stored, dim)
        return views[::-1] if self.reverse else views

    def scratch(self, like: Tensor, *widths: int) -> list[list[Tensor]]:
        """Memory for the rows of each step that the next step uses again: all columns, and some of them each."""
        whole = like.new_empty(max(self.sizes, default=0), sum(widths))
        found = []
        for columns in (whole, *whole.split(widths, 1)):
            views = {size: columns[:size] for size in set(self.sizes)}
            found.append([views[size] for size in self.sizes])
        return found

    def turns(self) -> list[int | None]:
        """For each step, the rows of the next one where they are others than its own."""
        return [None if one == two else two for one, two in pairwise(self.sizes)] + [None] * bool(self.sizes)

    def started(self, first: Tensor) -> Tensor:
        """The state before the step that is computed first."""
        return first[: self.sizes[0]] if self.sizes else first

    def ended(self, last: Tensor) -> Tensor:
        """The gradient of the state after the step that is computed last."""
        return last[: self.sizes[-1]] if self.sizes else last

    def resized(self, state: Tensor, first: Tensor, size: int) -> Tensor:
        """The state before a step of other rows than the step before: some sequences have ended, or begin."""
        rows = state.shape[0]
        return state[:size] if rows >= size else torch.cat([state, first[rows:size]])

    def last(self, states: Sequence[Tensor], first: Tensor) -> Tensor:
        """The state of each sequence after its last step, from those after every step."""
        if not states:
            return first.clone()
        if self.even or self.reverse:
            return states[-1].clone()
        parts, below = [], 0
        for state, size in zip(reversed(states), reversed(self.sizes), strict=True):
            if size > below:
                parts.append(state[below:size])
                below = size
        return torch.cat(parts)

    def returned(self, flow: Tensor, last: Tensor, first: Tensor, size: int) -> Tensor:
        """The gradient of the state that a step of other rows handed on.

        Args:
            flow: the gradient of the state that the step after it started from.
            last: that of the last states, which sequences that ended in between have.
            first: that of the first states, which takes those of sequences that began in between.
            size: rows of the step.
        """
        rows = flow.shape[0]
        if rows < size:
            return torch.cat([flow, last[rows:size]])
        first[size:rows] = flow[size:]
        return flow[:size]

    def before(self, states: Tensor, first: Tensor) -> list[tuple[slice, Tensor]]:
        """The states before the steps: which rows, and their states. No memory is copied where all steps are alike.

        Args:
            states: after every step, (rows, hidden size).
            first: before the first one.
        """
        if not self.sizes:
            return []
        if self.even:
            size = self.sizes[0]
            cut = states.shape[0] - size
            if self.reverse:
                return [(slice(cut), states[size:]), (slice(cut, None), first)]
            return [(slice(size, None), states[:cut]), (slice(size), first)]
        views, found = self.each(states), [self.started(first)]
        found += [self.resized(state, first, size) for state, size in zip(views, self.sizes[1:], strict=False)]
        return [(slice(None), torch.cat(found[::-1] if self.reverse else found))]

    def recurrent_grad(self, grads: Tensor, states: Tensor, first: Tensor) -> Tensor:
        """The gradient of a weight that every step multiplies the state before it with.

        Args:
            grads: of the products, (rows, outputs).
            states: after every step, (rows, hidden size).
            first: before the first one.
        """
        if not self.sizes:
            return grads.t() @ states
        (at, before), *others = self.before(states, first)
        found = weight_grad(grads[at], before)
        for at, before in others:
            found.addmm_(grads[at].t(), before)
        return found

"""What a tensor of integers consists of: terms, integers times a scale each, and bounds beyond which they are equal."""

from typing import NamedTuple, Self

import torch
from torch import Tensor

from ...capture.grid import IntegerGrid
from .journal import Journal

__all__ = ["Term", "TermsTensor", "alike_in_space", "compact"]


class Term(NamedTuple):
    """Integers, and what one of them is worth.

    Args:
        codes: int64, centred.
        scale: float32, 0-d or broadcastable to the codes.
    """

    codes: Tensor
    scale: Tensor

    @property
    def values(self) -> Tensor:
        """The float32 values: two roundings, of the integer to float32 and of the product."""
        return self.codes.to(torch.float32) * self.scale

    @property
    def spread(self) -> Tensor:
        """The scale of each integer."""
        return self.scale.expand(self.codes.shape).contiguous()


class TermsTensor(torch.Tensor):
    """What `IntegerTensor` holds; operators are its subclass's matter.

    Args:
        terms: what the values are the sum of, in order.
        journal: of the run that the tensor belongs to.
        grid: the quantizer's grid that the integers are on, or None.
        low: values below count as this (a ReLU after an addition), or None.
        high: values above count as this, or None.
        aliased: whether it is a view of another tensor.
        bounded: whether the integers lie between the bounds already.
        stored: name of the quantizer's call whose parameter it is, or a part of it; None for activations.
        zero: whether it was made of zeros, such as the state before a recurrence: on any grid.
        severed: whether it is a view in torch's eyes, but a copy in memory.
    """

    terms: tuple[Term, ...]
    journal: Journal
    grid_: IntegerGrid | None
    low: float | None
    high: float | None
    aliased: bool
    bounded: bool
    stored: str | None
    severed: bool
    _made_of_zeros: bool

    def __new__(
        cls,
        terms: tuple[Term, ...],
        journal: Journal,
        grid: IntegerGrid | None = None,
        low: float | None = None,
        high: float | None = None,
        aliased: bool = False,
        bounded: bool = False,
        stored: str | None = None,
        zero: bool = False,
        severed: bool = False,
    ) -> Self:
        codes = terms[0].codes
        self = torch.Tensor._make_wrapper_subclass(
            cls, codes.size(), dtype=torch.float32, device=codes.device, requires_grad=False
        )
        self.terms, self.journal, self.grid_, self.low, self.high = terms, journal, grid, low, high
        self.aliased, self.bounded, self.stored, self.severed = aliased, bounded, stored, severed
        self._made_of_zeros = zero
        return self

    def __init__(self, *parts: object, **options: object) -> None:
        pass

    @property
    def zero(self) -> bool:
        """Whether it is made of zeros still: nothing else was written into it, or into what it is a view of."""
        return self._made_of_zeros and not bool(self.terms[0].codes.any())

    @property
    def value(self) -> Tensor:
        """The float32 values, terms added up in order."""
        total = self.terms[0].values
        for term in self.terms[1:]:
            total = total + term.values
        return total.clamp(self.low, self.high) if self.pending else total

    @property
    def pending(self) -> bool:
        """Whether there are bounds beyond which integers lie that count as the bounds."""
        return not self.bounded and (self.low is not None or self.high is not None)

    @property
    def single(self) -> Term | None:
        """The only term of a tensor whose integers say everything, or None."""
        return self.terms[0] if len(self.terms) == 1 and not self.pending else None

    def excludes(self, number: float) -> bool:
        """Whether a number would count as one of the bounds."""
        below, above = self.low is not None and number < self.low, self.high is not None and number > self.high
        return self.pending and (below or above)

    def made(self, *terms: Term, grid: IntegerGrid | None = None, zero: bool = False) -> Self:
        """A new tensor of the same run, without bounds."""
        return type(self)(terms, self.journal, grid, zero=zero)

    def alike(self, *terms: Term, moved: bool, aliased: bool = False, severed: bool = False) -> Self:
        """Other integers of this tensor: on the grid that it was on, unless several scales moved with them.

        Args:
            terms: the integers.
            moved: whether they change places.
            aliased: whether the result is a view.
            severed: whether it is one that shares no memory.
        """
        grid = None if moved and any(term.scale.ndim for term in terms) else self.grid_
        kept = (self.low, self.high, aliased, self.bounded, self.stored, self._made_of_zeros)
        return type(self)(terms, self.journal, grid, *kept, severed=severed or (aliased and self.severed))


def alike_in_space(tensor: TermsTensor) -> list[Term] | None:
    """The terms of an image or sequence, with compact scales; None where neighbours in space differ in their scale."""
    terms = [Term(term.codes, compact(term.scale)) for term in tensor.terms]
    return None if any(size > 1 for term in terms for size in term.scale.shape[2:]) else terms


def compact(scale: Tensor) -> Tensor:
    """A scale with size 1 in every dimension along which it doesn't change.

    Example:
        >>> compact(torch.tensor([[0.5, 0.5], [0.1, 0.1]])).shape
        torch.Size([2, 1])
    """
    for dim in range(scale.ndim):
        first = scale.narrow(dim, 0, 1)
        scale = first if scale.shape[dim] > 1 and bool((scale == first).all()) else scale
    return scale

"""Scales that must be equal: an id for each channel that a layer writes, joined where tensors meet."""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["Classes", "Scales", "distinct", "moved"]


class Scales:
    """The scale of every element of a model's tensors, as ids: equal ids are one scale.

    A tensor's ids have its shape, mostly as an expanded view. Ids are linked where two must be equal, and held at 1
    where no other scale is possible; `classes` then numbers the scales that are left.

    Example:
        >>> scales = Scales()
        >>> a, b = scales.channels((2, 3), 1), scales.channels((2, 3), 1)
        >>> scales.link(a, b)
        >>> scales.hold(b[:, 2:], "why")
        >>> classes = scales.classes()
        >>> bool((classes.of(a) == classes.of(b)).all()), classes.held(classes.of(a)[0]).tolist()
        (True, [False, False, True])
    """

    def __init__(self) -> None:
        self.count = 0
        self._links: list[Tensor] = []  # (2, n) each
        self._held: dict[int, str] = {}  # id -> why, the first one

    def channels(self, shape: tuple[int, ...], axis: int) -> Tensor:
        """New ids for a tensor, one for each index of an axis."""
        ids = torch.arange(self.count, self.count + shape[axis])
        self.count += shape[axis]
        return ids.reshape([-1 if each == axis else 1 for each in range(len(shape))]).expand(shape)

    def fixed(self, shape: tuple[int, ...], why: str) -> Tensor:
        """One new id for a whole tensor, held at 1."""
        ids = torch.tensor(self.count)
        self.count += 1
        self.hold(ids, why)
        return ids.expand(shape)

    def link(self, one: Tensor, other: Tensor) -> None:
        """Two tensors of the same shape have the same scales."""
        one, other = _compact(one, other)
        self._links.append(torch.stack([one.flatten(), other.flatten()]).unique(dim=1))

    def link_along(self, ids: Tensor, dims: tuple[int, ...]) -> Tensor:
        """A tensor has the same scales all along some dimensions; the ids of the first index there."""
        for dim in dims:
            first = ids.narrow(dim, 0, 1)
            if ids.stride(dim) and ids.shape[dim] > 1:
                self.link(ids, first.expand_as(ids))
            ids = first
        return ids

    def link_all(self, ids: Tensor, shape: tuple[int, ...]) -> Tensor:
        """One scale for a whole tensor; ids of another tensor with this scale."""
        return self.link_along(ids, tuple(range(ids.ndim))).reshape(()).expand(shape)

    def hold(self, ids: Tensor, why: str) -> None:
        """The scales of a tensor are 1."""
        for each in distinct(ids).tolist():
            self._held.setdefault(each, why)

    def holds(self, ids: Tensor) -> bool:
        """Whether all scales of a tensor are held so far."""
        return all(each in self._held for each in distinct(ids).tolist())

    def classes(self) -> "Classes":
        """The scales that are left when all links are followed."""
        labels = torch.arange(self.count)
        links = torch.cat(self._links, 1) if self._links else labels.new_empty((2, 0))
        while True:
            before = labels
            smaller = torch.minimum(labels[links[0]], labels[links[1]])
            labels = labels.clone()
            for end in links:
                labels.scatter_reduce_(0, labels[end], smaller, "amin")  # the whole class follows its representative
                labels.scatter_reduce_(0, end, smaller, "amin")
            labels = labels[labels]
            if torch.equal(labels, before):
                return Classes(labels, self._held)


class Classes:
    """The scales of a model, numbered; see `Scales`."""

    def __init__(self, labels: Tensor, held: dict[int, str]) -> None:
        numbers, self._numbers = labels.unique(return_inverse=True)
        self.count = len(numbers)
        self._reasons: dict[int, str] = {}
        for each, why in held.items():
            self._reasons.setdefault(int(self._numbers[each]), why)

    def of(self, ids: Tensor) -> Tensor:
        """The class of each id."""
        return self._numbers[ids]

    def why_held(self, number: int) -> str | None:
        """Why the scale of a class is 1; None if it is free."""
        return self._reasons.get(number)

    def held(self, numbers: Tensor) -> Tensor:
        """Whether the scale of each class is held at 1."""
        return torch.tensor([int(each) in self._reasons for each in numbers], dtype=torch.bool)


def distinct(ids: Tensor) -> Tensor:
    """The ids of a tensor, each once.

    Example:
        >>> distinct(torch.tensor([3, 1, 3]).expand(1000, 3))
        tensor([1, 3])
    """
    return _compact(ids)[0].unique()


def moved(ids: Tensor, change: Callable[[Tensor], Tensor], dims: tuple[int, ...], shape: tuple[int, ...]) -> Tensor:
    """The result of a function that touches only some dimensions, worked out without the repetitions along others.

    Example:
        >>> moved(torch.tensor([3, 1]).expand(1000, 2), lambda ids: ids.repeat(1, 2), (1,), (1000, 4))[0]
        tensor([3, 1, 3, 1])
    """
    for dim in range(ids.ndim):
        if dim not in dims and not ids.stride(dim):
            ids = ids.narrow(dim, 0, 1)
    return change(ids).expand(shape)


def _compact(*tensors: Tensor) -> list[Tensor]:
    """Tensors of the same shape without the repetitions that all of them have."""
    found = list(tensors)
    for dim in range(found[0].ndim):
        if all(not each.stride(dim) for each in found) and found[0].shape[dim] > 1:
            found = [each.narrow(dim, 0, 1) for each in found]
    return found

"""The samples of a data set: joined into one batch, and dealt out to those that estimate and those that judge."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from ..errors import GraphError
from .evaluation import Call, numbers_in

__all__ = ["deal", "joined", "samples_in", "taken", "together"]


def samples_in(call: Call) -> int | None:
    """How many samples the arguments of a call hold: the size of dimension 0 where all tensors agree, else None.

    Example:
        >>> samples_in(((torch.ones(8, 3),), {"mask": torch.ones(8, 1)})), samples_in(((torch.ones(()),), {}))
        (8, None)
    """
    tensors = [each for each in _pytree.tree_leaves(call) if isinstance(each, Tensor)]
    sizes = {each.shape[0] if each.ndim else None for each in tensors}
    return sizes.pop() if len(sizes) == 1 else None


def joined(calls: Sequence[Call]) -> Call | None:
    """One call with the samples of all of them; None where they don't fit together.

    Example:
        >>> args, kwargs = joined([((torch.ones(2, 3),), {}), ((torch.ones(1, 3),), {})])
        >>> args[0].shape
        torch.Size([3, 3])
    """
    if any(samples_in(call) is None for call in calls):
        return None
    flat, specs = zip(*(_pytree.tree_flatten(call) for call in calls), strict=True)
    if any(spec != specs[0] for spec in specs):
        return None
    columns = list(zip(*flat, strict=True))
    if not all(_alike(column) for column in columns):
        return None
    leaves = [torch.cat(column) if isinstance(column[0], Tensor) else column[0] for column in columns]
    return _pytree.tree_unflatten(leaves, specs[0])


def _alike(column: Sequence[object]) -> bool:
    """Whether an argument of several calls is one thing, or tensors that are alike but for their number of samples."""
    first = column[0]
    if not isinstance(first, Tensor):
        return all(each is first or (type(each) is type(first) and bool(each == first)) for each in column)
    kind = (first.shape[1:], first.dtype, first.device)
    return all(isinstance(each, Tensor) and (each.shape[1:], each.dtype, each.device) == kind for each in column)


def taken(call: Call, index: slice) -> Call:
    """The arguments of a call with some of its samples.

    Example:
        >>> taken(((torch.arange(4),), {}), slice(1, None, 2))
        ((tensor([1, 3]),), {})
    """
    return _pytree.tree_map(lambda each: each[index] if isinstance(each, Tensor) else each, call)


def deal(asked: str, model: nn.Module, calls: Sequence[Call]) -> tuple[list[Call], list[Call]]:
    """Every other sample, and the rest; every other batch, where the samples of all can't go through in one.

    The former doesn't depend on how samples come in batches.

    Raises:
        GraphError: there is only one of them.
    """
    whole = _whole(model, calls)
    if whole is not None:
        return [taken(whole, slice(0, None, 2))], [taken(whole, slice(1, None, 2))]
    if len(calls) < 2:
        raise GraphError(
            f"{asked}: data is one batch that can't be split into samples, and every other one is to be held out. Pass "
            "at least two batches, or held_out=False."
        )
    return list(calls[::2]), list(calls[1::2])


def together(model: nn.Module, calls: Sequence[Call]) -> list[Call]:
    """The batches as one call, where a model takes them so; else as they are.

    Example:
        >>> calls = [((torch.ones(2, 3),), {}), ((torch.ones(4, 3),), {})]
        >>> [args[0].shape for args, _ in together(nn.Linear(3, 1), calls)]
        [torch.Size([6, 3])]
    """
    whole = _whole(model, calls) if len(calls) > 1 else None
    return list(calls) if whole is None else [whole]


def _whole(model: nn.Module, calls: Sequence[Call]) -> Call | None:
    """All batches in one, of at least two samples that a model takes side by side; None where that can't be."""
    whole = joined(calls)
    fits = whole is not None and (samples_in(whole) or 0) > 1 and _side_by_side(model, whole)
    return whole if fits else None


def _side_by_side(model: nn.Module, call: Call) -> bool:
    """Whether samples don't see each other: dimension 0 of the arguments and of the results counts them."""
    try:
        one, other, both = (
            numbers_in(model(*args, **kwargs))
            for args, kwargs in (taken(call, slice(*ends)) for ends in ((0, 1), (1, 2), (0, 2)))
        )
    except Exception:  # whatever a model makes of a single sample: then batches stay as they are
        return False
    if not both or not len(one) == len(other) == len(both):
        return False
    return all(map(_stacked, one, other, both))


def _stacked(one: Tensor, other: Tensor, both: Tensor) -> bool:
    """Whether results are those of two samples, but for rounding."""
    if not one.ndim or one.shape != other.shape or both.shape != (2, *one.shape[1:]) or one.shape[0] != 1:
        return False
    return torch.allclose(torch.cat([one, other]), both, rtol=1e-3, atol=1e-4 * float(both.abs().max() or 1.0))

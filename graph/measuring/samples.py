"""The samples of a data set: joined into one batch, and dealt out to those that estimate and those that judge."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from ..errors import GraphError
from ..recording.examples import Call
from .evaluation import numbers_in, observed

__all__ = ["Dealt", "deal", "joined", "samples_in", "side_by_side", "taken"]


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
    if not all(map(_alike, columns)):
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


def taken(call: Call, index: slice | Tensor) -> Call:
    """The arguments of a call with some of its samples.

    Example:
        >>> taken(((torch.arange(4),), {}), slice(1, None, 2))
        ((tensor([1, 3]),), {})
    """
    return _pytree.tree_map(lambda each: each[index] if isinstance(each, Tensor) else each, call)


def side_by_side(model: nn.Module, calls: Sequence[Call]) -> Call | None:
    """All samples in one call, where a model takes each of them as it would alone; else None.

    Args:
        model: in evaluation.
        calls: the arguments of its forwards.

    Example:
        >>> args, _ = side_by_side(nn.Sequential(nn.Flatten()), [((torch.ones(2, 3),), {}), ((torch.ones(1, 3),), {})])
        >>> args[0].shape
        torch.Size([3, 3])
    """
    whole = joined(calls)
    if whole is None or (samples_in(whole) or 0) < 2 or _dimensions(model, {}, whole) is None:
        return None
    return whole


@dataclass(frozen=True)
class Dealt:
    """Samples, dealt out to those that estimate and those that judge.

    Attributes:
        estimating: the batches that estimate.
        judging: the batches that judge; the same if none are held out.
        both: all samples in one batch, those that estimate first, where a model takes them side by side; else None.
        share: how many samples of ``both`` estimate, and how many there are.
        dimensions: for each layer, the dimension of its output that counts the samples of ``both``.

    Example:
        >>> x = torch.arange(5.0).unsqueeze(1)
        >>> dealt = deal("correct_biases", nn.Sequential(nn.Flatten()), {}, [((x[:2],), {}), ((x[2:],), {})])
        >>> dealt.both[0][0].flatten(), dealt.share
        (tensor([0., 2., 4., 1., 3.]), (3, 5))
        >>> [part.tolist() for part in dealt.parts(dealt.both[0][0], 0)]
        [[[0.0], [2.0], [4.0]], [[1.0], [3.0]]]
    """

    estimating: Sequence[Call]
    judging: Sequence[Call]
    both: Call | None = None
    share: tuple[int, int] = (1, 1)
    dimensions: Mapping[str, int] = field(default_factory=dict)

    @property
    def held_out(self) -> bool:
        """Whether the samples that judge are others than those that estimate."""
        return self.judging is not self.estimating

    @property
    def judges(self) -> int:
        """How many samples of ``both`` judge."""
        return self.share[1] - self.share[0]

    def all_estimate(self) -> "Dealt":
        """The same samples, none of them held out."""
        calls = [*self.estimating, *self.judging] if self.held_out else self.estimating
        return Dealt(calls, calls, self.both, self.share, self.dimensions)

    def parts(self, x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        """Of a tensor computed from ``both``: what comes from the samples that estimate, and from those that judge."""
        if not self.held_out:
            return x, x
        size = x.shape[dim] * self.share[0] // self.share[1]
        return x.narrow(dim, 0, size), x.narrow(dim, size, x.shape[dim] - size)


def deal(
    asked: str, model: nn.Module, layers: Mapping[str, nn.Module], calls: Sequence[Call], held_out: bool = True
) -> Dealt:
    """Every other sample, and the rest; every other batch, where the samples of all can't go through in one.

    The former doesn't depend on how samples come in batches.

    Args:
        asked: the pass, for the message.
        model: in evaluation.
        layers: those whose outputs are to be taken apart, by path.
        calls: the batches.
        held_out: whether some are to judge only.

    Raises:
        GraphError: there is only one of them.
    """
    whole = joined(calls)
    apart = whole is not None and (samples_in(whole) or 0) > 1
    dimensions = _dimensions(model, layers, whole) if whole is not None and apart else None
    if whole is None or dimensions is None:
        if held_out and len(calls) < 2:
            raise GraphError(
                f"{asked}: data is one batch that can't be split into samples, and every other one is to be held out. "
                "Pass at least two batches, or held_out=False."
            )
        if held_out:
            return Dealt(calls[::2], calls[1::2])
        return Dealt(calls, calls, calls[0] if len(calls) == 1 else None, (1, 1), dict.fromkeys(layers, 0))
    if not held_out:
        return Dealt(calls, calls, whole, (1, 1), dimensions)
    estimating, judging = (taken(whole, slice(start, None, 2)) for start in (0, 1))
    both, first = joined([estimating, judging]), samples_in(estimating) or 0
    return Dealt([estimating], [judging], both, (first, samples_in(whole) or 0), dimensions)


def _dimensions(model: nn.Module, layers: Mapping[str, nn.Module], call: Call) -> dict[str, int] | None:
    """The dimension that counts samples, in the output of each layer; None where samples see each other."""
    passes: list[dict[str, list[Tensor]]] = []
    results: list[list[Tensor]] = []
    try:
        for ends in ((0, 1), (1, 2), (0, 2)):
            seen: dict[str, list[Tensor]] = {}

            def see(
                path: str, layer: nn.Module, args: Any, kwargs: Any, out: Any, seen: dict[str, list[Tensor]] = seen
            ) -> None:
                seen.setdefault(path, []).extend(numbers_in(out)[:1])

            args, kwargs = taken(call, slice(*ends))
            with observed(layers, see):
                results.append(numbers_in(model(*args, **kwargs)))
            passes.append(seen)
    except Exception:  # whatever a model makes of a single sample: then batches stay as they are
        return None
    if _stacked(*results) != 0:
        return None
    one, other, both = passes
    found = {path: _stacked(one.get(path, []), other.get(path, []), tensors) for path, tensors in both.items()}
    return {path: dim for path, dim in found.items() if dim is not None}


def _stacked(one: Sequence[Tensor], other: Sequence[Tensor], both: Sequence[Tensor]) -> int | None:
    """The dimension along which the last tensors are the former two, one after the other; None if they aren't."""
    if not both or not len(one) == len(other) == len(both):
        return None
    found = set(map(_stacked_along, one, other, both))
    return found.pop() if len(found) == 1 else None


def _stacked_along(one: Tensor, other: Tensor, both: Tensor) -> int | None:
    if one.shape != other.shape or one.ndim != both.ndim:
        return None
    longer = [dim for dim in range(both.ndim) if both.shape[dim] != one.shape[dim]]
    if len(longer) != 1 or both.shape[longer[0]] != 2 * one.shape[longer[0]] or not both.numel():
        return None
    joined, most = torch.cat([one, other], longer[0]), float(both.abs().max())
    if not most < float("inf"):  # nothing to tell by
        return None
    return longer[0] if torch.allclose(joined, both, rtol=1e-3, atol=1e-4 * most) else None

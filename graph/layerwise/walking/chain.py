"""The blocks of a model that follow one another, so that one can run without those before it."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from ...errors import GraphError
from ...recording.examples import Call

__all__ = ["Chain", "Reached", "chain_of", "replaced_forward", "stopping_at"]


class Reached(BaseException):  # no error, which a model may handle
    """A forward came to where it was to end, as its rest is of no interest.

    Attributes:
        call: the arguments that the module there got.
    """

    def __init__(self, call: Call | None = None) -> None:
        super().__init__()
        self.call = call


@dataclass(frozen=True)
class Chain:
    """Modules each of which gets what the one before it returns, and else what the first one gets.

    Attributes:
        paths: of the modules.
        slots: which of the tensors among the arguments is the output of the module before, for each but the first.
        taken: which of the tensors in the output of each but the last that is.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
        >>> chain_of(model, ((torch.ones(1, 2),), {}), None).paths
        ('0', '1', '2')
    """

    paths: tuple[str, ...]
    slots: tuple[int, ...] = ()
    taken: tuple[int, ...] = ()

    def follow(self, number: int, call: Call, out: object) -> Call:
        """The arguments of a module, from those of the one before and what that returned."""
        leaves, spec = _pytree.tree_flatten(call)
        tensors = [index for index, each in enumerate(leaves) if isinstance(each, Tensor)]
        outputs = [each for each in _pytree.tree_leaves(out) if isinstance(each, Tensor)]
        leaves[tensors[self.slots[number - 1]]] = outputs[self.taken[number - 1]]
        return _pytree.tree_unflatten(leaves, spec)


def chain_of(model: nn.Module, call: Call, blocks: Sequence[str] | None) -> Chain | None:
    """The chain of a model, as one forward shows it; None where there is none.

    Args:
        model: in evaluation.
        call: the arguments of the forward.
        blocks: the paths of the modules that shall be it; None for the longest list of modules that is one.

    Raises:
        GraphError: the blocks that were asked for are none: another path leads past them.
    """
    if blocks is not None:
        asked = _expanded(model, blocks)
        seen = _seen(model, list(dict.fromkeys(asked)), call)
        why, found = _linked(asked, seen)
        if found is None:
            raise GraphError(
                f"blocks={list(blocks)} don't follow one another: {why}. Name blocks each of which gets what the one "
                "before it returns, or leave blocks out."
            )
        return found
    lists = [_expanded(model, [path]) for path, each in model.named_modules() if isinstance(each, nn.ModuleList)]
    if type(model) is nn.Sequential:
        lists.append(_expanded(model, list(model._modules)))
    lists += [_expanded(model, [path]) for path, each in model.named_modules() if path and type(each) is nn.Sequential]
    lists = [each for each in lists if len(each) > 1]
    weights = {
        tuple(each): sum(p.numel() for path in each for p in model.get_submodule(path).parameters()) for each in lists
    }
    ordered = sorted(lists, key=lambda each: (-weights[tuple(each)], -len(each)))
    if not ordered:
        return None
    seen = _seen(model, list(dict.fromkeys(path for each in ordered for path in each)), call)
    for each in ordered:
        found = _linked(each, seen)[1]
        if found is not None:
            return found
    return None


def _expanded(model: nn.Module, paths: Sequence[str]) -> list[str]:
    """The modules in lists, and in plain sequences, instead of these."""
    known = dict(model.named_modules(remove_duplicate=False))
    found: list[str] = []
    for path in paths:
        if path not in known:
            raise GraphError(f"blocks={list(paths)}: this {type(model).__name__} has no module {path!r}.")
        module = known[path]
        if isinstance(module, nn.ModuleList) or type(module) is nn.Sequential:
            found += _expanded(model, [f"{path}.{name}" for name in module._modules])
        else:
            found.append(path)
    return found


Seen = Mapping[str, list[tuple[Any, Any]]]  # for each module, the arguments and the output of each call


def _seen(model: nn.Module, paths: Sequence[str], call: Call) -> Seen:
    """The arguments and outputs of modules in one forward; "" has the order of the calls."""
    found: dict[str, list[tuple[Any, Any]]] = {path: [] for path in paths}

    def hook(path: str) -> Any:
        return lambda module, args, kwargs, out: found[path].append(((args, kwargs), out))

    with ExitStack() as handles:
        for path in paths:
            module = model.get_submodule(path)
            handles.callback(module.register_forward_hook(hook(path), prepend=True, with_kwargs=True).remove)
        model(*call[0], **call[1])
    return found


def _linked(paths: Sequence[str], seen: Seen) -> tuple[str, Chain | None]:
    """The chain that modules are, or why they are none."""
    slots, taken = [], []
    for path in paths:
        if len(seen[path]) != 1:
            return f"{path} is called {len(seen[path])} times", None
    first, before = None, None
    for path in paths:
        call, out = seen[path][0]
        tensors = _tensors(call)
        if before is None:
            first = call
        else:
            outputs = _tensors(before)
            links = [
                (slot, number)
                for slot, each in enumerate(tensors)
                for number, made in enumerate(outputs)
                if each is made
            ]
            if len(links) != 1:
                return f"{path} doesn't get the output of the one before it, or gets more of it", None
            if not _alike(call, first, links[0][0]):
                return f"{path} gets other arguments than the first of them", None
            slots.append(links[0][0])
            taken.append(links[0][1])
        before = out
    return "", Chain(tuple(paths), tuple(slots), tuple(taken))


def _tensors(value: object) -> list[Tensor]:
    return [each for each in _pytree.tree_leaves(value) if isinstance(each, Tensor)]


def _alike(call: object, first: object, slot: int) -> bool:
    """Whether arguments are those of the first module, but for one tensor."""
    leaves, spec = _pytree.tree_flatten(call)
    others, other_spec = _pytree.tree_flatten(first)
    if spec != other_spec:
        return False
    tensors = [index for index, each in enumerate(leaves) if isinstance(each, Tensor)]
    linked = tensors[slot]
    for index, (one, other) in enumerate(zip(leaves, others, strict=True)):
        same = one is other or (not isinstance(one, Tensor) and not isinstance(other, Tensor) and bool(one == other))
        if isinstance(one, Tensor) and isinstance(other, Tensor) and not same:
            same = one.shape == other.shape and one.dtype == other.dtype and torch.equal(one, other)
        if index != linked and not same:
            return False
    return isinstance(others[linked], Tensor)


@contextmanager
def replaced_forward(modules: Mapping[nn.Module, Any]) -> Iterator[None]:
    """Modules compute something else for the length of the block: by module, what is called with the arguments."""
    before = {module: vars(module).get("forward") for module in modules}
    try:
        for module, forward in modules.items():
            vars(module)["forward"] = forward
        yield
    finally:
        for module, former in before.items():
            vars(module).pop("forward", None)
            if former is not None:
                vars(module)["forward"] = former


@contextmanager
def stopping_at(module: nn.Module) -> Iterator[None]:
    """A forward that comes to a module ends there: `Reached`, with the arguments that it got."""

    def stop(*args: Any, **kwargs: Any) -> Any:
        raise Reached((args, kwargs))

    with replaced_forward({module: stop}):
        yield

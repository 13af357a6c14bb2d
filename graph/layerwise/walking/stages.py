"""The stages of a walk through a model: what runs between a few tensors that are kept."""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from ....nn.contexts.freezing import frozen
from ...errors import GraphError
from ...recording.examples import Call
from .chain import Chain, Reached, replaced_forward, stopping_at

__all__ = ["Kept", "Stage", "stages_of"]


class Kept:
    """The arguments of forwards that wait for their turn, in memory or on disk.

    Args:
        wait_on: where they wait: ``"device"``, ``"cpu"``, or a folder. They come back to where each of them was.

    Example:
        >>> kept = Kept("cpu")
        >>> kept.append(((torch.ones(2),), {}))
        >>> kept[0], len(kept)
        (((tensor([1., 1.]),), {}), 1)
    """

    def __init__(self, wait_on: str | Path = "device") -> None:
        self._folder = None
        self._where = wait_on
        if isinstance(wait_on, Path) or wait_on not in ("device", "cpu"):
            self._folder = TemporaryDirectory(dir=wait_on, prefix="bitwright-")
        self._calls: list[Any] = []
        self._devices: list[list[torch.device]] = []

    def append(self, call: Call) -> None:
        """Keep one more."""
        self._devices.append([])
        self._calls.append(self._away(len(self._calls), call))

    def replace(self, number: int, call: Call) -> None:
        """Keep this one in the place of another."""
        self._calls[number] = self._away(number, call)

    def _away(self, number: int, call: Call) -> Any:
        if self._folder is not None or self._where == "cpu":
            self._devices[number] = [each.device for each in _pytree.tree_leaves(call) if isinstance(each, Tensor)]
        if self._folder is not None:
            path = Path(self._folder.name) / f"{number}.pt"
            torch.save(call, path)
            return path
        return _to([torch.device("cpu")] * len(self._devices[number]), call) if self._where == "cpu" else call

    def __len__(self) -> int:
        return len(self._calls)

    def __getitem__(self, number: int) -> Call:
        found = self._calls[number]
        if isinstance(found, Path):
            found = torch.load(found, map_location="cpu", weights_only=False)
        return _to(self._devices[number], found) if self._devices[number] else found

    def __iter__(self) -> Iterator[Call]:
        return (self[number] for number in range(len(self)))

    def close(self) -> None:
        """Keep nothing any more; what was on disk is removed."""
        self._calls.clear()
        if self._folder is not None:
            self._folder.cleanup()


def _to(devices: Sequence[torch.device], call: Any) -> Any:
    """The arguments with each tensor on its device."""
    left = iter(devices)
    return _pytree.tree_map(lambda each: each.to(next(left)) if isinstance(each, Tensor) else each, call)


class Stage:
    """A part of a model that runs by itself, for one batch after the other.

    Args:
        name: the path of a block; ``""`` for the model.
        run: called with the arguments that were kept for a batch, and the number of the batch.
        paths: what the layers in it start with; None for those of the model in no other stage.

    Attributes:
        results: what the part returned for a batch, where the caller knows that it would return it again.

    Example:
        >>> Stage("", lambda call, number: call[0][0] + 1)(((1,), {}), 0)
        2
    """

    def __init__(self, name: str, run: Callable[[Call, int], object], paths: Sequence[str] | None = None) -> None:
        self.name = name
        self._run = run
        self.paths = paths
        self.results: dict[int, object] = {}

    def result(self, call: Call, number: int) -> object:
        """The same, or what is known of it."""
        return self.results.pop(number) if number in self.results else self(call, number)

    def __call__(self, call: Call, number: int) -> object:
        """What the part computes; a `Reached` where it ends in the middle of a forward."""
        try:
            return self._run(call, number)
        except Reached as reached:
            return reached


@contextmanager
def _short(model: nn.Module, chain: Chain, out: object) -> Iterator[None]:
    """The blocks of a chain return at once what the last of them returned before."""
    blocks = {model.get_submodule(path): lambda *args, **kwargs: out for path in chain.paths}
    with replaced_forward(blocks):
        yield


def stages_of(
    model: nn.Module, chain: Chain | None, calls: Sequence[Call], wait_on: str | Path = "device"
) -> Generator[tuple[Stage, Kept]]:
    """The stages of a model, each with the arguments for it; between two, what the first returns is handed on.

    The caller runs a stage as often as it likes. When it asks for the next, the stage runs once more for every batch.

    Args:
        model: in evaluation, frozen where that helps.
        chain: its blocks, or None for one stage.
        calls: the arguments of the forwards.
        wait_on: where arguments wait, see `Kept`.

    Raises:
        GraphError: a batch doesn't reach the chain.
    """
    whole = Kept()
    for call in calls:
        whole.append(call)
    if chain is None:
        yield Stage("", lambda call, number: model(*call[0], **call[1])), whole
        return
    first = model.get_submodule(chain.paths[0])

    def head(call: Call, number: int) -> object:
        with stopping_at(first):
            return model(*call[0], **call[1])

    stage = Stage("", head)
    yield stage, whole
    with closing(Kept(wait_on)) as kept:
        for number, call in enumerate(whole):
            reached = stage.result(call, number)
            if not isinstance(reached, Reached) or reached.call is None:
                raise GraphError(
                    f"Batch {number} doesn't come to {chain.paths[0]}, the first block. Leave that batch out, or name "
                    "other blocks."
                )
            kept.append(reached.call)
        for number, path in enumerate(chain.paths):
            block = model.get_submodule(path)
            stage = Stage(path, _runner(block), [path])
            yield stage, kept
            with frozen(block):
                for index in range(len(kept)):
                    call = kept[index]
                    out = stage.result(call, index)
                    last = number + 1 == len(chain.paths)
                    kept.replace(index, ((out,), {}) if last else chain.follow(number + 1, call, out))

        def tail(call: Call, number: int) -> object:
            with _short(model, chain, kept[number][0][0]):
                return model(*call[0], **call[1])

        yield Stage("", tail), whole


def _runner(block: nn.Module) -> Callable[[Call, int], object]:
    def run(call: Call, number: int) -> object:
        args, kwargs = _pytree.tree_map(lambda each: each.clone() if isinstance(each, Tensor) else each, call)
        return block(*args, **kwargs)  # copies, which a block may write to

    return run

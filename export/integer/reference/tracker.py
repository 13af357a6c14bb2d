"""Follows floats through an integer-only run, up to the next quantizer."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from torch import Tensor, nn
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from ....qcore.aliases import Arguments, Keywords, Operator
from ..float_modules import FloatModule
from .journal import Journal, operation_name
from .tensor import SELECTIONS, IntegerTensor

__all__ = ["FloatTracker"]


class _Origin(NamedTuple):
    """What a float was computed from since the last quantizer, and by which (module, operator) pairs."""

    integers: bool = False
    operations: tuple[tuple[str, str], ...] = ()

    def joined(self, other: "_Origin") -> "_Origin":
        return _Origin(self.integers or other.integers, tuple(dict.fromkeys(self.operations + other.operations)))


class FloatTracker(TorchDispatchMode):
    """While open, follows floats from the model's inputs and from integers up to the next quantizer.

    Args:
        journal: of the run.
        inputs: the model's arguments.
    """

    def __init__(self, journal: Journal, inputs: object) -> None:
        super().__init__()
        self.journal = journal
        self.places: dict[tuple[str, str], str] = {}
        self._origins = WeakTensorKeyDictionary()
        self._watching = True
        for each in _tensors(inputs):
            self._origins[each] = _Origin()

    def __torch_dispatch__(
        self, func: Operator, types: object, args: Arguments = (), kwargs: Keywords | None = None
    ) -> object:
        kwargs = kwargs or {}
        if not self._watching:
            return func(*args, **kwargs)
        given, noted = list(_tensors((args, kwargs))), len(self.journal.noted)
        origins = [origin for origin in map(self._origin, given) if origin is not None]
        out = func(*args, **kwargs)
        if not origins:
            return out
        origin = _Origin()
        for each in origins:
            origin = origin.joined(each)
        new = self.journal.noted[noted:]
        touched = [*_tensors(out), *(given[:1] if func._schema.is_mutable else ())]
        results = [each for each in touched if not isinstance(each, IntegerTensor)]
        if not new and func not in SELECTIONS and any(each.is_floating_point() for each in results):
            if any(isinstance(each, IntegerTensor) for each in given):
                return out  # shapes alone
            if origin.integers:
                self.journal.compute_in_float(func)
            new = [(self.journal.layer, operation_name(func))]
        origin = origin.joined(_Origin(False, tuple(new)))
        for each in results:
            for changed in (each, each._base if func._schema.is_mutable else None):
                if changed is not None:
                    self._origins[changed] = origin
        for each in touched:
            if isinstance(each, IntegerTensor) and not origin.integers:
                self._origins[each] = origin  # of parameters alone
        return out

    def _origin(self, tensor: Tensor) -> _Origin | None:
        known = self._origins.get(tensor)
        return _Origin(integers=True) if known is None and isinstance(tensor, IntegerTensor) else known

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Quantizers compute in floats by themselves."""
        before, self._watching = self._watching, False
        try:
            yield
        finally:
            self._watching = before

    def stored(self, tensor: Tensor) -> None:
        """Integers of a parameter, which no input decides."""
        self._origins[tensor] = _Origin()

    def quantized(self, tensor: Tensor) -> None:
        """An activation's quantizer is reached."""
        self._settle([tensor], "between")

    def returned(self, outputs: object) -> None:
        """The model's outputs are reached."""
        self._settle(_tensors(outputs), "after")

    def _settle(self, tensors: Iterable[Tensor], place: str) -> None:
        for each in tensors:
            origin = self._origins.get(each)
            if origin is None:
                continue
            for operation in origin.operations:
                found = place if origin.integers else "before"
                if self.places.get(operation) != "between":
                    self.places[operation] = found

    def modules(self, modules: dict[str, nn.Module]) -> tuple[FloatModule, ...]:
        """What was found, in order of execution."""
        found: dict[tuple[str, str], list[str]] = {}
        for (path, operation), place in self.places.items():
            found.setdefault((path, place), []).append(operation)
        return tuple(
            FloatModule(path, type(modules[path]).__name__, tuple(operations), place)
            for (path, place), operations in found.items()
        )


def _tensors(tree: object) -> Iterator[Tensor]:
    return (each for each in _pytree.tree_leaves(tree) if isinstance(each, Tensor))

"""Running a model for what can be seen on the way, and leaving no trace."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...nn.layer import QuantLayer
from ...nn.weight_layer import WeightLayer
from ...qcore import TensorQuant, values_of

__all__ = ["Seen", "evaluating", "numbers_in", "observed"]

Seen = Callable[[str, nn.Module, tuple[Any, ...], dict[str, Any], Any], Any]


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Models in evaluation mode, without gradients, that use nothing kept by `frozen`; afterwards as they were.

    Tensors are not looked after: evaluation changes none.

    Example:
        >>> model = nn.Dropout().train()
        >>> with evaluating(model):
        ...     print(model.training, torch.is_grad_enabled())
        False False
        >>> model.training
        True
    """
    parts = [part for model in models for part in model.modules()]
    modes = [(part, part.training) for part in parts]
    kept = [(part, part._kept) for part in parts if isinstance(part, (QuantLayer, TensorQuant))]
    seen = [(part, part._seen) for part in parts if isinstance(part, WeightLayer)]
    for part in parts:
        part.training = False
    for part, _ in kept:
        part._kept = None
    try:
        with torch.no_grad():
            yield
    finally:
        for part, mode in modes:
            part.training = mode
        for part, former in kept:
            vars(part)["_kept"] = former
        for part, grid in seen:
            vars(part)["_seen"] = grid


@contextmanager
def observed(modules: Mapping[str, nn.Module], see: Seen) -> Iterator[None]:
    """Call ``see(path, module, args, kwargs, output)`` after each forward of a module; what it returns replaces it.

    It comes before every hook of the user's own, so that it sees the module's own output, and None replaces nothing.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
        >>> with observed({"0": model[0]}, lambda path, module, args, kwargs, out: print(path, out.shape)):
        ...     _ = model(torch.ones(1, 2))
        0 torch.Size([1, 3])
    """

    def hook(path: str) -> Callable[..., Any]:
        return lambda module, args, kwargs, out: see(path, module, args, kwargs, out)

    with ExitStack() as handles:
        for path, module in modules.items():
            handle = module.register_forward_hook(hook(path), prepend=True, with_kwargs=True)
            handles.callback(handle.remove)
        yield


def numbers_in(output: object) -> list[Tensor]:
    """The tensors of floating numbers in what a model returns, of whatever structure, in order.

    Example:
        >>> [each.shape for each in numbers_in({"boxes": torch.ones(2, 4), "labels": torch.ones(2, dtype=torch.int64)})]
        [torch.Size([2, 4])]
    """
    if isinstance(output, Tensor):
        return [values_of(output).detach()] if output.is_floating_point() else []
    if isinstance(output, Mapping):
        parts: Iterable[object] = output.values()
    elif isinstance(output, (list, tuple)):
        parts = output
    else:
        parts = vars(output).values() if is_dataclass(output) else ()
    return [each for part in parts for each in numbers_in(part)]

"""What an exporter does to a model for the time of an export, and undoes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..qcore import Grid, TensorQuant

__all__ = ["Lowering", "evaluating", "lowered", "numbered", "quantizers_of", "unchanged"]

Lowering = Callable[..., tuple[Tensor, Grid | None]]


def quantizers_of(module: nn.Module) -> dict[str, TensorQuant]:
    """Every quantizer of a model by its path; one that several layers share counts once."""
    return {name: each for name, each in module.named_modules() if isinstance(each, TensorQuant)}


def numbered(path: str, index: int) -> str:
    """The name of one call of a module: its path, with a number from the second call on."""
    return path if index == 0 else f"{path}.{index}"


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """A model in evaluation mode; afterwards every module is in the mode it was in."""
    modes = [(each, each.training) for each in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for each, mode in modes:
            each.training = mode


@contextmanager
def lowered(quantizers: dict[str, TensorQuant], lowering: Callable[[str], Lowering]) -> Iterator[None]:
    """Quantizers that call ``lowering(path)`` instead of their own arithmetic."""
    before = [(each, each.__dict__.get("lowering")) for each in quantizers.values()]
    try:
        for name, each in quantizers.items():
            each.lowering = lowering(name)
        yield
    finally:
        for each, former in before:
            each.__dict__.pop("lowering", None)
            if former is not None:
                each.lowering = former


@contextmanager
def unchanged(module: nn.Module) -> Iterator[None]:
    """A model whose flags, and whose quantizers' tensors, are afterwards what they were, in the same objects.

    A forward in evaluation may still set state: a learned scale that starts from the weight, the last grid seen.
    """
    flags = [(part, {k: v for k, v in vars(part).items() if k not in _TENSORS}) for part in module.modules()]
    parts = {part for each in quantizers_of(module).values() for part in each.modules()}
    tensors = [tensor for part in parts for tensor in _own_tensors(part)]
    copies = [tensor.detach().clone() for tensor in tensors]
    try:
        yield
    finally:
        for part, former in flags:
            for name in vars(part).keys() - former.keys() - _TENSORS:
                del vars(part)[name]
            vars(part).update(former)
        with torch.no_grad():
            for tensor, copy in zip(tensors, copies, strict=True):
                if tensor.shape != copy.shape:
                    tensor.data = copy
                elif not torch.equal(tensor, copy):
                    tensor.copy_(copy)


_TENSORS = {"_parameters", "_buffers", "_modules"}


def _own_tensors(module: nn.Module) -> list[Any]:
    return [*module.parameters(recurse=False), *module.buffers(recurse=False)]

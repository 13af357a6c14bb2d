"""The state of a model for the time of an export or comparison, and afterwards as it was."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from ...nn.layer import QuantLayer
from ...qcore import TensorQuant

__all__ = ["evaluating", "unchanged"]


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """A model in evaluation mode that uses nothing kept by `frozen`; afterwards every module is as it was."""
    modes = [(each, each.training) for each in module.modules()]
    kept = [(each, each._kept) for each in module.modules() if isinstance(each, (QuantLayer, TensorQuant))]
    module.eval()
    for each, _ in kept:
        each._kept = None
    try:
        yield
    finally:
        for each, mode in modes:
            each.training = mode
        for each, former in kept:
            vars(each)["_kept"] = former


@contextmanager
def unchanged(module: nn.Module) -> Iterator[None]:
    """A model whose attributes are afterwards what they were: the last grid seen, what was warned of.

    Tensors are not touched: evaluation sets no state.
    """
    flags = [(part, {k: v for k, v in vars(part).items() if k not in _TENSORS}) for part in module.modules()]
    try:
        yield
    finally:
        for part, former in flags:
            for name in vars(part).keys() - former.keys() - _TENSORS:
                del vars(part)[name]
            vars(part).update(former)


_TENSORS = {"_parameters", "_buffers", "_modules"}

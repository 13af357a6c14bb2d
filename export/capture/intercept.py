"""What an exporter does to a model for the time of an export, and undoes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from ...nn.slots import QuantLayer
from ...qcore import Grid, TensorQuant

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
            each._kept = former


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

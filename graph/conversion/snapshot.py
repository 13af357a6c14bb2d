"""A model as it was, to go back to where a pass fails."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

__all__ = ["restored_on_failure"]


@contextmanager
def restored_on_failure(model: nn.Module) -> Iterator[None]:
    """Put every module back as it was if the block raises: its class, attributes, parameters, hooks and modules.

    Values of tensors are not copied: a block that changes them in place has to see to them itself.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2))
        >>> try:
        ...     with restored_on_failure(model):
        ...         model.add_module("more", nn.ReLU())
        ...         raise ValueError
        ... except ValueError:
        ...     print(len(model))
        1
    """
    before = [(module, type(module), _shallow(vars(module))) for module in model.modules()]
    try:
        yield
    except BaseException:
        for module, cls, held in before:
            module.__class__ = cls
            _put_back(vars(module), held)
        raise


def _shallow(held: dict[str, object]) -> dict[str, tuple[object, dict[object, object] | None]]:
    """Each attribute, with a copy of what is in it if it is a dict: parameters, modules, hooks."""
    return {name: (item, dict(item) if isinstance(item, dict) else None) for name, item in held.items()}


def _put_back(held: dict[str, object], before: dict[str, tuple[object, dict[object, object] | None]]) -> None:
    held.clear()
    for name, (item, inside) in before.items():
        if isinstance(item, dict) and inside is not None:
            item.clear()  # the same dict: handles of hooks refer to it
            item.update(inside)
        held[name] = item

"""Setting a module's attributes cheaply."""

from typing import Any

from torch import nn

__all__ = ["assign"]


def assign(module: nn.Module, **attributes: Any) -> None:
    """Set attributes, plain ones past nn.Module's bookkeeping, which is most of what building a layer costs.

    Example:
        >>> module = nn.Module()
        >>> assign(module, axis=1, inner=nn.ReLU())
        >>> module.axis, list(module.children())
        (1, [ReLU()])
    """
    plain = vars(module)
    for name, item in attributes.items():
        if isinstance(item, nn.Module):
            setattr(module, name, item)
        else:
            plain[name] = item

"""Setting a module's attributes: cheaply, and anew where it leaves the meta device."""

from collections.abc import Callable
from typing import Any

from torch import nn

__all__ = ["assign", "reset_off_meta"]


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


def reset_off_meta(module: Any, apply: Callable[..., Any], fn: Any, recurse: bool) -> Any:
    """The `_apply` of a module whose state may be in no file: memory that replaces the meta device is not left empty.

    Example:
        >>> import torch
        >>> from bitwright.qcore import LearnedBitWidth
        >>> LearnedBitWidth(6, device="meta").to_empty(device="cpu").report()["bit_width"]
        6
    """
    left = _on_meta(module)
    apply(fn, recurse)
    if left and not _on_meta(module):
        module.reset_parameters()
    return module


def _on_meta(module: nn.Module) -> bool:
    return any(each.is_meta for each in (*module._parameters.values(), *module._buffers.values()) if each is not None)

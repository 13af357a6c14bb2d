"""A module's state where it leaves the meta device."""

from collections.abc import Callable
from typing import Any

from torch import nn

__all__ = ["reset_off_meta"]


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

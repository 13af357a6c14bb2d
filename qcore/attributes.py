"""Setting a module's attributes: cheaply, and anew where it leaves the meta device."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn.modules import module as torch_module

__all__ = ["assign", "keep", "reset_off_meta"]

# What others asked to be told of every registration: while they do, it goes through nn.Module, at its price.
_WATCHERS: list[dict[int, Any]] = [
    getattr(torch_module, f"_global_{kind}_registration_hooks", {}) for kind in ("module", "parameter", "buffer")
]


def assign(module: nn.Module, **attributes: Any) -> None:
    """Set attributes past nn.Module's bookkeeping, which is most of what building a layer costs.

    Example:
        >>> module = nn.Module()
        >>> assign(module, axis=1, inner=nn.ReLU())
        >>> module.axis, list(module.children())
        (1, [ReLU()])
    """
    plain = vars(module)
    for name, item in attributes.items():
        if not isinstance(item, nn.Module):
            plain[name] = item
        elif _WATCHERS[0]:
            setattr(module, name, item)
        else:
            plain.pop(name, None)
            plain["_modules"][name] = item


def keep(module: nn.Module, parameters: dict[str, nn.Parameter | None], buffers: dict[str, Tensor]) -> None:
    """Register parameters and persistent buffers, as cheaply.

    Example:
        >>> import torch
        >>> module = nn.Module()
        >>> keep(module, {"offset": nn.Parameter(torch.zeros(1))}, {"base": torch.ones(1)})
        >>> module.offset, list(module.state_dict())
        (Parameter containing:
        tensor([0.], requires_grad=True), ['offset', 'base'])
    """
    if _WATCHERS[1] or _WATCHERS[2]:
        for name, parameter in parameters.items():
            module.register_parameter(name, parameter)
        for name, buffer in buffers.items():
            module.register_buffer(name, buffer)
    else:
        vars(module)["_parameters"].update(parameters)
        vars(module)["_buffers"].update(buffers)


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

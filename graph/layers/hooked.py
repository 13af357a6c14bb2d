"""Modules whose own `forward` hides that of their class, such as accelerate's, which move tensors between devices."""

from types import MethodType

from torch import nn

__all__ = ["follow_class", "hides_class"]


def hides_class(module: nn.Module) -> bool:
    """Whether a module would go on computing as before if its class changed.

    What accelerate puts there runs its hooks and calls ``_old_forward``; `follow_class` sees to that.

    Example:
        >>> linear = nn.Linear(2, 2)
        >>> linear.forward = lambda x: x
        >>> hides_class(linear), hides_class(nn.Linear(2, 2))
        (True, False)
    """
    return "forward" in vars(module) and not _has_hooks(module)


def follow_class(module: nn.Module) -> None:
    """Let the hooks of accelerate call the forward of a module's class, after that has changed.

    Example:
        >>> linear = nn.Linear(2, 2)
        >>> linear._hf_hook, linear._old_forward = object(), linear.forward  # accelerate's names
        >>> linear.__class__ = type("Other", (nn.Linear,), {"forward": lambda self, x: x})
        >>> follow_class(linear)
        >>> linear._old_forward(3)
        3
    """
    if _has_hooks(module):
        vars(module)["_old_forward"] = MethodType(type(module).forward, module)


def _has_hooks(module: nn.Module) -> bool:
    own = vars(module)
    called = own.get("_old_forward")
    return "_hf_hook" in own and isinstance(called, MethodType) and called.__self__ is module

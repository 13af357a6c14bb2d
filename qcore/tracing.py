"""What is at work around a forward pass: a compiler, an exporter, a transform; and whether derivatives are recorded."""

from collections.abc import Callable
from typing import TypeVar

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor
from torch._C._functorch import is_legacy_batchedtensor as _batched
from torch.jit._trace import is_tracing

__all__ = ["constant", "differentiated", "exporting", "is_tracing", "number", "recording", "transformed"]

Function = TypeVar("Function", bound=Callable[..., object])


def constant(function: Function) -> Function:
    """Have a compiler call a function while it makes a graph, and take the result for a constant.

    What `torch.compiler.assume_constant_result` does, which imports the compiler: most of a second.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


_mapped = torch._C._are_functorch_transforms_active


def exporting() -> bool:
    """Whether `torch.export` is at work; in torch 2.9 `torch.compiler.is_exporting` says so under any compiler."""
    return torch.compiler._is_exporting_flag


@constant  # a compiler knows which transform a function is in, and asks once
def transformed() -> bool:
    """Whether `torch.func`, forward-mode differentiation or `torch.jit.trace` is at work.

    They take torch's own operations, not autograd functions of the form that the fast ones have. Nor do they under
    ``torch.compile``: in torch 2.13 a compiled `torch.func.grad` of the traced form gave wrong numbers.
    """
    return _mapped() or forward_ad._current_level >= 0 or is_tracing()


def recording() -> bool:
    """Whether a derivative may be asked for: forward-mode differentiation takes no notice of `torch.no_grad`."""
    return torch.is_grad_enabled() or transformed()


def differentiated(grad: Tensor) -> bool:
    """Whether what a backward pass does to ``grad`` is itself recorded, or mapped over several gradients at once."""
    return recording() or _batched(grad)


def number(tensor: Tensor) -> float | None:
    """What a tensor holds; None where it holds nothing yet or can't be asked (under a compiler, torch.func.vmap)."""
    try:
        return None if tensor.is_meta else tensor.item()
    except RuntimeError:
        return None

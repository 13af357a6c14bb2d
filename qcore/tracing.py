"""What is at work around a forward pass: a compiler, an exporter, a transform; and whether derivatives are recorded."""

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor

__all__ = ["differentiated", "exporting", "recording", "transformed"]

_mapped = torch._C._are_functorch_transforms_active
_batched = torch._C._functorch.is_legacy_batchedtensor


def exporting() -> bool:
    """Whether `torch.export` is at work; in torch 2.9 `torch.compiler.is_exporting` says so under any compiler."""
    return torch.compiler._is_exporting_flag


def transformed() -> bool:
    """Whether `torch.func`, forward-mode differentiation or `torch.jit.trace` is at work.

    They take torch's own operations, not autograd functions of the form that the fast ones have.
    """
    if torch.compiler.is_compiling():
        return False
    return _mapped() or forward_ad._current_level >= 0 or torch.jit.is_tracing()


def recording() -> bool:
    """Whether a derivative may be asked for: forward-mode differentiation takes no notice of `torch.no_grad`."""
    return torch.is_grad_enabled() or transformed()


def differentiated(grad: Tensor) -> bool:
    """Whether what a backward pass does to ``grad`` is itself recorded, or mapped over several gradients at once."""
    return recording() or _batched(grad)

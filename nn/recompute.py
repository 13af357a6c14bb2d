"""Large quantized weights are quantized again in backward, not kept for it.

A layer's backward needs the quantized weight, which would be a second copy of every weight from forward to backward:
45 MB of a ResNet-18. Quantizing it again takes three passes over the weight, beside the products of the layer.
"""

import contextlib
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from ..qcore import Grid, TensorQuant

__all__ = ["not_kept"]

_NOTHING = contextlib.nullcontext()
_hooks_in_use = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)


def not_kept(values: Tensor, weight: Tensor, grid: Grid, quant: TensorQuant | None) -> Any:
    """A context in which autograd keeps the weight in place of its quantized values.

    Not under gradient checkpointing or other hooks on saved tensors, which decide for themselves what is kept.

    Args:
        values: what ``quant`` made of the weight.
        weight: the parameter.
        grid: the grid that the values lie on.
        quant: the quantizer.
    """
    if quant is None or not values.requires_grad or torch.compiler.is_compiling():
        return _NOTHING
    if _hooks_in_use is None or _hooks_in_use(False) is not None or not weight.is_leaf or not quant.repeats(weight):
        return _NOTHING
    source, version, address = weight.detach(), weight._version, values.data_ptr()

    def pack(tensor: Tensor) -> Any:
        if tensor.data_ptr() != address or tensor.numel() != values_size:
            return tensor
        return tensor.shape, tensor.stride()

    def unpack(kept: Any) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        if source._version != version:
            raise RuntimeError(
                "a weight needed for gradient computation has been modified by an inplace operation since the forward: "
                f"version {source._version}, expected {version}. Run backward before the optimizer's step."
            )
        return quant.repeat(source, grid).as_strided(*kept)

    values_size = values.numel()
    return saved_tensors_hooks(pack, unpack)

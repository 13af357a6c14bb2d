"""What is large and quantized is quantized again in backward, not kept for it.

A layer's backward needs its quantized weight and input. Kept, they are a second copy of every weight and of every
activation whose scale is learned, from forward to backward: 45 and 36 of the 174 MB that a training step of a ResNet-18
on 16 images of 32x32 would take. Quantizing again takes four passes over them, beside the products of the layer.
"""

import contextlib
from functools import partial

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from ...qcore.aliases import Context
from ...qcore.kernels.fused import LARGE, repeated
from ...qcore.quant_tensor import behind

__all__ = ["not_kept"]

_NOTHING = contextlib.nullcontext()
_USES = 128  # products that each weight takes part in, at least: else quantizing again would be felt


def not_kept(x: Tensor, weight: Tensor) -> contextlib.AbstractContextManager[object]:
    """A context in which autograd keeps neither the input nor the quantized weight of a layer.

    That is, where they are large, and come straight from a quantizer that can work them out again.
    """
    if not torch.is_grad_enabled():
        return _NOTHING
    makers: dict[int, Context] = {}
    for tensor in (x, weight):
        few = tensor is weight and x.numel() < _USES * weight.shape[1]
        node = None if few or tensor.numel() < LARGE else behind(tensor)
        made, version = getattr(node, "aside", None) or (None, 0)
        if made is not None and made._version == version and made.data_ptr() == tensor.data_ptr():
            makers[tensor.data_ptr()] = node
    return saved_tensors_hooks(partial(_pack, makers), _unpack) if makers else _NOTHING


Kept = tuple[Context, torch.Size, tuple[int, ...]]  # the node that can make a tensor again, its shape, its strides


def _pack(makers: dict[int, Context], tensor: Tensor) -> Tensor | Kept:
    node = makers.get(tensor.data_ptr())
    if node is None or tensor.numel() < LARGE:
        return tensor
    node.aside = None
    return node, tensor.shape, tensor.stride()


def _unpack(kept: Tensor | Kept) -> Tensor:
    if isinstance(kept, Tensor):
        return kept
    node, shape, stride = kept
    return repeated(node).as_strided(shape, stride)

"""What is large and quantized is quantized again in backward, not kept for it.

A layer's backward needs its quantized weight and input. Kept, they are a second copy of every weight and of every
activation whose scale is learned, from forward to backward: 45 and 36 of the 174 MB that a training step of a ResNet-18
on 16 images of 32x32 takes. Quantizing again takes four passes over them, beside the products of the layer.
"""

import contextlib
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from ..qcore import Grid, TensorQuant
from ..qcore.fused import LARGE, MagnitudeFakeQuant, may_repeat
from ..qcore.quant_tensor import behind

__all__ = ["not_kept"]

_NOTHING = contextlib.nullcontext()


def not_kept(x: Tensor, values: Tensor, weight: Tensor, grid: Grid | None, quant: TensorQuant | None) -> Any:
    """A context in which autograd does not keep a layer's input and quantized weight, where they are large.

    Args:
        x: the input; it counts if it comes straight from a quantizer whose scale is learned.
        values: the quantized weight.
        weight: the parameter.
        grid: the grid that the values lie on.
        quant: the quantizer of the weight.
    """
    if torch.compiler.is_compiling() or not torch.is_grad_enabled() or not may_repeat():
        return _NOTHING
    again: dict[int, Callable[[], Tensor]] = {}
    if values.numel() >= LARGE and grid is not None and quant is not None and weight.is_leaf and quant.repeats(weight):
        again[values.data_ptr()] = partial(_weight_again, weight.detach(), weight._version, grid, quant)
    node = behind(x) if x.numel() >= LARGE else None
    made, version = getattr(node, "aside", None) or (None, 0)
    if made is not None and made._version == version and made.data_ptr() == x.data_ptr():
        again[x.data_ptr()] = partial(MagnitudeFakeQuant.repeated, node)
    return saved_tensors_hooks(partial(_pack, again, node), _unpack) if again else _NOTHING


def _weight_again(weight: Tensor, version: int, grid: Grid, quant: TensorQuant) -> Tensor:
    if weight._version != version:
        raise RuntimeError(
            "a weight needed for gradient computation has been modified by an inplace operation since the forward: "
            f"version {weight._version}, expected {version}. Run backward before the optimizer's step."
        )
    return quant.repeat(weight, grid)


def _pack(again: dict[int, Callable[[], Tensor]], node: Any, tensor: Tensor) -> Any:
    repeat = again.get(tensor.data_ptr())
    if repeat is None or tensor.numel() < LARGE:
        return tensor
    if repeat.func is MagnitudeFakeQuant.repeated:  # type: ignore[attr-defined]
        node.aside = None
    return repeat, tensor.shape, tensor.stride()


def _unpack(kept: Any) -> Tensor:
    if isinstance(kept, Tensor):
        return kept
    repeat, shape, stride = kept
    return repeat().as_strided(shape, stride)

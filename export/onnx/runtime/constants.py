"""What is constant in a graph, as numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..protect import number_of

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["StoredIntegers", "stored_integers", "values_of_constant"]


@dataclass(frozen=True)
class StoredIntegers:
    """Constant integers that a DequantizeLinear turns into values.

    Attributes:
        codes: int64, clipped if the file clips them.
        scale: float32.
        zero_point: int64, of the scale's shape, or 0.
        axis: where the scales vary; None for one scale.
        block: how many neighbours along it share one; None for scales of channels.
        bits: of the type.
        signed: whether the type has a sign.
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor
    axis: int | None
    block: int | None
    bits: int
    signed: bool


def stored_integers(dequantize: ir.Node) -> StoredIntegers | None:
    """What a DequantizeLinear holds, if its integers and scales are constants; or None."""
    codes, bounds = dequantize.inputs[0], None
    clip = None if codes is None else codes.producer()
    if clip is not None and clip.op_type == "Clip":
        bounds = [number_of(each) for each in clip.inputs[1:3]]
        codes = clip.inputs[0]
    integers, scale = number_of(codes), number_of(dequantize.inputs[1])
    dtype = None if codes is None else codes.dtype
    if integers is None or scale is None or dtype is None or dtype.is_floating_point():
        return None
    if bounds is not None:
        low, high = bounds
        if low is None or high is None:
            return None
        integers = integers.clamp(low, high)
    zero = number_of(dequantize.inputs[2]) if len(dequantize.inputs) > 2 else None
    axis = dequantize.attributes.get_int("axis", 1) if scale.ndim else None
    block = dequantize.attributes.get_int("block_size", 0) or None
    return StoredIntegers(
        integers,
        scale,
        torch.zeros(scale.shape, dtype=torch.int64) if zero is None else zero,
        axis if axis is None or axis >= 0 else axis + integers.ndim,
        block,
        dtype.bitwidth,
        dtype.is_signed(),
    )


def values_of_constant(value: ir.Value | None) -> Tensor | None:
    """An initializer of floats, or integers of one scale or one for each channel, as values; else None."""
    maker = None if value is None else value.producer()
    if maker is None:
        found = number_of(value)
        return found if found is not None and found.is_floating_point() else None
    held = stored_integers(maker) if maker.op_type == "DequantizeLinear" else None
    if held is None or held.block is not None:
        return None
    scale, zero = held.scale, held.zero_point
    if held.axis is not None:
        shape = [-1 if dim == held.axis else 1 for dim in range(held.codes.ndim)]
        scale, zero = scale.reshape(shape), zero.reshape(shape)
    return (held.codes - zero).float() * scale

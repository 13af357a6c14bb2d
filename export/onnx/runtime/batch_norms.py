"""Batch normalization behind a quantized convolution, in the scales of its weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from ..protect import Guard
from .constants import StoredIntegers, stored_integers, values_of_constant

if TYPE_CHECKING:
    import onnx_ir as ir
    from numpy.typing import NDArray

__all__ = ["fold_into_convolutions"]


def fold_into_convolutions(guard: Guard, node: ir.Node) -> None:
    """Let a convolution do the work of the BatchNormalization that alone uses it, if its weights are stored integers.

    The normalization multiplies each channel by a factor. The factor goes into the channel's scale, so the integers
    stay as they are; those of channels with a negative factor change their signs. What it adds goes into the bias.

    Args:
        guard: the editor of the graph.
        node: the BatchNormalization. It stays where the convolution can't do its work.
    """
    product = node.inputs[0]
    conv = None if product is None else product.producer()
    if conv is None or conv.op_type != "Conv" or product is None or product.is_graph_output():
        return
    weights = guard.dequantize(conv.inputs[1])
    settings = [values_of_constant(each) for each in node.inputs[1:5]]
    bias = guard.operand(conv, 2)
    added = np.float32(0.0) if bias is None else values_of_constant(bias)
    held = None if weights is None or conv.inputs[1] is not weights.outputs[0] else stored_integers(weights)
    known = added is not None and held is not None and all(each is not None for each in settings)
    if not known or len(product.uses()) != 1 or guard.dequantize(conv.inputs[0]) is None:
        return
    assert held is not None
    assert weights is not None
    if held.block is not None or held.axis not in (None, 0):
        return
    gamma, beta, mean, variance = (np.asarray(each, np.float64) for each in settings)
    factor = gamma / np.sqrt(variance + node.attributes.get_float("epsilon", 1e-5))
    codes = _signed(held, np.sign(factor))
    if codes is None:
        return
    shift = beta + (np.asarray(added, np.float64) - mean) * factor
    _rewrite(guard, conv, weights, held, codes, factor)
    name = f"{weights.outputs[0].name}".removesuffix("weight_quant") + "bias.folded"
    conv.resize_inputs(3)
    conv.replace_input_with(2, guard.constant(name, torch.from_numpy(shift), "FLOAT"))
    guard.replace(node, product)


def _signed(held: StoredIntegers, signs: NDArray[np.float64]) -> NDArray[np.int64] | None:
    """The integers times the sign of each channel's factor, or None where the type lacks them."""
    if (signs == 1).all():
        return held.codes
    codes = held.codes * signs.astype(np.int64).reshape(-1, *[1] * (held.codes.ndim - 1))
    fits = held.signed and not held.zero_point.any() and codes.max(initial=0) < 2 ** (held.bits - 1)
    return codes if fits else None


def _rewrite(
    guard: Guard,
    conv: ir.Node,
    weights: ir.Node,
    held: StoredIntegers,
    codes: NDArray[np.int64],
    factor: NDArray[np.float64],
) -> None:
    """Give a convolution weights of other scales, and where they changed other integers."""
    values, name = weights.outputs[0], f"{weights.outputs[0].name}.folded"
    kind = f"{'' if held.signed else 'U'}INT{held.bits}"
    stored = weights.inputs[0]
    if codes is not held.codes:
        stored = guard.constant(f"{name}.codes", torch.from_numpy(codes), kind)
    scale = held.scale * np.where(factor == 0, 1.0, np.abs(factor))  # the integers of a factor of 0 are 0
    inputs = [stored, guard.constant(f"{name}.scale", torch.from_numpy(scale), "FLOAT")]
    if held.zero_point.any():
        zeros = np.broadcast_to(held.zero_point, scale.shape).copy()
        inputs.append(guard.constant(f"{name}.zero_point", torch.from_numpy(zeros), kind))
    called = f"{name}.dequantize"
    folded = guard.add(conv, "DequantizeLinear", inputs, name, {"axis": 0}, like=values, called=called)
    conv.replace_input_with(1, folded)

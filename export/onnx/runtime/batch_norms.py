"""Batch normalization behind a quantized convolution, in the scales of its weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..protect import Guard
from .constants import StoredIntegers, stored_integers, values_of_constant

if TYPE_CHECKING:
    import onnx_ir as ir

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
    added = torch.zeros(()) if bias is None else values_of_constant(bias)
    held = None if weights is None or conv.inputs[1] is not weights.outputs[0] else stored_integers(weights)
    known = [each.double() for each in settings if each is not None]
    if weights is None or held is None or added is None or len(known) != len(settings):
        return
    if held.block is not None or held.axis not in (None, 0):
        return
    if len(product.uses()) != 1 or guard.dequantize(conv.inputs[0]) is None:
        return
    gamma, beta, mean, variance = known
    factor = gamma / (variance + node.attributes.get_float("epsilon", 1e-5)).sqrt()
    codes = _signed(held, factor.sign())
    if codes is None:
        return
    shift = beta + (added.double() - mean) * factor
    _rewrite(guard, conv, weights, held, codes, factor)
    name = f"{weights.outputs[0].name}".removesuffix("weight_quant") + "bias.folded"
    conv.resize_inputs(3)
    conv.replace_input_with(2, guard.constant(name, shift, "FLOAT"))
    guard.replace(node, product)


def _signed(held: StoredIntegers, signs: Tensor) -> Tensor | None:
    """The integers times the sign of each channel's factor, or None where the type lacks them."""
    if bool((signs == 1).all()):
        return held.codes
    codes = held.codes * signs.long().reshape(-1, *[1] * (held.codes.ndim - 1))
    fits = held.signed and not held.zero_point.any() and bool((codes < 2 ** (held.bits - 1)).all())
    return codes if fits else None


def _rewrite(
    guard: Guard,
    conv: ir.Node,
    weights: ir.Node,
    held: StoredIntegers,
    codes: Tensor,
    factor: Tensor,
) -> None:
    """Give a convolution weights of other scales, and where they changed other integers."""
    values, name = weights.outputs[0], f"{weights.outputs[0].name}.folded"
    kind = f"{'' if held.signed else 'U'}INT{held.bits}"
    stored = weights.inputs[0]
    if codes is not held.codes:
        stored = guard.constant(f"{name}.codes", codes, kind)
    scale = held.scale * torch.where(factor == 0, 1.0, factor.abs())  # the integers of a factor of 0 are 0
    inputs = [stored, guard.constant(f"{name}.scale", scale, "FLOAT")]
    if held.zero_point.any():
        zeros = held.zero_point.expand(scale.shape)
        inputs.append(guard.constant(f"{name}.zero_point", zeros, kind))
    called = f"{name}.dequantize"
    folded = guard.add(conv, "DequantizeLinear", inputs, name, {"axis": 0}, like=values, called=called)
    conv.replace_input_with(1, folded)

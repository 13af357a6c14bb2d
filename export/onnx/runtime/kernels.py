"""A graph in the forms that onnxruntime's integer kernels take, where this only moves roundings.

`protect` keeps onnxruntime from whatever changes a number. Here, these things are let go:

- A float bias of a layer with 8-bit inputs and weights is an INT32 on the scale of the products, as QLinearConv and
  QGemm take it; unless scales are worked out of the layer's results, or the products have few steps.
- Batch normalization behind a convolution is part of the convolution's scales and bias: the integers stay.
- Sums, products, softmax and average pools of 8-bit tensors have integer kernels, which break ties their own way.
- Matrix products with weights alone quantized are MatMulNBits, which rounds its input to 8 bits.

All other fences stay: without them a file fails to load, or loses a Relu, or quantizes what the model does not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from ..protect import RULES, Guard, guard_layer, guard_matmul, guard_sum, number_of
from .batch_norms import fold_into_convolutions
from .constants import stored_integers, values_of_constant
from .nbits import pack_products

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["hasten"]


def hasten(model: ir.Model) -> None:
    """Let onnxruntime use its integer kernels, in place. MatMulNBits still computes in float32, see `round_inputs`.

    Args:
        model: an ``onnx_ir.Model`` whose quantizations are QuantizeLinear and DequantizeLinear nodes.
    """
    guard = FastGuard(model)
    guard.rewrite({"BatchNormalization": fold_into_convolutions})
    guard.rewrite(dict.fromkeys(("MatMul", "Gemm"), pack_products))
    guard.rewrite(_RULES)
    guard.sweep()


class FastGuard(Guard):
    """Edits one graph, and knows what the integer kernels take."""

    def eight_bits(self, node: ir.Node | None) -> bool:
        """Whether a DequantizeLinear has integers of 8 bits, and scales that don't follow the input."""
        if node is None or self.computed(node):
            return False
        return node.inputs[0] is not None and node.inputs[0].dtype in (self.ir.DataType.INT8, self.ir.DataType.UINT8)

    def reach(self, dequantize: ir.Node) -> float:
        """Half the distance of the smallest and largest integers of 8 bits, or fewer where the file clips them."""
        held = stored_integers(dequantize)
        if held is not None:
            return float(held.codes.max() - held.codes.min()) / 2 if held.codes.numel() else 0.0
        codes = dequantize.inputs[0]
        maker = None if codes is None else codes.producer()
        if maker is None or maker.op_type != "Clip":
            return 127.5
        low, high = (number_of(each) for each in maker.inputs[1:3])
        return 127.5 if low is None or high is None else float(high - low) / 2

    def decides_scales(self, value: ir.Value) -> bool:
        """Whether a scale is worked out of a value at run time: one that is rounded gives another scale."""
        reached, waiting = set(), [value]
        while waiting:
            for user, _ in waiting.pop().uses():
                if user in reached or user.op_type == "QuantizeLinear":
                    continue
                reached.add(user)
                if user.op_type == "Identity" and (user.outputs[0].name or "").endswith(".scale"):
                    return True
                waiting += user.outputs
        return False

    def round_bias(self, node: ir.Node, index: int, inputs: ir.Node, weights: ir.Node) -> None:
        """Put an INT32 bias on the scale of the products in the place of a float one, if it is constant and fits."""
        if self.reach(inputs) * self.reach(weights) < _FINE or self.decides_scales(node.outputs[0]):
            return
        bias = node.inputs[index]
        values = values_of_constant(bias)
        input_scale, weight_scale = (number_of(each.inputs[1]) for each in (inputs, weights))
        if bias is None or values is None or values.ndim != 1 or input_scale is None or weight_scale is None:
            return
        if input_scale.numel() != 1 or weight_scale.numel() not in (1, values.numel()):
            return
        products = input_scale.reshape(()) * weight_scale
        if not (products > 0).all():
            return
        codes = torch.round(values.double() / products)
        if not (codes.abs() <= _LARGEST).all():
            return
        name = f"{bias.name}.rounded"
        held = self.constant(f"{name}.codes", codes, "INT32")
        scale = self.constant(f"{name}.scale", products, "FLOAT")
        place = {"axis": 0} if products.ndim else None
        called = f"{name}.dequantize"
        rounded = self.add(node, "DequantizeLinear", [held, scale], name, place, like=bias, called=called)
        node.replace_input_with(index, rounded)


_FINE = 2.0**12  # products of fewer steps make a rounded bias show: with weights of 4 bits, codes are off by up to ten
_LARGEST = 2.0**30  # so that the sum of the products has room beside it


def _layer(guard: FastGuard, node: ir.Node) -> None:
    inputs, weights = guard.dequantize(node.inputs[0]), guard.dequantize(node.inputs[1])
    plain = all(node.attributes.get_float(factor, 1.0) == 1.0 for factor in ("alpha", "beta"))
    if plain and guard.eight_bits(inputs) and guard.eight_bits(weights):
        bias = guard.operand(node, 2)
        if bias is not None and not guard.on_scale_of_products(bias, inputs, weights):
            guard.round_bias(node, 2, inputs, weights)
    guard_layer(guard, node)


def _matmul(guard: FastGuard, node: ir.Node) -> None:
    inputs, weights = guard.dequantize(node.inputs[0]), guard.dequantize(node.inputs[1])
    added = guard.addition(node.outputs[0])
    if added is not None and guard.eight_bits(inputs) and guard.eight_bits(weights):
        addition, bias = added
        if not guard.on_scale_of_products(bias, inputs, weights):
            index = next(number for number, each in enumerate(addition.inputs) if each is bias)
            guard.round_bias(addition, index, inputs, weights)
    guard_matmul(guard, node)


def _requantized(guard: FastGuard, node: ir.Node) -> None:
    if not guard.eight_bits(guard.dequantize(node.inputs[0])):
        guard_sum(guard, node)


_RULES: dict[str, Callable[[FastGuard, ir.Node], None]] = {
    **RULES,
    "Conv": _layer,
    "Gemm": _layer,
    "MatMul": _matmul,
    **dict.fromkeys(("Add", "AveragePool", "GlobalAveragePool", "Mul", "Softmax"), _requantized),
}

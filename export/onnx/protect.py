"""A graph that onnxruntime's optimizer leaves at the numbers it stands for.

Some of its passes change results, or fail (onnxruntime 1.32, CPU, all optimizations on; found by experiment):

- *WeightBiasQuantization* rounds a float bias, and the float weight of a layer that is not quantized, to integers
  where the input comes from DequantizeLinear: at 4 bits every output moves.
- A bias on a scale of its own, added to a MatMul, is taken for one on the scale of the products (QGemm).
- *DoubleQDQPairsRemover* merges two quantizations in a row, also on different grids.
- *MatMulNBits* takes over a MatMul with a dequantized weight and rounds its input to 8 bits.
- QLinearSoftmax is off by one in 3% of its codes; QLinearAdd, QLinearMul and the average pools break ties their own
  way. Sums and products on powers of two are exact there (all pairs of codes, 100 triples of scales: no difference).
- In front of 8-bit float activations, a Relu is dropped and lets negative values through, a Clip makes the load fail,
  and the float bias of a Conv before that is rounded to int32.
- Around 2- and 4-bit activations, integer kernels are chosen that do not exist (MaxPool, Reshape, ...), and a Relu in
  front of one is dropped although the zero point is not the smallest integer.
- Integer kernels are chosen for activations with several scales, and fail.
- A Transpose is moved past a QuantizeLinear with a block size, also through a Sum, and leaves its scales behind: the
  run fails.
- From opset 21 on, the load fails where a signed 8-bit activation goes through MaxPool, Reshape, Transpose, ..., also
  where it is such a Reshape that a MatMul and the bias after it become a Gemm by.
- The load fails where stored integers of 2 bits are transposed (more than 127 bytes), or go into an integer kernel.

Two forms are left alone by the others: a bias that is subtracted, negated; and a Sum of one input, a fence.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .editing import Editor

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["RULES", "Guard", "guard_layer", "guard_matmul", "guard_sum", "is_constant", "number_of", "protect"]

# Operators that a grid passes through, or that the optimizer moves or drops in front of a QuantizeLinear.
_MOVEMENT = {
    *("Clip", "Concat", "DepthToSpace", "Dropout", "Expand", "Flatten", "Gather", "Identity", "MaxPool", "Pad", "Relu"),
    *("Reshape", "Resize", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze"),
}


def protect(model: ir.Model) -> None:
    """Put fences where the optimizer would change numbers, in place.

    Args:
        model: an ``onnx_ir.Model`` whose quantizations are QuantizeLinear and DequantizeLinear nodes.
    """
    Guard(model).rewrite(RULES)


class Guard(Editor):
    """Edits one graph and answers where its values come from."""

    def dequantize(self, value: ir.Value | None) -> Any:
        """The DequantizeLinear that a value comes from, directly or through operators that move values; or None."""
        producer = None if value is None else value.producer()
        while producer is not None and producer.op_type in _MOVEMENT:
            value = producer.inputs[0]
            producer = None if value is None else value.producer()
        return producer if producer is not None and producer.op_type == "DequantizeLinear" else None

    def fence(self, node: Any, index: int) -> None:
        """Let one input of a node pass through a Sum of one."""
        value, (op_type, settings) = node.inputs[index], self.kind_of_fence(node)
        node.replace_input_with(index, self.add(node, op_type, [value], f"{value.name}.fence", settings, like=value))

    def fence_uses(self, value: Any) -> None:
        """Let all users of a value have it through one Sum of one."""
        users, maker = list(value.uses()), value.producer()
        if users:
            op_type, settings = self.kind_of_fence(maker)
            fence = self.add(maker, op_type, [value], f"{value.name}.fence", settings, like=value, after=True)
            for user, index in users:
                user.replace_input_with(index, fence)

    def kind_of_fence(self, node: Any) -> tuple[str, dict[str, str] | None]:
        """What keeps the optimizer from a node: a Sum, or where it has blocks an Einsum, which no Transpose passes."""
        return ("Einsum", {"equation": "...->..."}) if "block_size" in node.attributes else ("Sum", None)

    def subtract(self, node: ir.Node, bias: Any, unsqueezed: int) -> None:
        """After a node, subtract its negated bias."""
        output = node.outputs[0]
        negated = self.add(node, "Neg", [bias], f"{bias.name}.negated", like=bias)
        if unsqueezed:
            axes = self.constant(f"{bias.name}.axes", torch.arange(1, 1 + unsqueezed), "INT64")
            negated = self.add(node, "Unsqueeze", [negated, axes], f"{bias.name}.spatial", like=bias)
            if bias.shape is not None:
                negated.shape = self.ir.Shape([*bias.shape, *[1] * unsqueezed])
        after = self.add(node, "Sub", [output, negated], f"{node.name}.bias", like=output, after=True)
        subtraction, name = after.producer(), output.name
        assert subtraction is not None
        self.supersede(output, after, renamed=True)
        output.name = self.unused(f"{name}.product")
        subtraction.replace_input_with(0, output)

    def odd(self, codes: Any) -> bool:
        """Whether codes are of a type that integer kernels lack: integers of fewer than 8 bits, or floats of 8."""
        dtype = codes.dtype
        return dtype is not None and (dtype.bitwidth < 8 or dtype.is_floating_point())

    def of_two_bits(self, codes: Any) -> bool:
        """Whether integers have 2 bits: the load fails where stored ones are transposed, or multiplied as integers."""
        return codes.dtype is not None and codes.dtype.bitwidth == 2

    def moves_badly(self, codes: Any) -> bool:
        """Whether the load fails where the optimizer moves these integers through an operator."""
        return self.model.opset_imports[""] >= 21 and codes.dtype == self.ir.DataType.INT8

    def computed(self, node: Any) -> bool:
        """Whether the scale of a quantization is worked out at run time."""
        return not node.inputs[1].is_initializer()

    def per_channel(self, node: Any) -> bool:
        """Whether a quantization has several scales."""
        scale = node.inputs[1].shape
        return scale is None or len(scale) > 0

    def binary(self, node: ir.Node) -> bool:
        """Whether a sum or product has operands and results of 8 bits on powers of two: float32 loses no bit of it."""
        makers = [self.dequantize(value) for value in node.inputs]
        users = [user for user, _ in node.outputs[0].uses()]
        if [user.op_type for user in users] == ["Relu"]:
            users = [user for user, _ in users[0].outputs[0].uses()]
        if len(makers) != 2 or [user.op_type for user in users] != ["QuantizeLinear"]:
            return False
        scales: list[float] = []
        for each, codes in [*((maker, maker and maker.inputs[0]) for maker in makers), (users[0], users[0].outputs[0])]:
            scale = None if each is None else number_of(each.inputs[1])
            if scale is None or scale.numel() != 1 or codes.dtype not in _eight_bits(self):
                return False
            scales.append(float(scale))
        halves = all(math.frexp(scale)[0] == 0.5 for scale in scales)
        return halves and max(scales) <= 2**12 * min(scales)

    def on_scale_of_products(self, bias: Any, inputs: Any, weights: Any) -> bool:
        """Whether a bias is int32 on input scale x weight scale: the only kind that the integer kernels take."""
        source = None if bias is None else bias.producer()
        if source is None or source.op_type != "DequantizeLinear" or weights is None:
            return False
        own, input_scale, weight_scale = (number_of(each.inputs[1]) for each in (source, inputs, weights))
        if own is None or input_scale is None or weight_scale is None or input_scale.numel() != 1:
            return False
        if source.inputs[0].dtype != self.ir.DataType.INT32:
            return False
        products = input_scale.reshape(()) * weight_scale
        return own.shape == products.shape and bool((own == products).all())


def number_of(value: Any) -> Tensor | None:
    """An initializer, as float32 or int64; None for anything else."""
    if value is None or value.const_value is None:
        return None
    held = value.const_value
    number = "float32" if held.dtype.is_floating_point() else "int64"
    return torch.from_numpy(held.numpy().astype(number))


def guard_layer(guard: Guard, node: Any) -> None:
    """Conv, ConvTranspose, Gemm: a float weight is fenced off; a bias goes out unless it is the kernels' own kind."""
    inputs = guard.dequantize(node.inputs[0])
    if inputs is None:
        return
    weights = guard.dequantize(node.inputs[1])
    if weights is None or any(node.attributes.get_float(factor, 1.0) != 1.0 for factor in ("alpha", "beta")):
        guard.fence(node, 0)
        return
    bias = guard.operand(node, 2)
    if bias is None or guard.on_scale_of_products(bias, inputs, weights):
        return
    spatial = 0 if node.op_type == "Gemm" else len(node.inputs[1].shape) - 2
    node.resize_inputs(2)
    guard.subtract(node, bias, spatial)


def guard_matmul(guard: Guard, node: Any) -> None:
    """MatMul: a weight that is not for the 8-bit kernels is fenced off, and so is the bias that is added."""
    inputs, weights = guard.dequantize(node.inputs[0]), guard.dequantize(node.inputs[1])
    if weights is None:
        if inputs is not None and is_constant(node.inputs[1]):
            guard.fence(node, 0)
        return
    added = guard.addition(node.outputs[0])
    if added is not None:
        addition, bias = added
        matches = inputs is not None and guard.on_scale_of_products(bias, inputs, weights)
        if is_constant(bias) and not matches:
            negated = guard.add(addition, "Neg", [bias], f"{bias.name}.negated", like=bias)
            operands, result = [node.outputs[0], negated], addition.outputs[0]
            after = guard.add(addition, "Sub", operands, f"{result.name}.after", like=result, called=addition.name)
            guard.replace(addition, after, renamed=True)
        elif matches and inputs is not None and guard.moves_badly(inputs.inputs[0]) and len(node.inputs[0].shape) != 2:
            guard.fence(node, 0)
    direct = node.inputs[0].producer() is inputs
    eight = all(each is not None and each.inputs[0].dtype in _eight_bits(guard) for each in (inputs, weights))
    if not (direct and eight):
        guard.fence(node, 1)


def _quantize(guard: Guard, node: Any) -> None:
    """QuantizeLinear: two in a row are kept apart, and so are odd ones and what they could be moved or merged with."""
    producer = node.inputs[0].producer()
    odd = guard.odd(node.outputs[0]) or guard.computed(node)
    merges = odd and producer is not None and producer.op_type in _MOVEMENT
    if merges or guard.per_channel(node) or guard.dequantize(node.inputs[0]) is not None:
        guard.fence(node, 0)


def _dequantize(guard: Guard, node: Any) -> None:
    """DequantizeLinear: where the integers must not be moved on, or into a kernel."""
    codes, value = node.inputs[0], node.outputs[0]
    if is_constant(codes):
        if guard.of_two_bits(codes):
            guard.fence_uses(value)
        return
    moved = any(user.op_type in _MOVEMENT for user, _ in value.uses())
    if guard.odd(codes) or guard.computed(node) or guard.per_channel(node) or (moved and guard.moves_badly(codes)):
        guard.fence_uses(value)


def guard_sum(guard: Guard, node: ir.Node) -> None:
    """Operators whose integer kernels round otherwise."""
    if guard.dequantize(node.inputs[0]) is not None and not (node.op_type in ("Add", "Mul") and guard.binary(node)):
        guard.fence(node, 0)


def is_constant(value: Any) -> bool:
    """An initializer, also one that is clipped and dequantized, or looked up in a table."""
    producer = value.producer()
    if producer is None:
        return value.is_initializer() and not value.is_graph_input()
    return producer.op_type in _STORED and all(is_constant(each) for each in producer.inputs)


_STORED = {"Cast", "Clip", "DequantizeLinear", "Gather", "Mul", "Reshape", "Sum", "Transpose"}


def _eight_bits(guard: Guard) -> tuple[ir.DataType, ir.DataType]:
    return guard.ir.DataType.INT8, guard.ir.DataType.UINT8


RULES: dict[str, Callable[[Guard, ir.Node], None]] = {
    "Conv": guard_layer,
    "ConvTranspose": guard_layer,
    "Gemm": guard_layer,
    "MatMul": guard_matmul,
    "QuantizeLinear": _quantize,
    "DequantizeLinear": _dequantize,
    **dict.fromkeys(("Add", "AveragePool", "GlobalAveragePool", "Mul", "Softmax"), guard_sum),
}

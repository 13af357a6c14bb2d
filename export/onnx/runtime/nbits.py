"""Matrix products with stored integers and float inputs, as MatMulNBits: one of onnxruntime's own operators.

It dequantizes blocks of weights while it multiplies, where DequantizeLinear writes out the whole matrix at each run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from ...optional import required
from ..protect import Guard, is_constant
from ..stored.packing import Packing, packed
from .constants import StoredIntegers, stored_integers

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["DOMAIN", "pack_products", "round_inputs"]

DOMAIN = "com.microsoft"
_BITS = (2, 4, 8)
_BLOCKS = (16, 32, 64, 128, 256)
_BLOCK = 128  # of a channel with one scale: its blocks repeat it


def pack_products(guard: Guard, node: ir.Node) -> None:
    """Make a MatMul or Gemm a MatMulNBits, if its input is float and its weight consists of integers with blocks.

    It computes in float32, see `round_inputs`.

    Args:
        guard: the editor of the graph.
        node: the product. It stays as it is where the kernels lack its form.
    """
    x, weights = node.inputs[0], guard.dequantize(node.inputs[1])
    held = None if weights is None or guard.dequantize(x) is not None else stored_integers(weights)
    if weights is None or held is None:
        return
    turned = _turned(node, weights)
    if turned is None or held.codes.ndim != 2 or held.bits not in _BITS or x is None:
        return
    call = (weights.name or "").removesuffix(".dequantize")
    packing = Packing(call, f"{'' if held.signed else 'U'}INT{held.bits}", turned)
    form = _rows(held, packing)
    if form is None:
        return
    codes, scale, zero_point, block = form
    rows, columns = codes.shape
    name = packing.name
    bytes_ = packed(_padded(codes, zero_point, block), held.bits).reshape(rows, scale.shape[1], -1)
    inputs: list[ir.Value | None] = [
        x,
        guard.constant(name, bytes_, "UINT8"),
        guard.constant(f"{name}.scale", scale, "FLOAT"),
    ]
    if (zero_point != 2 ** (held.bits - 1)).any():
        inputs.append(guard.constant(f"{name}.zero_point", packed(zero_point, held.bits), "UINT8"))
    result, replaced = node.outputs[0], node
    bias = guard.operand(node, 2)
    added = None if node.op_type == "Gemm" else guard.addition(result)
    if added is not None and is_constant(added[1]) and added[1].shape is not None and len(added[1].shape) == 1:
        replaced, bias = added
        result = replaced.outputs[0]
    if bias is not None:
        inputs += [None] * (5 - len(inputs)) + [bias]
    settings = {"K": columns, "N": rows, "bits": held.bits, "block_size": block, "accuracy_level": 1}
    called = node.name or name
    product = guard.add(
        replaced, "MatMulNBits", inputs, f"{result.name}.product", settings, like=result, called=called, domain=DOMAIN
    )
    guard.model.opset_imports.setdefault(DOMAIN, 1)
    guard.replace(replaced, product, renamed=True)
    if replaced is not node and node.graph is not None:
        node.graph.remove(node, safe=True)


def round_inputs(model: ir.Model) -> bool:
    """Let every MatMulNBits round its inputs to 8 bits, in place; whether there is one."""
    ir = required("onnx_ir", "export")
    products = [node for node in model.graph.all_nodes() if node.domain == DOMAIN and node.op_type == "MatMulNBits"]
    for node in products:
        node.attributes.add(ir.AttrInt64("accuracy_level", 4))
    return bool(products)


def _turned(node: ir.Node, weights: ir.Node) -> bool | None:
    """Whether a product has its weight as (inputs, outputs), rather than (outputs, inputs); None for other forms."""
    operand = node.inputs[1]
    between = None if operand is None else operand.producer()
    if node.op_type == "Gemm":
        factors = [node.attributes.get_float(factor, 1.0) for factor in ("alpha", "beta")]
        if factors != [1.0, 1.0] or node.attributes.get_int("transA", 0) or between is not weights:
            return None
        return not node.attributes.get_int("transB", 0)
    if between is weights:
        return True
    straight = between is not None and between.op_type == "Transpose" and between.inputs[0] is weights.outputs[0]
    return False if straight else None


def _rows(held: StoredIntegers, packing: Packing) -> tuple[Tensor, Tensor, Tensor, int] | None:
    """Unsigned integers (outputs, inputs), scales and zero points (outputs, blocks), and the size of the blocks."""
    codes, scale, zero_point, axis = held.codes, held.scale, held.zero_point, held.axis
    if packing.transposed:
        codes, axis = codes.T, None if axis is None else 1 - axis
        if held.block is not None:
            scale, zero_point = scale.T, zero_point.T
    rows, columns = codes.shape
    if held.block is not None:
        if axis != 1 or held.block not in _BLOCKS:
            return None
        block = held.block
    elif axis == 1:
        return None  # an input each
    else:
        block = next((each for each in _BLOCKS if each >= min(columns, _BLOCK)), _BLOCK)
        count = -(-columns // block)
        scale, zero_point = (each.expand(rows).reshape(-1, 1).expand(rows, count) for each in (scale, zero_point))
    return codes + packing.middle, scale, zero_point + packing.middle, block


def _padded(codes: Tensor, zero_point: Tensor, block: int) -> Tensor:
    """Whole blocks: what is missing at the end of a row is zero."""
    whole = zero_point.repeat_interleave(block, 1)
    whole[:, : codes.shape[1]] = codes
    return whole

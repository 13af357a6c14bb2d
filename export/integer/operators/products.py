"""Layers become ConvInteger and MatMulInteger on the integers themselves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...errors import ExportError
from .graph import Form, IntegerGraph
from .transposed import mirrored, stuffed

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["RULES"]


def _layer_of(weights: Form, node: Any) -> str:
    return weights.grid.name.removesuffix("weight_quant").removesuffix(".") or node.outputs[0].name


def _operands(
    graph: IntegerGraph, x: Form, weights: Form, layer: str, *, columns: bool = False
) -> list[ir.Value | None]:
    """What ConvInteger and MatMulInteger take: the integers of both, and one zero point for each.

    Of a matrix, each of the ``columns`` may have its own.
    """
    grid, factor = weights.grid, weights.codes
    if weights.constant is not None:
        factor = graph.constant(f"{grid.name}.integers", weights.constant, weights.kind)
    flat = grid.zero_point.reshape(-1)
    alike = not bool((flat != flat[0]).any())
    zero = flat[0] if alike else flat if columns else torch.zeros_like(flat[0])
    return [x.codes, factor, graph.zero(x), graph.constant(f"{grid.name}.zero", zero, weights.kind)]


def _with_bias(
    graph: IntegerGraph,
    place: ir.Node,
    sums: ir.Value,
    bias: ir.Value | None,
    scale: Tensor,
    layer: str,
    spatial: int = 0,
) -> tuple[ir.Value, Tensor | None]:
    """Sums of products with the integers of a bias added to them; or the values of a bias on a scale of its own."""
    if bias is None:
        return sums, None
    form = graph.form(bias)
    if form is None or form.constant is None:
        raise ExportError(f"{layer}: its bias is not stored as integers when it is traced. Write bias_quant=Int32Bias.")
    shape = (-1, *[1] * spatial)
    if not bool(
        (form.grid.scale.expand_as(scale) == scale).all() if form.grid.scale.numel() == 1 or scale.ndim else False
    ):
        return sums, form.grid.values(form.constant).reshape(shape)
    added = graph.constant(f"{layer}.bias.integers", form.constant.reshape(shape), "INT32")
    return graph.summed(place, "Add", [sums, added], f"{layer}.sums", {}), None


def _conv(graph: IntegerGraph, node: ir.Node) -> None:
    x, weights = graph.form(node.inputs[0]), graph.form(node.inputs[1])
    if x is None or weights is None or not x.plain or x.wide:
        return
    if weights.constant is None or weights.grid.axis not in (None, 0):
        return
    _convolve(graph, node, x, weights, node.attributes)


def _convolve(graph: IntegerGraph, node: ir.Node, x: Form, weights: Form, settings: Mapping[str, object]) -> None:
    """ConvInteger in place of a node, with the bias of the node."""
    assert weights.constant is not None
    layer, spatial = _layer_of(weights, node), weights.constant.ndim - 2
    scale = x.grid.scale * weights.grid.scale  # float32
    operands = _operands(graph, x, weights, layer)
    sums = graph.summed(node, "ConvInteger", operands, f"{layer}.products", settings)
    zeros = weights.grid.zero_point.reshape(-1)
    if bool((zeros != zeros[0]).any()):
        sums = _less_zeros(graph, node, sums, operands, weights, settings)
    sums, bias = _with_bias(graph, node, sums, graph.operand(node, 2), scale, layer, spatial)
    graph.scaled(node, sums, scale.reshape(-1, *[1] * spatial) if scale.ndim else scale, layer, bias)


def _less_zeros(
    graph: IntegerGraph,
    node: ir.Node,
    sums: ir.Value,
    operands: list[ir.Value | None],
    weights: Form,
    settings: Mapping[str, object],
) -> ir.Value:
    """Products with weights minus those with their zero points, one for each channel: these times a sum of inputs."""
    assert weights.constant is not None
    layer, groups, shape = _layer_of(weights, node), _groups(settings), weights.constant.shape
    ones = torch.ones(shape if groups > 1 else (1, *shape[1:]))
    kernel = graph.constant(f"{layer}.ones", ones, "UINT8")
    windows = graph.summed(node, "ConvInteger", [operands[0], kernel, operands[2]], f"{layer}.windows", settings)
    zeros = weights.grid.zero_point.reshape(-1, *[1] * (len(shape) - 2))
    inputs = [windows, graph.constant(f"{layer}.zeros", zeros, "INT32")]
    times = graph.summed(node, "Mul", inputs, f"{layer}.times", {})
    return graph.summed(node, "Sub", [sums, times], f"{layer}.differences", {})


def _groups(settings: Mapping[str, object]) -> int:
    found = settings.get("group", 1)
    return found if isinstance(found, int) else found.as_int()  # type: ignore[attr-defined]


def _conv_transposed(graph: IntegerGraph, node: Any) -> None:
    x, stored = graph.form(node.inputs[0]), graph.folded(node.inputs[1])
    if x is None or stored is None or not x.plain or x.wide:
        return
    weights, groups = stored[0], node.attributes.get_int("group", 1)
    codes, scales = (mirrored(each, groups) for each in stored[1:])
    rows = scales.flatten(1)
    if bool((rows != rows[:, :1]).any()):
        return
    kernel = list(codes.shape[2:])
    given = stuffed(graph, node, x.codes, graph.zero(x), kernel)
    if given is None:
        return
    flat = rows[:, 0]
    one = weights.grid.axis is None
    grid = replace(weights.grid, scale=flat[0] if one else flat, axis=None if one else 0)
    settings = {"group": groups, "kernel_shape": kernel}
    if "dilations" in node.attributes:
        settings["dilations"] = list(node.attributes["dilations"].as_ints())
    _convolve(graph, node, replace(x, codes=given), replace(weights, grid=grid, constant=codes), settings)


def _gemm(graph: IntegerGraph, node: ir.Node) -> None:
    get = node.attributes
    if get.get_float("alpha", 1.0) != 1 or get.get_float("beta", 1.0) != 1 or get.get_int("transA", 0):
        return
    x, weights = graph.form(node.inputs[0]), graph.form(node.inputs[1])
    if x is None or weights is None or not x.plain or x.wide or weights.constant is None:
        return
    if get.get_int("transB", 0):
        axis = None if weights.grid.axis is None else 1 - weights.grid.axis
        weights = replace(weights, grid=replace(weights.grid, axis=axis), constant=weights.constant.T)
    if weights.grid.axis not in (None, 1):
        return
    _product(graph, node, x, weights, graph.operand(node, 2), node)


def _matmul(graph: IntegerGraph, node: Any) -> None:
    x, weights = graph.form(node.inputs[0]), graph.form(node.inputs[1])
    if x is None or weights is None or not x.plain or x.wide:
        return
    if weights.constant is None:
        if weights.plain and not weights.wide:
            _product(graph, node, x, weights, None, node)
        return
    if weights.constant.ndim != 2 or weights.grid.axis not in (None, 1):
        return
    addition, bias = graph.addition(node.outputs[0]) or (node, None)
    known = graph.form(bias)
    if known is None or known.constant is None or known.constant.ndim != 1:
        addition, bias = node, None
    _product(graph, node, x, weights, bias, addition)


def _product(graph: IntegerGraph, node: Any, x: Form, weights: Form, bias: ir.Value | None, place: ir.Node) -> None:
    """MatMulInteger in front of a node whose result is replaced: the product, or the addition of its bias."""
    layer = node.outputs[0].name if weights.constant is None else _layer_of(weights, node)
    scale = x.grid.scale * weights.grid.scale  # float32
    operands = _operands(graph, x, weights, layer, columns=True)
    sums = graph.summed(place, "MatMulInteger", operands, f"{layer}.products", {})
    sums, own = _with_bias(graph, place, sums, bias, scale, layer)
    graph.scaled(place, sums, scale, layer, own)


RULES = {
    "Conv": _conv,
    "ConvTranspose": _conv_transposed,
    "Gemm": _gemm,
    "MatMul": _matmul,
}

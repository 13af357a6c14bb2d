"""Sums, factors and slopes of single integers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from ...capture.grid import IntegerGrid
from .graph import Form, IntegerGraph

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["RULES"]


def _add(graph: IntegerGraph, node: Any) -> None:
    """Activations on one scale: their integers are added, in int32, and kept in 8 bits where these hold the sum."""
    one, other = (graph.form(value) for value in node.inputs)
    if one is None or other is None or not (one.plain and other.plain) or one.grid.scale != other.grid.scale:
        return
    if one.constant is not None or other.constant is not None:
        return
    name = node.outputs[0].name
    wide = [graph.centred(node, each, f"{name}.{side}") for each, side in ((one, "one"), (other, "other"))]
    sums = graph.summed(node, node.op_type, wide, f"{name}.sums", {})
    (low, high), (below, above) = ([end - int(each.grid.zero_point) for end in each.bounds] for each in (one, other))
    bounds = (low + below, high + above) if node.op_type == "Add" else (low - above, high - below)
    codes, kind = sums, "INT32"
    for narrow, ends in (("UINT8", (0, 255)), ("INT8", (-128, 127))):
        if ends[0] <= bounds[0] and bounds[1] <= ends[1] and kind == "INT32":
            codes, kind = graph.cast(node, sums, narrow, f"{name}.narrow"), narrow
    product = graph.scaled(node, sums, one.grid.scale, name)
    grid = IntegerGrid(name, one.grid.scale, torch.tensor(0), 32, signed=True)
    graph.forms[product] = Form(grid, kind, codes, bounds=bounds)


def _leaky(graph: IntegerGraph, node: Any) -> None:
    given, slope = graph.integers(node), node.attributes.get_float("alpha", 0.01)
    if given is not None and slope >= 0:
        sums, scale = given
        graph.scaled_by_sign(node, sums, _below_zero(graph, node, sums), (scale, scale * slope))


def _parametric(graph: IntegerGraph, node: Any) -> None:
    """Negative integers are multiplied with those of a slope, and are worth the product of both scales."""
    slope = graph.folded(node.inputs[1])
    given = None if slope is None else graph.integers(node)
    if slope is None or given is None or bool(slope[0].grid.zero_point.any()):
        return
    sums, scale = given
    name, scales = node.outputs[0].name, slope[2]
    scales = scales.flatten()[0] if bool((scales == scales.flatten()[0]).all()) else scales
    negative = _below_zero(graph, node, sums)
    times = graph.summed(node, "Mul", [sums, graph.constant(f"{name}.slopes", slope[1], "INT32")], f"{name}.times", {})
    sums = graph.summed(node, "Where", [negative, times, sums], f"{name}.sums", {})
    graph.scaled_by_sign(node, sums, negative, (scale, scale * scales))


def _below_zero(graph: IntegerGraph, node: ir.Node, sums: ir.Value) -> ir.Value:
    name = node.outputs[0].name
    zero = graph.constant(f"{name}.none", torch.tensor(0), "INT32")
    return graph.add(node, "Less", [sums, zero], f"{name}.negative", like=node.outputs[0], kind="BOOL")


def _product(graph: IntegerGraph, node: Any) -> None:
    """Integers of two activations are multiplied; a number goes into their scale."""
    one, other = (graph.form(value) for value in node.inputs)
    if one is None or other is None or one.constant is not None or other.constant is not None:
        _factor(graph, node)
    elif one.plain and other.plain:
        name = node.outputs[0].name
        wide = [graph.centred(node, each, f"{name}.{side}") for each, side in ((one, "one"), (other, "other"))]
        times = graph.summed(node, "Mul", wide, f"{name}.times", {})
        graph.scaled(node, times, one.grid.scale * other.grid.scale, name)


def _factor(graph: IntegerGraph, node: Any) -> None:
    """Numbers that integers are multiplied with or divided by go into their scale, the sign into the integers."""
    number = node.inputs[1].const_value if node.inputs[1] is not None else None
    if graph.divides(node) or number is None:
        return
    size = torch.tensor(number.numpy())
    size = size.reshape(()) if size.numel() == 1 else size
    one_sign = bool((size > 0).all() or (size < 0).all())
    given = graph.integers(node) if one_sign and bool(size.isfinite().all()) else None
    if given is None:
        return
    (sums, scale), name = given, node.outputs[0].name
    if bool((size < 0).any()):
        sums = graph.summed(node, "Neg", [sums], f"{name}.negated", {})
    graph.scaled(node, sums, scale * size.abs() if node.op_type == "Mul" else scale / size.abs(), name)


RULES = {
    "Add": _add,
    "Div": _factor,
    "LeakyRelu": _leaky,
    "Mul": _product,
    "PRelu": _parametric,
    "Sub": _add,
}

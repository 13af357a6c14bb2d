"""Layers on dequantized integers become ConvInteger and MatMulInteger on the integers themselves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...capture.grid import IntegerGrid
from ...capture.record import Recording
from ...errors import ExportError
from ...onnx.editing import Editor
from .transposed import mirrored, stuffed

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["integerize"]

# Operators that give the same whether integers or values go through them, where all have one scale.
_MOVES = {
    *("Flatten", "Gather", "GatherElements", "GatherND", "Identity", "MaxPool", "Reshape", "Slice", "Squeeze"),
    *("Tile", "Transpose", "Unsqueeze", "Expand", "DepthToSpace", "SpaceToDepth", "ReduceMax"),
}


# Operators on floats that give the same bits everywhere: they convert, move, select, or round each number once.
_EXACT = {
    *(*_MOVES, "Add", "Cast", "Clip", "Concat", "Constant", "ConstantOfShape", "DequantizeLinear", "Max", "Min", "Neg"),
    *("Pad", "Relu", "Resize", "Split", "Sub"),
}
# What a rounding may be written in, between the division by a scale and QuantizeLinear.
_ROUNDING = {*_EXACT, "Abs", "Ceil", "Div", "Floor", "Mul", "Round", "Sign", "Where"}


@dataclass(frozen=True)
class Form:
    """A value of the graph as integers.

    Attributes:
        grid: where they stand.
        kind: their type, as ONNX spells it.
        codes: the value of the integers, None where they are moved and stored.
        constant: the integers, where they are stored.
        bounds: the smallest and the largest integer of an activation.
    """

    grid: IntegerGrid
    kind: str
    codes: Any
    constant: Tensor | None = None
    bounds: tuple[int, int] = (-(2**31), 2**31 - 1)

    @property
    def plain(self) -> bool:
        """Whether there is one scale for all."""
        return self.grid.axis is None

    @property
    def wide(self) -> bool:
        """Whether the integers are an activation's in int32, which the operators of 8 bits don't take."""
        return self.constant is None and self.kind == "INT32"


def integerize(model: ir.Model, recording: Recording) -> list[ir.Node]:
    """Rewrite the layers of an exported model, in place.

    Args:
        model: an ``onnx_ir.Model`` whose quantizations are QuantizeLinear, Clip and DequantizeLinear nodes of 8 bits.
        recording: the calls that they stand for.

    Returns:
        The nodes that compute in floats what two runtimes may sum or round differently.
    """
    graph = _Graph(model, recording)
    graph.rewrite(_RULES)
    graph.sweep()
    graph.find_roundings()
    return [node for node in model.graph if graph.computes_in_floats(node)]


class _Graph(Editor):
    """Edits one graph, and knows its values as integers."""

    def __init__(self, model: ir.Model, recording: Recording) -> None:
        super().__init__(model)
        self.calls = {call.name: call for call in recording}
        self.forms: dict[ir.Value, Form | None] = {}
        self.products: set[ir.Value] = set()  # values computed from integers, alike everywhere
        self.sums: dict[
            ir.Value, tuple[ir.Value, Tensor]
        ] = {}  # of those that `scaled` made: integers, and their scale
        self.sources: dict[ir.Value, tuple[bool, bool]] = {}
        self.roundings: set[ir.Node] = set()

    def form(self, value: ir.Value | None) -> Form | None:
        """A value as integers, or None; operators that move values are repeated on them."""
        if value is None:
            return None
        if value not in self.forms:
            self.forms[value] = self._form(value)
        return self.forms[value]

    def _form(self, value: ir.Value) -> Form | None:
        node = value.producer()
        if node is None:
            return None
        if node.op_type == "DequantizeLinear":
            return self._dequantized(node)
        moves = node.op_type in _MOVES or node.op_type in ("Relu", "Pad") or _repeats(node)
        inner = self.form(node.inputs[0]) if moves else None
        if inner is None:
            return None
        if inner.constant is not None:
            return self._moved_constant(node, inner)
        if not inner.plain or (node.op_type == "MaxPool" and len(node.outputs) > 1):
            return None
        return self._moved(node, inner)

    def _dequantized(self, node: Any) -> Form | None:
        call = self.calls.get(node.name.removesuffix(".dequantize"))
        if call is None:  # a node that the model had before
            return None
        codes = stored = node.inputs[0]
        while stored.producer() is not None and stored.producer().op_type == "Clip":
            stored = stored.producer().inputs[0]
        if stored.producer() is None and stored.const_value is not None:
            return Form(call.plain, stored.dtype.name, stored, call.codes)
        return Form(call.plain, codes.dtype.name, codes, bounds=call.plain.bounds)

    def folded(self, value: ir.Value | None) -> tuple[Form, Tensor, Tensor] | None:
        """A stored tensor as integers, with the scale of each, however it was reshaped; or None."""
        node = None if value is None else value.producer()
        if node is None:
            return None
        if node.op_type == "DequantizeLinear":
            form = self.form(value)
            if form is None or form.constant is None:
                return None
            return form, form.constant, form.grid.spread(form.constant)[0].expand(form.constant.shape)
        known = self.folded(node.inputs[0]) if node.op_type in ("Reshape", "Transpose") else None
        if known is None:
            return None
        form, codes, scales = known
        if node.op_type == "Transpose":
            order = list(node.attributes["perm"].as_ints())
            return form, codes.permute(order), scales.permute(order)
        size = node.inputs[1].const_value if node.inputs[1] is not None else None
        shape = None if size is None else [int(each) for each in size.numpy()]
        return None if shape is None else (form, codes.reshape(shape), scales.reshape(shape))

    def _moved_constant(self, node: ir.Node, inner: Form) -> Form | None:
        assert inner.constant is not None
        if node.op_type != "Transpose":
            return None
        given = node.attributes.get("perm")
        order = list(reversed(range(inner.constant.ndim))) if given is None else list(given.as_ints())
        axis = None if inner.grid.axis is None else order.index(inner.grid.axis)
        return replace(inner, grid=replace(inner.grid, axis=axis), codes=None, constant=inner.constant.permute(order))

    def _moved(self, node: Any, inner: Form) -> Form | None:
        inputs = [inner.codes, *node.inputs[1:]]
        op_type, attributes = node.op_type, node.attributes
        if op_type == "Relu":
            op_type, inputs = "Clip", [inner.codes, self.zero(inner)]
        elif op_type == "Pad":
            filled = self.operand(node, 2)
            if filled is not None and (filled.const_value is None or filled.const_value.numpy() != 0):
                return None
            constant = node.attributes.get_string("mode", "constant") == "constant"
            inputs = [inner.codes, node.inputs[1], self.zero(inner) if constant else None, *node.inputs[3:]]
        name, result = f"{node.outputs[0].name}.codes_of", node.outputs[0]
        if inner.wide and op_type == "MaxPool":  # of int32 through floats, which are exact to 24 bits
            cast = self.cast(node, inner.codes, "FLOAT", f"{name}.cast")
            pooled = self.add(node, op_type, [cast], f"{name}.pooled", attributes, like=result)
            moved = self.cast(node, pooled, "INT32", name)
        else:
            moved = self.add(node, op_type, inputs, name, attributes, like=result, kind=inner.kind, after=True)
        return replace(inner, codes=moved)

    def computes_in_floats(self, node: ir.Node) -> bool:
        """Whether a node computes new values from floats: no selection, no addition, nothing of parameters alone."""
        result = node.outputs[0]
        if result.dtype is None or result.dtype.name != "FLOAT" or result in self.products or node in self.roundings:
            return False
        given, quantized = self._sources(result)
        return given and node.op_type not in (_EXACT if quantized else _EXACT | {"Abs", "Div", "Mul"})

    def find_roundings(self) -> None:
        """Note the arithmetic of quantizers that round in a way of their own: from steps of the scale to integers."""
        for name in self.calls:
            ends = [node for node in self.model.graph if node.name == f"{name}.quantize"]
            pending = [each.inputs[0] for each in ends]
            between: set[ir.Node] = set()
            while pending:
                value = pending.pop()
                node = None if value is None else value.producer()
                if node is not None and node not in between and node.op_type in _ROUNDING:
                    between.add(node)
                    pending += () if self.divides(node) else node.inputs
            if any(self.divides(node) for node in between):
                self.roundings |= between

    def divides(self, node: ir.Node) -> bool:
        """Whether a node divides by the scale of a quantizer, as those with a rounding of their own do."""
        return str(node.name).endswith(".divide") and str(node.name).removesuffix(".divide") in self.calls

    def _sources(self, value: ir.Value) -> tuple[bool, bool]:
        """Whether a value depends on the model's input, and whether on a quantized tensor."""
        if value not in self.sources:
            node = value.producer()
            above = [] if node is None else [self._sources(each) for each in node.inputs if each is not None]
            quantizes = node is not None and node.op_type == "QuantizeLinear"
            self.sources[value] = (
                value.is_graph_input() or any(given for given, _ in above),
                quantizes or any(quantized for _, quantized in above),
            )
        return self.sources[value]

    def zero(self, form: Form) -> ir.Value:
        """The zero point of an activation, in the type of its integers."""
        return self.constant(f"{form.grid.name}.zero", form.grid.zero_point, form.kind)

    def cast(self, place: ir.Node, value: ir.Value, kind: str, name: str) -> ir.Value:
        """A value converted to another type, in front of a node."""
        return self.add(place, "Cast", [value], name, {"to": self.ir.DataType[kind]}, like=value, kind=kind)

    def summed(
        self, place: ir.Node, op_type: str, inputs: Sequence[ir.Value | None], name: str, settings: Mapping[str, object]
    ) -> ir.Value:
        """A node whose result is int32 and shaped like that of the node behind it."""
        return self.add(place, op_type, inputs, name, settings, like=place.outputs[0], kind="INT32")

    def scaled(self, node: ir.Node, sums: ir.Value, scale: Tensor, layer: str, bias: Tensor | None = None) -> ir.Value:
        """Sums as values, in place of a node's result: one conversion and one multiplication.

        Args:
            node: whose result they are.
            sums: int32.
            scale: broadcastable to them.
            layer: the beginning of names.
            bias: values that are added to them, with one rounding each, or None.
        """
        factor = self.constant(f"{layer}.scale", scale, "FLOAT")
        product = self._product(node, sums, factor, layer)
        if bias is not None:
            self.products.add(product)
            added = self.constant(f"{layer}.bias.values", bias, "FLOAT")
            product = self.add(node, "Add", [product, added], f"{layer}.biased", like=node.outputs[0])
        else:
            self.sums[product] = sums, scale
        self.replace(node, product, renamed=True)
        self.products.add(product)
        return product

    def scaled_by_sign(self, node: ir.Node, sums: ir.Value, negative: ir.Value, scales: tuple[Tensor, Tensor]) -> None:
        """Sums as values in place of a node's result: those that are negative have a scale of their own."""
        name = node.outputs[0].name or ""
        one, other = (
            self.constant(f"{name}.{said}", each, "FLOAT")
            for said, each in zip(("scale", "slope"), scales, strict=True)
        )
        factor = self.add(node, "Where", [negative, other, one], f"{name}.scales", like=node.outputs[0])
        product = self._product(node, sums, factor, name)
        self.replace(node, product, renamed=True)
        self.products |= {product, factor}

    def _product(self, node: ir.Node, sums: ir.Value, factor: ir.Value, name: str) -> ir.Value:
        values = self.cast(node, sums, "FLOAT", f"{name}.cast")
        return self.add(node, "Mul", [values, factor], f"{name}.scaled", like=node.outputs[0])

    def integers(self, node: ir.Node) -> tuple[ir.Value, Tensor] | None:
        """The integers of a node's first input in int32, zero points subtracted, and their scale; or None."""
        value = node.inputs[0]
        if value in self.sums:
            return self.sums[value]
        form = self.form(value)
        if form is None or form.constant is not None or not form.plain:
            return None
        return _centred_codes(self, node, form, f"{node.outputs[0].name}.given"), form.grid.scale


def _repeats(node: ir.Node) -> bool:
    """Whether a node resizes by taking the nearest number."""
    return node.op_type == "Resize" and node.attributes.get_string("mode", "nearest") == "nearest"


def _layer_of(weights: Form, node: Any) -> str:
    return weights.grid.name.removesuffix("weight_quant").removesuffix(".") or node.outputs[0].name


def _operands(graph: _Graph, x: Form, weights: Form, layer: str, *, columns: bool = False) -> list[ir.Value | None]:
    """What ConvInteger and MatMulInteger take: the integers of both, and one zero point for each.

    Of a matrix, each of the ``columns`` may have its own.
    """
    grid, factor = weights.grid, weights.codes
    if weights.constant is not None:
        factor = graph.constant(f"{grid.name}.integers", weights.constant, weights.kind)
    flat = grid.zero_point.reshape(-1)
    alike = not bool((flat != flat[0]).any())
    if not alike and not columns:
        raise ExportError(f"{layer}: its weight has several zero points, and ConvInteger takes one.")
    zero = flat[0] if alike else flat
    return [x.codes, factor, graph.zero(x), graph.constant(f"{grid.name}.zero", zero, weights.kind)]


def _with_bias(
    graph: _Graph, place: ir.Node, sums: ir.Value, bias: ir.Value | None, scale: Tensor, layer: str, spatial: int = 0
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


def _conv(graph: _Graph, node: ir.Node) -> None:
    x, weights = graph.form(node.inputs[0]), graph.form(node.inputs[1])
    if x is None or weights is None or not x.plain or x.wide:
        return
    if weights.constant is None or weights.grid.axis not in (None, 0):
        return
    _convolve(graph, node, x, weights, node.attributes)


def _convolve(graph: _Graph, node: ir.Node, x: Form, weights: Form, settings: Mapping[str, object]) -> None:
    """ConvInteger in place of a node, with the bias of the node."""
    assert weights.constant is not None
    layer, spatial = _layer_of(weights, node), weights.constant.ndim - 2
    scale = x.grid.scale * weights.grid.scale  # float32
    operands = _operands(graph, x, weights, layer)
    sums = graph.summed(node, "ConvInteger", operands, f"{layer}.products", settings)
    sums, bias = _with_bias(graph, node, sums, graph.operand(node, 2), scale, layer, spatial)
    graph.scaled(node, sums, scale.reshape(-1, *[1] * spatial) if scale.ndim else scale, layer, bias)


def _conv_transposed(graph: _Graph, node: Any) -> None:
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


def _gemm(graph: _Graph, node: ir.Node) -> None:
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


def _matmul(graph: _Graph, node: Any) -> None:
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


def _product(graph: _Graph, node: Any, x: Form, weights: Form, bias: ir.Value | None, place: ir.Node) -> None:
    """MatMulInteger in front of a node whose result is replaced: the product, or the addition of its bias."""
    layer = node.outputs[0].name if weights.constant is None else _layer_of(weights, node)
    scale = x.grid.scale * weights.grid.scale  # float32
    operands = _operands(graph, x, weights, layer, columns=True)
    sums = graph.summed(place, "MatMulInteger", operands, f"{layer}.products", {})
    sums, own = _with_bias(graph, place, sums, bias, scale, layer)
    graph.scaled(place, sums, scale, layer, own)


def _reduce(graph: _Graph, node: Any) -> None:
    """A mean or sum over dimensions: integers are added, and their number goes into the scale."""
    x = graph.form(node.inputs[0])
    axes = node.inputs[1].const_value if len(node.inputs) > 1 and node.inputs[1] is not None else None
    shape = node.inputs[0].shape
    if x is None or not x.plain or axes is None or x.constant is not None or shape is None:
        return
    sizes = [shape[int(axis)] for axis in axes.numpy()]
    if not all(isinstance(size, int) for size in sizes):
        return
    name, count = node.outputs[0].name, math.prod(sizes)
    wide = graph.cast(node, x.codes, "INT32", f"{name}.integers")
    keep = {"keepdims": node.attributes.get_int("keepdims", 1)}
    sums = graph.summed(node, "ReduceSum", [wide, node.inputs[1]], f"{name}.sums", keep)
    offset = x.grid.zero_point * count
    if offset:
        sums = graph.summed(
            node, "Sub", [sums, graph.constant(f"{name}.offset", offset, "INT32")], f"{name}.centred", {}
        )
    graph.scaled(node, sums, x.grid.scale / count if node.op_type == "ReduceMean" else x.grid.scale, name)


def _global_average(graph: _Graph, node: Any) -> None:
    x, shape = graph.form(node.inputs[0]), node.inputs[0].shape
    sizes = [] if shape is None else list(shape)[2:]
    if (
        x is None
        or not x.plain
        or x.constant is not None
        or x.wide
        or not sizes
        or not all(isinstance(each, int) for each in sizes)
    ):
        return
    _pool(graph, node, x, sizes, {})


def _average(graph: _Graph, node: ir.Node) -> None:
    x, get = graph.form(node.inputs[0]), node.attributes
    pads = list(get["pads"].as_ints()) if "pads" in get else []
    if x is None or not x.plain or x.constant is not None or x.wide or get.get_int("ceil_mode", 0):
        return
    if (any(pads) and not get.get_int("count_include_pad", 0)) or get.get_string("auto_pad", "NOTSET") != "NOTSET":
        return
    kept = {name: list(get[name].as_ints()) for name in ("strides", "pads", "dilations") if name in get}
    _pool(graph, node, x, list(get["kernel_shape"].as_ints()), kept)


def _pool(graph: _Graph, node: Any, x: Form, kernel: list[int], settings: Mapping[str, object]) -> None:
    """Sums over windows: a convolution of each channel with ones."""
    channels = node.inputs[0].shape[1]
    if not isinstance(channels, int):
        return
    name = node.outputs[0].name
    ones = graph.constant(f"{name}.ones", torch.ones(channels, 1, *kernel), "UINT8")
    settings = {**settings, "group": channels}
    sums = graph.summed(node, "ConvInteger", [x.codes, ones, graph.zero(x)], f"{name}.sums", settings)
    graph.scaled(node, sums, x.grid.scale / math.prod(kernel), name)


def _add(graph: _Graph, node: Any) -> None:
    """Activations on one scale: their integers are added, in int32, and kept in 8 bits where these hold the sum."""
    one, other = (graph.form(value) for value in node.inputs)
    if one is None or other is None or not (one.plain and other.plain) or one.grid.scale != other.grid.scale:
        return
    if one.constant is not None or other.constant is not None:
        return
    name = node.outputs[0].name
    wide = [_centred_codes(graph, node, each, f"{name}.{side}") for each, side in ((one, "one"), (other, "other"))]
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


def _centred_codes(graph: _Graph, node: ir.Node, form: Form, name: str) -> ir.Value:
    """The integers of an activation minus their zero point, int32."""
    codes, grid = form.codes if form.wide else graph.cast(node, form.codes, "INT32", f"{name}.integers"), form.grid
    if not grid.zero_point:
        return codes
    zero = graph.constant(f"{grid.name}.zero.int32", grid.zero_point, "INT32")
    return graph.add(node, "Sub", [codes, zero], f"{name}.centred", like=codes)


def _leaky(graph: _Graph, node: Any) -> None:
    given, slope = graph.integers(node), node.attributes.get_float("alpha", 0.01)
    if given is not None and slope > 0:
        sums, scale = given
        graph.scaled_by_sign(node, sums, _below_zero(graph, node, sums), (scale, scale * slope))


def _parametric(graph: _Graph, node: Any) -> None:
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


def _below_zero(graph: _Graph, node: ir.Node, sums: ir.Value) -> ir.Value:
    name = node.outputs[0].name
    zero = graph.constant(f"{name}.none", torch.tensor(0), "INT32")
    return graph.add(node, "Less", [sums, zero], f"{name}.negative", like=node.outputs[0], kind="BOOL")


def _factor(graph: _Graph, node: Any) -> None:
    """A number that integers are multiplied with or divided by goes into their scale."""
    number = node.inputs[1].const_value if node.inputs[1] is not None else None
    if graph.divides(node) or number is None or number.numpy().size != 1 or not float(number.numpy()) > 0:
        return
    given, size = graph.integers(node), float(number.numpy())
    if given is not None:
        sums, scale = given
        graph.scaled(node, sums, scale * size if node.op_type == "Mul" else scale / size, node.outputs[0].name)


_RULES = {
    "Mul": _factor,
    "Div": _factor,
    "LeakyRelu": _leaky,
    "PRelu": _parametric,
    "ConvTranspose": _conv_transposed,
    "Add": _add,
    "Sub": _add,
    "Conv": _conv,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "ReduceMean": _reduce,
    "ReduceSum": _reduce,
    "GlobalAveragePool": _global_average,
    "AveragePool": _average,
}

"""Layers on dequantized integers become ConvInteger and MatMulInteger on the integers themselves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ...errors import ExportError
from ...optional import Deferred, required

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir
else:
    np = Deferred("numpy", "export_onnx_integer")

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


@dataclass(frozen=True)
class Form:
    """A value of the graph as integers: ``value = (codes - zero_point) * scale``.

    Attributes:
        codes: the ``onnx_ir.Value`` of the integers.
        scale: float32 array, 0-d or 1-d.
        zero_point: array of the integers' type, of the same shape.
        axis: the dimension of several scales, or None.
        name: of the quantizer.
        constant: the integers, where they are stored.
        bounds: the smallest and the largest integer of an activation.
    """

    codes: Any
    scale: np.ndarray
    zero_point: np.ndarray
    axis: int | None
    name: str
    constant: np.ndarray | None = None
    bounds: tuple[int, int] = (-(2**31), 2**31 - 1)

    @property
    def plain(self) -> bool:
        """Whether there is one scale for all."""
        return self.axis is None

    @property
    def wide(self) -> bool:
        """Whether the integers are an activation's in int32, which the operators of 8 bits don't take."""
        return self.constant is None and self.codes.dtype.name == "INT32"


def integerize(model: ir.Model) -> list[ir.Node]:
    """Rewrite the layers of an exported model, in place.

    Args:
        model: an ``onnx_ir.Model`` whose quantizations are QuantizeLinear, Clip and DequantizeLinear nodes of 8 bits.

    Returns:
        The nodes that compute in floats what two runtimes may sum or round differently.
    """
    graph = _Graph(model)
    for node in list(model.graph):
        rule = _RULES.get(node.op_type)
        if rule is not None and node.graph is not None:  # another rule may have replaced it
            rule(graph, node)
    common = required("onnx_ir.passes.common", "export_onnx_integer")
    common.RemoveUnusedNodesPass()(model)
    return [node for node in model.graph if graph.computes_in_floats(node)]


class _Graph:
    """Edits one graph, and knows its values as integers."""

    def __init__(self, model: ir.Model) -> None:
        self.ir = required("onnx_ir", "export_onnx_integer")
        self.graph: Any = model.graph
        self.forms: dict[ir.Value, Form | None] = {}
        self.products: set[ir.Value] = set()  # values that `scaled` made
        self.sources: dict[ir.Value, tuple[bool, bool]] = {}

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
        inner = self.form(node.inputs[0]) if node.op_type in _MOVES or node.op_type in ("Relu", "Pad") else None
        if inner is None:
            return None
        if inner.constant is not None:
            return self._moved_constant(node, inner)
        if not inner.plain or (node.op_type == "MaxPool" and len(node.outputs) > 1):
            return None
        return self._moved(node, inner)

    def _dequantized(self, node: Any) -> Form:
        codes, scale = node.inputs[0], node.inputs[1].const_value.numpy()
        stored = codes
        while stored.producer() is not None and stored.producer().op_type == "Clip":
            stored = stored.producer().inputs[0]
        constant = stored.const_value.numpy() if stored.producer() is None and stored.const_value is not None else None
        kind = np.int32 if constant is not None and constant.dtype == np.int32 else None
        has_zero_point = len(node.inputs) > 2 and node.inputs[2] is not None
        zero_point = node.inputs[2].const_value.numpy() if has_zero_point else np.zeros(scale.shape, kind or np.int32)
        axis = node.attributes.get_int("axis", 1) if scale.ndim else None
        if axis is not None and axis < 0:
            axis += len(node.inputs[0].shape)
        name = node.name.removesuffix(".dequantize")
        if constant is not None:
            return Form(stored, scale, zero_point, axis, name, constant)
        return Form(codes, scale, zero_point, axis, name, bounds=self._bounds(codes))

    def _bounds(self, codes: Any) -> tuple[int, int]:
        """Of integers that are quantized, and clipped where they have fewer bits than their type."""
        node = codes.producer()
        if node is not None and node.op_type == "Clip":
            return int(node.inputs[1].const_value.numpy()), int(node.inputs[2].const_value.numpy())
        kind = np.iinfo(codes.dtype.numpy())
        return int(kind.min), int(kind.max)

    def _moved_constant(self, node: ir.Node, inner: Form) -> Form | None:
        assert inner.constant is not None
        if node.op_type != "Transpose":
            return None
        given = node.attributes.get("perm")
        order = list(reversed(range(inner.constant.ndim))) if given is None else list(given.as_ints())
        axis = None if inner.axis is None else order.index(inner.axis)
        return Form(None, inner.scale, inner.zero_point, axis, inner.name, np.transpose(inner.constant, order))

    def _moved(self, node: Any, inner: Form) -> Form | None:
        inputs = [inner.codes, *node.inputs[1:]]
        attributes = list(node.attributes.values())
        op_type = node.op_type
        if op_type == "Relu":
            op_type, inputs = "Clip", [inner.codes, self.constant(f"{inner.name}.zero", inner.zero_point)]
        elif op_type == "Pad":
            filled = node.inputs[2] if len(node.inputs) > 2 else None
            mode = node.attributes.get_string("mode", "constant")
            if mode != "constant" or (
                filled is not None and (filled.const_value is None or filled.const_value.numpy() != 0)
            ):
                return None
            rest = list(node.inputs[3:])
            inputs = [inner.codes, node.inputs[1], self.constant(f"{inner.name}.zero", inner.zero_point), *rest]
        name = f"{node.outputs[0].name}.codes_of"
        if inner.wide and op_type == "MaxPool":  # of int32 through floats, which are exact to 24 bits
            cast = self.typed(self.add(node, "Cast", [inner.codes], {"to": 1}, f"{name}.cast"), "FLOAT", node.inputs[0])
            pooled = self.typed(self.add(node, op_type, [cast], attributes, f"{name}.pooled"), "FLOAT", node.outputs[0])
            moved = self.add(node, "Cast", [pooled], {"to": 6}, name)
        else:
            moved = self.add(node, op_type, inputs, attributes, name, after=True)
        moved.dtype, moved.shape = inner.codes.dtype, node.outputs[0].shape
        return replace(inner, codes=moved)

    def computes_in_floats(self, node: ir.Node) -> bool:
        """Whether a node computes new values from floats: no selection, no addition, nothing of parameters alone."""
        result = node.outputs[0]
        if result.dtype is None or result.dtype.name != "FLOAT" or result in self.products:
            return False
        given, quantized = self._sources(result)
        return given and node.op_type not in (_EXACT if quantized else _EXACT | {"Abs", "Div", "Mul"})

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

    # Editing

    def constant(self, name: str, array: np.ndarray) -> ir.Value:
        """An initializer."""
        free, number = name, 0
        while free in self.graph.initializers:
            existing = self.graph.initializers[free].const_value.numpy()
            if existing.dtype == array.dtype and np.array_equal(existing, array):
                return self.graph.initializers[free]
            number += 1
            free = f"{name}.{number}"
        tensor = self.ir.tensor(np.ascontiguousarray(array) if array.ndim else array, name=free)
        value = self.ir.Value(
            name=free, shape=self.ir.Shape(tensor.shape), type=self.ir.TensorType(tensor.dtype), const_value=tensor
        )
        self.graph.register_initializer(value)
        return value

    def add(
        self,
        place: ir.Node,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, object] | Sequence[ir.Attr],
        name: str,
        *,
        after: bool = False,
    ) -> ir.Value:
        """A node in front of another, or behind it; its result."""
        if isinstance(attributes, dict):
            node = self.ir.node(op_type, inputs, attributes, name=name)
        else:
            node = self.ir.Node("", op_type, inputs, attributes, name=name)
        node.outputs[0].name = name
        (self.graph.insert_after if after else self.graph.insert_before)(place, node)
        return node.outputs[0]

    def typed(self, value: ir.Value, kind: str, like: Any) -> ir.Value:
        """A value with its type noted, and the shape of another."""
        value.dtype, value.shape = self.ir.DataType[kind], like.shape
        return value

    def scaled(self, node: ir.Node, sums: ir.Value, scale: np.ndarray, layer: str) -> ir.Value:
        """Sums as values, in place of a node's result: one conversion and one multiplication."""
        result = node.outputs[0]
        values = self.typed(self.add(node, "Cast", [sums], {"to": 1}, f"{layer}.cast"), "FLOAT", result)
        factor = self.constant(f"{layer}.scale", scale)
        product = self.typed(self.add(node, "Mul", [values, factor], {}, f"{layer}.scaled"), "FLOAT", result)
        name = result.name
        result.name = f"{name}.before"
        self.ir.convenience.replace_all_uses_with(result, product, replace_graph_outputs=True)
        product.name = name
        self.graph.remove(node, safe=True)
        self.products.add(product)
        return product


def _layer_of(weights: Form, node: Any) -> str:
    return weights.name.removesuffix("weight_quant").removesuffix(".") or node.outputs[0].name


def _one_zero_point(form: Form, layer: str) -> np.ndarray:
    """The only zero point, 0-d."""
    flat = form.zero_point.reshape(-1)
    if (flat != flat[0]).any():
        raise ExportError(f"{layer}: its weight has several zero points, and ConvInteger takes one.")
    return flat[0].reshape(())


def _unbiased(layer: str) -> ExportError:
    return ExportError(
        f"{layer}: its bias is not on the scale of the products when it is traced. Write bias_quant=Int32Bias."
    )


def _bias(graph: _Graph, value: ir.Value | None, layer: str, scale: np.ndarray) -> np.ndarray | None:
    """The integers of a bias, int32."""
    if value is None:
        return None
    form = graph.form(value)
    if form is None or form.constant is None or not (np.broadcast_to(form.scale, scale.shape) == scale).all():
        raise _unbiased(layer)
    return form.constant.astype(np.int32)


def _conv(graph: _Graph, node: ir.Node) -> None:
    x, weights = graph.form(node.inputs[0]), graph.form(node.inputs[1])
    if x is None or weights is None or not x.plain or x.wide:
        return
    if weights.constant is None or weights.axis not in (None, 0):
        return
    layer, spatial = _layer_of(weights, node), weights.constant.ndim - 2
    scale = x.scale * weights.scale  # float32
    bias = _bias(graph, node.inputs[2] if len(node.inputs) > 2 else None, layer, scale)
    inputs = [
        x.codes,
        graph.constant(f"{weights.name}.integers", weights.constant),
        graph.constant(f"{x.name}.zero", x.zero_point),
        graph.constant(f"{weights.name}.zero", _one_zero_point(weights, layer)),
    ]
    sums = graph.add(node, "ConvInteger", inputs, list(node.attributes.values()), f"{layer}.products")
    sums = graph.typed(sums, "INT32", node.outputs[0])
    along = (-1, *[1] * spatial)
    if bias is not None:
        added = graph.constant(f"{layer}.bias.integers", np.broadcast_to(bias, bias.shape).reshape(along))
        sums = graph.typed(graph.add(node, "Add", [sums, added], {}, f"{layer}.sums"), "INT32", node.outputs[0])
    graph.scaled(node, sums, scale.reshape(along) if scale.ndim else scale, layer)


def _gemm(graph: _Graph, node: ir.Node) -> None:
    get = node.attributes
    if get.get_float("alpha", 1.0) != 1 or get.get_float("beta", 1.0) != 1 or get.get_int("transA", 0):
        return
    x, weights = graph.form(node.inputs[0]), graph.form(node.inputs[1])
    if x is None or weights is None or not x.plain or x.wide or weights.constant is None:
        return
    if get.get_int("transB", 0):
        axis = None if weights.axis is None else 1 - weights.axis
        weights = Form(None, weights.scale, weights.zero_point, axis, weights.name, weights.constant.T)
    if weights.axis not in (None, 1):
        return
    _product(graph, node, x, weights, node.inputs[2] if len(node.inputs) > 2 else None, node)


def _matmul(graph: _Graph, node: Any) -> None:
    x, weights = graph.form(node.inputs[0]), graph.form(node.inputs[1])
    if x is None or weights is None or not x.plain or x.wide:
        return
    if weights.constant is None:
        if weights.plain and not weights.wide:
            _product(graph, node, x, weights, None, node)
        return
    if weights.constant.ndim != 2 or weights.axis not in (None, 1):
        return
    users = node.outputs[0].uses()
    addition = users[0].node if len(users) == 1 and users[0].node.op_type == "Add" else None
    if addition is not None and not node.outputs[0].is_graph_output():
        bias = addition.inputs[1 - users[0].idx]
        known = graph.form(bias)
        if known is not None and known.constant is not None and known.constant.ndim == 1:
            _product(graph, node, x, weights, bias, addition)
            return
    _product(graph, node, x, weights, None, node)


def _product(graph: _Graph, node: Any, x: Form, weights: Form, bias: ir.Value | None, place: ir.Node) -> None:
    """MatMulInteger in front of a node whose result is replaced: the product, or the addition of its bias."""
    stored = weights.constant is not None
    layer = _layer_of(weights, node) if stored else node.outputs[0].name
    scale = x.scale * weights.scale  # float32
    integers = _bias(graph, bias, layer, scale)
    factor = (
        graph.constant(f"{weights.name}.integers", weights.constant) if weights.constant is not None else weights.codes
    )
    inputs = [
        x.codes,
        factor,
        graph.constant(f"{x.name}.zero", x.zero_point),
        graph.constant(f"{weights.name}.zero", _one_zero_point(weights, layer)),
    ]
    sums = graph.typed(graph.add(place, "MatMulInteger", inputs, {}, f"{layer}.products"), "INT32", place.outputs[0])
    if integers is not None:
        added = graph.constant(f"{layer}.bias.integers", integers)
        sums = graph.typed(graph.add(place, "Add", [sums, added], {}, f"{layer}.sums"), "INT32", place.outputs[0])
    graph.scaled(place, sums, scale, layer)


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
    result, name = node.outputs[0], node.outputs[0].name
    wide = graph.typed(graph.add(node, "Cast", [x.codes], {"to": 6}, f"{name}.integers"), "INT32", node.inputs[0])
    keep = {"keepdims": node.attributes.get_int("keepdims", 1)}
    sums = graph.typed(graph.add(node, "ReduceSum", [wide, node.inputs[1]], keep, f"{name}.sums"), "INT32", result)
    sums = _centred(graph, node, sums, int(x.zero_point) * math.prod(sizes), name)
    count = math.prod(sizes) if node.op_type == "ReduceMean" else 1
    graph.scaled(node, sums, x.scale / np.float32(count), name)


def _centred(graph: _Graph, node: ir.Node, sums: ir.Value, offset: int, name: str) -> ir.Value:
    if not offset:
        return sums
    zero = graph.constant(f"{name}.offset", np.array(offset, np.int32))
    return graph.typed(graph.add(node, "Sub", [sums, zero], {}, f"{name}.centred"), "INT32", node.outputs[0])


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
    inputs = [
        x.codes,
        graph.constant(f"{name}.ones", np.ones((channels, 1, *kernel), np.uint8)),
        graph.constant(f"{x.name}.zero", x.zero_point),
    ]
    sums = graph.add(node, "ConvInteger", inputs, {**settings, "group": channels}, f"{name}.sums")
    scale = x.scale / np.float32(math.prod(kernel))
    graph.scaled(node, graph.typed(sums, "INT32", node.outputs[0]), scale, name)


def _add(graph: _Graph, node: Any) -> None:
    """Activations on one scale: their integers are added, in int32, and kept in 8 bits where these hold the sum."""
    one, other = (graph.form(value) for value in node.inputs)
    if one is None or other is None or not (one.plain and other.plain) or one.scale != other.scale:
        return
    if one.constant is not None or other.constant is not None:
        return
    name = node.outputs[0].name
    wide = [_centred_codes(graph, node, each, f"{name}.{side}") for each, side in ((one, "one"), (other, "other"))]
    result = node.outputs[0]
    sums = graph.typed(graph.add(node, node.op_type, wide, {}, f"{name}.sums"), "INT32", result)
    (low, high), (below, above) = ([end - int(each.zero_point) for end in each.bounds] for each in (one, other))
    bounds = (low + below, high + above) if node.op_type == "Add" else (low - above, high - below)
    codes, kind = sums, np.int32
    for number, narrow in ((2, np.uint8), (3, np.int8)):
        if np.iinfo(narrow).min <= bounds[0] and bounds[1] <= np.iinfo(narrow).max and kind is np.int32:
            kind = narrow
            cast = graph.add(node, "Cast", [sums], {"to": number}, f"{name}.narrow")
            codes = graph.typed(cast, np.dtype(narrow).name.upper(), result)
    product = graph.scaled(node, sums, one.scale, name)
    graph.forms[product] = Form(codes, one.scale, np.zeros((), kind), None, name, bounds=bounds)


def _centred_codes(graph: _Graph, node: ir.Node, form: Form, name: str) -> ir.Value:
    """The integers of an activation minus their zero point, int32."""
    codes = form.codes
    if not form.wide:
        codes = graph.typed(graph.add(node, "Cast", [codes], {"to": 6}, f"{name}.integers"), "INT32", codes)
    if not form.zero_point.any():
        return codes
    zero = graph.constant(f"{form.name}.zero.int32", form.zero_point.astype(np.int32))
    return graph.typed(graph.add(node, "Sub", [codes, zero], {}, f"{name}.centred"), "INT32", codes)


_RULES = {
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

"""The graph of an exported model whose values are known as integers, and which of its nodes compute in floats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...capture.grid import IntegerGrid
from ...capture.record import Recording
from ...onnx.editing import Editor

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["Form", "IntegerGraph"]

# Operators that give the same whether integers or values go through them, where all have one scale.
_MOVES = {
    *("Flatten", "Gather", "GatherElements", "GatherND", "Identity", "MaxPool", "Reshape", "Slice", "Squeeze"),
    *("Tile", "Transpose", "Unsqueeze", "Expand", "DepthToSpace", "SpaceToDepth", "ReduceMax", "ReduceMin"),
}


# Operators on floats that give the same bits everywhere: they convert, move, select, or round each number once.
_EXACT = {
    *(*_MOVES, "Add", "Cast", "Clip", "Concat", "Constant", "ConstantOfShape", "DequantizeLinear", "Max", "Min", "Neg"),
    *("Abs", "Pad", "Relu", "Split", "Sub", "TopK", "Trilu", "Where"),
}
# What a rounding may be written in, between the division by a scale and QuantizeLinear.
_ROUNDING = {*_EXACT, "Ceil", "Div", "Floor", "Mul", "Round", "Sign"}


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
    def with_zero(self) -> tuple[int, int]:
        """The bounds, zero among them."""
        zero = int(self.grid.zero_point)
        return min(self.bounds[0], zero), max(self.bounds[1], zero)

    @property
    def wide(self) -> bool:
        """Whether the integers are an activation's in int32, which the operators of 8 bits don't take."""
        return self.constant is None and self.kind == "INT32"


class IntegerGraph(Editor):
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
        added = _unless_zero(node)
        if added is not None:
            return self.form(added)
        if node.op_type == "Split":
            return self._part(node, value)
        if node.op_type == "Where":
            return self._masked(node)
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

    def _part(self, node: ir.Node, value: ir.Value) -> Form | None:
        """One of the parts that a tensor is split into."""
        inner, axis, index = self.form(node.inputs[0]), node.attributes.get_int("axis", 0), value.index()
        widths = [size for each in node.outputs if isinstance(size := each.shape and each.shape[axis], int)]
        if inner is None or inner.constant is not None or not inner.plain or len(widths) != len(node.outputs):
            return None
        assert index is not None
        start = sum(widths[:index])
        ends = {"starts": start, "ends": start + widths[index], "axes": axis}
        name = f"{value.name}.codes_of"
        numbers = [self.constant(f"{name}.{said}", torch.tensor([each]), "INT64") for said, each in ends.items()]
        inputs = [inner.codes, *numbers]
        return replace(inner, codes=self.add(node, "Slice", inputs, name, {}, like=value, kind=inner.kind))

    def _masked(self, node: ir.Node) -> Form | None:
        """An activation, some of whose values are zeros instead."""
        condition, *sides = node.inputs
        zeros = [_only_zeros(each) for each in sides]
        inner = self.form(sides[zeros.index(False)]) if zeros.count(True) == 1 else None
        if inner is None or inner.constant is not None or not inner.plain:
            return None
        chosen = [self.zero(inner) if nothing else inner.codes for nothing in zeros]
        name, result = f"{node.outputs[0].name}.codes_of", node.outputs[0]
        codes = self.add(node, "Where", [condition, *chosen], name, {}, like=result, kind=inner.kind, after=True)
        return replace(inner, codes=codes, bounds=inner.with_zero)

    def _moved(self, node: Any, inner: Form) -> Form | None:
        inputs = [inner.codes, *node.inputs[1:]]
        op_type, attributes = node.op_type, node.attributes
        if op_type == "Relu":
            op_type, inputs = "Clip", [inner.codes, self.zero(inner)]
        elif op_type == "Pad":
            filled = None
            if node.attributes.get_string("mode", "constant") == "constant":
                filled = self._filling(inner, self.operand(node, 2))
                if filled is None:
                    return None
            inputs = [inner.codes, node.inputs[1], filled, *node.inputs[3:]]
        name, result = f"{node.outputs[0].name}.codes_of", node.outputs[0]
        if inner.wide and op_type == "MaxPool":  # of int32 through floats, which are exact to 24 bits
            cast = self.cast(node, inner.codes, "FLOAT", f"{name}.cast")
            pooled = self.add(node, op_type, [cast], f"{name}.pooled", attributes, like=result)
            moved = self.cast(node, pooled, "INT32", name)
        else:
            moved = self.add(node, op_type, inputs, name, attributes, like=result, kind=inner.kind, after=True)
        return replace(inner, codes=moved)

    def _filling(self, inner: Form, value: ir.Value | None) -> ir.Value | None:
        """The integer of a number that an activation is padded with; None where it has none."""
        number = None if value is None else value.const_value
        if value is None or (number is not None and not number.numpy().any()):
            return self.zero(inner)
        code = None if number is None else inner.grid.code_of(float(number.numpy().reshape(())))
        if code is None:
            return None
        stored = torch.tensor(code) + inner.grid.zero_point
        low, high = inner.bounds
        return self.constant(f"{inner.grid.name}.padding", stored, inner.kind) if low <= stored <= high else None

    def computes_in_floats(self, node: ir.Node) -> bool:
        """Whether a node computes new values from floats: no selection, no addition, nothing of parameters alone."""
        result = node.outputs[0]
        if result.dtype is None or result.dtype.name != "FLOAT" or result in self.products or node in self.roundings:
            return False
        given, quantized = self._sources(result)
        if _repeats(node):
            return False
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

    def scaled(
        self,
        node: ir.Node,
        sums: ir.Value,
        scale: Tensor,
        layer: str,
        bias: Tensor | None = None,
        *,
        last: bool = False,
    ) -> ir.Value:
        """Sums as values, in place of a node's result: one conversion and one multiplication.

        Args:
            node: whose result they are.
            sums: int32, or int64 that are the ``last``.
            scale: broadcastable to them.
            layer: the beginning of names.
            bias: values that are added to them, with one rounding each, or None.
            last: whether no operator takes the sums themselves.
        """
        factor = self.constant(f"{layer}.scale", scale, "FLOAT")
        product = self._product(node, sums, factor, layer)
        if bias is not None:
            self.products.add(product)
            added = self.constant(f"{layer}.bias.values", bias, "FLOAT")
            product = self.add(node, "Add", [product, added], f"{layer}.biased", like=node.outputs[0])
        elif not last:
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
        return self.centred(node, form, f"{node.outputs[0].name}.given"), form.grid.scale

    def centred(self, node: ir.Node, form: Form, name: str) -> ir.Value:
        """The integers of an activation minus their zero point, int32."""
        codes, grid = form.codes if form.wide else self.cast(node, form.codes, "INT32", f"{name}.integers"), form.grid
        if not grid.zero_point:
            return codes
        zero = self.constant(f"{grid.name}.zero.int32", grid.zero_point, "INT32")
        return self.add(node, "Sub", [codes, zero], f"{name}.centred", like=codes)


def _unless_zero(node: ir.Node) -> ir.Value | None:
    """What a node adds a zero to, as ``sum()`` begins with one; or None."""
    if node.op_type != "Add":
        return None
    one, other = node.inputs
    for value, added in ((one, other), (other, one)):
        number = None if added is None else added.const_value
        shape = None if value is None else value.shape
        if number is None or shape is None or number.numpy().ndim > len(shape):
            continue  # nothing to add, or dimensions
        if number.numpy().size == 1 and not number.numpy().any():
            return value
    return None


def _only_zeros(value: ir.Value | None) -> bool:
    number = None if value is None else value.const_value
    return number is not None and number.numpy().size == 1 and not number.numpy().any()


def _repeats(node: ir.Node) -> bool:
    """Whether a node resizes by taking the nearest number."""
    return node.op_type == "Resize" and node.attributes.get_string("mode", "nearest") == "nearest"

"""A lowered graph as QONNX's readers want it: the operators that they know, constants folded, names of C."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...qcore import int_bounds
from ..onnx.editing import Editor
from .nodes import NOTE, QONNX_DOMAIN, TURNED

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["clean", "identifier"]


def clean(model: ir.Model, names: Sequence[str] = ()) -> None:
    """Rewrite a lowered model in place for FINN and hls4ml; the numbers stay.

    - ``Gemm``, which hls4ml does not read, becomes ``MatMul`` and ``Add``.
    - A ``Transpose`` of a weight is done on the weight.
    - A ``Clip`` that cuts off no more than the ``Quant`` behind it does becomes ``Relu``, or goes: hls4ml does not read
      it, and FINN computes it in floats. So ``QuantReLU6`` is a ``Relu``, where the scale reaches no further than 6.
    - Means over all positions become ``GlobalAveragePool``, and what flattens becomes ``Flatten``, which holds for any
      batch size.
    - Every initializer has one reader. Names are such as C takes: ``layer0_weight_quant`` for ``0.weight_quant``.

    Args:
        model: an ``onnx_ir.Model``, as `lower` leaves it.
        names: of outputs, which stay as they are.
    """
    cleaner = Cleaner(model)
    cleaner.separate()
    for node in list(model.graph):
        rule = _RULES.get(node.op_type) if node.domain == "" and node.graph is not None else None
        if rule is not None:
            rule(cleaner, node)
    cleaner.sweep()
    cleaner.rename(names)


class Cleaner(Editor):
    """Edits a graph of standard nodes and quantizing ones."""

    def content(self, value: ir.Value | None) -> Tensor | None:
        """What an initializer holds; None for other values."""
        if value is None or not value.is_initializer() or value.const_value is None:
            return None
        return torch.from_numpy(value.const_value.numpy().copy())

    def moved(self, value: ir.Value, move: Callable[[Tensor], Tensor]) -> ir.Value | None:
        """A constant, or a quantized one, in another view; None for what is computed, or has other readers.

        Scales have as many dimensions as the tensor, or none, so they move alike.
        """
        node, held = value.producer(), self.content(value)
        if len(list(value.uses())) != 1 or value.is_graph_output():
            return None
        if held is not None:
            return self._hold(value, move(held))
        if node is None or node.domain != QONNX_DOMAIN or node.inputs[0] is None or node.inputs[1] is None:
            return None
        held, scale = (self.content(each) for each in node.inputs[:2])
        if held is None or scale is None:
            return None
        value.shape = self._hold(node.inputs[0], move(held)).shape
        if scale.ndim:
            self._hold(node.inputs[1], move(scale))
        return value

    def turned(self, value: ir.Value, order: Sequence[int]) -> ir.Value | None:
        """The same with the dimensions in another order, which the note of the quantizing node says."""
        node = value.producer()
        if node is not None and TURNED in node.meta.get(NOTE, ""):
            return None
        moved = self.moved(value, lambda each: each.permute(*order).contiguous())
        if moved is not None and node is not None:
            node.meta[NOTE] += f"{TURNED}{' '.join(map(str, order))}"
        return moved

    def _hold(self, value: ir.Value, tensor: Tensor) -> ir.Value:
        """Let an initializer, which has one reader, hold another tensor."""
        value.const_value = self.ir.tensor(tensor.numpy(), dtype=value.dtype, name=value.name)
        value.shape = self.ir.Shape(tensor.shape)
        return value

    def successor(self, place: ir.Node, op_type: str, inputs: Sequence[ir.Value], name: str) -> ir.Value:
        """A node in the place of another one's result."""
        return self.add(place, op_type, inputs, name, like=place.outputs[0])

    def separate(self) -> None:
        """Give every reader of an initializer one of its own."""
        for value in list(self.graph.initializers.values()):
            for use in list(value.uses())[1:]:
                copy = self.ir.Value(
                    name=self.unused(str(value.name)), shape=value.shape, type=value.type, const_value=value.const_value
                )
                self.graph.register_initializer(copy)
                use.node.replace_input_with(use.idx, copy)

    def rename(self, names: Sequence[str]) -> None:
        """Give values and nodes names that C takes; inputs keep theirs, and outputs that have these names."""
        kept = {*(str(each.name) for each in self.graph.inputs), *names}
        taken, counts = set(kept), dict[str, int]()
        values = dict.fromkeys((*self.graph.outputs, *self.graph.initializers.values()))
        values |= dict.fromkeys(value for node in self.graph for value in node.outputs)
        for value in values:
            if value.name in kept:
                continue
            name = _free(identifier(str(value.name)), taken)
            if value.name != name:
                value.name = name
        nodes = set[str]()
        for node in self.graph:
            if node.domain == QONNX_DOMAIN:
                note: str = node.meta[NOTE]
                node.doc_string, node.name = note, _free(identifier(note.partition(TURNED)[0]), nodes)
        for node in self.graph:
            if node.domain != QONNX_DOMAIN:
                number = counts.get(node.op_type, 0)
                counts[node.op_type] = number + 1
                node.name = _free(f"{node.op_type}_{number}", nodes)


def identifier(name: str) -> str:
    """A name that C takes: hls4ml makes variables of names.

    Example:
        >>> identifier("0.weight_quant"), identifier("conv1.weight")
        ('layer0_weight_quant', 'conv1_weight')
    """
    plain = re.sub(r"\W", "_", name, flags=re.ASCII)
    return f"layer{plain}" if plain[:1].isdigit() else plain


def _free(name: str, taken: set[str]) -> str:
    free, number = name, 0
    while free in taken:
        number += 1
        free = f"{name}_{number}"
    taken.add(free)
    return free


def _gemm(cleaner: Cleaner, node: ir.Node) -> None:
    given = {name: each.value for name, each in node.attributes.items()}
    x, weight, bias = (*node.inputs, None)[:3]
    if given.get("transA", 0) or given.get("alpha", 1.0) != 1 or given.get("beta", 1.0) != 1 or x is None:
        return
    assert weight is not None
    if given.get("transB", 0):
        turned = cleaner.turned(weight, (1, 0))
        if turned is None:
            return
        weight = turned
    name = str(node.outputs[0].name)
    product = cleaner.successor(node, "MatMul", [x, weight], f"{name}.product" if bias is not None else name)
    if bias is not None:
        product = cleaner.successor(node, "Add", [product, bias], name)
    cleaner.replace(node, product, renamed=True)


def _transpose(cleaner: Cleaner, node: ir.Node) -> None:
    value = node.inputs[0]
    order = node.attributes["perm"].value if "perm" in node.attributes else None
    if value is None or order is None:
        return
    moved = cleaner.turned(value, order)
    if moved is not None:
        cleaner.replace(node, moved)


def _clip(cleaner: Cleaner, node: ir.Node) -> None:
    x, after = node.inputs[0], node.outputs[0]
    low, high = (cleaner.content(cleaner.operand(node, index)) for index in (1, 2))
    readers = [use.node for use in after.uses()]
    if x is None or low is None or high is None or not readers or after.is_graph_output():
        return
    if not all(_reaches(cleaner, each, high, top=True) for each in readers):
        return
    if not low.any():
        cleaner.replace(node, cleaner.successor(node, "Relu", [x], str(after.name)), renamed=True)
    elif all(_reaches(cleaner, each, low, top=False) for each in readers):
        cleaner.replace(node, x)


def _reaches(cleaner: Cleaner, node: ir.Node, bound: Tensor, *, top: bool) -> bool:
    """Whether a node is a ``Quant`` that makes its largest (or smallest) integer of the bound already."""
    if node.domain != QONNX_DOMAIN or node.op_type != "Quant":
        return False
    scale, bit_width = (cleaner.content(node.inputs[index]) for index in (1, 3))
    if scale is None or bit_width is None:
        return False
    signed, narrow = (bool(node.attributes[name].value) for name in ("signed", "narrow"))
    ends = int_bounds(int(bit_width), signed, narrow)
    rounding = torch.floor if node.attributes["rounding_mode"].value == "FLOOR" else torch.round
    steps = rounding(bound / scale)
    return bool((steps >= ends[1] if top else steps <= ends[0]).all())


def _mean(cleaner: Cleaner, node: ir.Node) -> None:
    """A mean over all positions of (batch, channels, positions ...)."""
    x, axes = (*node.inputs, None)[:2]
    held = cleaner.content(axes)
    if x is None or x.shape is None or held is None:
        return
    ndim = len(x.shape)
    if ndim < 3 or sorted(int(each) % ndim for each in held.reshape(-1)) != list(range(2, ndim)):
        return
    name = str(node.outputs[0].name)
    keeps = "keepdims" not in node.attributes or node.attributes["keepdims"].value
    pooled = cleaner.successor(node, "GlobalAveragePool", [x], name if keeps else f"{name}.pooled")
    if not keeps:
        pooled.shape = cleaner.ir.Shape([*x.shape[:2], *[1] * (ndim - 2)])
        pooled = cleaner.add(node, "Flatten", [pooled], name, {"axis": 1}, like=node.outputs[0])
    cleaner.replace(node, pooled, renamed=True)


def _reshape(cleaner: Cleaner, node: ir.Node) -> None:
    """A reshape that only joins all dimensions but the first."""
    x, after = node.inputs[0], node.outputs[0]
    if x is None or x.shape is None or after.shape is None or len(after.shape) != 2 or len(x.shape) < 2:
        return
    if x.shape[0] == after.shape[0]:
        flat = cleaner.add(node, "Flatten", [x], str(after.name), {"axis": 1}, like=after)
        cleaner.replace(node, flat, renamed=True)


_RULES: dict[str, Callable[[Cleaner, Any], None]] = {
    "Clip": _clip,
    "Gemm": _gemm,
    "ReduceMean": _mean,
    "Reshape": _reshape,
    "Transpose": _transpose,
}

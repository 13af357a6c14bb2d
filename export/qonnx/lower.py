"""Placeholders become QONNX's nodes: constants stay float initializers with a quantizing node behind them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..capture.record import Call, Recording
from ..onnx.editing import Editor
from ..onnx.tracing.placeholder import DOMAIN
from .nodes import NOTE, QONNX_DOMAIN, QuantNode, node_of

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["lower"]


def lower(model: ir.Model, recording: Recording) -> None:
    """Replace every placeholder of a traced model by ``Quant``, ``BipolarQuant`` or ``Trunc``, in place.

    The result of a node is named by the call of the quantizer, and so is the note by which verification finds it.

    Args:
        model: an ``onnx_ir.Model``.
        recording: the calls that the placeholders stand for.
    """
    Lowering(model, recording).run()


class Lowering(Editor):
    """The work on one model."""

    def __init__(self, model: ir.Model, recording: Recording) -> None:
        super().__init__(model)
        self.recording = recording

    def run(self) -> None:
        """Replace all placeholders."""
        for node in [node for node in self.graph.all_nodes() if node.domain == DOMAIN]:
            call = self.recording.calls[node.attributes["path"].as_string()][node.attributes["index"].as_int()]
            self.replace(node, self._placed(call, node))
        self.model.opset_imports.pop(DOMAIN, None)
        self.model.opset_imports[QONNX_DOMAIN] = 1
        self.sweep()

    def _placed(self, call: Call, node: ir.Node) -> Any:
        form, x = node_of(call), node.inputs[0]
        scale = call.plain.scale
        shaped, zero = call.plain.shaped(scale, call.codes.ndim), torch.tensor(0.0)
        if call.stored and call.codes.ndim == 1:  # qonnx takes biases out of convolutions, and wants them of this shape
            shaped, zero = shaped.reshape(-1), zero.reshape(1)
        if call.stored:
            x = self._content(call, form, x, shaped)
        if form.op_type == "BipolarQuant":
            return self._node(call, form, node, [x, self._parameter(call, "scale", shaped)], call.name)
        fine = shaped / 2.0**form.dropped
        inputs = [x, self._parameter(call, "scale", fine), self._parameter(call, "zero_point", zero)]
        if form.op_type == "Quant":
            inputs.append(self._parameter(call, "bit_width", torch.tensor(float(form.bit_width))))
            return self._node(call, form, node, inputs, call.name)
        widths = (form.bit_width + form.dropped, form.bit_width)
        for role, width in zip(("input_bit_width", "output_bit_width"), widths, strict=True):
            inputs.append(self._parameter(call, role, torch.tensor(float(width))))
        cut = self._node(call, form, node, inputs, f"{call.name}.cut" if form.dropped else call.name)
        if not form.dropped:
            return cut
        # Trunc leaves the integers on the scale that they had before, and each stands for so many of those
        factor = self._parameter(call, "step", torch.tensor(2.0**form.dropped))
        return self.add(node, "Mul", [cut, factor], call.name, like=node.outputs[0])

    def _content(self, call: Call, form: QuantNode, x: Any, scale: Tensor) -> Any:
        """A parameter as it is, where the node makes the model's integers of it; else the values of these."""
        values = call.grid.from_int(call.codes).detach().cpu().float()
        if x.is_initializer() and x.const_value is not None:
            held = torch.from_numpy(x.const_value.numpy().copy())
            if torch.equal(form.computed(held, scale), values):
                return self.constant(call.path.removesuffix("_quant"), held, "FLOAT", otherwise=f"{call.name}.float")
        return self._parameter(call, "values", values)

    def _parameter(self, call: Call, role: str, tensor: Tensor) -> Any:
        return self.constant(f"{call.name}.{role}", tensor, "FLOAT")

    def _node(self, call: Call, form: QuantNode, place: ir.Node, inputs: list[Any], name: str) -> Any:
        free = self.unused(name)
        node = self.ir.node(form.op_type, inputs, form.attributes(), domain=QONNX_DOMAIN, name=free)
        node.meta[NOTE] = call.name
        result = node.outputs[0]
        result.name, result.dtype = free, self.ir.DataType.FLOAT
        result.shape = place.outputs[0].shape if place.outputs[0].shape is not None else inputs[0].shape
        assert place.graph is not None
        place.graph.insert_before(place, node)
        return result

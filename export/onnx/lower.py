"""Placeholders become ONNX's own nodes: quantize, clip, dequantize, and integers where the input is constant."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..capture.record import Recording
from .activations.lowering import ActivationLowering
from .dialects import Dialect
from .tracing.placeholder import DOMAIN

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["lower"]


def lower(model: ir.Model, recording: Recording, dialect: Dialect) -> None:
    """Replace every placeholder of a traced model, in place, and drop what is then unused.

    The tensors of a quantizer are named by its path: ``conv1.weight_quant.codes``, ``.scale``, ``.zero_point``; the
    dequantized values by the path itself. Later calls of one quantizer add their number.

    Args:
        model: an ``onnx_ir.Model``.
        recording: the calls that the placeholders stand for.
        dialect: the dialect.
    """
    Lowering(model, recording, dialect).run()


class Lowering(ActivationLowering):
    """The work on one model: what was made so far."""

    def __init__(self, model: ir.Model, recording: Recording, dialect: Dialect) -> None:
        super().__init__(model, dialect)
        self.recording = recording
        self.constants: dict[ir.Value, bool] = {}

    def run(self) -> None:
        nodes = [node for node in self.graph.all_nodes() if node.domain == DOMAIN]  # in the bodies of loops, too
        for node in nodes:
            call = self.recording.calls[node.attributes["path"].as_string()][node.attributes["index"].as_int()]
            constant = self._is_constant(node.inputs[0]) and node.op_type in ("Quantize", "Multiply")
            if constant and (call.stored or call.grid.number_format.whole):
                self.replace(node, self._constant(call, node))
            else:
                self.replace(node, self.placed(call, node))
        self.model.opset_imports.pop(DOMAIN, None)
        self.sweep()
        used = {value.dtype for value in self.graph.initializers.values()}
        versions = [each.ir_version for each in self.dialect.types if self.ir.DataType[each.name] in used]
        self.model.ir_version = max([self.model.ir_version, *versions])

    def _is_constant(self, value: Any) -> bool:
        """Whether a value is the same for every input of the model."""
        known = self.constants.get(value)
        if known is None:
            producer = value.producer()
            if producer is None:
                known = value.is_initializer() and not value.is_graph_input()
            else:
                random = producer.op_type.startswith(("Random", "Bernoulli", "Multinomial"))
                known = not (random or _holds_graph(producer)) and all(
                    self._is_constant(each) for each in producer.inputs if each is not None
                )
            self.constants[value] = known
        return known


def _holds_graph(node: ir.Node) -> bool:
    """Whether a node has a body, which may read any value around it without naming it as an input."""
    return any(each.type.name in ("GRAPH", "GRAPHS") for each in node.attributes.values())

"""Placeholders become ONNX's own nodes: quantize, clip, dequantize, and integers where the input is constant."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch

from ..capture.record import Call, Recording
from ..errors import ExportError, with_causes
from .dialects import Dialect, Storage
from .stored.lowering import StoredLowering, along
from .trace import DOMAIN

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

    Raises:
        ExportError: an activation whose scale follows the input.
    """
    Lowering(model, recording, dialect).run()


class Lowering(StoredLowering):
    """The work on one model: what was made so far."""

    def __init__(self, model: ir.Model, recording: Recording, dialect: Dialect) -> None:
        super().__init__(model, dialect)
        self.recording = recording
        self.constants: dict[ir.Value, bool] = {}

    def run(self) -> None:
        nodes = [node for node in self.graph.all_nodes() if node.domain == DOMAIN]  # in the bodies of loops, too
        self._refuse_following(nodes)
        for node in nodes:
            call = self.recording.calls[node.attributes["path"].as_string()][node.attributes["index"].as_int()]
            if node.op_type == "Divide":
                self.replace(node, self._divide(call, node.inputs[0], node))
            elif self._is_constant(node.inputs[0]):
                self.replace(node, self._constant(call, node))
            else:
                self.replace(node, self._activation(call, node.inputs[0], node))
        self.model.opset_imports.pop(DOMAIN, None)
        self.sweep()
        used = {value.dtype for value in self.graph.initializers.values()}
        versions = [each.ir_version for each in self.dialect.types if self.ir.DataType[each.name] in used]
        self.model.ir_version = max([self.model.ir_version, *versions])

    def _refuse_following(self, nodes: Iterable[ir.Node]) -> None:
        causes = {}
        for node in nodes:
            call = self.recording.calls[node.attributes["path"].as_string()][node.attributes["index"].as_int()]
            if call.follows_input and not self._is_constant(node.inputs[0]):
                scaling = type(call.quantizer.scaling).__name__
                causes[call.path] = (
                    f"{call.path}: its scale follows the input ({scaling}), and a file holds one that stays. Write "
                    "scaling='calibrated' or scaling='running', and run some batches in training mode."
                )
        if causes:
            count = f"{len(causes)} quantizer{'s' * (len(causes) > 1)}"
            raise ExportError(
                with_causes(f"{self.dialect.name} can't express {count} of this model:", list(causes.values()))
            )

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

    def _activation(self, call: Call, x: Any, node: ir.Node) -> ir.Value:
        """Values that are quantized and dequantized at run time."""
        storage, grid = self._storage(call), call.plain
        if not (self.dialect.clips_integers and storage.clips):
            x = self._clip_values(call, x, storage, node)
        zero_point = self._initializer(call, "zero_point", grid.zero_point, storage.name)
        scale = self._scale(call) if call.half_even else self._initializer(call, "step", torch.ones_like(grid.scale))
        clips = self._clips(call, storage) and self.dialect.clips_integers and storage.clips
        codes = self._add(
            node,
            "QuantizeLinear",
            [x, scale, zero_point],
            call,
            "quantize",
            "unclipped" if clips else "codes",
            along(grid),
            kind=storage.name,
        )
        return self._dequantize(call, self._clip_integers(call, codes, storage, node), storage, node)

    def _divide(self, call: Call, x: Any, node: ir.Node) -> ir.Value:
        """Values in steps of the scale, for a rounding that follows."""
        grid = call.plain
        steps = None if grid.axis is None else grid.shaped(grid.scale, call.codes.ndim)
        divisor = self._scale(call) if steps is None else self._initializer(call, "divisor", steps)
        return self._add(node, "Div", [x, divisor], call, "divide", "steps")

    def _clip_values(self, call: Call, x: ir.Value, storage: Storage, node: ir.Node) -> ir.Value:
        """Clip values at the ends of the grid: they round to its last integers, so the codes are the same."""
        if not self._clips(call, storage):
            return x
        grid = call.plain
        step = grid.scale if call.half_even else torch.ones_like(grid.scale)
        ends = (grid.shaped((bound - grid.zero_point).float() * step, call.codes.ndim) for bound in grid.bounds)
        low, high = (self._initializer(call, role, end) for role, end in zip(("min", "max"), ends, strict=True))
        if grid.axis is None:
            return self._add(node, "Clip", [x, low, high], call, "clip", "inside")
        x = self._add(node, "Max", [x, low], call, "clip_low", "above")
        return self._add(node, "Min", [x, high], call, "clip_high", "inside")


def _holds_graph(node: ir.Node) -> bool:
    """Whether a node has a body, which may read any value around it without naming it as an input."""
    return any(each.type.name in ("GRAPH", "GRAPHS") for each in node.attributes.values())

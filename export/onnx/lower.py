"""Placeholders become ONNX's own nodes: quantize, clip, dequantize, and integers where the input is constant."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..capture.record import Call, Recording
from ..errors import ExportError, with_causes
from ..optional import required
from .check import storage_of
from .dialects import Dialect, Storage
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


class Lowering:
    """The work on one model: what was made so far."""

    def __init__(self, model: ir.Model, recording: Recording, dialect: Dialect) -> None:
        self.ir = required("onnx_ir", "export")
        self.model = model
        self.graph = model.graph
        self.recording = recording
        self.dialect = dialect
        self.initializers: dict[tuple[str, bytes], ir.Value] = {}
        self.stored: dict[str, list[tuple[Call, ir.Value]]] = {}
        self.constants: dict[ir.Value, bool] = {}

    def run(self) -> None:
        nodes = [node for node in self.graph if node.domain == DOMAIN]
        self._refuse_following(nodes)
        for node in nodes:
            call = self.recording.calls[node.attributes["path"].as_string()][node.attributes["index"].as_int()]
            if node.op_type == "Divide":
                self._replace(node, self._divide(call, node.inputs[0], node))
            elif self._is_constant(node.inputs[0]):
                self._replace(node, self._constant(call, node))
            else:
                self._replace(node, self._activation(call, node.inputs[0], node))
        self.model.opset_imports.pop(DOMAIN, None)
        self._sweep()
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
                known = not random and all(self._is_constant(each) for each in producer.inputs if each is not None)
            self.constants[value] = known
        return known

    def _constant(self, call: Call, node: ir.Node) -> ir.Value:
        """Integers that are stored, and dequantized at run time."""
        for former, value in self.stored.get(call.path, []):
            if _alike(former, call):
                return value
        storage = self._storage(call)
        codes = self._initializer(call, "codes", call.codes, storage)
        value = self._dequantize(call, self._clip_integers(call, codes, storage, node), storage, node)
        self.stored.setdefault(call.path, []).append((call, value))
        return value

    def _activation(self, call: Call, x: Any, node: ir.Node) -> ir.Value:
        """Values that are quantized and dequantized at run time."""
        storage = self._storage(call)
        if not (self.dialect.clips_integers and storage.clips):
            x = self._clip_values(call, x, storage, node)
        zero_point = self._initializer(call, "zero_point", call.zero_point, storage)
        scale = self._scale(call) if call.half_even else self._float(call, "step", torch.ones_like(call.scale))
        axis = {} if call.axis is None else {"axis": call.axis}
        clips = self._clips(call, storage) and self.dialect.clips_integers and storage.clips
        codes = self._add(
            node, "QuantizeLinear", [x, scale, zero_point], call, "quantize", "unclipped" if clips else "codes", axis
        )
        codes.dtype = self.ir.DataType[storage.name]
        codes.shape = node.outputs[0].shape
        return self._dequantize(call, self._clip_integers(call, codes, storage, node), storage, node)

    def _dequantize(self, call: Call, codes: ir.Value, storage: Storage, node: ir.Node) -> ir.Value:
        inputs = [codes, self._scale(call)]
        if not call.quantizer.follows_input:
            inputs.append(self._initializer(call, "zero_point", call.zero_point, storage))
        axis = {} if call.axis is None else {"axis": call.axis}
        return self._add(node, "DequantizeLinear", inputs, call, "dequantize", "", axis)

    def _divide(self, call: Call, x: Any, node: ir.Node) -> ir.Value:
        """Values in steps of the scale, for a rounding that follows."""
        divisor = (
            self._float(call, "divisor", call.along_axis(call.scale)) if call.axis is not None else self._scale(call)
        )
        return self._add(node, "Div", [x, divisor], call, "divide", "steps")

    def _clips(self, call: Call, storage: Storage) -> bool:
        return call.bounds != storage.bounds()

    def _clip_integers(self, call: Call, codes: Any, storage: Storage, node: ir.Node) -> ir.Value:
        if not (self._clips(call, storage) and self.dialect.clips_integers and storage.clips):
            return codes
        low, high = (
            self._initializer(call, name, torch.tensor(bound), storage)
            for name, bound in zip(("min_int", "max_int"), call.bounds, strict=True)
        )
        computed = codes.producer() is not None
        clipped = self._add(node, "Clip", [codes, low, high], call, "clip", "codes" if computed else "clipped")
        clipped.dtype, clipped.shape = codes.dtype, codes.shape
        return clipped

    def _clip_values(self, call: Call, x: ir.Value, storage: Storage, node: ir.Node) -> ir.Value:
        """Clip values at the ends of the grid: they round to its last integers, so the codes are the same."""
        if not self._clips(call, storage):
            return x
        step = call.scale if call.half_even else torch.ones_like(call.scale)
        low, high = (((bound - call.zero_point).float() * step) for bound in call.bounds)
        if call.axis is None:
            bounds = [self._float(call, "min", low), self._float(call, "max", high)]
            return self._add(node, "Clip", [x, *bounds], call, "clip", "inside")
        above = self._float(call, "min", call.along_axis(low))
        below = self._float(call, "max", call.along_axis(high))
        x = self._add(node, "Max", [x, above], call, "clip_low", "above")
        return self._add(node, "Min", [x, below], call, "clip_high", "inside")

    def _storage(self, call: Call) -> Storage:
        storage = storage_of(call, self.dialect)
        assert storage is not None  # checked
        return storage

    def _scale(self, call: Call) -> ir.Value:
        return self._float(call, "scale", call.scale)

    def _float(self, call: Call, role: str, tensor: Tensor) -> ir.Value:
        array = tensor.detach().cpu().float().numpy()
        return self._register(call, role, self.ir.tensor(array, dtype=self.ir.DataType.FLOAT), array.tobytes())

    def _initializer(self, call: Call, role: str, tensor: Tensor, storage: Storage) -> ir.Value:
        dtype = self.ir.DataType[storage.name]
        array = tensor.detach().cpu().to(torch.int64).numpy()
        return self._register(call, role, self.ir.tensor(array.astype(dtype.numpy()), dtype=dtype), array.tobytes())

    def _register(self, call: Call, role: str, tensor: ir.TensorProtocol, content: bytes) -> ir.Value:
        """An initializer named by the quantizer; later calls share those that are alike."""
        key = (f"{call.path}.{role}", content)
        if key not in self.initializers:
            shared = role != "codes" and f"{call.path}.{role}" not in self.graph.initializers
            name = f"{call.path}.{role}" if shared else f"{call.name}.{role}"
            value = self.ir.Value(
                name=name, shape=self.ir.Shape(tensor.shape), type=self.ir.TensorType(tensor.dtype), const_value=tensor
            )
            tensor.name = name
            self.graph.register_initializer(value)
            self.initializers[key] = value
        return self.initializers[key]

    def _add(
        self,
        before: ir.Node,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        call: Call,
        verb: str,
        result: str,
        attributes: Mapping[str, int] | None = None,
    ) -> ir.Value:
        """A node in front of a placeholder, named by the quantizer; its result has the placeholder's type."""
        node = self.ir.node(op_type, inputs, attributes or {}, name=f"{call.name}.{verb}")
        output = node.outputs[0]
        output.name = f"{call.name}.{result}" if result else call.name
        output.dtype, output.shape = before.outputs[0].dtype, before.outputs[0].shape
        self.graph.insert_before(before, node)
        return output

    def _replace(self, node: ir.Node, value: ir.Value) -> None:
        """Let a value take the place of a node's; an output of the model keeps its name."""
        old = node.outputs[0]
        if old.is_graph_output():
            name = old.name
            if value.is_graph_output():  # one value for two outputs of the model
                value = self._copy(node, value)
            old.name = None
            value.name = name
        self.ir.convenience.replace_all_uses_with(old, value, replace_graph_outputs=True)
        self.graph.remove(node, safe=True)

    def _copy(self, node: ir.Node, value: ir.Value) -> ir.Value:
        copy = self.ir.node("Identity", [value])
        copy.outputs[0].dtype, copy.outputs[0].shape = value.dtype, value.shape
        self.graph.insert_before(node, copy)
        return copy.outputs[0]

    def _sweep(self) -> None:
        """Drop nodes and initializers that nothing uses, and the exporter's notes (more bytes than small weights)."""
        common = required("onnx_ir.passes.common", "export")
        common.RemoveUnusedNodesPass()(self.model)
        common.ClearMetadataAndDocStringPass()(self.model)
        for value in self.graph.initializers.values():
            value.metadata_props.clear()


def _alike(one: Call, other: Call) -> bool:
    same_grid = torch.equal(one.scale, other.scale) and torch.equal(one.zero_point, other.zero_point)
    return same_grid and one.bounds == other.bounds and torch.equal(one.codes, other.codes)

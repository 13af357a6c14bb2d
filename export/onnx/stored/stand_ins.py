"""Quantized parameters while a model is traced: buffers, for which nothing has to be traced at all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from torch import Tensor

from ....qcore import TensorQuant
from ....qcore.tracing import current_step
from ...capture.record import Call, Recording
from ...optional import required
from ..tracing.placeholder import DOMAIN

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["StandIns"]


class StandIns:
    """What stands in for quantized parameters: for each call a buffer of the quantizer that shares their memory.

    Every node that is traced takes torch's exporter some 10 ms; half of the quantizers' calls are those of weights.
    The buffers become initializers, and these get their ``Quantize`` nodes in the graph that the exporter returns.

    Args:
        quantizers: by path.
        recording: their calls.
    """

    def __init__(self, quantizers: Mapping[str, TensorQuant], recording: Recording) -> None:
        self.quantizers = quantizers
        self.calls = {f"{DOMAIN}_{number}": call for number, call in enumerate(recording) if call.parameter is not None}
        self.names = {(call.path, call.index): name for name, call in self.calls.items()}

    @contextmanager
    def registered(self) -> Iterator[None]:
        """The quantizers with their buffers, for the length of the block."""
        try:
            for name, call in self.calls.items():
                self.quantizers[call.path]._buffers[name] = call.parameter
            yield
        finally:
            for name, call in self.calls.items():
                self.quantizers[call.path]._buffers.pop(name, None)

    def of(self, call: Call) -> Tensor | None:
        """What a call answers while the model is traced; None where it has to be traced: in the body of a loop, too."""
        name = self.names.get((call.path, call.index))
        if name is None or current_step() is not None:
            return None
        return getattr(self.quantizers[call.path], name)

    def mark(self, model: ir.Model) -> None:
        """Put ``Quantize`` nodes behind the initializers that the buffers became, in place."""
        graph, builder = model.graph, required("onnx_ir", "export")
        for value in list(graph.initializers.values()):
            call = self.calls.get(str(value.name).rpartition(".")[2])
            if call is None:
                continue
            users = [user for user, _ in value.uses()]
            which = {"path": call.path, "index": call.index}
            node = builder.node("Quantize", [], which, domain=DOMAIN, version=1, name=f"{value.name}.quantize")
            result = node.outputs[0]
            result.name, result.shape, result.dtype = f"{value.name}.quantized", value.shape, value.dtype
            builder.convenience.replace_all_uses_with(value, result, replace_graph_outputs=True)
            node.resize_inputs(1)
            node.replace_input_with(0, value)
            if all(user.graph is graph for user in users[:1]) and users:
                graph.insert_before(users[0], node)
            elif len(graph):  # in bodies of loops, or outputs
                graph.insert_before(graph[0], node)
            else:
                graph.append(node)
        model.opset_imports[DOMAIN] = 1

"""A QONNX file in the executor of the ``qonnx`` package: what every quantizing node found."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..optional import required
from .nodes import QONNX_DOMAIN, TURNED, QuantNode

if TYPE_CHECKING:
    import onnx

__all__ = ["Executor", "FileNode"]


@dataclass(frozen=True)
class FileNode:
    """A quantizing node of a file.

    Args:
        form: the node.
        scale: of what comes out, as the file has it: 0-d, or with as many dimensions as the tensor.
        output: the tensor that comes out.
        order: of the dimensions of a weight that was transposed; empty where none was.
    """

    form: QuantNode
    scale: Tensor
    output: str
    order: tuple[int, ...] = ()

    def straight(self, tensor: Tensor) -> Tensor:
        """What comes out, in the order of dimensions that it has in the model."""
        return tensor.permute([self.order.index(dim) for dim in range(len(self.order))]) if self.order else tensor


class Executor:
    """A file that runs in ``qonnx.core.onnx_exec``, one session of onnxruntime for each standard node.

    Args:
        model: an ``onnx.ModelProto``.
        call: the function that the user called, which errors name.
    """

    def __init__(self, model: "onnx.ModelProto", call: str) -> None:
        self._execute = required("qonnx.core.onnx_exec", call).execute_onnx
        self._model = required("qonnx.core.modelwrapper", call).ModelWrapper(model, make_deepcopy=True)
        held = {each.name for each in model.graph.initializer}
        inputs = [each for each in model.graph.input if each.name not in held]
        self.inputs = [each.name for each in inputs]
        self.shapes = [[dim.dim_value for dim in each.type.tensor_type.shape.dim] for each in inputs]
        self.outputs = [each.name for each in model.graph.output]
        self.nodes = dict(self._quantizing(model))

    def _quantizing(self, model: "onnx.ModelProto") -> Iterator[tuple[str, FileNode]]:
        """The quantizing nodes by the name of the quantizer's call, which is their note."""
        readers = {name: node for node in model.graph.node for name in node.input}
        for node in model.graph.node:
            if node.domain != QONNX_DOMAIN or not node.doc_string:
                continue
            name, _, order = node.doc_string.partition(TURNED)
            scale, given = self._held(node.input[1]), {each.name: _value(each) for each in node.attribute}
            if node.op_type == "BipolarQuant":
                yield name, FileNode(QuantNode("BipolarQuant"), scale, node.output[0], tuple(map(int, order.split())))
            elif node.op_type == "Trunc":
                before, after = (int(self._held(name)) for name in node.input[3:5])
                last = readers[node.output[0]] if before > after else node
                form = QuantNode("Trunc", after, rounding_mode=given["rounding_mode"], dropped=before - after)
                yield name, FileNode(form, scale * 2.0**form.dropped, last.output[0])
            else:
                flags = bool(given["signed"]), bool(given["narrow"])
                form = QuantNode("Quant", int(self._held(node.input[3])), *flags, given["rounding_mode"])
                yield name, FileNode(form, scale, node.output[0], tuple(map(int, order.split())))

    def _held(self, name: str) -> Tensor:
        return torch.tensor(self._model.get_initializer(name))

    def run(self, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
        """What the quantizing nodes and the outputs are, by the name of the tensor."""
        feed = {name: each.detach().cpu().numpy() for name, each in zip(self.inputs, inputs, strict=True)}
        found = self._execute(self._model, feed, return_full_exec_context=True)
        wanted = {*self.outputs, *(each.output for each in self.nodes.values())}
        return {name: torch.tensor(found[name]) for name in wanted}


def _value(attribute: Any) -> Any:
    return attribute.s.decode() if attribute.s else attribute.i

"""What a file holds of each quantizer, read back from its nodes and initializers."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...capture.grid import IntegerGrid, QuantizedTensor
from ...optional import required
from ..dialects import BIAS, QDQ
from ..session import all_nodes

if TYPE_CHECKING:
    import onnx

__all__ = ["FileReader"]

_TYPES = {each.name: each for each in (*QDQ.types, BIAS)}


class FileReader:
    """Reads the tensors of quantizers, whose last node is named after the quantizer's call.

    Args:
        model: an exported model.
        call: the function that the user called, which errors name.
    """

    def __init__(self, model: "onnx.ModelProto", call: str) -> None:
        onnx = required("onnx", call)
        self.to_array, self.type_name = onnx.numpy_helper.to_array, onnx.TensorProto.DataType.Name
        self.initializers: Mapping[str, Any] = {each.name: each for each in model.graph.initializer}
        self.nodes = list(all_nodes(model.graph))
        self.makers = {name: node for node in self.nodes for name in node.output}

    def tensors(self) -> dict[str, QuantizedTensor]:
        """By the name of the call, where the scale is stored: the grid, and the numbers where they are stored, too.

        These are in units of the scale, int64 if they are integers, float32 if not. The grid has the bits of the type.
        """
        found = {}
        for node in self.last_nodes():
            read = self._looked_up if node.op_type == "Mul" else self._dequantized
            name = node.name.removesuffix(".dequantize")
            tensor = read(name, node)
            if tensor is not None:
                found[name] = tensor
        return found

    def last_nodes(self) -> list[Any]:
        """The nodes that values of quantizers come from."""
        return [node for node in self.nodes if node.name.endswith(".dequantize")]

    def _dequantized(self, name: str, node: Any) -> QuantizedTensor | None:
        scale, codes = self.scale(node.input[1]), self.unclipped(node.input[0])
        if scale is None:
            return None
        typed = node.input[2] if len(node.input) > 2 else codes
        storage = _TYPES[self.kind(typed)] if typed in self.initializers else BIAS
        zero_point = self.read(node.input[2]) if len(node.input) > 2 else torch.zeros(scale.shape, dtype=torch.int64)
        given = {each.name: each.i for each in node.attribute}
        place = {"axis": given.get("axis"), "block": given.get("block_size")}
        grid = IntegerGrid(name, scale, zero_point, storage.bits, storage.levels.signed, **place)
        return QuantizedTensor(grid, self.read(codes) if codes in self.initializers else None)

    def _looked_up(self, name: str, node: Any) -> QuantizedTensor | None:
        steps, scales = (self.makers.get(each) for each in node.input)
        if steps is None or steps.op_type != "Gather":
            return self._levels(name, node)
        scale = self.scale(node.input[1] if scales is None else scales.input[0])
        if scale is None:
            return None
        table, places = self.read(steps.input[0]), self.makers[steps.input[1]]
        zero_point = torch.zeros(scale.shape, dtype=torch.int64)
        grid = IntegerGrid(name, scale, zero_point, BIAS.bits, BIAS.levels.signed)
        return QuantizedTensor(grid, table[self.read(places.input[0])])

    def _levels(self, name: str, node: Any) -> QuantizedTensor | None:
        """Levels that are computed at run time."""
        scale = self.scale(node.input[1])
        if scale is None:
            return None
        zero_point = torch.zeros(scale.shape, dtype=torch.int64)
        return QuantizedTensor(IntegerGrid(name, scale, zero_point, BIAS.bits, BIAS.levels.signed))

    def scale(self, name: str) -> Tensor | None:
        """A scale, also one that is dequantized itself; None for one that is computed at run time."""
        maker = self.makers.get(name)
        if maker is None:
            return self.read(name)
        if maker.op_type != "DequantizeLinear":
            return None
        steps, unit = map(self.read, maker.input)
        return steps * unit

    def kind(self, name: str) -> str:
        """The type of an initializer, as ONNX spells it."""
        return self.type_name(self.initializers[name].data_type)

    def unclipped(self, name: str) -> str:
        """The integers that a Clip shows the width of, or the integers."""
        maker = self.makers.get(name)
        return maker.input[0] if maker is not None and maker.op_type == "Clip" else name

    def read(self, name: str) -> Tensor:
        """An initializer: integers as int64, floats as float32."""
        array = self.to_array(self.initializers[name])
        return torch.from_numpy(array.astype("int64" if "INT" in self.kind(name) else "float32"))

"""What a file holds of each quantizer, read back from its nodes and initializers."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...capture.grid import IntegerGrid, QuantizedTensor
from ...optional import required
from ..dialects import BIAS, QDQ
from ..session import all_nodes
from .packing import Packing, unpacked

if TYPE_CHECKING:
    import onnx

__all__ = ["FileReader", "Held"]

_TYPES = {each.name: each for each in (*QDQ.types, BIAS)}


@dataclass(frozen=True)
class Held:
    """Where the parts of a quantized tensor are: names of initializers.

    Args:
        name: of the quantizer's call.
        codes: numbers or codes; None where they are computed at run time.
        scale: the scales; their numbers, where they have a scale of their own.
        unit: that one, or None.
        zero_point: None for 0.
        table: the levels of the codes, None for numbers of a type.
        axis: where the scales vary, as the node has it.
        block: how many neighbours along it share one.
        packed: what the numbers were, if MatMulNBits has them.
        inputs: how many numbers a packed row has.
    """

    name: str
    codes: str | None
    scale: str
    unit: str | None = None
    zero_point: str | None = None
    table: str | None = None
    axis: int | None = None
    block: int | None = None
    packed: Packing | None = None
    inputs: int = 0


class FileReader:
    """Reads the tensors of quantizers, whose last node is named after the quantizer's call.

    Args:
        model: an exported model.
        call: the function that the user called, which errors name.
        folder: where the data files lie of tensors that are not in the model; these are read one by one when needed.
    """

    def __init__(self, model: "onnx.ModelProto", call: str, folder: Path | None = None) -> None:
        self.onnx, self.folder = required("onnx", call), folder
        self.type_name = self.onnx.TensorProto.DataType.Name
        self.initializers: Mapping[str, Any] = {each.name: each for each in model.graph.initializer}
        self.nodes = list(all_nodes(model.graph))
        self.makers = {name: node for node in self.nodes for name in node.output}

    def held(self) -> Iterator[Held]:
        """Every quantized tensor whose scale is stored."""
        seen = set()
        for node in self.nodes:
            if node.op_type == "MatMulNBits":
                found = self._packed(node)
            else:
                found = self._held(node) if node.name.endswith(".dequantize") else None
            if found is not None and found.name not in seen:
                seen.add(found.name)  # several products may share a weight
                yield found

    @cached_property
    def places(self) -> dict[str, Held]:
        """Every quantized tensor whose scale is stored, by the name of the call."""
        return {each.name: each for each in self.held()}

    def tensor(self, name: str) -> QuantizedTensor:
        """The grid of a call, and the numbers where they are stored, too.

        These are in units of the scale: integers, or float32 if they are none. The grid has the bits of the type.
        """
        return self._tensor(self.places[name])

    def _held(self, node: Any) -> Held | None:
        name, (codes, scale, *zero_point) = node.name.removesuffix(".dequantize"), node.input
        table = None
        if node.op_type == "Mul":
            scale = self._compact(scale)
            codes, table, zero_point = self._steps(codes)
        clip, unit = self.makers.get(codes), None
        if clip is not None and clip.op_type == "Clip":
            codes = clip.input[0]
        if (maker := self.makers.get(scale)) is not None and maker.op_type == "DequantizeLinear":
            scale, unit = maker.input
        if scale not in self.initializers:
            return None
        given = {each.name: each.i for each in node.attribute}
        place = {"axis": given.get("axis"), "block": given.get("block_size")}
        known = codes if codes in self.initializers else None
        return Held(name, known, scale, unit, *(zero_point or [None]), table=table, **place)

    def _packed(self, node: Any) -> Held | None:
        _, codes, scale, *rest = node.input
        packing = Packing.named(codes)
        if packing is None or codes not in self.initializers:
            return None
        given = {each.name: each.i for each in node.attribute}
        zero_point = rest[0] if rest and rest[0] else None
        place = {"axis": 0 if packing.transposed else 1, "block": given["block_size"]}
        return Held(packing.call, codes, scale, None, zero_point, **place, packed=packing, inputs=given["K"])

    def _steps(self, steps: str) -> tuple[str, str | None, list[str]]:
        """What levels are made of, if they are stored: codes, their table or None, their zero point."""
        maker = self.makers.get(steps)
        if maker is None or maker.op_type not in ("Gather", "Sub"):
            return steps, None, []
        one, other = maker.input
        cast = self.makers.get(other if maker.op_type == "Gather" else one)
        if cast is None or cast.op_type != "Cast" or cast.input[0] not in self.initializers:
            return steps, None, []
        return (cast.input[0], one, []) if maker.op_type == "Gather" else (cast.input[0], None, [self._compact(other)])

    def _compact(self, name: str) -> str:
        """Scales or zero points before each is repeated for its group."""
        maker = self.makers.get(name)
        return name if maker is None or maker.op_type != "Gather" else maker.input[0]

    def _tensor(self, held: Held) -> QuantizedTensor:
        if held.packed is not None:
            return self._unpacked(held, held.packed)
        scale = self.read(held.scale) if held.unit is None else self.read(held.scale) * self.read(held.unit)
        zero_point = torch.zeros(scale.shape, dtype=torch.int64)
        if held.zero_point is not None:
            zero_point = self.read(held.zero_point)
            zero_point = zero_point if zero_point.dtype.is_floating_point else zero_point.to(torch.int64)
        typed = held.codes or held.zero_point
        storage = BIAS if typed is None or held.table is not None else _TYPES[self.kind(typed)]
        kind = (storage.bits, storage.levels.signed, False)
        grid = IntegerGrid(held.name, scale, zero_point, *kind, held.axis, held.block)
        codes = None if held.codes is None else self.read(held.codes)
        if codes is not None and held.table is not None:
            codes = self.read(held.table)[codes.int()]
        return QuantizedTensor(grid, codes)

    def _unpacked(self, held: Held, packing: Packing) -> QuantizedTensor:
        """Numbers as they were before MatMulNBits took them; their scales, one for each of its blocks."""
        assert held.codes is not None
        scale, storage = self.read(held.scale), _TYPES[packing.kind]
        zero_point = torch.zeros(scale.shape, dtype=torch.int64)
        if held.zero_point is not None:
            zero_point = unpacked(self.read(held.zero_point), packing.bits, scale.shape[1]).long() - packing.middle
        codes = unpacked(self.read(held.codes).flatten(1), packing.bits, held.inputs).to(torch.int16) - packing.middle
        numbers = codes.to(torch.int8 if storage.levels.signed else torch.uint8)
        place = (packing.turned(scale), packing.turned(zero_point), storage.bits, storage.levels.signed)
        grid = IntegerGrid(held.name, *place, axis=held.axis, block=held.block)
        return QuantizedTensor(grid, packing.turned(numbers))

    def kind(self, name: str) -> str:
        """The type of an initializer, as ONNX spells it."""
        return self.type_name(self.initializers[name].data_type)

    def stored_shape(self, held: Held) -> tuple[int, ...]:
        """The shape of the numbers of a tensor."""
        assert held.codes is not None
        shape = self.shape(held.codes)
        if held.packed is None:
            return shape
        return (held.inputs, shape[0]) if held.packed.transposed else (shape[0], held.inputs)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of an initializer."""
        return tuple(self.initializers[name].dims)

    def nbytes(self, name: str | None) -> int:
        """How many bytes the numbers of an initializer take."""
        if name is None:
            return 0
        storage = _TYPES.get(self.kind(name))
        return -(-torch.Size(self.shape(name)).numel() * (32 if storage is None else storage.bits) // 8)

    def read(self, name: str) -> Tensor:
        """An initializer: integers in the smallest type of torch that has them, floats as float32."""
        tensor, kind = self.initializers[name], self.kind(name)
        if self.folder is not None and self.onnx.external_data_helper.uses_external_data(tensor):
            tensor = self.onnx.TensorProto()
            tensor.CopyFrom(self.initializers[name])
            self.onnx.external_data_helper.load_external_data_for_tensor(tensor, str(self.folder))
        return torch.from_numpy(self.onnx.numpy_helper.to_array(tensor).astype(_READ_AS.get(kind, "float32")))


_READ_AS = {
    **dict.fromkeys(("INT2", "INT4", "INT8"), "int8"),
    **dict.fromkeys(("UINT2", "UINT4", "UINT8"), "uint8"),
    **dict.fromkeys(("INT16",), "int16"),
    **dict.fromkeys(("UINT16", "INT32"), "int32"),
    **dict.fromkeys(("INT64", "UINT32"), "int64"),
}

"""Stored tensors as nodes: numbers of a type, dequantized, or codes beside a table of levels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ....qcore import E5M2
from ...capture.grid import IntegerGrid
from ...capture.record import Call
from ..check import storage_of, stored_as
from ..dialects import Dialect, Storage
from ..editing import Editor

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["StoredLowering", "along", "scale_steps"]


class StoredLowering(Editor):
    """Edits a graph for a dialect, all named by the quantizer's call, and writes what is the same for every input.

    Args:
        model: an ``onnx_ir.Model``.
        dialect: the dialect.
    """

    def __init__(self, model: ir.Model, dialect: Dialect) -> None:
        super().__init__(model)
        self.dialect = dialect
        self.stored: dict[str, list[tuple[Call, ir.Value]]] = {}

    def _constant(self, call: Call, node: ir.Node) -> ir.Value:
        """Numbers that are stored, and turned into values at run time."""
        for former, value in self.stored.get(call.path, []):
            if _alike(former, call):
                return value
        form = stored_as(call, self.dialect)
        assert form is not None  # checked
        write = self._held if form.levels is None else self._looked_up
        value = write(call, form.storage, node)
        self.stored.setdefault(call.path, []).append((call, value))
        return value

    def _held(self, call: Call, storage: Storage, node: ir.Node) -> ir.Value:
        """Numbers of a type that has all levels."""
        number_format = call.grid.number_format
        held = call.codes if number_format.whole else number_format.decode(call.codes.cpu())
        codes = self._initializer(call, "codes", held, storage.name)
        if call.grid.zero_point is not None and not number_format.whole:
            return self._unaligned(call, codes, node)
        return self._dequantize(call, self._clip_integers(call, codes, storage, node), storage, node)

    def _unaligned(self, call: Call, codes: ir.Value, node: ir.Node) -> ir.Value:
        """Integers less a float zero point, which DequantizeLinear does not take."""
        steps = self._cast(call, codes, "FLOAT", node)
        zero_point = self._spread(call, "zero_point", call.plain.zero_point, node)
        steps = self._add(node, "Sub", [steps, zero_point], call, "subtract", "steps")
        return self._add(node, "Mul", [steps, self._spread_scale(call, node)], call, "dequantize", "")

    def _looked_up(self, call: Call, storage: Storage, node: ir.Node) -> ir.Value:
        """Codes: the place of each level in a table. The levels are multiplied by their scales."""
        codes = self._initializer(call, "codes", call.codes, storage.name)
        table = self.constant("levels", torch.tensor(call.grid.number_format.levels), "FLOAT")
        steps = self._add(node, "Gather", [table, self._cast(call, codes, "INT32", node)], call, "look_up", "steps")
        return self._add(node, "Mul", [steps, self._spread_scale(call, node)], call, "dequantize", "")

    def _cast(self, call: Call, codes: ir.Value, kind: str, node: ir.Node) -> ir.Value:
        to = {"to": int(self.ir.DataType[kind])}
        return self._add(node, "Cast", [codes], call, "cast", "places", to, kind=kind)

    def _spread_scale(self, call: Call, node: ir.Node) -> ir.Value:
        """The scales, shaped so that they broadcast against the tensor."""
        return self._spread(call, "scale", call.plain.scale, node)

    def _spread(self, call: Call, role: str, numbers: Tensor, node: ir.Node) -> ir.Value:
        """Scales or zero points, shaped so that they broadcast against the tensor."""
        grid, shape = call.plain, call.codes.shape
        if grid.block is None or grid.axis is None:
            return self._initializer(call, role, grid.shaped(numbers, len(shape)))
        compact = self._block_scale(call, node) if role == "scale" else self._initializer(call, role, numbers)
        groups = self.constant("groups", torch.arange(shape[grid.axis]) // grid.block, "INT32")
        along = {"axis": grid.axis}
        return self._add(node, "Gather", [compact, groups], call, f"spread_{role}", f"{role}s", along)

    def _block_scale(self, call: Call, node: ir.Node) -> ir.Value:
        """The scales of groups: in a byte each, where that is exact, under one float32 scale."""
        held = scale_steps(call, self.dialect)
        if held is None:
            return self._scale(call)
        steps, storage, unit = held
        inputs = [
            self._initializer(call, "scale_codes", steps, storage.name),
            self._initializer(call, "scale_unit", unit),
        ]
        scale = self._add(node, "DequantizeLinear", inputs, call, "dequantize_scale", "scale")
        scale.shape = self.ir.Shape(steps.shape)
        return scale

    def _dequantize(self, call: Call, codes: ir.Value, storage: Storage, node: ir.Node) -> ir.Value:
        grouped = call.plain.block is not None
        inputs = [codes, self._block_scale(call, node) if grouped else self._scale(call)]
        centred = not storage.levels.whole or (grouped and call.grid.zero_point is None)
        if not (call.quantizer.follows_input or centred):
            inputs.append(self._initializer(call, "zero_point", call.plain.zero_point, storage.name))
        return self._add(node, "DequantizeLinear", inputs, call, "dequantize", "", along(call.plain))

    def _clips(self, call: Call, storage: Storage) -> bool:
        """Whether a type has numbers beyond the ends of the levels, and they may be shown by a Clip."""
        own = call.grid.number_format
        return storage.levels.whole and (own.low, own.high) != (storage.levels.low, storage.levels.high)

    def _clip_integers(self, call: Call, codes: Any, storage: Storage, node: ir.Node) -> ir.Value:
        if not (self._clips(call, storage) and self.dialect.clips_integers and storage.clips):
            return codes
        number_format = call.grid.number_format
        low, high = (
            self._initializer(call, name, torch.tensor(bound), storage.name)
            for name, bound in (("min_int", number_format.low), ("max_int", number_format.high))
        )
        result = "clipped" if codes.producer() is None else "codes"
        clipped = self._add(node, "Clip", [codes, low, high], call, "clip", result, kind=storage.name)
        clipped.shape = codes.shape
        return clipped

    def _storage(self, call: Call) -> Storage:
        storage = storage_of(call, self.dialect)
        assert storage is not None  # checked
        return storage

    def _scale(self, call: Call) -> ir.Value:
        return self._initializer(call, "scale", call.plain.scale)

    def _initializer(self, call: Call, role: str, tensor: Tensor, kind: str = "FLOAT") -> ir.Value:
        """An initializer named by the quantizer; later calls share those that are alike, other than their integers."""
        own = f"{call.name}.{role}"
        return self.constant(own if role == "codes" else f"{call.path}.{role}", tensor, kind, otherwise=own)

    def _add(
        self,
        before: ir.Node,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        call: Call,
        verb: str,
        result: str,
        attributes: Mapping[str, int] | None = None,
        kind: str | None = None,
    ) -> ir.Value:
        """A node in front of a placeholder, named by the quantizer; its result has the placeholder's type."""
        name, like = f"{call.name}.{result}" if result else call.name, before.outputs[0]
        return self.add(before, op_type, inputs, name, attributes, like=like, kind=kind, called=f"{call.name}.{verb}")


def scale_steps(call: Call, dialect: Dialect) -> tuple[Tensor, Storage, Tensor] | None:
    """The scales of groups as numbers of an 8-bit float times one scale, where that gives each of them exactly.

    Scales that are quantized themselves, as in NVFP4, are held in their own format. Scales that are powers of two, as
    in MX, are held as FLOAT8E5M2, which has 32 of them: the type E8M0, meant for these, is none that a runtime takes
    as a scale.

    Args:
        call: of a quantizer with scales in groups.
        dialect: the dialect, which may lack such types.

    Returns:
        The numbers, their type, and the one scale; None where the scales have to be float32.
    """
    scale = call.plain.scale
    scales = call.grid.scales
    if scales is not None:
        storage = dialect.storage_for(scales.number_format)
        steps = scales.number_format.decode(scales.to_int(call.grid.scale)).cpu()
        return None if storage is None else (steps.reshape(scale.shape), storage, scales.scale.detach().cpu().float())
    storage = dialect.storage_for(E5M2)
    mantissa, _ = torch.frexp(scale)
    if storage is None or scale.numel() < 2 or not bool((mantissa == 0.5).all()):
        return None
    unit = scale.amax() / E5M2.power
    steps = scale / unit
    return (steps, storage, unit) if bool((steps >= 2.0**-16).all()) and bool(unit >= 2.0**-126) else None


def along(grid: IntegerGrid) -> dict[str, int]:
    """Where the scales vary, as attributes of QuantizeLinear and DequantizeLinear."""
    if grid.axis is None:
        return {}
    return {"axis": grid.axis} if grid.block is None else {"axis": grid.axis, "block_size": grid.block}


def _alike(one: Call, other: Call) -> bool:
    same = replace(one.plain, name=other.name) == other.plain and torch.equal(one.codes, other.codes)
    return same and one.grid.number_format == other.grid.number_format

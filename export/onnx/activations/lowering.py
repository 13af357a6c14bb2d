"""The nodes that compute activations: QuantizeLinear, DequantizeLinear, and what is left of the placeholders."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from ...capture.record import Call
from ..dialects import Storage
from ..stored.lowering import StoredLowering, along
from .plan import plan_of

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["ActivationLowering"]


class ActivationLowering(StoredLowering):
    """Edits a graph for a dialect, and writes what is computed at run time."""

    def placed(self, call: Call, node: ir.Node) -> ir.Value:
        """What takes the place of a placeholder."""
        return _NODES[node.op_type](self, call, node)

    def quantized(self, call: Call, node: ir.Node) -> ir.Value:
        """QuantizeLinear and DequantizeLinear of values, or of levels in the place of them."""
        plan, grid = plan_of(call, self.dialect), call.plain
        storage, x = plan.storage, node.inputs[0]
        assert storage is not None  # checked
        assert x is not None
        if len(node.inputs) > 1:
            return self._following(call, node, storage)
        clips = self._clips(call, storage)
        if clips and call.grid.number_format.whole and not self._clips_integers(storage):
            x = self._clipped_values(call, x, node)
        zero_point = self._initializer(call, "zero_point", grid.zero_point, storage.name)
        scale = self._scale(call) if plan.native else self._initializer(call, "step", torch.ones_like(grid.scale))
        role = "unclipped" if clips and self._clips_integers(storage) else "codes"
        codes = self._add(
            node, "QuantizeLinear", [x, scale, zero_point], call, "quantize", role, along(grid), kind=storage.name
        )
        return self._dequantize(call, self._clip_integers(call, codes, storage, node), storage, node)

    def _following(self, call: Call, node: ir.Node, storage: Storage) -> ir.Value:
        """The same with a scale, and a zero point, that are worked out in the file."""
        x, scale, *shifts = node.inputs
        plan = plan_of(call, self.dialect)
        kind, place = int(self.ir.DataType[storage.name]), _place(plan.axis, plan.block)
        target = dict(place)
        zero_points: list[Any] = []
        if shifts:
            zero_points = [self._add(node, "Cast", shifts, call, "cast", "zero_point", {"to": kind}, kind=storage.name)]
            zero_points[0].shape = None if shifts[0] is None else shifts[0].shape
        elif plan.block is None:
            count = () if plan.axis is None else call.codes.shape[plan.axis]
            zero_points = [self._initializer(call, "zero_point", torch.zeros(count), storage.name)]
        else:
            target["output_dtype"] = kind
        role = "unclipped" if self._clips(call, storage) and self._clips_integers(storage) else "codes"
        inputs = [x, scale, *zero_points]
        codes = self._add(node, "QuantizeLinear", inputs, call, "quantize", role, target, kind=storage.name)
        codes = self._clip_integers(call, codes, storage, node)
        return self._add(node, "DequantizeLinear", [codes, scale, *zero_points], call, "dequantize", "", place)

    def divided(self, call: Call, node: ir.Node) -> ir.Value:
        """Values in steps of the scale, for a rounding, or a number format, that follows."""
        return self._add(node, "Div", [node.inputs[0], self._beside(call)], call, "divide", "steps")

    def multiplied(self, call: Call, node: ir.Node) -> ir.Value:
        """Levels times their scale."""
        scale = node.inputs[1] if len(node.inputs) > 1 else self._beside(call)
        return self._add(node, "Mul", [node.inputs[0], scale], call, "dequantize", "")

    def named(self, call: Call, node: ir.Node) -> ir.Value:
        """A value under the name by which verification finds it."""
        role = node.attributes["role"].as_string()
        return self._add(node, "Identity", [node.inputs[0]], call, f"name_{role}", role)

    def _beside(self, call: Call) -> ir.Value:
        """The scale, shaped to broadcast against the values."""
        grid = call.plain
        if grid.axis is None:
            return self._scale(call)
        return self._initializer(call, "divisor", grid.shaped(grid.scale, call.codes.ndim))

    def _clips_integers(self, storage: Storage) -> bool:
        return self.dialect.clips_integers and storage.clips

    def _clipped_values(self, call: Call, x: ir.Value, node: ir.Node) -> ir.Value:
        """Clip values at the ends of the grid: they round to its last integers, so the codes are the same."""
        grid = call.plain
        step = grid.scale if call.half_even else torch.ones_like(grid.scale)
        ends = (grid.shaped((bound - grid.zero_point).float() * step, call.codes.ndim) for bound in grid.bounds)
        low, high = (self._initializer(call, role, end) for role, end in zip(("min", "max"), ends, strict=True))
        if grid.axis is None:
            return self._add(node, "Clip", [x, low, high], call, "clip", "inside")
        x = self._add(node, "Max", [x, low], call, "clip_low", "above")
        return self._add(node, "Min", [x, high], call, "clip_high", "inside")


_NODES: dict[str, Callable[[ActivationLowering, Call, Any], Any]] = {
    "Quantize": ActivationLowering.quantized,
    "Divide": ActivationLowering.divided,
    "Multiply": ActivationLowering.multiplied,
    "Name": ActivationLowering.named,
}


def _place(axis: int | None, block: int | None) -> dict[str, int]:
    if axis is None:
        return {}
    return {"axis": axis} if block is None else {"axis": axis, "block_size": block}

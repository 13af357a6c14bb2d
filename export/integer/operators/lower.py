"""Layers and sums on dequantized integers become operators on the integers themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...capture.record import Recording
from . import averages, pointwise, products
from .graph import IntegerGraph

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["integerize"]


def integerize(model: ir.Model, recording: Recording) -> list[ir.Node]:
    """Rewrite the layers of an exported model, in place.

    Args:
        model: an ``onnx_ir.Model`` whose quantizations are QuantizeLinear, Clip and DequantizeLinear nodes of 8 bits.
        recording: the calls that they stand for.

    Returns:
        The nodes that compute in floats what two runtimes may sum or round differently.
    """
    graph = IntegerGraph(model, recording)
    graph.rewrite({**products.RULES, **averages.RULES, **pointwise.RULES})
    graph.sweep()
    graph.find_roundings()
    return [node for node in model.graph if graph.computes_in_floats(node)]

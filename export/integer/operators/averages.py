"""Means and sums over dimensions and windows: integers are added, and their number goes into the scale."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .graph import Form, IntegerGraph

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["RULES"]


def _reduce(graph: IntegerGraph, node: Any) -> None:
    """A mean or sum over dimensions: integers are added, and their number goes into the scale."""
    if node.inputs[0] in graph.sums:
        _reduce_sums(graph, node)
        return
    x = graph.form(node.inputs[0])
    some, shape = graph.operand(node, 1), node.inputs[0].shape
    axes = None if some is None else some.const_value
    if x is None or not x.plain or x.constant is not None or shape is None or (axes is None and some is not None):
        return
    sizes = list(shape) if axes is None else [shape[int(axis)] for axis in axes.numpy()]
    if not all(isinstance(size, int) for size in sizes):
        return
    name, count = node.outputs[0].name, math.prod(sizes)
    wide = graph.cast(node, x.codes, "INT32", f"{name}.integers")
    keep = {"keepdims": node.attributes.get_int("keepdims", 1)}
    sums = graph.summed(node, "ReduceSum", [wide, some], f"{name}.sums", keep)
    offset = x.grid.zero_point * count
    if offset:
        sums = graph.summed(
            node, "Sub", [sums, graph.constant(f"{name}.offset", offset, "INT32")], f"{name}.centred", {}
        )
    graph.scaled(node, sums, x.grid.scale / count if node.op_type == "ReduceMean" else x.grid.scale, name)


def _reduce_sums(graph: IntegerGraph, node: Any) -> None:
    """A mean or sum of sums of products, in 64 bits: 32 may not hold it."""
    (given, scale), some, shape = graph.sums[node.inputs[0]], graph.operand(node, 1), node.inputs[0].shape
    axes = None if some is None else some.const_value
    if scale.ndim or shape is None or (axes is None and some is not None):
        return
    sizes = list(shape) if axes is None else [shape[int(axis)] for axis in axes.numpy()]
    if not all(isinstance(size, int) for size in sizes):
        return
    name, keep = node.outputs[0].name, {"keepdims": node.attributes.get_int("keepdims", 1)}
    wide = graph.cast(node, given, "INT64", f"{name}.integers")
    sums = graph.add(node, "ReduceSum", [wide, some], f"{name}.sums", keep, like=node.outputs[0], kind="INT64")
    graph.scaled(node, sums, scale / math.prod(sizes) if node.op_type == "ReduceMean" else scale, name, last=True)


def _running(graph: IntegerGraph, node: Any) -> None:
    """Sums of all numbers up to each, in 64 bits."""
    given = graph.integers(node)
    if given is None or given[1].ndim:
        return
    (sums, scale), name = given, node.outputs[0].name
    wide = graph.cast(node, sums, "INT64", f"{name}.integers")
    inputs = [wide, node.inputs[1]]
    total = graph.add(node, "CumSum", inputs, f"{name}.sums", node.attributes, like=node.outputs[0], kind="INT64")
    graph.scaled(node, total, scale, name, last=True)


def _global_average(graph: IntegerGraph, node: Any) -> None:
    x, shape = graph.form(node.inputs[0]), node.inputs[0].shape
    sizes = [] if shape is None else list(shape)[2:]
    if (
        x is None
        or not x.plain
        or x.constant is not None
        or x.wide
        or not sizes
        or not all(isinstance(each, int) for each in sizes)
    ):
        return
    _pool(graph, node, x, sizes, {})


def _average(graph: IntegerGraph, node: ir.Node) -> None:
    x, get = graph.form(node.inputs[0]), node.attributes
    if x is None or not x.plain or x.constant is not None or x.wide:
        return
    if get.get_string("auto_pad", "NOTSET") != "NOTSET":
        return
    kept = {name: list(get[name].as_ints()) for name in ("strides", "pads", "dilations") if name in get}
    kernel = list(get["kernel_shape"].as_ints())
    included = bool(get.get_int("count_include_pad", 0)) or not any(kept.get("pads", []))
    if included and not get.get_int("ceil_mode", 0):
        _pool(graph, node, x, kernel, kept)
        return
    spatial, places = (_spatial(value) for value in (node.inputs[0], node.outputs[0]))
    if len(spatial) != len(kernel) or len(places) != len(kernel):
        return
    ones, none = [1] * len(kernel), [0] * (2 * len(kernel))
    strides, pads, gaps = kept.get("strides", ones), kept.get("pads", none), kept.get("dilations", ones)
    before, after = pads[: len(kernel)], pads[len(kernel) :]
    # the last window may reach beyond the padding where ceil_mode is on
    reach = [
        (place - 1) * stride + gap * (width - 1) + 1
        for place, stride, gap, width in zip(places, strides, gaps, kernel, strict=True)
    ]
    more = [max(end - pad - size, own) for end, pad, size, own in zip(reach, before, spatial, after, strict=True)]
    there = torch.ones(1, 1, *spatial, dtype=torch.float64)
    there = F.pad(there, _around(before, after), value=float(included))
    there = F.pad(there, _around([0] * len(kernel), [one - other for one, other in zip(more, after, strict=True)]))
    count = _CONVOLUTIONS[len(kernel)](there, torch.ones(1, 1, *kernel).double(), None, strides, 0, gaps)
    _pool(graph, node, x, kernel, {**kept, "pads": [*before, *more]}, count[0].float())


_CONVOLUTIONS: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def _spatial(value: ir.Value | None) -> list[int]:
    """The sizes of a value behind samples and channels, those that are not open."""
    sizes = [] if value is None or value.shape is None else [*value.shape][2:]
    return [each for each in sizes if isinstance(each, int)]


def _around(before: list[int], after: list[int]) -> list[int]:
    """Widths of padding as torch takes them: the last dimension first."""
    return [width for pair in zip(reversed(before), reversed(after), strict=True) for width in pair]


def _pool(
    graph: IntegerGraph,
    node: Any,
    x: Form,
    kernel: list[int],
    settings: Mapping[str, object],
    count: Tensor | None = None,
) -> None:
    """Sums over windows, a convolution of each channel with ones; and for each place how many numbers they have."""
    channels = node.inputs[0].shape[1]
    if not isinstance(channels, int):
        return
    name = node.outputs[0].name
    ones = graph.constant(f"{name}.ones", torch.ones(channels, 1, *kernel), "UINT8")
    settings = {**settings, "group": channels}
    sums = graph.summed(node, "ConvInteger", [x.codes, ones, graph.zero(x)], f"{name}.sums", settings)
    if count is None or bool((count == count.flatten()[0]).all()):
        graph.scaled(node, sums, x.grid.scale / (math.prod(kernel) if count is None else int(count.flatten()[0])), name)
    else:
        graph.scaled(node, sums, x.grid.scale / count, name)


RULES = {
    "AveragePool": _average,
    "CumSum": _running,
    "GlobalAveragePool": _global_average,
    "ReduceMean": _reduce,
    "ReduceSum": _reduce,
}

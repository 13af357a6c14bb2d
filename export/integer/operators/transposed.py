"""Transposed convolutions as convolutions: of the input with zeros between its integers, by the kernel mirrored."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...onnx.editing import Editor

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["mirrored", "stuffed"]


def mirrored(weight: Tensor, groups: int) -> Tensor:
    """The kernel of the convolution that a transposed one is.

    Args:
        weight: (in, out / groups, *kernel).
        groups: how many groups of channels are apart from each other.

    Returns:
        (out, in / groups, *kernel).

    Example:
        >>> mirrored(torch.tensor([[[1, 2]], [[3, 4]]]), 1).tolist()
        [[[2, 1], [4, 3]]]
    """
    apart = weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
    return apart.flip(list(range(2, apart.ndim)))


def stuffed(graph: Editor, node: Any, codes: ir.Value, zero: ir.Value, kernel: list[int]) -> ir.Value | None:
    """Integers with zeros between them and around them, which a convolution with stride 1 sums.

    Args:
        graph: of the node.
        node: a ConvTranspose.
        codes: the integers of its input.
        zero: what a zero is among them.
        kernel: sizes of the kernel.

    Returns:
        None where a size of the input is not known.
    """
    spatial, get, shape = len(kernel), node.attributes, node.inputs[0].shape
    sizes = [] if shape is None else list(shape)[2:]
    if len(sizes) != spatial or not all(isinstance(each, int) for each in sizes):
        return None
    ones, none = [1] * spatial, [0] * (2 * spatial)
    strides, dilations, pads, more = (
        list(get[name].as_ints()) if name in get else default
        for name, default in (("strides", ones), ("dilations", ones), ("pads", none), ("output_padding", none))
    )
    name, kind = f"{node.outputs[0].name}.integers", codes.dtype.name if codes.dtype is not None else None

    def made(op_type: str, inputs: list[ir.Value], said: str) -> ir.Value:
        value = graph.add(node, op_type, inputs, f"{name}.{said}", like=node.inputs[0], kind=kind)
        value.shape = None
        return value

    def numbers(values: list[int], said: str) -> ir.Value:
        return graph.constant(f"{name}.{said}", torch.tensor(values), "INT64")

    if any(each > 1 for each in strides):
        apart = made("Unsqueeze", [codes, numbers([3 + 2 * dim for dim in range(spatial)], "axes")], "apart")
        behind = [width for stride in strides for width in (0, stride - 1)]
        wide = made("Pad", [apart, numbers([0] * (4 + 2 * spatial) + behind, "zeros"), zero], "wide")
        whole = [size * stride for size, stride in zip(sizes, strides, strict=True)]
        codes = made("Reshape", [wide, numbers([0, 0, *whole], "sizes")], "spread")
    reach = [dilation * (size - 1) for dilation, size in zip(dilations, kernel, strict=True)]
    before = [end - pad for end, pad in zip(reach, pads[:spatial], strict=True)]
    after = [
        end - pad + extra - (stride - 1)
        for end, pad, extra, stride in zip(reach, pads[spatial:], more[:spatial], strides, strict=True)
    ]
    return made("Pad", [codes, numbers([0, 0, *before, 0, 0, *after], "around"), zero], "padded")

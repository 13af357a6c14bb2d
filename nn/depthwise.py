"""Convolutions of which each output reads one channel of the input."""

from typing import Protocol

from ..qcore import Grid
from ..qcore.granularity import PerAxis, PerTensor

__all__ = ["depthwise"]


class _Grouped(Protocol):
    in_channels: int
    out_channels: int
    groups: int
    kernel_size: tuple[int, ...]


def depthwise(layer: _Grouped, inputs: Grid | None, weights: Grid | None) -> tuple[Grid | None, Grid | None]:
    """The grids whose scales multiply: a scale for each channel of the input becomes the weight's, one for each output.

    An output that reads one channel of the input sums products of one scale, also where the channels have several.

    Example:
        >>> import torch, bitwright.nn as qnn
        >>> inputs = Grid(torch.tensor([0.5, 0.25]).reshape(1, 2, 1), granularity=PerAxis(1))
        >>> inputs, weights = depthwise(qnn.QuantConv1d(2, 4, 3, groups=2), inputs, Grid(torch.tensor(2.0)))
        >>> inputs.scale, weights.scale
        (tensor(1.), tensor([1.0000, 1.0000, 0.5000, 0.5000]))
    """
    if inputs is None or weights is None or inputs.axis is None or layer.groups != layer.in_channels:
        return inputs, weights
    ndim = inputs.scale.ndim
    if inputs.axis % ndim != ndim - len(layer.kernel_size) - 1:  # a scale for each of something else
        return inputs, weights
    each = inputs.scale.reshape(-1).repeat_interleave(layer.out_channels // layer.groups)
    products = weights.replace(scale=each * weights.scale.reshape(-1), granularity=PerAxis(0))
    return inputs.replace(scale=inputs.scale.new_ones(()), granularity=PerTensor()), products

"""What a layer costs under a setting."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...nn.losses.bits import COUNTS, BitLoss
from ...qcore import Grid
from ..measuring.evaluation import evaluating
from ..measuring.samples import samples_in
from ..recording.examples import Call
from .trials import Trial

__all__ = ["Size", "sizes_of"]


@dataclass
class Size:
    """What a layer costs.

    Attributes:
        weights: how many there are; those that several layers have in common count for the first of them.
        weight_bits: all together.
        bytes: of the packed codes, their scales and zero points.
        products: of weights and inputs, for one sample.
        bops: these by the bit widths of both: bit operations.

    Example:
        >>> Size(8, 32.0, 8.0, 8.0, 1024.0).weight_bits
        32.0
    """

    weights: int = 0
    weight_bits: float = 0.0
    bytes: float = 0.0
    products: float = 0.0
    bops: float = 0.0


def sizes_of(trial: Trial, call: Call) -> dict[str, Size]:
    """What each layer of a trial costs, by path; products are those of a batch, for one of its samples.

    Example:
        >>> import bitwright.nn as qnn
        >>> model = nn.Sequential(qnn.QuantLinear(4, 2, bias=False))
        >>> sizes_of(Trial(model, ["0"], "2", dict(weight_bit_width=2)), ((torch.ones(5, 4),), {}))
        {'0': Size(weights=8, weight_bits=16.0, bytes=6.0, products=8.0, bops=512.0)}
    """
    found = {path: Size() for path in trial.layers}
    paths = {layer: path for path, layer in trial.layers.items()}
    with evaluating(trial.model):
        stored = BitLoss(trial.model).sizes
        measured = BitLoss(_Called(trial.model), "multiply_bits", call).sizes
        counted: set[int] = set()
        for each in stored.weights:
            tensor = each.layer.tensor_of(each.slot)
            if each.layer in paths and id(_stored(each.layer, each.slot)) not in counted:
                counted.add(id(_stored(each.layer, each.slot)))
                size = found[paths[each.layer]]
                bits = float(COUNTS["weight_bits"](stored._replace(weights=[each]))[0])
                size.weights += tensor.numel()
                size.weight_bits += bits
                size.bytes += math.ceil(bits / 8) + _overhead(getattr(each.layer, f"{each.slot}_quant"), tensor)
        samples = samples_in(call) or 1
        for each in measured.weights:
            if each.layer in paths:
                size = found[paths[each.layer]]
                size.products += each.products / samples
                size.bops += float(COUNTS["multiply_bits"](measured._replace(weights=[each]))[0]) / samples
    return found


class _Called(nn.Module):
    """A model that takes the arguments of a call as two: positional ones, and those by name."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        return self.model(*args, **kwargs)


def _stored(layer: nn.Module, slot: str) -> object:
    """The parameter of a slot."""
    found: Any = layer
    for name in str(found.slot(slot).parameter).split("."):
        found = getattr(found, name)
    return found


def _overhead(quant: Any, weight: Tensor) -> int:
    """The bytes of scales and zero points."""
    grid: Grid | None = None if quant is None else quant._quantize(weight)[1]
    if grid is None:
        return 0
    if grid.scale_format is not None:
        bits = grid.scale_format.bit_width
        scales = grid.scale.numel() * float(bits) / 8 + grid.scale.element_size()  # and the scale of the scales
    elif bool((torch.frexp(grid.scale).mantissa == 0.5).all()):  # powers of two, of which an exponent is stored
        scales = grid.scale.numel()
    else:
        scales = grid.scale.numel() * grid.scale.element_size()
    zero_points = 0 if grid.zero_point is None else math.ceil(grid.zero_point.numel() * float(grid.bit_width) / 8)
    return math.ceil(scales) + zero_points

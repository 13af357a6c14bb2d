"""What a layer costs under a setting."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...nn import QuantLayer
from ...nn.contexts.intercepting import quantizers_of
from ...nn.contexts.switching import unquantized
from ...nn.losses.bits import COUNTS, BitLoss
from ...nn.losses.products import products_of
from ...qcore import Grid, TensorQuant
from ..layers.table import output_slot
from ..measuring.evaluation import evaluating, observed
from ..measuring.samples import samples_in
from ..placement.producers import Edge, inputs_of, producer
from ..recording.examples import Call
from ..recording.nodes import Graph
from .trials import Trial

__all__ = ["Products", "Size", "feeds_of", "products_in", "sizes_of"]


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


Products = dict[tuple[str, str], float]
"""How often the weight of a slot of a layer is multiplied for one sample; by path and slot."""


def sizes_of(trial: Trial, products: Products, feeds: Mapping[str, str]) -> dict[str, Size]:
    """What each layer of a trial costs, by path.

    Args:
        trial: the model under a setting.
        products: what `products_in` found.
        feeds: the path of the quantizer of each layer's input, where that is another layer's.

    Example:
        >>> import bitwright.nn as qnn
        >>> model = nn.Sequential(qnn.QuantLinear(4, 2, bias=False))
        >>> trial = Trial(model, ["0"], "2", dict(weight_bit_width=2))
        >>> products = products_in(model, ["0"], ((torch.ones(5, 4),), {}))
        >>> sizes_of(trial, products, {})
        {'0': Size(weights=8, weight_bits=16.0, bytes=6.0, products=8.0, bops=512.0)}
    """
    found = {path: Size() for path in trial.layers}
    paths = {layer: path for path, layer in trial.layers.items()}
    quantizers = quantizers_of(trial.model)
    with evaluating(trial.model):
        stored = BitLoss(trial.model).sizes
        counted: set[int] = set()
        for each in stored.weights:
            path = paths.get(each.layer)
            if path is None:
                continue
            size, parameter = found[path], _stored(each.layer, each.slot)
            if id(parameter) not in counted:
                counted.add(id(parameter))
                tensor = each.layer.tensor_of(each.slot)
                bits = float(COUNTS["weight_bits"](stored._replace(weights=[each]))[0])
                size.weights += tensor.numel()
                size.weight_bits += bits
                size.bytes += math.ceil(bits / 8) + _overhead(getattr(each.layer, f"{each.slot}_quant"), tensor)
            number = products.get((path, each.slot), 0.0)
            inputs = _inputs(each.layer, each.slot) or quantizers.get(feeds.get(path, ""))
            one = each._replace(products=1, inputs=inputs)
            size.products += number
            size.bops += number * float(COUNTS["multiply_bits"](stored._replace(weights=[one]))[0])
    return found


def products_in(model: nn.Module, paths: Iterable[str], call: Call) -> Products:
    """How often weights are multiplied in one forward of a model whose quantizers are off, for one sample."""
    layers = {path: model.get_submodule(path) for path in paths}
    found: Products = {}
    samples = samples_in(call) or 1

    def see(path: str, layer: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any) -> None:
        entering = args[0] if args else next(iter(kwargs.values()))
        leaving = out[0] if isinstance(out, tuple) and not hasattr(out, "data") else out
        for slot in layer.slots:
            if slot.role == "weight":
                weight = _stored(layer, slot.name)
                if isinstance(weight, Tensor):
                    number = products_of(layer, weight, entering, leaving) / samples
                    found[path, slot.name] = found.get((path, slot.name), 0.0) + number

    args, kwargs = call
    with evaluating(model), unquantized(model), observed(layers, see):
        model(*args, **kwargs)
    return found


def feeds_of(model: nn.Module, paths: Iterable[str], graph: Graph) -> dict[str, str]:
    """The path of the quantizer that made the input of a layer, where one has: with ``placement="outputs"``."""
    found: dict[str, str] = {}
    for path in paths:
        made = {_maker(model, edge) for edge in inputs_of(graph, path)}
        if len(made) == 1 and None not in made:
            found[path] = str(made.pop())
    return found


def _maker(model: nn.Module, edge: Edge | None) -> str | None:
    node = None if edge is None else producer(edge)[0]
    layer = None if node is None or node.module is None else model.get_submodule(node.module)
    slot = output_slot(type(layer)) if isinstance(layer, QuantLayer) else None
    quant = None if slot is None else getattr(layer, f"{slot}_quant")
    return next((path for path, each in quantizers_of(model).items() if each is quant), None)


def _inputs(layer: QuantLayer, slot: str) -> TensorQuant | None:
    """What quantizes that which a weight is multiplied with, in the layer itself."""
    inside = f"hidden{slot.removeprefix('weight_hh')}_quant" if "_hh" in slot else "input_quant"
    return getattr(layer, inside, None)


def _stored(layer: QuantLayer, slot: str) -> object:
    """The parameter of a slot; None where there is none."""
    found: Any = layer
    for name in str(layer.slot(slot).parameter).split("."):
        found = getattr(found, name, None)
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

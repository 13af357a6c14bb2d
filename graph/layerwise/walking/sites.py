"""Sites: the weights of a model that have a quantizer, each as what an algorithm may choose."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ....nn.layer import QuantLayer
from ....nn.slots import Slot
from ....nn.weight_layer import WeightLayer
from ....qcore import Grid, GridQuant, TensorQuant
from ....qcore.rounding import HalfEven, HalfUp, StochasticRounding
from ..problem import WeightGrid

__all__ = ["Site", "shared_parameters", "sites_of"]


def _to_nearest(rounding: object) -> bool:
    """Whether a quantizer rounds to nearest in evaluation."""
    if isinstance(rounding, StochasticRounding):
        return rounding.deterministic
    return type(rounding) in (HalfEven, HalfUp) or rounding is torch.round


@dataclass(eq=False)
class Site:
    """A weight of a layer with its quantizer.

    Attributes:
        path: the path of the layer; with the parameter behind it, where a layer has several weights.
        layer: the layer.
        slot: of the layer, that the quantizer is in.
        quant: the quantizer.
        module: the path of the layer.

    Example:
        >>> import bitwright.nn as qnn
        >>> site = sites_of(nn.Sequential(qnn.QuantLinear(4, 2)))[0]
        >>> site.path, site.parameter.shape
        ('0', torch.Size([2, 4]))
    """

    path: str
    layer: QuantLayer
    slot: Slot
    quant: TensorQuant
    module: str = ""

    @property
    def parameter(self) -> Tensor:
        """The weight as the layer keeps it."""
        assert self.slot.parameter is not None
        return getattr(self.layer, self.slot.parameter)

    def seen(self) -> Tensor:
        """The weight as its quantizer sees it."""
        return self.layer.tensor_of(self.slot.name).detach()

    def as_stored(self, seen: Tensor) -> Tensor:
        """What has the shape in which the quantizer sees the weight, in that in which the layer keeps it."""
        layer = self._turning
        return seen if layer is None else layer._as_stored(seen)

    def as_seen(self, stored: Tensor) -> Tensor:
        """The way back."""
        layer = self._turning
        return stored if layer is None else layer._outputs_first(stored)

    @property
    def turned(self) -> bool:
        """Whether the quantizer sees the weight in another shape than that in which the layer keeps it."""
        layer = self._turning
        return layer is not None and type(layer)._as_stored is not WeightLayer._as_stored

    @property
    def _turning(self) -> WeightLayer | None:
        """The layer, if it shows the weight to its quantizer in another shape."""
        return self.layer if isinstance(self.layer, WeightLayer) and self.slot.name == "weight" else None

    def why_not(self) -> str | None:
        """Why no algorithm may choose this weight; None if one may."""
        quant = self.quant
        if self.layer._modules.get("correction") is not None:
            return "it has a correction, which fits its weight as it is; remove it first, del layer.correction"
        if not isinstance(quant, GridQuant):
            return f"its quantizer is a {type(quant).__name__}, which says of no grid before the weight is known"
        if quant.transform is not None:
            return f"its quantizer transforms the weight ({type(quant.transform).__name__})"
        if len(quant._served) > 1:
            return "it shares its quantizer with other weights"
        if quant.clock is not None or quant._format is None:
            return "its levels change in training"
        if not _to_nearest(quant.rounding):
            name = getattr(quant.rounding, "name", type(quant.rounding).__name__)
            return f"its quantizer rounds in a way of its own ({name}), not to nearest"
        if not isinstance(self.layer._parameters.get(self.slot.parameter or ""), nn.Parameter):
            return "its weight is parametrized"
        return None

    @torch.no_grad()
    def weight_grid(self, grid: Grid) -> WeightGrid:
        """A grid of the weight with scales by their numbers; ``index`` shaped as the weight is kept.

        The scales are those of ``grid``, in its order.
        """
        seen = self.seen()
        count = grid.scale.numel()
        numbers = torch.arange(count, device=seen.device).reshape(grid.scale.shape)
        spread = grid.along(numbers, seen.shape) if count > 1 else numbers.reshape((1,) * seen.ndim)
        index = self.as_stored(spread.expand(seen.shape)) if count > 1 else spread
        zero_points = None if grid.zero_point is None else grid.zero_point.reshape(-1)
        restriction = getattr(getattr(self.quant, "scaling", None), "restriction", None)
        free = grid.scale_format is None and getattr(restriction, "kind", "float") in ("float", "log")
        return WeightGrid(
            grid.scale.reshape(-1).clone(), index, grid.number_format, zero_points, _same if free else None
        )


def _same(scales: Tensor) -> Tensor:
    """Any scales are allowed that are not 0."""
    return scales.clamp_min(torch.finfo(torch.float32).tiny)


def sites_of(model: nn.Module) -> list[Site]:
    """Every weight of a model that a quantizer quantizes, in the order of the modules."""
    return list(_sites(model))


def _sites(model: nn.Module) -> Iterator[Site]:
    for path, layer in model.named_modules():
        if not isinstance(layer, QuantLayer):
            continue
        own: Mapping[str, nn.Module | None] = layer._modules
        for slot in layer.slots:
            quant = own.get(f"{slot.name}_quant")
            if slot.role == "weight" and isinstance(quant, TensorQuant):
                known = layer._parameters.get(slot.parameter or "", getattr(layer, slot.parameter or "", None))
                if known is not None:
                    name = path if slot.name == "weight" else f"{path}.{slot.name}".lstrip(".")
                    yield Site(name, layer, slot, quant, path)


def shared_parameters(model: nn.Module) -> dict[int, list[str]]:
    """The paths of the parameters that several modules hold, by the identity of each."""
    found: dict[int, list[str]] = {}
    for path, module in model.named_modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                found.setdefault(id(parameter), []).append(f"{path}.{name}".lstrip("."))
    return {key: paths for key, paths in found.items() if len(paths) > 1}

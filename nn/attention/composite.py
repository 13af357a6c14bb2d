"""Quantized layers that are made of others."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ...qcore import QuantizerError, TensorQuant
from ..layer import QuantLayer
from ..slots import Slot

__all__ = ["Composite", "become"]


class Composite(QuantLayer):
    """A quantized layer made of others, whose slots are its own as well: keywords and assignments reach them.

    The quantizers belong to the parts, where state dicts and exporters find them.

    Attributes:
        routes: for the slots that belong to parts, the name of the part, and of the slot there.
    """

    routes: Mapping[str, tuple[str, str]] = {}

    def _routed(self, name: str) -> tuple[QuantLayer, Slot] | None:
        if name not in self.routes:
            return None
        part, inner = self.routes[name]
        layer = self._modules[part]
        assert isinstance(layer, QuantLayer)
        return layer, layer.slot(inner)

    def tensor_of(self, slot: str) -> Tensor:
        """What the quantizer of a slot quantizes: the slot's parameter, as the quantizer sees it."""
        routed = self._routed(slot)
        return super().tensor_of(slot) if routed is None else routed[0].tensor_of(routed[1].name)

    def _provided(self, slot: Slot) -> Mapping[str, object]:
        routed = self._routed(slot.name)
        return super()._provided(slot) if routed is None else routed[0]._provided(routed[1])

    def _replace(self, name: str, module: TensorQuant | None) -> None:
        routed = self._routed(name.removesuffix("_quant"))
        if routed is None:
            return super()._replace(name, module)
        part, slot = routed
        part._replace(f"{slot.name}_quant", module)
        if part._kept:
            part._kept.clear()

    def _check_slots(self) -> None:
        for part in dict.fromkeys(part for part, _ in self.routes.values()):
            layer = self._modules[part]
            assert isinstance(layer, QuantLayer)
            layer._check_slots()

    def __getattr__(self, name: str) -> Any:
        if name.endswith("_quant"):
            routed = self._routed(name.removesuffix("_quant"))
            if routed is not None:
                return getattr(routed[0], f"{routed[1].name}_quant")
        return super().__getattr__(name)


def become(owner: nn.Module, name: str, torchs: type[nn.Module], layer: type[QuantLayer]) -> None:
    """Make a part of torch's a quantized layer, in place, with all its slots empty.

    Raises:
        QuantizerError: it is something else, which computes in its own way.
    """
    part = owner._modules[name]
    if type(part) is not torchs and not isinstance(part, layer):
        raise QuantizerError(
            f"{type(owner).__name__}: {name} is a {type(part).__name__}, and only an nn.{_plain(torchs)} there can "
            f"become a {layer.__name__}. Put one there, or quantize the parts one by one."
        )
    assert part is not None
    part.__class__ = layer
    assert isinstance(part, QuantLayer)
    part._convert({f"{slot.name}_quant": None for slot in layer.slots}, None, None)


def _plain(torchs: type[nn.Module]) -> str:
    return "Linear" if issubclass(torchs, nn.Linear) else torchs.__name__

"""Which quantized layer stands for which layer of torch, and which of its slots a keyword is for."""

from functools import cache

from torch import nn

from ... import nn as qnn
from ...nn import QuantLayer, Slot, WeightLayer

__all__ = ["has_weights", "keywords_of_layers", "quantized_layers", "slot_names", "slot_of", "torch_layer"]


@cache
def quantized_layers() -> dict[type[nn.Module], type[QuantLayer]]:
    """For each layer of torch, the quantized layer of `bitwright.nn` that stands for it.

    Example:
        >>> quantized_layers()[nn.Conv2d].__name__, nn.InstanceNorm1d in quantized_layers()
        ('QuantConv2d', False)
    """
    found: dict[type[nn.Module], type[QuantLayer]] = {}
    for name in qnn.__all__:
        layer = getattr(qnn, name)
        if isinstance(layer, type) and issubclass(layer, QuantLayer):
            base = torch_layer(layer)
            if base is not None:
                found[base] = layer
    return found


def torch_layer(layer: type[QuantLayer]) -> type[nn.Module] | None:
    """The layer of torch that a quantized one stands for; None for one that stands for nothing in particular.

    Example:
        >>> torch_layer(qnn.QuantReLU6).__name__, torch_layer(qnn.WeightLayer)
        ('ReLU6', None)
    """
    for base in layer.__mro__:
        if base.__module__.startswith("torch.nn.") and base is not nn.Module and issubclass(base, nn.Module):
            return base
    return None


def has_weights(layer: type[QuantLayer]) -> bool:
    """Whether a quantized layer quantizes a parameter; the others quantize what flows through them.

    Example:
        >>> has_weights(qnn.QuantLinear), has_weights(qnn.QuantReLU)
        (True, False)
    """
    return issubclass(layer, WeightLayer) or any(slot.parameter is not None for slot in layer.slots)


def slot_of(layer: type[QuantLayer], keyword: str) -> Slot | None:
    """The slot of a layer that a keyword is for; None if it is for slots of other layers.

    Example:
        >>> slot_of(qnn.QuantLinear, "weight_bit_width").name, slot_of(qnn.QuantReLU, "bit_width").name
        ('weight', 'act')
        >>> slot_of(qnn.QuantReLU, "weight_bit_width"), slot_of(qnn.QuantLinear, "bit_width")
        (None, None)
    """
    own = {slot.name: slot for slot in layer.slots}
    fitting = [name for name in {*slot_names(), *own} if keyword.startswith(f"{name}_")]
    if fitting:
        name = max(fitting, key=len)  # weight_ih before weight
        slot = own.get(name)
        return slot if slot is None or slot.prefix is None or keyword == f"{name}_quant" else None
    return next((slot for slot in layer.slots if slot.prefix == ""), None)


@cache
def slot_names() -> frozenset[str]:
    """The names of the slots of all layers.

    Example:
        >>> sorted(slot_names() & {"weight", "input", "act"})
        ['act', 'input', 'weight']
    """
    return frozenset(slot.name for layer in quantized_layers().values() for slot in layer.slots)


@cache
def keywords_of_layers() -> frozenset[str]:
    """The keywords that give a slot of any layer its quantizer, and the flag that layers have.

    Example:
        >>> sorted(keywords_of_layers() & {"weight_quant", "return_quant_tensor", "layer1"})
        ['return_quant_tensor', 'weight_quant']
    """
    return frozenset({f"{name}_quant" for name in slot_names()} | {"return_quant_tensor"})

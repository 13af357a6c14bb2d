"""Which quantized layer stands for which layer of torch, and which of its slots a keyword is for."""

from collections.abc import Iterable
from functools import cache
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from ... import nn as qnn
from ...nn import ActivationLayer, QuantLayer, Slot, WeightLayer

__all__ = [
    "compositions",
    "has_weights",
    "keywords_of_layers",
    "multiplies",
    "name_in",
    "output_slot",
    "quantized_layers",
    "slot_names",
    "slot_of",
    "slots_for",
    "takes_on_grid",
    "torch_layer",
]


@cache
def quantized_layers() -> dict[type[nn.Module], type[QuantLayer]]:
    """For each layer of torch, the quantized layer of `bitwright.nn` that stands for it.

    Where there are several, it is the one of the same name, ``Quant`` before it.

    Example:
        >>> quantized_layers()[nn.Conv2d].__name__, nn.Sequential in quantized_layers()
        ('QuantConv2d', False)
    """
    return {base: layer for base, layer in _by_base().items() if not hasattr(layer, "parts")}


@cache
def compositions() -> dict[type[nn.Module], type[QuantLayer]]:
    """The same for layers of torch that are made of layers, each of which can be quantized by itself.

    Example:
        >>> [base.__name__ for base in compositions()]
        ['TransformerDecoderLayer', 'TransformerEncoderLayer']
    """
    return {base: layer for base, layer in _by_base().items() if hasattr(layer, "parts")}


@cache
def _by_base() -> dict[type[nn.Module], type[QuantLayer]]:
    found: dict[type[nn.Module], type[QuantLayer]] = {}
    for name in qnn.__all__:
        layer = getattr(qnn, name)
        if isinstance(layer, type) and issubclass(layer, QuantLayer) and layer.slots:
            base = torch_layer(layer)
            if base is not None and (base not in found or _is_named_after(layer, base)):
                found[base] = layer
    return found


def _is_named_after(layer: type[QuantLayer], base: type[nn.Module]) -> bool:
    return layer.__name__.lower() == f"quant{base.__name__}".lower()


def torch_layer(layer: type[QuantLayer]) -> type[nn.Module] | None:
    """The layer of torch that a quantized one stands for; None for one that stands for nothing in particular.

    It is the one that the class names by ``stands_for``, or the first one that it extends.

    Example:
        >>> torch_layer(qnn.QuantReLU6).__name__, torch_layer(qnn.WeightLayer)
        ('ReLU6', None)
    """
    named = getattr(layer, "stands_for", None)
    if named is not None:
        return named
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


def multiplies(layer: type[QuantLayer]) -> bool:
    """Whether a quantized layer multiplies what flows through it by matrices of weights.

    These are what a rule means that names no layer in particular. Embeddings look up rows, and norms scale channels:
    they stay float unless a rule names them.

    Example:
        >>> multiplies(qnn.QuantConv2d), multiplies(qnn.QuantEmbedding), multiplies(qnn.QuantBatchNorm2d)
        (True, False, False)
    """
    base = torch_layer(layer)
    scales = issubclass(layer, ActivationLayer) or (base is not None and issubclass(base, _NormBase))
    return has_weights(layer) and getattr(layer, "sums_products", True) and not scales


def output_slot(layer: type[QuantLayer]) -> str | None:
    """The slot that quantizes what a layer returns; None if it has none.

    Example:
        >>> output_slot(qnn.QuantLinear), output_slot(qnn.QuantReLU)
        ('output', 'act')
    """
    own = {slot.name for slot in layer.slots}
    return next((name for name in ("output", "act", "hidden") if name in own), None)


def takes_on_grid(layer: type[QuantLayer]) -> bool:
    """Whether a layer with weights has a quantizer for what it takes, and not several for what flows through its parts.

    Example:
        >>> takes_on_grid(qnn.QuantLinear), takes_on_grid(qnn.QuantTransformerEncoderLayer)
        (True, False)
    """
    return has_weights(layer) and not hasattr(layer, "parts") and any(slot.name == "input" for slot in layer.slots)


def slot_of(layer: type[QuantLayer], keyword: str, module: nn.Module | None = None) -> Slot | None:
    """The slot of a layer, or family of slots, that a keyword is for; None if it is for slots of other layers.

    Args:
        layer: the quantized layer.
        keyword: such as ``weight_bit_width``.
        module: what becomes such a layer: it may have slots, and so keywords, that the class does not list.

    Example:
        >>> slot_of(qnn.QuantLinear, "weight_bit_width").name, slot_of(qnn.QuantReLU, "bit_width").name
        ('weight', 'act')
        >>> slot_of(qnn.QuantReLU, "weight_bit_width"), slot_of(qnn.QuantLinear, "bit_width")
        (None, None)
    """
    own = {slot.name: slot for slot in layer.slots}
    if module is not None:
        wide = {name: own[slot.names[0]] for slot in slots_for(layer, module) for name in slot.family}
        wide |= {slot.name: own[slot.names[0]] for slot in slots_for(layer, module)}
        own = {**wide, **own}
    for part in getattr(layer, "parts", ()):  # of a layer made of layers
        if keyword.startswith(f"{part}_"):
            return slot_of(layer, keyword.removeprefix(f"{part}_"))
    fitting = [name for name in {*slot_names(), *own} if keyword.startswith(f"{name}_")]
    if fitting:
        name = max(fitting, key=len)  # weight_ih before weight
        slot = own.get(name)
        return slot if slot is None or slot.prefix is None or keyword == f"{name}_quant" else None
    return next((slot for slot in layer.slots if slot.prefix == ""), None)


def slots_for(layer: type[QuantLayer], module: nn.Module) -> tuple[Slot, ...]:
    """The slots that a float module would have as a quantized layer: of an LSTM, one for each matrix.

    Args:
        layer: what it would become.
        module: it, or a layer that it has become already.

    Example:
        >>> [slot.name for slot in slots_for(qnn.QuantReLU, nn.ReLU())]
        ['act', 'input']
    """
    if isinstance(module, QuantLayer) or not hasattr(layer, "_slots"):
        return module.slots if isinstance(module, QuantLayer) else layer.slots
    shell: Any = layer.__new__(layer)  # no constructor runs: it only says what its slots are
    vars(shell).update(vars(module))
    return shell._slots()


def name_in(slots: Iterable[Slot], keyword: str) -> str | None:
    """The slot or family of slots, among some, that a keyword names: the longest name that it starts with.

    Example:
        >>> slots = Slot("weight_ih_l0", family=("weight", "weight_ih")), Slot("weight_hh_l0", family=("weight",))
        >>> name_in(slots, "weight_ih_bit_width"), name_in(slots, "weight_bit_width"), name_in(slots, "bit_width")
        ('weight_ih', 'weight', None)
    """
    names = {name for slot in slots if slot.prefix is None for name in slot.names}
    names |= {slot.name for slot in slots if keyword == f"{slot.name}_quant"}
    return max((name for name in names if keyword.startswith(f"{name}_")), key=len, default=None)


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

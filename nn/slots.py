"""Quantizer slots: how a layer turns the classes and keywords it is given into modules."""

import contextlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from ..qcore import QuantizerError, TensorQuant, resolve, settings, value
from ..qcore.attributes import assign
from ..qcore.errors import nearest
from ..qcore.inject import ROOT, QuantizerType, frozen, recipe_of

__all__ = ["Described", "fill_slot", "key_of", "refill", "remember", "split_overrides"]


class Described:
    """The layer as messages name it; put into words only when there is a message."""

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer

    def __str__(self) -> str:
        for base in type(self.layer).__mro__:
            if base.__module__.startswith("torch.nn") and base is not nn.Module:
                return f"{type(self.layer).__name__}({base.extra_repr(self.layer)})"
        return type(self.layer).__name__


def split_overrides(
    layer: nn.Module, slots: Mapping[str, Any], overrides: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Sort keywords by the prefix that says which quantizer they are for: ``weight_bit_width=4``.

    Raises:
        QuantizerError: a keyword without a prefix of this layer, or for a slot without a quantizer.
    """
    sorted_out: dict[str, dict[str, Any]] = {slot: {} for slot in slots}
    for keyword, item in overrides.items():
        slot = keyword.split("_", 1)[0]
        if slot not in slots or keyword == slot:
            raise QuantizerError(_misplaced(layer, slots, keyword, item))
        if slots[slot] is None:
            raise QuantizerError(
                f"{Described(layer)}: {keyword}={item!r} is given, but {slot}_quant is None. Write "
                f"{slot}_quant={_EXAMPLES[slot]} too, or leave {keyword} out."
            )
        sorted_out[slot][keyword.removeprefix(f"{slot}_")] = item
    return sorted_out


_EXAMPLES = {"weight": "Int8WeightPerTensor", "bias": "Int32Bias", "input": "Int8Act", "output": "Int8Act"}


def _misplaced(layer: nn.Module, slots: Mapping[str, Any], keyword: str, item: Any) -> str:
    """What to write instead of a keyword that belongs to no slot."""
    prefixes = ", ".join(f"{slot}_" for slot in slots)
    known = {
        f"{slot}_{name}"
        for slot, quantizer in slots.items()
        if isinstance(quantizer, QuantizerType)
        for name in settings(quantizer)
    }
    known |= {f"{slot}_quant" for slot in slots} | {"return_quant_tensor"}
    inner = {name.split("_", 1)[1] for name in known if "_" in name}
    guess = f"{next(iter(slots))}_{keyword}" if keyword in inner else nearest(keyword, known)
    tail = f" Did you mean {guess}={item!r}?" if guess else ""
    return (
        f"{Described(layer)}: {keyword}={item!r} is for no quantizer of this layer: keywords start with one of "
        f"{prefixes}.{tail}"
    )


def _asks_for_channels(declared: Any) -> bool:
    return isinstance(declared, value) and "channel_axis" in inspect.signature(declared.function).parameters


def fill_slot(
    layer: nn.Module,
    slot: str,
    quantizer: Any,
    overrides: Mapping[str, Any],
    prefix: str,
    provided: Mapping[str, Any],
) -> TensorQuant | None:
    """The module for a slot: a quantizer class is resolved, a module of another layer is shared, None is none.

    Raises:
        QuantizerError: something else was given, a setting is unknown or impossible, or keywords come with a
            shared module.
    """
    if quantizer is None:
        return None
    if isinstance(quantizer, TensorQuant):
        if overrides:
            name, item = next(iter(overrides.items()))
            raise QuantizerError(
                f"{Described(layer)}: {prefix}{name}={item!r} would change the quantizer module that {slot}_quant "
                f"shares with another layer. Give the setting where that module is made, or pass a quantizer class."
            )
        return quantizer
    if not isinstance(quantizer, QuantizerType):
        raise QuantizerError(
            f"{Described(layer)}: {slot}_quant={quantizer!r} is not a quantizer. Pass a class such as "
            f"{_EXAMPLES.get(slot, 'Int8Act')}, the quantizer module of another layer to share it, or None."
        )
    example = _EXAMPLES.get(slot, "Int8Act")
    declared_names = settings(quantizer)
    if ROOT not in declared_names:
        raise QuantizerError(
            f"{Described(layer)}: {slot}_quant={quantizer!r} is a fragment, not a quantizer. Put it before a complete "
            f"one: class My{example}({quantizer!r}, {example})."
        )
    if "channel_axis" not in provided and any(_asks_for_channels(each.declared) for each in declared_names.values()):
        raise QuantizerError(
            f"{Described(layer)}: {slot}_quant={quantizer!r} has a scale for each output channel of a weight. Write "
            f"{slot}_quant=Int8ActPerChannel, which has one for each channel of its input."
        )
    written = {name: f"{prefix}{name}" for name in overrides}
    declared = quantizer(**overrides)
    module = resolve(declared, provided, where=Described(layer), written=written)  # type: ignore[arg-type]
    if not isinstance(module, TensorQuant):
        raise QuantizerError(
            f"{Described(layer)}: {quantizer!r} resolves to {type(module).__name__}, which is no TensorQuant. Its "
            "attribute tensor_quant must be IntQuant or a subclass of TensorQuant."
        )
    if module.follows_input and slot != "bias":
        raise QuantizerError(
            f"{Described(layer)}: {quantizer!r} quantizes biases and can't be {slot}_quant. Write "
            f"{slot}_quant={_EXAMPLES.get(slot, 'Int8Act')}."
        )
    assign(module, quantizer=declared, provided=dict(provided), written=written)
    return module


# A model has many layers alike: what was given to a layer that came through every check, and how to fill its slots.
_filled: dict[Any, list[tuple[str, Callable[[], Any] | None, dict[str, Any]]]] = {}


def key_of(layer: nn.Module, slots: Mapping[str, Any], overrides: Mapping[str, Any], *given: Any) -> Any:
    """What decides how the slots of a layer are filled.

    Example:
        >>> key_of(nn.ReLU(), {"act": None}, {"bit_width": 4}) == key_of(nn.ReLU(), {"act": None}, {"bit_width": 4.0})
        False
    """
    return (type(layer), *slots.values(), *[(name, frozen(item)) for name, item in overrides.items()], *given)


def remember(key: Any, filled: Mapping[str, TensorQuant | None]) -> None:
    """Keep how the slots of a layer were filled, once everything about the layer was found right."""
    if any(isinstance(each, nn.Module) for each in key):  # a shared module isn't made anew
        return
    recipes: list[tuple[str, Callable[[], Any] | None, dict[str, Any]]] = []
    for slot, module in filled.items():
        if module is None:
            recipes.append((f"{slot}_quant", None, {}))
            continue
        recipe = None if module.quantizer is None else recipe_of(module.quantizer, module.provided)
        if recipe is None:
            return
        made_of = {"quantizer": module.quantizer, "provided": module.provided, "written": module.written}
        recipes.append((f"{slot}_quant", recipe, made_of))
    if len(_filled) > 4096:
        _filled.clear()
    with contextlib.suppress(TypeError):  # something that can't be hashed was given
        _filled[key] = recipes


def refill(layer: nn.Module, key: Any) -> bool:
    """Fill the slots of a layer like one that came before; False if there was none."""
    try:
        recipes = _filled.get(key)
    except TypeError:
        return False
    if recipes is None:
        return False
    filled: dict[str, Any] = {}
    for name, recipe, made_of in recipes:
        filled[name] = module = None if recipe is None else recipe()
        if module is not None:
            vars(module).update(made_of)
    assign(layer, **filled)
    return True

"""Quantizer slots: how a layer turns the classes and keywords it is given into modules."""

import inspect
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from ..qcore import QuantizerError, TensorQuant, resolve, settings, value
from ..qcore.errors import FORMER_SETTINGS, IncompleteError, ReadOnlyError, SettingError, nearest
from ..qcore.inject import IMPLIED, ROLE, ROOT, QuantizerType, possible_settings, renamed
from ..qcore.int_range import check_flag

__all__ = ["Described", "QuantLayer", "QuantizerLike", "checked_flag", "fill_slot", "split_overrides"]


QuantizerLike = QuantizerType | TensorQuant | None  # what a layer takes for a quantizer


class Described:
    """The layer as messages name it; put into words only when there is a message."""

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer

    def __str__(self) -> str:
        for base in type(self.layer).__mro__:
            if base.__module__.startswith("torch.nn") and base is not nn.Module:
                return f"{type(self.layer).__name__}({base.extra_repr(self.layer)})"
        return type(self.layer).__name__


def checked_flag(layer: nn.Module, name: str, item: object) -> bool:
    """A flag of a layer's constructor, or an error that says where a quantizer in its place belongs.

    Raises:
        QuantizerError: it is neither True nor False.
    """
    try:
        return check_flag(name, item)
    except SettingError as error:
        remedy = ""
        quantizer = item.quantizer if isinstance(item, TensorQuant) else item
        if isinstance(quantizer, QuantizerType):
            declared = settings(quantizer).get(ROLE)
            role = "output" if declared is None or declared.declared == "activation" else declared.declared
            remedy = f" Write {type(layer).__name__}({role}_quant={item!r})."
        raise QuantizerError(f"{type(layer).__name__}: {error}{remedy}") from None


def split_overrides(
    layer: nn.Module, slots: Mapping[str, object], overrides: Mapping[str, object]
) -> dict[str, dict[str, object]]:
    """Sort keywords by the prefix that says which quantizer they are for: ``weight_bit_width=4``.

    Raises:
        QuantizerError: a keyword without a prefix of this layer, or for a slot without a quantizer.
    """
    sorted_out: dict[str, dict[str, object]] = {slot: {} for slot in slots}
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


def _misplaced(layer: nn.Module, slots: Mapping[str, object], keyword: str, item: object) -> str:
    """What to write instead of a keyword that belongs to no slot."""
    prefixes = ", ".join(f"{slot}_" for slot in slots)
    possible = {
        slot: possible_settings(quantizer) for slot, quantizer in slots.items() if isinstance(quantizer, QuantizerType)
    }
    known = {f"{slot}_{name}" for slot, names in possible.items() for name in names}
    known |= {f"{slot}_quant" for slot in slots} | {"return_quant_tensor"}
    holder = next((slot for slot, names in possible.items() if keyword in names), None)
    start, _, rest = keyword.partition("_")
    slot = nearest(start, possible)
    setting = nearest(rest, {*possible[slot], "quant"} - {ROLE}) if slot else None
    close = f"{slot}_{setting}" if setting else nearest(keyword, known)
    guess = f"{holder}_{keyword}" if holder else close
    tail = f" Did you mean {guess}={item!r}?" if guess else ""
    return (
        f"{Described(layer)}: {keyword}={item!r} is for no quantizer of this layer: keywords start with one of "
        f"{prefixes}.{tail}"
    )


def _asks_for_channels(declared: object) -> bool:
    return isinstance(declared, value) and "channel_axis" in inspect.signature(declared.function).parameters


def fill_slot(
    layer: nn.Module,
    slot: str,
    quantizer: object,
    overrides: Mapping[str, object],
    prefix: str,
    provided: Mapping[str, object],
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
        if quantizer.quantizer is not None:
            _check_role(layer, slot, quantizer.quantizer, {})
        quantizer.serve(layer, slot)
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
    written = {FORMER_SETTINGS.get(name, name): f"{prefix}{name}" for name in overrides}
    declared = quantizer(**renamed(overrides, prefix))
    _check_role(layer, slot, declared, written)
    try:
        module = resolve(declared, provided, where=Described(layer), written=written)
    except IncompleteError as error:
        raise IncompleteError(
            f"{error} Or build on a complete one: {slot}_quant={example}, or a subclass of it."
        ) from None
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
    made_of = {"quantizer": declared, "provided": dict(provided), "written": written}
    vars(module).update(made_of, of_parameter="shape" in provided)  # past nn.Module's bookkeeping
    module.serve(layer, slot)
    return module


_ROLES = {"weight": "weight", "bias": "bias", "act": "activation", "input": "activation", "output": "activation"}


def _check_role(layer: nn.Module, slot: str, quantizer: QuantizerType, written: Mapping[str, str]) -> None:
    """A quantizer says what it is for; another slot than that needs another quantizer."""
    declared, role = settings(quantizer).get(ROLE), _ROLES.get(slot, slot)
    made_for = None if declared is None else declared.declared
    if made_for not in (None, *_ROLES.values()):
        typed = written.get(ROLE, ROLE)
        raise QuantizerError(
            f"{Described(layer)}: {typed}={made_for!r} is not possible: expected 'weight', 'activation', 'bias', or "
            "None for any of them."
        )
    if made_for not in (None, role):
        article = "an" if role == "activation" else "a"
        way = f", or say that it quantizes {article} {role} as well: {quantizer!r}(quantizes={role!r})"
        on_products = (
            getattr(settings(quantizer)[ROOT].declared, "follows_input", False) if ROOT in quantizer else False
        )
        raise QuantizerError(
            f"{Described(layer)}: {quantizer!r} quantizes {_PLURALS[made_for]} and can't be {slot}_quant. Write "
            f"{slot}_quant={_EXAMPLES.get(slot, 'Int8Act')}{'' if on_products else way}."
        )


_PLURALS = {"weight": "weights", "bias": "biases", "activation": "activations"}


class QuantLayer(nn.Module):
    """What all quantized layers share: slots with quantizers, which stay what they say after construction, too.

    Subclasses name their slots and what each provides.

    Example:
        >>> import bitwright.nn as qnn
        >>> from bitwright.quantizers import Int4WeightPerTensor
        >>> layer = qnn.QuantLinear(4, 2)
        >>> layer.weight_quant = Int4WeightPerTensor
        >>> layer.int_weight().abs().max()
        tensor(7, dtype=torch.int8)
        >>> layer.weight_bit_width = 2
        Traceback (most recent call last):
        bitwright.qcore.errors.ReadOnlyError: QuantLinear(in_features=4, out_features=2, bias=True): \
weight_bit_width=2 can't be set on a layer that is built. Write layer.weight_quant = Int4WeightPerTensor(bit_width=2).
    """

    prefixes: ClassVar[dict[str, str]] = {}  # of the keywords for each slot
    _kept: dict[str, Any] | None = None  # quantized weights and biases, while the model is frozen
    _built = False

    def _provided(self, slot: str) -> Mapping[str, object]:
        """What the layer contributes to the quantizer of a slot."""
        raise NotImplementedError

    def _check_slots(self) -> None:
        """Refuse quantizers that don't go together."""

    def _fill_slots(self, slots: Mapping[str, object], given: Mapping[str, Mapping[str, object]]) -> None:
        """Resolve the slots, with all the checks."""
        for slot, quantizer in slots.items():
            provided = {} if quantizer is None else self._provided(slot)
            self._replace(f"{slot}_quant", fill_slot(self, slot, quantizer, given[slot], self.prefixes[slot], provided))
        self._check_slots()
        self._built = True

    def __setattr__(self, name: str, item: Any) -> None:
        if self._built:
            slot = name.removesuffix("_quant")
            if slot != name and slot in self.prefixes:
                return self._refill(slot, item)
            self._refuse_setting(name, item)
            item = checked_flag(self, name, item) if name == "return_quant_tensor" else item
        super().__setattr__(name, item)

    def _refill(self, slot: str, quantizer: object) -> None:
        """Give a slot of a built layer another quantizer: a class to resolve, a module, or None."""
        name, before = f"{slot}_quant", getattr(self, f"{slot}_quant", None)
        module = fill_slot(self, slot, quantizer, {}, self.prefixes[slot], self._provided(slot))
        self._replace(name, module)
        try:
            self._check_slots()
        except QuantizerError:
            self._replace(name, before)
            raise
        if module is not None:
            module.train(self.training)
            if module.of_parameter and (module is not quantizer or len(module._served) > 1):
                module.rederive()
        if self._kept:
            self._kept.clear()

    def _replace(self, name: str, module: TensorQuant | None) -> None:
        self.__dict__.pop(name, None)
        self._modules.pop(name, None)
        given: Any = module
        super().__setattr__(name, given)  # torch's own, which tells those who watch registrations

    def _refuse_setting(self, name: str, item: object) -> None:
        """What a quantizer was declared with is no attribute of the layer, to be set afterwards and ignored."""
        if isinstance(item, Tensor | nn.Module) or hasattr(type(self), name):
            return
        if any(name in held for held in (self.__dict__, self._parameters, self._buffers)):
            return
        for slot, prefix in self.prefixes.items():
            quant, setting = getattr(self, f"{slot}_quant", None), name.removeprefix(prefix)
            setting = FORMER_SETTINGS.get(setting, setting)
            declared = getattr(quant, "quantizer", None)
            if declared is None or not name.startswith(prefix) or setting not in {*settings(declared), *IMPLIED}:
                continue
            raise ReadOnlyError(
                f"{Described(self)}: {name}={item!r} can't be set on a layer that is built. Write "
                f"layer.{slot}_quant = {declared(**{setting: item})!r}."
            )

    def train(self, mode: bool = True) -> Self:
        """Switch to training or evaluation; training in a frozen model forgets what was kept."""
        if mode and self._kept:
            self._kept.clear()
        return super().train(mode)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_kept": None}

    def __setstate__(self, state: dict[str, object]) -> None:
        super().__setstate__(state)
        for slot in self.prefixes:
            quant = self._modules.get(f"{slot}_quant")
            if isinstance(quant, TensorQuant):
                quant.serve(self, slot)

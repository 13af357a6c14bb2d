"""Slots: the places of a layer for quantizers, and how the classes and keywords it is given become modules there."""

import inspect
from collections.abc import Mapping
from typing import NamedTuple

from torch import nn

from ..qcore import QuantizerError, TensorQuant, resolve, settings, value
from ..qcore.declare.inject import ROLE, ROOT, QuantizerType, possible_settings, renamed
from ..qcore.errors import FORMER_SETTINGS, IncompleteError, SettingError, nearest
from ..qcore.formats.int_range import check_flag

__all__ = ["Described", "Overrides", "QuantizerLike", "Slot", "checked_flag", "fill_slot", "split_overrides"]


QuantizerLike = QuantizerType | TensorQuant | None  # what a layer takes for a quantizer


class Slot(NamedTuple):
    """A place of a layer for a quantizer: the attribute ``<name>_quant``, and keywords that start with ``<name>_``.

    Args:
        name: what it is called.
        parameter: the parameter that it quantizes; None for a tensor that flows through the layer.
        channel_axis: the dimension of the parameter that counts output channels.
        default: the quantizer that it has unless another is given.
        follows: the slots of input and weight whose product the scale of its quantizer may follow: a bias.
        prefix: what keywords start with, where that is not the name.
        family: names that this slot shares with others of the layer, from wide to narrow: keywords and assignments by
            such a name reach all of them.
        backward: whether it quantizes what flows backward, the gradient of the layer's output.

    Example:
        >>> Slot("weight_ih", "weight_ih_l0").role, Slot("bias", "bias", follows=("input", "weight")).role
        ('weight', 'bias')
        >>> Slot("weight_ih_l0", "weight_ih_l0", family=("weight", "weight_ih")).names
        ('weight', 'weight_ih', 'weight_ih_l0')
    """

    name: str
    parameter: str | None = None
    channel_axis: int = 0
    default: "QuantizerType | None" = None
    follows: tuple[str, str] | None = None
    prefix: str | None = None
    family: tuple[str, ...] = ()
    backward: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """What keywords may call it, from wide to narrow: its families, and its name."""
        return (*self.family, self.name)

    @property
    def role(self) -> str:
        """What a quantizer must be made for: ``"weight"``, ``"bias"``, ``"activation"`` or ``"gradient"``."""
        if self.backward:
            return "gradient"
        return "bias" if self.follows else "weight" if self.parameter else "activation"

    @property
    def example(self) -> str:
        """The name of a quantizer that fits."""
        return _EXAMPLES[self.role]

    @property
    def keywords(self) -> str:
        """What the keywords for its settings start with."""
        return f"{self.name}_" if self.prefix is None else self.prefix


class Overrides(dict[str, object]):
    """Settings for the quantizer of one slot by their names, and the keywords that gave them.

    Example:
        >>> found = Overrides()
        >>> found.give("bit_width", 4, "weight_bit_width")
        >>> found, found.written
        ({'bit_width': 4}, {'bit_width': 'weight_bit_width'})
    """

    def __init__(self) -> None:
        super().__init__()
        self.written: dict[str, str] = {}

    def give(self, name: str, item: object, keyword: str) -> None:
        """Add a setting, in the place of one by a keyword for more slots."""
        self[name], self.written[name] = item, keyword


class Described:
    """The layer as messages name it; put into words only when there is a message."""

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer

    def __str__(self) -> str:
        for base in type(self.layer).__mro__:
            if base.__module__.startswith("torch.nn") and base is not nn.Module:
                return f"{type(self.layer).__name__}({base.extra_repr(self.layer)})"
        return getattr(self.layer, "_title", type(self.layer).__name__)


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
    layer: nn.Module, slots: Mapping[Slot, object], overrides: Mapping[str, object]
) -> dict[str, Overrides]:
    """Sort keywords by the prefix that says which quantizers they are for: ``weight_bit_width=4``.

    A keyword for one slot wins over one for a family of slots.

    Raises:
        QuantizerError: a keyword without a prefix of this layer, or for slots without a quantizer.
    """
    sorted_out = {slot.name: Overrides() for slot in slots}
    found = [(_prefix_of(layer, slots, keyword, item), keyword, item) for keyword, item in overrides.items()]
    depth = {name: rank for slot in slots for rank, name in enumerate(slot.names)}
    for prefix, keyword, item in sorted(found, key=lambda each: depth[each[0]]):  # what is for more slots comes first
        meant = [slot for slot in slots if slot.prefix is None and prefix in slot.names]
        filled = [slot for slot in meant if slots[slot] is not None]
        if not filled:
            raise QuantizerError(
                f"{Described(layer)}: {keyword}={item!r} is given, but {prefix}_quant is None. Write "
                f"{prefix}_quant={meant[0].example} too, or leave {keyword} out."
            )
        for slot in filled:
            sorted_out[slot.name].give(keyword.removeprefix(f"{prefix}_"), item, keyword)
    return sorted_out


def _prefix_of(layer: nn.Module, slots: Mapping[Slot, object], keyword: str, item: object) -> str:
    names = {name for slot in slots if slot.prefix is None for name in slot.names}
    fitting = [name for name in names if keyword.startswith(f"{name}_")]
    no_setting = keyword.endswith("_quant") and not keyword.endswith(f"_{ROOT}")  # such as cell_state_quant
    if not fitting or no_setting:
        raise QuantizerError(_misplaced(layer, slots, keyword, item))
    return max(fitting, key=len)  # weight_ih before weight


def _misplaced(layer: nn.Module, slots: Mapping[Slot, object], keyword: str, item: object) -> str:
    """What to write instead of a keyword that belongs to no slot."""
    widest = {slot: slot.keywords if slot.prefix is not None else f"{slot.names[0]}_" for slot in slots}
    prefixes = ", ".join(dict.fromkeys(widest.values()))
    possible = {
        slot.names[0]: possible_settings(quantizer)
        for slot, quantizer in slots.items()
        if isinstance(quantizer, QuantizerType)
    }
    known = {f"{slot}_{name}" for slot, names in possible.items() for name in names}
    known |= {f"{slot.names[0]}_quant" for slot in slots} | {"return_quant_tensor"}
    holder = next((slot for slot, names in possible.items() if keyword in names), None)
    start, _, rest = keyword.partition("_")
    slot = nearest(start, possible)
    setting = nearest(rest, {*possible[slot], "quant"} - {ROLE}) if slot else None
    close = f"{slot}_{setting}" if setting else nearest(keyword, known)
    guess = f"{holder}_{keyword}" if holder else close
    tail = f" Did you mean {guess}={item!r}?" if guess else ""
    if start == "grad" and "grad" not in possible:
        tail = f" {GRADIENTS}"
    return (
        f"{Described(layer)}: {keyword}={item!r} is for no quantizer of this layer: keywords start with one of "
        f"{prefixes}.{tail}"
    )


GRADIENTS = "Layers with one weight, such as QuantLinear, quantize the gradients that come back to them."


def _asks_for_channels(declared: object) -> bool:
    if not isinstance(declared, value) or "channel_axis" not in declared.function.__code__.co_varnames:
        return False  # before a signature is made, which takes longer
    asked = inspect.signature(declared.function).parameters.get("channel_axis")
    return asked is not None and asked.default is asked.empty


def fill_slot(
    layer: nn.Module,
    slot: Slot,
    quantizer: object,
    overrides: Mapping[str, object],
    provided: Mapping[str, object],
) -> TensorQuant | None:
    """The module for a slot: a quantizer class is resolved, a module of another layer is shared, None is none.

    Raises:
        QuantizerError: something else was given, a setting is unknown or impossible, or keywords come with a
            shared module.
    """
    if quantizer is None:
        return None
    typed = overrides.written if isinstance(overrides, Overrides) else {}
    if isinstance(quantizer, TensorQuant):
        if overrides:
            name, item = next(iter(overrides.items()))
            raise QuantizerError(
                f"{Described(layer)}: {typed.get(name, slot.keywords + name)}={item!r} would change the quantizer "
                f"module that {slot.name}_quant shares with another layer. Give the setting where that module is made, "
                "or pass a quantizer class."
            )
        if quantizer.quantizer is not None:
            _check_role(layer, slot, quantizer.quantizer, {})
        quantizer.serve(layer, slot.name)
        return quantizer
    if not isinstance(quantizer, QuantizerType):
        raise QuantizerError(
            f"{Described(layer)}: {slot.name}_quant={quantizer!r} is not a quantizer. Pass a class such as "
            f"{slot.example}, the quantizer module of another layer to share it, or None."
        )
    example = slot.example
    declared_names = settings(quantizer)
    if ROOT not in declared_names:
        raise QuantizerError(
            f"{Described(layer)}: {slot.name}_quant={quantizer!r} is a fragment, not a quantizer. Put it before a "
            f"complete one: class My{example}({quantizer!r}, {example})."
        )
    if "channel_axis" not in provided and any(_asks_for_channels(each.declared) for each in declared_names.values()):
        raise QuantizerError(
            f"{Described(layer)}: {slot.name}_quant={quantizer!r} has a scale for each output channel of a weight. "
            f"Write {slot.name}_quant=Int8ActPerChannel, which has one for each channel of its input."
        )
    written = {FORMER_SETTINGS.get(name, name): typed.get(name, slot.keywords + name) for name in overrides}
    declared = quantizer(**renamed(overrides, slot.keywords))
    _check_role(layer, slot, declared, written)
    transform = settings(declared).get("transform")
    if slot.role != "weight" and transform is not None and transform.declared is not None:
        raise QuantizerError(
            f"{Described(layer)}: {declared!r} has a transform, which only weights can have, and can't be "
            f"{slot.name}_quant. Write {written.get('transform', 'transform')}=None."
        )
    try:
        module = resolve(declared, provided, where=Described(layer), written=written)
    except IncompleteError as error:
        raise IncompleteError(
            f"{error} Or build on a complete one: {slot.name}_quant={example}, or a subclass of it."
        ) from None
    if not isinstance(module, TensorQuant):
        raise QuantizerError(
            f"{Described(layer)}: {quantizer!r} resolves to {type(module).__name__}, which is no TensorQuant. Its "
            "attribute tensor_quant must be IntQuant or a subclass of TensorQuant."
        )
    if module.follows_input and slot.role != "bias":
        raise QuantizerError(
            f"{Described(layer)}: {quantizer!r} quantizes biases and can't be {slot.name}_quant. Write "
            f"{slot.name}_quant={slot.example}."
        )
    if slot.backward and (not module.calibrated or next(module.parameters(), None) is not None):
        raise QuantizerError(
            f"{Described(layer)}: the scale of {quantizer!r} is measured in forwards or learned from a loss, and a "
            f"gradient's is neither. Write {slot.name}_quant={slot.example}, or scaling='statistic', which follows "
            "each gradient."
        )
    made_of = {"quantizer": declared, "provided": dict(provided), "written": written}
    where = {"of_parameter": slot.parameter is not None, "of_gradient": slot.backward}
    vars(module).update(made_of, **where)  # past nn.Module's bookkeeping
    module.serve(layer, slot.name)
    return module


def _check_role(layer: nn.Module, slot: Slot, quantizer: QuantizerType, written: Mapping[str, str]) -> None:
    """A quantizer says what it is for; another slot than that needs another quantizer."""
    declared, role = settings(quantizer).get(ROLE), slot.role
    made_for = None if declared is None else declared.declared
    if made_for not in (None, *_PLURALS):
        typed = written.get(ROLE, ROLE)
        raise QuantizerError(
            f"{Described(layer)}: {typed}={made_for!r} is not possible: expected 'weight', 'activation', 'bias', "
            "'gradient', or None for any of them."
        )
    if made_for not in (None, role):
        article = "an" if role == "activation" else "a"
        way = f", or say that it quantizes {article} {role} as well: {quantizer!r}(quantizes={role!r})"
        on_products = (
            getattr(settings(quantizer)[ROOT].declared, "follows_input", False) if ROOT in quantizer else False
        )
        raise QuantizerError(
            f"{Described(layer)}: {quantizer!r} quantizes {_PLURALS[made_for]} and can't be {slot.name}_quant. Write "
            f"{slot.name}_quant={slot.example}{'' if on_products else way}."
        )


_PLURALS = {"weight": "weights", "bias": "biases", "activation": "activations", "gradient": "gradients"}
_EXAMPLES = {"weight": "Int8WeightPerTensor", "bias": "Int32Bias", "activation": "Int8Act", "gradient": "Fp8e5m2Grad"}

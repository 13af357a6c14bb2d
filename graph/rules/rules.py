"""Rules: where in a model something is to be quantized, and how."""

import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import BuiltinFunctionType, FunctionType, MethodDescriptorType, WrapperDescriptorType
from typing import Any

import torch
from torch import nn

from ...nn import QuantLayer
from ...qcore import Quantizer
from ...qcore.models import shown
from ..errors import GraphError
from ..layers.table import keywords_of_layers

__all__ = ["End", "Rule", "RulesLike", "first", "is_function", "last", "read_rules", "written"]

Where = type | str | Callable[..., object]
RulesLike = Mapping[Any, object] | Iterable[tuple[object, object]]


@dataclass(frozen=True)
class End:
    """The first or the last layer that can be quantized, of a type if one is given. Made by `first` and `last`.

    Args:
        which: ``"first"`` or ``"last"``.
        kind: the type of layer; None for any layer with weights.

    Example:
        >>> End("first", nn.Linear)
        first(nn.Linear)
    """

    which: str
    kind: type | None = None

    def __repr__(self) -> str:
        return f"{self.which}({'' if self.kind is None else written(self.kind)})"


def first(kind: type | None = None) -> End:
    """The model's first layer with weights: a place for a rule of `quantize`.

    It is the first one called when `quantize` has examples, and the first one defined when it has none.

    Args:
        kind: count only layers of this type.

    Raises:
        GraphError: ``kind`` is not a type of layer.

    Example:
        >>> {first(): dict(weight_bit_width=8), first(nn.Linear): None}
        {first(): {'weight_bit_width': 8}, first(nn.Linear): None}
    """
    return _end("first", kind)


def last(kind: type | None = None) -> End:
    """The model's last layer with weights: a place for a rule of `quantize`.

    It is the last one called when `quantize` has examples, and the last one defined when it has none.

    Args:
        kind: count only layers of this type.

    Raises:
        GraphError: ``kind`` is not a type of layer.

    Example:
        >>> last() == last(), last(nn.Conv2d)
        (True, last(nn.Conv2d))
    """
    return _end("last", kind)


def _end(which: str, kind: object) -> End:
    if kind is None or (isinstance(kind, type) and issubclass(kind, nn.Module)):
        return End(which, kind)
    raise GraphError(f"{which}: {shown(kind)} is not a type of layer. Write {which}(nn.Linear), or {which}().")


@dataclass(frozen=True)
class Rule:
    """One rule as read: a place, and what is to be there.

    Attributes:
        index: its place among the rules, from 0.
        where: a type, a glob on the path, a function, `first` or `last`, a predicate; None for all layers with weights.
        layer: the class that the layers become, if the rule names one.
        settings: keywords of layers; None: leave them float.

    Example:
        >>> rule = read_rules({nn.Linear: dict(weight_bit_width=4)})[0]
        >>> str(rule), rule.settings
        ('nn.Linear', {'weight_bit_width': 4})
    """

    index: int
    where: Any
    layer: type[QuantLayer] | None = None
    settings: Mapping[str, object] | None = field(default_factory=dict)

    def __str__(self) -> str:
        if self.where is not None:
            return written(self.where)
        return ", ".join(f"{name}={_value(item)}" for name, item in (self.settings or {}).items())

    @property
    def is_function(self) -> bool:
        """Whether it is for calls of a function."""
        return is_function(self.where)


def read_rules(given: RulesLike) -> list[Rule]:
    """Rules as a user writes them, read and checked: a mapping or pairs of *where* and *what*.

    Keywords of layers among the keys are settings for all layers with weights, so that ``W8A8`` is a rule by itself.

    Raises:
        GraphError: they are neither, or one of them is no rule.

    Example:
        >>> [str(rule) for rule in read_rules({"weight_bit_width": 4, "head": None, first(): dict(weight_bit_width=8)})]
        ['weight_bit_width=4', '"head"', 'first()']
    """
    rules: list[Rule] = []
    for where, what in _pairs(given):
        if _is_setting(where, what):
            assert isinstance(where, str)
            before = rules[-1] if rules and rules[-1].where is None else None
            if before is not None:
                rules[-1] = Rule(before.index, None, None, {**(before.settings or {}), where: what})
            else:
                rules.append(Rule(len(rules), None, None, {where: what}))
            continue
        rules.append(_rule(len(rules), where, what))
    if not rules:
        raise GraphError(
            "quantize: there are no rules, so nothing would be quantized. Pass W8A8, or {nn.Linear: W8A8}."
        )
    return rules


def _value(item: object) -> str:
    return getattr(item, "__name__", "") or repr(item)


def _pairs(given: RulesLike) -> list[tuple[object, object]]:
    if isinstance(given, Mapping):
        return list(given.items())
    pairs = list(given) if isinstance(given, Iterable) and not isinstance(given, str) else None
    if pairs is None or not all(isinstance(pair, tuple) and len(pair) == 2 for pair in pairs):
        raise GraphError(
            f"quantize: rules={shown(given)} is not possible: expected a mapping or a list of pairs. Write "
            "{nn.Linear: W8A8, 'head': None}, or [(nn.Linear, W8A8), ('head', None)]."
        )
    return pairs


def _is_setting(where: object, what: object) -> bool:
    """Whether a key is a keyword of layers, and no path: by its name, or as nothing else could have such a value."""
    if not isinstance(where, str):
        return False
    if where in keywords_of_layers():
        return not isinstance(what, Mapping)
    is_layer = isinstance(what, type) and issubclass(what, nn.Module)
    return what is not None and not is_layer and not isinstance(what, Mapping) and where.isidentifier() and "_" in where


_SLOTS = {"activation": "input", "bias": "bias", "gradient": "grad"}  # the usual slot, by what a quantizer is for


def _rule(index: int, where: object, what: object) -> Rule:
    if not _is_place(where):
        raise GraphError(
            f"quantize: {shown(where)} is no place in a model. Write a type of layer (nn.Linear), a path with or "
            "without wildcards ('layer1.*'), a function (torch.add), first(), last(), or a function of path and module."
        )
    if what is None:
        return Rule(index, where, None, None)
    if isinstance(what, type) and issubclass(what, QuantLayer):
        return Rule(index, where, what)
    if isinstance(what, Mapping):
        for keyword in what:
            if not isinstance(keyword, str):
                raise GraphError(
                    f"quantize: the rule {written(where)} has the setting {shown(keyword)}. Settings are keywords of "
                    "layers, such as weight_bit_width=4."
                )
        return Rule(index, where, None, dict(what))
    if isinstance(what, type) and issubclass(what, Quantizer):
        slot = _SLOTS.get(str(getattr(what, "quantizes", None)), "weight")
        raise GraphError(
            f"quantize: the rule {written(where)} says {shown(what)}, a quantizer, but not of what. Write the keyword "
            f"of layers with it, such as dict({slot}_quant={shown(what)})."
        )
    raise GraphError(
        f"quantize: the rule {written(where)} says {shown(what)}. Write keywords of layers "
        "(dict(weight_bit_width=4), or W8A8), a quantized layer (qnn.QuantLinear), or None to leave it float."
    )


def _is_place(where: object) -> bool:
    if isinstance(where, type):
        return issubclass(where, nn.Module)
    return isinstance(where, str | End) or callable(where)


def is_function(where: object) -> bool:
    """Whether a place is calls of a function of torch or an operator, not a user's predicate.

    Example:
        >>> import torch
        >>> is_function(torch.add), is_function(nn.functional.softmax), is_function(lambda path, module: True)
        (True, True, False)
    """
    if isinstance(where, type | str | End) or where is None:
        return False
    if isinstance(where, BuiltinFunctionType | MethodDescriptorType | WrapperDescriptorType):
        return True
    module = getattr(where, "__module__", None) or ""
    return isinstance(where, FunctionType) and (module == "torch" or module.startswith("torch."))


def written(where: object) -> str:
    """A place as a user writes it: ``nn.Conv2d``, ``"layer1.*"``, ``torch.add``.

    Example:
        >>> import torch
        >>> [written(each) for each in (nn.Conv2d, "layer1.*", torch.add, first())]
        ['nn.Conv2d', '"layer1.*"', 'torch.add', 'first()']
    """
    if isinstance(where, str):
        return f'"{where}"'
    if isinstance(where, End):
        return repr(where)
    name = getattr(where, "__name__", None) or type(where).__name__
    if isinstance(where, type):
        module = where.__module__
        short = "nn" if getattr(nn, name, None) is where else "qnn" if module.startswith("bitwright.nn") else ""
        return f"{short}.{name}" if short else name
    if not is_function(where):
        return name
    for space, short in (
        (torch, "torch"),
        (nn.functional, "F"),
        (torch.Tensor, "torch.Tensor"),
        (operator, "operator"),
    ):
        if getattr(space, name, None) is where:
            return f"{short}.{name}"
    return name

"""What rules come to for every layer: settings, the rule that each is from, or why the layer stays float."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin

from ...nn import QuantLayer, Slot
from ...qcore import QuantizerError
from ..errors import GraphError
from ..layers.layers import Layer, counted, plain_class
from ..layers.own_forward import quantized_subclass
from ..layers.table import (
    has_weights,
    keywords_of_layers,
    multiplies,
    name_in,
    slot_names,
    slot_of,
    slots_for,
    torch_layer,
)
from .given import Given
from .rules import End, Rule, written

__all__ = ["Choice", "choose", "has_place"]


@dataclass(eq=False)
class Choice:
    """What is decided for one layer.

    Attributes:
        layer: the layer.
        quantized: the class that it becomes; None: it stays float.
        settings: keyword arguments of that class.
        float_reason: why it stays float.
        known: the names of slots, and of families of slots, that any layer of the model would have.
        by_class: whether a rule gives the class, which has its own usual quantizers.
    """

    layer: Layer
    quantized: type[QuantLayer] | None = None
    settings: dict[str, Given] = field(default_factory=dict)
    float_reason: str = ""
    known: frozenset[str] = frozenset()
    by_class: bool = False

    def keywords(self) -> dict[str, object]:
        """The settings without their rules."""
        return {keyword: given.value for keyword, given in self.settings.items()}

    def slot(self, keyword: str) -> Slot | None:
        """The slot, or family of slots, that a keyword is for."""
        layer = self.quantized or self.layer.quantized
        return None if layer is None else slot_of(layer, keyword, self.layer.module)

    def set(self, keyword: str, value: object, why: str) -> None:
        """Decide a setting that no rule gives."""
        self.settings[keyword] = Given(value, (why,))

    def quantizer(self, slot: str) -> object:
        """The quantizer that a slot would get; None without such a slot."""
        assert self.quantized is not None
        given = self.settings.get(f"{slot}_quant")
        usual = next((each for each in self.quantized.slots if each.name == slot), None)
        if given is not None or usual is None:
            return None if given is None else given.value
        return self.quantized.usual_quantizer(usual)


def choose(
    model: nn.Module,
    layers: Sequence[Layer],
    rules: Iterable[Rule],
    elsewhere: Collection[int] = (),
    sites: Sequence[str] = (),
) -> list[Choice]:
    """Apply rules for layers, later ones over earlier ones.

    Args:
        model: what the rules are for.
        layers: of the model.
        rules: in their order; those for functions are left alone.
        elsewhere: the numbers of the rules that have matched something else already.
        sites: paths of functions, as messages name them.

    Raises:
        GraphError: a rule matches nothing, names a layer that can't be quantized, or has a setting that none of its
            layers can use.

    Example:
        >>> from ..layers.layers import layers_of
        >>> from .rules import read_rules
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
        >>> rules = read_rules({nn.Linear: dict(weight_bit_width=4), "0": dict(weight_bit_width=3)})
        >>> [(choice.layer.path, choice.keywords()) for choice in choose(model, layers_of(model), rules)]
        [('0', {'weight_bit_width': 3}), ('1', {})]
    """
    known = frozenset(name for layer in layers for name in _names(layer))
    choices = [Choice(layer, float_reason=layer.refused or _no_layer(layer), known=known) for layer in layers]
    reached: list[tuple[Rule, list[Choice]]] = []
    for rule in rules:
        lazy = [layer for layer in layers if isinstance(layer.module, LazyModuleMixin)]
        if rule.where is None and lazy:
            raise _unable(rule, lazy)
        meant = [] if rule.is_function else _matched(rule, layers)
        matched = [choice for choice in choices if choice.layer in meant]
        if matched:
            reached.append((rule, _apply(rule, matched)))
        elif rule.index not in elsewhere:
            raise _matched_nothing(rule, model, layers, sites)
    for choice in choices:
        _drop_homeless(choice)
        _quantize_inputs_inside(choice)
        _leave_inside_float(choice)
    for rule, found in reached:
        _check_used(rule, found, rule.index in elsewhere)
    return choices


def _no_layer(layer: Layer) -> str:
    if layer.quantized is None:
        return f"there is no quantized layer for {type(layer.module).__name__}"
    return "no rule is for it"


def _names(layer: Layer) -> set[str]:
    """The names of the slots that a layer would have, and of their families."""
    if layer.quantized is None:
        return set()
    return {name for slot in slots_for(layer.quantized, layer.module) for name in slot.names}


# Where


def _matched(rule: Rule, layers: Sequence[Layer]) -> list[Layer]:
    """The layers that a rule's place means, whether or not it can do something for them."""
    where = rule.where
    if where is None:
        return [layer for layer in layers if layer.quantized is not None and multiplies(layer.quantized)]
    if isinstance(where, End):
        kind = where.kind or nn.Module
        able = [
            layer
            for layer in layers
            if layer.quantized is not None
            and isinstance(layer.module, kind)
            and (where.kind is not None or multiplies(layer.quantized))
        ]
        return able[:1] if where.which == "first" else able[-1:]
    meant = _test_of(where)
    return [layer for layer in layers if any(meant(path, layer.module) for path in layer.paths)]


def _test_of(where: object) -> Callable[[str, nn.Module], object]:
    if isinstance(where, type):
        return lambda path, module: isinstance(module, where) and not isinstance(module, QuantLayer)
    if isinstance(where, str):
        return lambda path, module: fnmatchcase(path, where)
    assert callable(where)
    return where


def _apply(rule: Rule, matched: Sequence[Choice]) -> list[Choice]:
    """Change what is decided for the layers that a rule matches; those for which it has something are returned."""
    if rule.settings is None and rule.layer is None:
        for choice in matched:
            if choice.quantized or choice.layer.quantized:
                choice.quantized, choice.settings, choice.float_reason = None, {}, f"by the rule {rule}"
        return list(matched)
    if rule.layer is not None:
        able = [choice for choice in matched if not choice.layer.refused]
        for choice in able:
            _give_class(rule, rule.layer, choice)
    else:
        able = [choice for choice in matched if choice.quantized or choice.layer.quantized]
    if not able:
        raise _unable(rule, [choice.layer for choice in matched])
    alone = _is_alone(able)
    for choice in able if rule.layer is None else ():
        own = _settings_for(rule, choice, alone)
        if own or (not rule.settings and _is_about(rule, choice, alone)):
            _merge(choice, own, rule)
    return able


def _give_class(rule: Rule, layer: type[QuantLayer], choice: Choice) -> None:
    base, module = torch_layer(layer), choice.layer.module
    if base is None or not isinstance(module, base):
        found, usual = type(module).__name__, choice.layer.quantized
        which = (
            f"{written(usual)}, or a class that extends it" if usual else f"a class that extends QuantLayer and {found}"
        )
        raise GraphError(
            f"quantize: {choice.layer.name} is {found}, and can't become {layer.__name__}, which the rule {rule} "
            f"says: that is no quantized {found}. Write {which}."
        )
    try:
        choice.quantized, choice.float_reason = quantized_subclass(plain_class(module), base, layer), ""
        choice.by_class = True
    except QuantizerError as error:
        raise GraphError(f"quantize: {choice.layer.name}, by the rule {rule}: {error}") from None


def _settings_for(rule: Rule, choice: Choice, alone: bool) -> dict[str, object]:
    """The settings of a rule that a layer has slots for.

    Layers without weights are not what a glob or a predicate is about, unless it has settings that only they can have.
    """
    layer = choice.quantized or choice.layer.quantized
    assert layer is not None
    assert rule.settings is not None
    module = choice.layer.module
    own = {key: value for key, value in rule.settings.items() if has_place(layer, key, module, choice.known)}
    mains = {slot.name for slot in layer.slots if slot.prefix == ""}
    named = any(slot is not None and slot.name in mains for slot in map(choice.slot, own))
    return own if named or choice.quantized is not None or _is_about(rule, choice, alone) else {}


def _is_about(rule: Rule, choice: Choice, alone: bool) -> bool:
    """Whether a rule means a layer whatever its settings are.

    A type means all its layers. A path or a predicate means those that multiply by matrices; where it matches none of
    these, embeddings and norms, too.
    """
    layer = choice.quantized or choice.layer.quantized
    if layer is None:
        return False
    return isinstance(rule.where, type) or multiplies(layer) or (alone and has_weights(layer))


def _is_alone(reached: Sequence[Choice]) -> bool:
    """Whether none of the layers that a rule matches multiplies by a matrix."""
    layers = (choice.quantized or choice.layer.quantized for choice in reached)
    return not any(layer is not None and multiplies(layer) for layer in layers)


def has_place(layer: type[QuantLayer], keyword: str, module: nn.Module, known: Collection[str] = ()) -> bool:
    """Whether a keyword is for a slot that a layer will have, once a module has become one.

    Args:
        layer: what the module would become.
        keyword: such as ``weight_bit_width``.
        module: the module.
        known: names of slots of other layers: a keyword that starts with a longer one is for these.

    Example:
        >>> import bitwright.nn as qnn
        >>> has_place(qnn.QuantLinear, "bias_quant", nn.Linear(2, 2, bias=False))
        False
        >>> has_place(qnn.QuantLinear, "weight_hh_bit_width", nn.Linear(2, 2), ["weight_hh"])
        False
    """
    if keyword == "return_quant_tensor":
        return "return_quant_tensor" in {
            name for base in layer.__mro__ for name in vars(base).get("__annotations__", ())
        }
    meant = slot_of(layer, keyword, module)
    if meant is None:
        return False
    slots = slots_for(layer, module)
    name = name_in(slots, keyword)
    if name is None:  # a setting without a prefix, or of a part of the layer
        return meant.prefix == "" or any(keyword.startswith(f"{part}_") for part in getattr(layer, "parts", ()))
    if any(len(each) > len(name) and keyword.startswith(f"{each}_") for each in known):
        return False
    parameters = [slot.parameter for slot in slots if name in slot.names]
    return any(each is None or _parameter(module, each) is not None for each in parameters)


def _parameter(module: nn.Module, name: str) -> object:
    """A parameter of a module, or of a part of it; None if there is none."""
    path, _, last = name.rpartition(".")
    try:
        return getattr(module.get_submodule(path), last, None)
    except AttributeError:
        return None


def _merge(choice: Choice, own: Mapping[str, object], rule: Rule) -> None:
    """Later settings over earlier ones; a quantizer starts its slot anew."""
    choice.quantized = choice.quantized or choice.layer.quantized
    choice.float_reason = ""
    assert choice.quantized is not None
    for keyword in own:
        slot = choice.slot(keyword)
        former = [each for each in choice.settings if slot is not None and choice.slot(each) == slot]
        for each in former:
            if slot is not None and _starts_anew(slot, keyword, each):
                del choice.settings[each]
    choice.settings |= {keyword: Given(value, (str(rule),), (rule.index,)) for keyword, value in own.items()}


def _starts_anew(slot: Slot, keyword: str, former: str) -> bool:
    """Whether a setting undoes a former one for the same slots, or for some of them."""
    if keyword == f"{slot.name}_quant":
        return True
    if keyword.endswith("_quant"):  # of some of a family
        return former.startswith(keyword.removesuffix("quant"))
    wide = keyword.startswith(slot.keywords) and former != keyword
    return wide and former.endswith(f"_{keyword.removeprefix(slot.keywords)}")


def _drop_homeless(choice: Choice) -> None:
    """A setting for a slot that has got no quantizer goes nowhere: "input_bit_width" where no input is quantized."""
    if choice.quantized is None:
        return
    for keyword in list(choice.settings):
        slot = choice.slot(keyword)
        if slot is not None and not keyword.endswith("_quant") and not _is_filled(choice, slot):
            del choice.settings[keyword]


def _quantize_inputs_inside(choice: Choice) -> None:
    """Let what a rule says of the input go for the input of the last matrix of attention, too."""
    slots = [] if choice.quantized is None else [slot.name for slot in choice.quantized.slots]
    if "context" not in slots or any(key.startswith("context_") for key in choice.settings):
        return
    for keyword, given in list(choice.settings.items()):
        if keyword.startswith("input_"):
            choice.settings[f"context_{keyword.removeprefix('input_')}"] = given


def _leave_inside_float(choice: Choice) -> None:
    """Leave float what flows inside of a layer, unless a rule quantizes its input, or names what flows there.

    So a rule for weights alone is one for recurrent layers and attention, too, and needs no calibration.
    """
    if choice.quantized is None or choice.by_class or choice.quantizer("input") is not None:
        return
    for slot in choice.quantized.slots:
        if slot.role != "activation" or slot.prefix is not None or slot.name in ("input", "output"):
            continue
        own = (each for each in choice.settings if choice.slot(each) == slot)
        if choice.quantizer(slot.name) is not None and not any(own):
            choice.set(f"{slot.name}_quant", None, "its input is not quantized")


def _is_filled(choice: Choice, slot: Slot) -> bool:
    """Whether a slot, or one of its family, gets a quantizer."""
    if choice.quantizer(slot.name) is not None:
        return True
    own = (each for each in choice.settings if each.endswith("_quant") and choice.slot(each) == slot)
    return any(choice.settings[each].value is not None for each in own)


def _check_used(rule: Rule, reached: Sequence[Choice], elsewhere: bool) -> None:
    """Every setting of a rule has a slot in one of its layers, whatever later rules make of that."""
    if rule.settings is None or rule.layer is not None or elsewhere:
        return
    alone = _is_alone(reached)
    for keyword, value in rule.settings.items():
        usable = [choice for choice in reached if keyword in _settings_for(rule, choice, alone)]
        if not usable:
            if _is_without(keyword, reached) and any(_settings_for(rule, choice, alone) for choice in reached):
                continue  # layers without a bias, and a rule that says more
            raise _unused(rule, keyword, value, reached)
        if keyword.endswith("_quant") or keyword == "return_quant_tensor":
            continue
        if not any(_finds_quantizer(choice, keyword) for choice in usable):
            slot = usable[0].slot(keyword)
            assert slot is not None
            raise GraphError(
                f"quantize: {keyword}={value!r} of the rule {rule} changes no quantizer: {slot.name}_quant is None in "
                f"{_few([choice.layer.name for choice in usable])}. Write {slot.name}_quant={slot.example} too."
            )


def _is_without(keyword: str, reached: Sequence[Choice]) -> bool:
    """Whether layers have the slot that a setting is for, and not the parameter: a bias."""
    for choice in reached:
        slot = choice.slot(keyword)
        if slot is not None and slot.parameter is not None and _parameter(choice.layer.module, slot.parameter) is None:
            return True
    return False


def _finds_quantizer(choice: Choice, keyword: str) -> bool:
    if choice.quantized is None:  # a later rule leaves it float
        return True
    slot = choice.slot(keyword)
    return slot is None or _is_filled(choice, slot)


# Messages


def _matched_nothing(rule: Rule, model: nn.Module, layers: Sequence[Layer], sites: Sequence[str]) -> GraphError:
    where = rule.where
    if isinstance(where, str):
        containers = {path: module for path, module in model.named_modules() if path and fnmatchcase(path, where)}
        if containers:
            path, module = next(iter(containers.items()))
            whole = next((each for each in layers for own in each.paths if path.startswith(f"{own}.")), None)
            if whole is not None:
                return _part(where, path, whole)
            return GraphError(
                f'quantize: the rule "{where}" matches {path}, a {type(module).__name__}, which holds layers and is '
                f'none. Write "{where}.*".'
            )
        functions = [path for path in sites if fnmatchcase(path, where)]
        if functions:
            return GraphError(
                f'quantize: the rule "{where}" matches functions only ({_few(functions)}), and a wildcard chooses '
                "layers. Write the function, such as torch.add, or each path."
            )
        names = [*(path for layer in layers for path in layer.paths), *sites]
        close = get_close_matches(where, names, 3, 0.6)
        near = f" Near it {'is' if len(close) == 1 else 'are'} {', '.join(sorted(close))}." if close else ""
        listed = near or f" This model's layers are {_few(names)}."
        return GraphError(f'quantize: the rule "{where}" matched nothing.{listed}')
    return GraphError(f"quantize: the rule {rule} matched nothing. This model's layers are {counted(layers)}.")


def _part(where: str, path: str, whole: Layer) -> GraphError:
    """A rule for what is inside of a layer that is quantized as one."""
    part = path.removeprefix(f"{whole.path}.").replace(".", "_")
    fitting = sorted(name for name in _names(whole) if name.startswith(part))
    hint = f", with keywords such as {fitting[-1]}_bit_width=4" if fitting else ""
    return GraphError(
        f'quantize: the rule "{where}" matches {path}, which is a part of {whole.name} '
        f'({type(whole.module).__name__}) and no layer by itself. Write "{whole.name}"{hint}.'
    )


def _unable(rule: Rule, layers: Sequence[Layer]) -> GraphError:
    refused = [layer for layer in layers if layer.refused]
    if refused:
        found = refused[0]
        kind = type(found.module).__name__
        return GraphError(f"quantize: the rule {rule} is for {found.name} ({kind}), and {found.refused}.")
    return GraphError(
        f"quantize: the rule {rule} matched only layers that have no quantized form: {counted(layers)}. Write None for "
        "them, or nothing."
    )


def _unused(rule: Rule, keyword: str, value: object, reached: Sequence[Choice]) -> GraphError:
    layers = [choice.layer for choice in reached]
    able = [(layer.quantized, layer.module) for layer in layers if layer.quantized is not None]
    known = [f"{slot.keywords}{_bare(keyword)}" for cls, _ in able for slot in cls.slots]
    fitting = [each for each in known if any(has_place(cls, each, module) for cls, module in able)]
    guess = get_close_matches(keyword, dict.fromkeys(fitting), 1, 0.5)
    guess = [each for each in fitting if each.startswith("weight_")][:1] if _bare(keyword) == keyword else guess
    guess = [] if keyword in keywords_of_layers() else guess
    hint = f" Did you mean {guess[0]}?" if guess else ""
    return GraphError(
        f"quantize: no layer that the rule {rule} matches has a slot for {keyword}={value!r}. They are "
        f"{counted(layers)}.{hint}"
    )


def _bare(keyword: str) -> str:
    """A setting without the prefix of a slot."""
    fitting = [name for name in slot_names() if keyword.startswith(f"{name}_")]
    return keyword.removeprefix(f"{max(fitting, key=len)}_") if fitting else keyword


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more}"

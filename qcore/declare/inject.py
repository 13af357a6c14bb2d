"""The declaration language: a quantizer is a class whose body is data.

An attribute holds a plain value, a class (instantiated by matching the names of its ``__init__`` arguments to
attributes), or a `value` function (an attribute derived from others). Nothing is built until a layer resolves the
quantizer; the instantiation is done by the package ``dependencies``, which only this module imports.

This module needs no torch.
"""

import copyreg
import inspect
import sys
import warnings
import weakref
from collections.abc import Callable, Container, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import Any

from ..errors import (
    FORMER_SETTINGS,
    IncompleteError,
    QuantizerError,
    ReadOnlyError,
    SettingError,
    nearest,
    prefix_of,
)

with warnings.catch_warnings():  # it deprecates itself on import; a user may have turned warnings into errors
    warnings.simplefilter("ignore", DeprecationWarning)
    import dependencies
    from dependencies.exceptions import DependencyError

__all__ = [
    "IMPLIED",
    "ROLE",
    "ROOT",
    "Changing",
    "Quantizer",
    "QuantizerType",
    "Resolution",
    "Setting",
    "choices_of",
    "diff",
    "frozen",
    "possible_settings",
    "register_choices",
    "resolution",
    "resolve",
    "settings",
    "value",
]

ROLE = "quantizes"  # "weight", "activation" or "bias"; None: anything. It is for slots, no part takes it
ROOT = "tensor_quant"  # the attribute that a layer asks for; everything else is reached from it


class value(dependencies.value):  # noqa: N801 - a decorator, spelled as such
    """Marks a function in a quantizer's body: its result, computed from other attributes, is the attribute's value.

    Args:
        function: its parameters name the attributes it is computed from; a default makes one optional.

    Example:
        >>> class Narrow(Quantizer):
        ...     bit_width = 4
        ...
        ...     @value
        ...     def levels(bit_width):
        ...         return 2**bit_width - 1
        >>> Narrow.levels
        value(levels)
    """

    def __init__(self, function: Callable[..., object]) -> None:
        if not inspect.isfunction(function):
            raise QuantizerError(f"@value marks a function, not {function!r}. Write `name = ...` for anything else.")
        super().__init__(function)
        self.function = function

    def __repr__(self) -> str:
        return f"value({self.function.__name__})"


@dataclass(frozen=True)
class Setting:
    """One attribute of a quantizer.

    Attributes:
        name: of the attribute.
        declared: its value, as written in the class body or as keyword.
        owner: the class that declares it; None where the layer gives it (its shape, its device ...).

    Example:
        >>> from bitwright.quantizers import Int8Act
        >>> settings(Int8Act(bit_width=4))["bit_width"].declared
        4
    """

    name: str
    declared: Any
    owner: "QuantizerType | None"

    @property
    def injected(self) -> Any:
        """What is injected: a choice written as a string stands for a class."""
        choices = _choices.get(self.name)
        if choices is None or not isinstance(self.declared, str):
            return self.declared
        if self.declared not in choices:
            guess = nearest(self.declared, choices)
            remedy = f"Write {self.name}={guess!r}." if guess else ""
            raise SettingError(self.name, self.declared, f"one of {', '.join(map(repr, choices))}", remedy)
        return choices[self.declared]


class Changing:
    """Base of values that stand for a number which changes in training, see `Anneal`.

    A class that is given one for a parameter names it in its attribute ``anneals``; others refuse it.
    """

    start: float


_choices: dict[str, Mapping[str, type]] = {}


def register_choices(name: str, choices: Mapping[str, type]) -> Mapping[str, type]:
    """Let the attribute ``name`` be written as one of the strings that ``choices`` maps to classes.

    Returns ``choices``, so that the dict stands beside the classes it names.

    Example:
        >>> from bitwright.qcore import SCALINGS
        >>> SCALINGS["learned"].__name__
        'LearnedScaling'
    """
    _choices[name] = choices
    return choices


def choices_of(name: str) -> Mapping[str, type]:
    """The strings that may stand for an attribute, with the classes that they name; empty where there are none.

    Example:
        >>> import bitwright.qcore
        >>> list(choices_of("zero_point"))
        ['range', 'learned', 'hqo']
    """
    return _choices.get(name, {})


# Settings that say how another one is meant: `scale=2**-7` is a constant scale, whatever the base class collects.
IMPLIED = {"scale": ("scaling", "constant"), "max_value": ("scaling", "constant")}


def renamed(given: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by their present names: former names of settings and choices go with version 0.3.

    Raises:
        QuantizerError: one setting by both names.
    """
    found = {}
    for name, item in given.items():
        present = FORMER_SETTINGS.get(name, name)
        chosen = "calibrated" if name == "scaling" and isinstance(item, str) and item == "collected" else item
        if present != name and present in given:
            raise QuantizerError(
                f"{prefix}{name}={_show(item)} and {prefix}{present}={_show(given[present])} are the same setting by "
                f"its former and its present name. Write {prefix}{present} alone."
            )
        if present != name or chosen is not item:
            said = (
                f"{prefix}{name}={item!r} is now {prefix}{present}={chosen!r}: the former name goes with version 0.3."
            )
            warnings.warn(said, DeprecationWarning, stacklevel=_of_the_user())
        found[present] = chosen
    return found


def _of_the_user() -> int:
    """How far up the stack the code lies that called this library: where a warning of the caller points at."""
    own, frame, level = __name__.partition(".")[0], sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == own:
        frame, level = frame.f_back, level + 1
    return level


class QuantizerType(type):
    """The type of quantizers: calling one derives another, and they compare, hash, print and pickle as values.

    Example:
        >>> from bitwright.quantizers import Int8Act
        >>> isinstance(Int8Act(bit_width=4), QuantizerType), Int8Act(bit_width=4) == Int8Act(bit_width=4)
        (True, True)
    """

    def __new__(mcls, name: str, bases: tuple[type, ...], namespace: dict[str, object]) -> "QuantizerType":
        for base in bases:
            if not isinstance(base, QuantizerType):
                raise QuantizerError(
                    f"{name} has the base {base.__name__}, which is not a quantizer. Put {base.__name__} into an "
                    f"attribute of {name}, such as `scaling = {base.__name__}`."
                )
        namespace = renamed(namespace)
        for given, (implied, choice) in IMPLIED.items():
            if given in namespace and implied not in namespace and not _takes(bases, implied, given):
                namespace[implied] = choice
        return super().__new__(mcls, name, bases, namespace)

    def __call__(cls, **overrides: object) -> Any:  # Any: type checkers would take the result for an instance
        """Derive a quantizer with some attributes replaced. ``Q()`` is ``Q``."""
        if not overrides:
            return cls
        base: QuantizerType = cls
        given = renamed(overrides)
        if "__overrides__" in vars(cls):
            base, given = cls.__bases__[0], {**vars(cls)["__overrides__"], **given}
        for name in given:
            if name.startswith("__"):
                raise QuantizerError(f"{base!r}: {name} can't be a setting, names with two underscores are Python's.")
        key: tuple[object, ...] | None = (base, tuple(sorted((name, frozen(item)) for name, item in given.items())))
        try:
            found = _derived.get(key)
        except TypeError:  # a value that can't be hashed: not interned, still equal to one built alike
            found, key = None, None
        if found is None:
            expression = f"{base!r}({', '.join(f'{name}={_show(item)}' for name, item in given.items())})"
            namespace = {**given, "__overrides__": given, "__module__": base.__module__, "__qualname__": expression}
            found = QuantizerType(expression, (base,), namespace)
            if key is not None:
                _derived[key] = found
        return found

    def __setattr__(cls, name: str, item: object) -> None:
        raise ReadOnlyError(
            f"{cls!r} is a value and can't be changed. Derive another: {cls!r}({name}={_show(item)}), or a subclass."
        )

    def __delattr__(cls, name: str) -> None:
        raise ReadOnlyError(f"{cls!r} is a value and can't be changed. Derive another, with {name} set as you need.")

    def __repr__(cls) -> str:
        return cls.__qualname__ if "__overrides__" in vars(cls) else cls.__name__

    def __eq__(cls, other: object) -> bool:
        return cls is other or (isinstance(other, QuantizerType) and cls._key() == other._key())

    def __hash__(cls) -> int:
        if "__overrides__" in vars(cls):  # their order is of no account
            return hash((cls.__bases__, frozenset(vars(cls)["__overrides__"])))
        return hash((cls.__module__, cls.__qualname__))

    def __contains__(cls, name: str) -> bool:
        return name in settings(cls)

    def _key(cls) -> tuple[object, ...]:
        cached = vars(cls).get("__key__")
        if cached is None:
            bases = tuple(base._key() for base in cls.__bases__ if isinstance(base, QuantizerType))
            if "__overrides__" in vars(cls):
                own = tuple(sorted((name, frozen(item)) for name, item in vars(cls)["__overrides__"].items()))
                cached = (bases, own)
            else:
                own = tuple((name, frozen(item)) for name, item in _own(cls).items())
                cached = (cls.__module__, cls.__qualname__, bases, own)
            type.__setattr__(cls, "__key__", cached)
        return cached


class Quantizer(metaclass=QuantizerType):
    """Base class of every quantizer and of every fragment of one.

    A quantizer is never instantiated by its user: a layer resolves it into modules. Calling it derives another.

    Raises:
        QuantizerError: where a layer resolves it, for settings that are unknown, missing, unused or impossible.

    Example:
        >>> class Declared(Quantizer):
        ...     bit_width = 8
        >>> Declared(bit_width=4)
        Declared(bit_width=4)
        >>> Declared(bit_width=4) == Declared(bit_width=4)
        True
        >>> Declared(bit_width=4).bit_width
        4
    """


_derived: "weakref.WeakValueDictionary[object, QuantizerType]" = weakref.WeakValueDictionary()  # one object a value


def _own(cls: type) -> dict[str, object]:
    """The attributes in a class's own body; Python's own (dunder) names are no settings."""
    return {name: item for name, item in vars(cls).items() if not (name.startswith("__") and name.endswith("__"))}


def _show(item: object) -> str:
    """How a setting's value is written in source: classes and functions by name."""
    return getattr(item, "__name__", None) or repr(item) if callable(item) else repr(item)


def _takes(bases: tuple[type, ...], name: str, parameter: str) -> bool:
    """Does what the bases declare as ``name`` take the parameter already?"""
    for base in bases:
        declared = getattr(base, name, None)
        if declared is not None:
            return parameter in {each.name for each in _needs(name, Setting(name, declared, None).injected)}
    return False


def frozen(item: Any) -> Any:
    """Something that is equal for equal settings, hashable where it can be: 4, 4.0 and True are not alike.

    Example:
        >>> frozen(1) == frozen(True), frozen([1, 2]) == frozen([1, 2])
        (False, True)
    """
    if type(item) in _PLAIN:
        return (type(item), item)  # 4 and 4.0 and True are equal, but not alike
    if isinstance(item, value):
        return ("value", frozen(item.function))
    if inspect.isfunction(item):
        keywords = frozen(item.__kwdefaults__ or {})
        code = (item.__module__, item.__qualname__, item.__code__, frozen(item.__defaults__ or ()), keywords)
        return (*code, item.__closure__) if item.__closure__ else code  # cells compare by content
    if isinstance(item, dict):
        return ("dict", tuple(sorted((key, frozen(each)) for key, each in item.items())))
    if isinstance(item, (list, tuple)):
        return (type(item).__name__, tuple(frozen(each) for each in item))
    if hasattr(item, "tolist") and hasattr(item, "shape"):  # a tensor or an array: its == is elementwise
        return (type(item), str(item.dtype), tuple(item.shape), repr(item.tolist()))
    return (type(item), item)


_PLAIN = (int, float, str, bool, type(None), type)


def _rebuild(name: str, bases: tuple[type, ...], namespace: dict[str, object]) -> QuantizerType:
    return QuantizerType(name, bases, namespace)


def _derive(base: QuantizerType, overrides: dict[str, object]) -> QuantizerType:
    return base(**overrides)


def _reduce(cls: QuantizerType) -> Any:
    """By expression if derived, by name if importable, else (a class made in a function) by content."""
    if "__overrides__" in vars(cls):
        return _derive, (cls.__base__, vars(cls)["__overrides__"])
    found: Any = sys.modules.get(cls.__module__)
    for part in cls.__qualname__.split("."):
        found = getattr(found, part, None)
    if found is cls:
        return cls.__qualname__
    names = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
    return _rebuild, (cls.__name__, cls.__bases__, {**names, **_own(cls)})


copyreg.pickle(QuantizerType, _reduce)  # it may return a name, as pickle documents


def settings(quantizer: QuantizerType) -> dict[str, Setting]:
    """Every attribute of a quantizer by name, with the class that has the last word on it (Python's own order).

    Example:
        >>> class Base(Quantizer):
        ...     bit_width = 8
        >>> settings(Base(bit_width=2))["bit_width"]
        Setting(name='bit_width', declared=2, owner=Base(bit_width=2))
    """
    found: dict[str, Setting] | None = vars(quantizer).get("__settings__")
    if found is None:
        found = {}
        for cls in reversed(quantizer.__mro__):
            if isinstance(cls, QuantizerType):
                for name, item in _own(cls).items():
                    found[name] = Setting(name, item, cls)
        type.__setattr__(quantizer, "__settings__", found)
    return dict(found)


def diff(one: QuantizerType, other: QuantizerType) -> dict[str, tuple[object, object]]:
    """The attributes in which two quantizers differ, each with both values; ``...`` where one has no such attribute.

    Example:
        >>> from bitwright.quantizers import Int8WeightPerTensor
        >>> diff(Int8WeightPerTensor, Int8WeightPerTensor(bit_width=4, min_scale=1e-6))
        {'bit_width': (8, 4), 'min_scale': (1e-10, 1e-06)}
    """
    left, right = settings(one), settings(other)
    pairs = {
        name: (left[name].declared if name in left else ..., right[name].declared if name in right else ...)
        for name in {**left, **right}
    }
    return {name: pair for name, pair in pairs.items() if frozen(pair[0]) != frozen(pair[1])}


@dataclass(frozen=True)
class Resolution:
    """What resolving a quantizer will do, worked out from signatures before anything is built.

    `consumers` maps each attribute that is reached to the attributes whose constructor or function takes it;
    `defaults` lists, for each consumer, parameters left at their own default.
    """

    quantizer: QuantizerType
    settings: dict[str, Setting]
    consumers: dict[str, list[str]]
    children: dict[str, list[str]]
    defaults: dict[str, dict[str, object]]
    written: Mapping[str, str] = field(default_factory=dict)  # attribute -> the keyword the user typed

    @property
    def open(self) -> tuple[str, ...]:
        """The attributes whose `value` function may choose a class: what that one takes is not known yet."""
        functions = [name for name in self.children if isinstance(self.settings[name].declared, value)]
        return tuple(name for name in functions if name == ROOT or name in _choices)

    def unused(self) -> list[Setting]:
        """Settings that nobody takes, but for those whose consumer a later class replaced."""
        return [
            setting
            for name, setting in self.settings.items()
            if name not in self.children
            and name != ROLE
            and setting.owner is not None
            and not _superseded(setting, self.quantizer)
        ]


def _parameters(item: object) -> tuple[inspect.Parameter, ...]:
    """The parameters through which a class or a value function takes other attributes."""
    if inspect.isclass(item) and not isinstance(item, QuantizerType):
        if item.__init__ is object.__init__ or _passes_on(item):
            return ()
        found = tuple(inspect.signature(item.__init__).parameters.values())[1:]
        where = f"{item.__name__}.__init__"
    elif isinstance(item, value):
        found = tuple(inspect.signature(item.function).parameters.values())
        where = item.function.__name__
    else:
        return ()
    for each in found:
        if each.kind in (each.VAR_POSITIONAL, each.VAR_KEYWORD, each.POSITIONAL_ONLY):
            raise QuantizerError(
                f"{where} takes {each}: attributes are handed in by name. Write every argument out, with its name."
            )
        if inspect.isclass(each.default) and each.default is not each.empty and not each.name.endswith("_class"):
            raise QuantizerError(
                f"{where} has the class {each.default.__name__} as default of {each.name!r}, and defaults are handed "
                f"in as they are. Write `{each.name} = {each.default.__name__}` in the quantizer, which makes an "
                f"instance, or name the argument {each.name}_class."
            )
    return found


def _passes_on(cls: type) -> bool:
    """Does a class inherit a constructor that takes anything, such as nn.Module's? Then it needs nothing."""
    if "__init__" in vars(cls):
        return False
    kinds = {each.kind for each in tuple(inspect.signature(cls.__init__).parameters.values())[1:]}
    return kinds == {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}


def _needs(name: str, item: object) -> tuple[inspect.Parameter, ...]:
    if name.endswith("_class"):  # handed over as it is, not instantiated
        return ()
    return _parameters(item) if inspect.isclass(item) or isinstance(item, value) else ()


def _trace(
    quantizer: QuantizerType, found: dict[str, Setting], where: object, written: Mapping[str, str]
) -> Resolution:
    """Follow the parameters from the root attribute. A required one that nobody provides is an error, with its path."""
    consumers: dict[str, list[str]] = {}
    children: dict[str, list[str]] = {}
    defaults: dict[str, dict[str, object]] = {}

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            loop = " > ".join([*path[path.index(name) :], name])
            raise QuantizerError(f"{where}: {quantizer!r} goes in a circle: {loop}. Break it with a plain value.")
        if name in children:
            return
        children[name] = []
        for parameter in _needs(name, found[name].injected):
            if parameter.name in found:
                if isinstance(found[parameter.name].declared, Changing):
                    _check_changing(parameter.name, name, found)
                children[name].append(parameter.name)
                consumers.setdefault(parameter.name, []).append(name)
                visit(parameter.name, (*path, name))
            elif parameter.default is parameter.empty:
                asked = _show(found[name].injected)
                chain = " > ".join((*path, name, parameter.name))
                guess = nearest(parameter.name, found)
                hint = f" It has {guess!r}: rename one of the two, or write" if guess else " Write"
                raise IncompleteError(
                    f"{where}: {asked} asks for {parameter.name!r}, which {quantizer!r} does not have ({chain})."
                    f"{hint} `{parameter.name} = ...` in the quantizer, or give the argument a default."
                )
            else:
                defaults.setdefault(name, {})[parameter.name] = parameter.default

    visit(ROOT, ())
    return Resolution(quantizer, found, consumers, children, defaults, written)


def _check_changing(name: str, consumer: str, found: Mapping[str, Setting]) -> None:
    """A number that changes is for parts that read it at each forward, of a quantizer that counts them."""
    setting, taker, root = found[name], found[consumer].injected, found[ROOT].injected
    counts = getattr(root, "counts_steps", False)
    if counts and name in getattr(taker, "anneals", ()):
        return
    said = _show(found[consumer].declared)
    reason = f"{said} reads it once" if counts else f"{_show(root)} counts no training steps"
    parts = [each.injected for each in found.values()]
    parts += [choice for each in found for choice in choices_of(each).values()]
    possible = sorted({each for part in parts for each in getattr(part, "anneals", ()) if each in found})
    others = f" What can be annealed here: {', '.join(possible)}." if counts and possible else ""
    remedy = f"Write {name}={setting.declared.start!r}.{others}"
    raise SettingError(name, setting.declared, f"a number that stays: {reason}", remedy)


def _superseded(setting: Setting, quantizer: QuantizerType) -> bool:
    """Was the setting of use to a class that the quantizer builds on? Then only its consumer was replaced since."""
    return any(
        setting.owner in cls.__mro__ and setting.name in _reached(cls)
        for cls in quantizer.__mro__[1:]
        if isinstance(cls, QuantizerType)
    )


def _reached(quantizer: QuantizerType) -> frozenset[str]:
    """The attributes that resolving would use, as far as the quantizer itself provides them."""
    found = settings(quantizer)
    reached: set[str] = set()
    queue = [ROOT]
    while queue:
        name = queue.pop()
        if name in found and name not in reached:
            reached.add(name)
            queue += [each.name for each in _needs(name, found[name].injected)]
    return frozenset(reached)


def resolution(
    quantizer: QuantizerType,
    provided: Mapping[str, object],
    *,
    where: object = "resolve",
    written: Mapping[str, str] | None = None,
) -> Resolution:
    """Work out what resolving a quantizer does, without building anything.

    Args:
        quantizer: the class to resolve.
        provided: attributes that the layer contributes; the quantizer's own come first.
        where: who resolves it, for messages, e.g. ``"QuantLinear"``.
        written: for each attribute given by keyword, the keyword as the user typed it.

    Raises:
        QuantizerError: an attribute is missing, unused or misspelled.
    """
    written = written or {}
    found = {**{name: Setting(name, item, None) for name, item in provided.items()}, **settings(quantizer)}
    if ROOT not in found:
        raise QuantizerError(
            f"{where}: {quantizer!r} has no attribute {ROOT!r}, so it is a fragment, not a quantizer. Build on a "
            f"complete one: class {quantizer.__name__}Weight({quantizer.__name__}, Int8WeightPerTensor)."
        )
    if not _is_built(ROOT, found[ROOT].injected):
        raise QuantizerError(
            f"{where}: {quantizer!r} has {ROOT} = {_show(found[ROOT].declared)}, and it must be a class, such as "
            "IntQuant or a subclass of TensorQuant."
        )
    try:
        plan = _trace(quantizer, found, where, written)
    except SettingError as error:
        raise _located(error, quantizer, found, where, written) from None
    for setting in () if plan.open else plan.unused():
        raise _nothing_uses(setting, plan, where)
    return plan


def resolve(
    quantizer: QuantizerType,
    provided: Mapping[str, object] | None = None,
    *,
    where: object = "resolve",
    written: Mapping[str, str] | None = None,
) -> Any:
    """Build the modules that a quantizer declares: each class instantiated once, shared by all that ask for it.

    Args:
        quantizer: the class to resolve.
        provided: attributes that the layer contributes (a weight's shape, a device ...).
        where: who resolves it, for messages.
        written: for each attribute given by keyword, the keyword as the user typed it.

    Returns:
        The object at the attribute ``tensor_quant``.

    Raises:
        QuantizerError: a setting is unknown, missing, unused or impossible.

    Example:
        >>> class Doubler:
        ...     def __init__(self, step):
        ...         self.step = 2 * step
        >>> class Doubled(Quantizer):
        ...     tensor_quant = Doubler
        ...     step = 4
        >>> resolve(Doubled(step=5)).step
        10
    """
    provided = provided or {}
    plan = _plan_of(quantizer, provided, where, written)
    known = dict(provided)
    token = _provided.set(known)
    try:
        for name, derive in plan.derived.items():
            known[name] = derive()
        if plan.open:
            chosen = _chosen(plan)
            if chosen:
                return resolve(quantizer(**chosen), provided, where=where, written=written)
            for setting in plan.resolution.unused():
                raise _nothing_uses(setting, replace(plan.resolution, written=written or {}), where)
        return plan.injector.result.found[ROOT]
    except SettingError as error:
        raise _located(error, quantizer, plan.resolution.settings, where, written or {}) from None
    except DependencyError as error:
        raise QuantizerError(f"{where}: {quantizer!r} can't be resolved. {error}") from None
    finally:
        _provided.reset(token)


# What the layer whose quantizer is being resolved provides, and what follows from plain settings.
_provided: ContextVar[Mapping[str, object]] = ContextVar("provided")


@dataclass(frozen=True)
class _Plan:
    """What `dependencies` resolves a quantizer by, for every layer that provides values of the same names.

    Making an `Injector` and checking the settings takes 560 us, resolving a ready one 80. The plan is kept by the
    quantizer itself, so that it goes when the quantizer does.
    """

    injector: Any
    resolution: Resolution
    derived: Mapping[str, Callable[[], object]]  # attributes that follow from plain settings, in their order
    constructors: Sequence[tuple[type, object]]  # each class and its __init__: a notebook may redefine it

    @property
    def open(self) -> tuple[str, ...]:
        return self.resolution.open

    @property
    def current(self) -> bool:
        return all(cls.__init__ is constructor for cls, constructor in self.constructors)


def _plan_of(
    quantizer: QuantizerType, provided: Mapping[str, object], where: object, written: Mapping[str, str] | None
) -> _Plan:
    plans: dict[tuple[str, ...], _Plan] = vars(quantizer).get("__plans__", {})
    plan = plans.get(tuple(provided))
    if plan is None or not plan.current:
        traced = resolution(quantizer, provided, where=where, written=written)
        injected = {name: traced.settings[name].injected for name in traced.children}
        own = {name for name in injected if traced.settings[name].owner is not None}
        built = {name for name in own if _is_built(name, injected[name])}
        derived: dict[str, Callable[[], object]] = {}
        for name in _plain_first(traced, built):
            own.discard(name)
            built.discard(name)
            derived[name] = _bound(injected[name], traced.children[name], injected, own, built)
        given: dict[str, object] = {
            name: _builder(injected[name], traced.children[name], injected, own, built) for name in built
        }
        given["result"] = _holder((ROOT,))
        if traced.open:
            given["open_values"] = _holder(traced.open)
        constructors = [(item, item.__init__) for item in injected.values() if inspect.isclass(item)]
        plan = _Plan(dependencies.Injector(**given), traced, derived, constructors)
        type.__setattr__(quantizer, "__plans__", {**plans, tuple(provided): plan})
    return plan


def _is_built(name: str, item: object) -> bool:
    """Is the attribute a class to instantiate or a function to call, not a value that is there?"""
    is_class = inspect.isclass(item) and not isinstance(item, QuantizerType) and not name.endswith("_class")
    return is_class or isinstance(item, value)


def _plain_first(plan: Resolution, built: Container[str]) -> list[str]:
    """The `value` functions that need no object to be built, each after those that it is computed from."""
    waiting = [name for name in plan.children if name in built and name not in plan.open]
    waiting = [name for name in waiting if isinstance(plan.settings[name].declared, value)]
    found: list[str] = []
    ready = waiting
    while ready:
        ready = [
            name
            for name in waiting
            if name not in found and all(each in found or each not in built for each in plan.children[name])
        ]
        found += ready
    return found


def _bound(
    item: Any, takes: Sequence[str], injected: Mapping[str, object], own: Container[str], built: Container[str]
) -> Callable[..., object]:
    """What makes an attribute from its parts; all else that it takes is there, and needs no resolving."""
    make = item.function if isinstance(item, value) else item
    constants = {name: injected[name] for name in takes if name in own and name not in built}
    known = [name for name in takes if name not in own]

    def build(**parts: object) -> object:
        provided = _provided.get()
        return make(**constants, **{name: provided[name] for name in known}, **parts)

    return build


def _builder(
    item: Any, takes: Sequence[str], injected: Mapping[str, object], own: Container[str], built: Container[str]
) -> value:
    """What the injector builds an attribute by: it hands over the parts."""
    build = _bound(item, takes, injected, own, built)
    parts = [inspect.Parameter(name, _KEYWORD) for name in takes if name in built]
    build.__signature__ = inspect.Signature(parts)
    return value(build)


_KEYWORD = inspect.Parameter.KEYWORD_ONLY


def _chosen(plan: _Plan) -> dict[str, object]:
    """What `value` functions returned, where it is a class to instantiate or the name of a choice."""
    for name, found in plan.injector.open_values.found.items():
        if inspect.isclass(found) or (isinstance(found, str) and name in _choices):
            return {name: found}
    return {}


def _holder(names: tuple[str, ...]) -> type:
    """A class to be injected with attributes of those names: `dependencies` gives no value away by itself."""

    def __init__(self: Any, **found: object) -> None:  # noqa: N807 - of the class below
        self.found = found

    parameters = [inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)]
    parameters += [inspect.Parameter(name, _KEYWORD) for name in names]
    __init__.__signature__ = inspect.Signature(parameters)
    return type("OpenValues", (), {"__init__": __init__})


def _located(
    error: SettingError,
    quantizer: QuantizerType,
    found: Mapping[str, Setting],
    where: object,
    written: Mapping[str, str],
) -> SettingError:
    """The same error, with the keyword that the user typed, or the class that holds the setting."""
    name = error.setting
    located = SettingError(name, error.found, error.expected, error.remedy)
    if name in written:
        located.args = (f"{where}: {error.message(written[name])}",)
    else:
        owner = found[name].owner if name in found else quantizer
        holder = f"{where}: " if owner is None else f"{where}: in {owner!r}, "
        located.args = (f"{holder}{error.message(name)}",)
    return located


def _parameter_names(choice: tuple[str, str]) -> set[str]:
    """What a choice such as ("scaling", "constant") takes."""
    name, written = choice
    return {each.name for each in _needs(name, _choices.get(name, {}).get(written))}


def possible_settings(quantizer: QuantizerType) -> set[str]:
    """Every setting that a quantizer may be given: its own, and what the choices of its settings take.

    Example:
        >>> from bitwright.quantizers import Int8Act
        >>> {"bit_width", "max_value", "seed"} <= possible_settings(Int8Act)
        True
    """
    found = settings(quantizer)
    parts = [(name, setting.injected) for name, setting in found.items()]
    parts += [(name, choice) for name in found for choice in choices_of(name).values()]
    taken = {each.name for name, part in parts for each in _needs(name, part)}
    return (taken | set(found) | set(IMPLIED)) - {ROOT, "device", "dtype", "shape", "channel_axis"}


def _nothing_uses(setting: Setting, plan: Resolution, where: object) -> QuantizerError:
    name, quantizer = setting.name, plan.quantizer
    typed = plan.written.get(name)
    prefix = prefix_of(typed, name) if typed else ""
    base = quantizer.__base__ if "__overrides__" in vars(quantizer) else quantizer
    known = {*plan.children, *(each for given in plan.defaults.values() for each in given), *IMPLIED} - {ROOT}
    provided = {each for each, at in plan.settings.items() if at.owner is None}
    implied = {each for given in IMPLIED.values() for each in _parameter_names(given)}
    guess = nearest(name, (known | implied) - provided - {name})
    said = f"{typed}={_show(setting.declared)}" if typed else f"{name} = {_show(setting.declared)}"
    by = f" (set by {setting.owner!r})" if not typed and setting.owner is not quantizer else ""
    misspelled = get_close_matches(name, known - provided - {name}, 1, cutoff=0.85)
    others = "" if misspelled else _other_choices(name, plan, prefix)
    takes = f"It takes: {', '.join(sorted(known - provided - {name}))}."
    tail = others or (f"Did you mean {prefix}{guess}?" if guess else takes)
    return QuantizerError(f"{where}: nothing in {base!r} uses {said}{by}. {tail}")


def _other_choices(name: str, plan: Resolution, prefix: str) -> str:
    """Which choices would take a setting that the one made does not."""
    for of in ("scaling", "statistic", "restriction", "rounding", "zero_point", "transform"):
        taking = [each for each in choices_of(of) if name in _parameter_names((of, each))]
        if taking:
            said = " or ".join(f"{prefix}{of}={each!r}" for each in taking)
            made = plan.settings.get(of)
            return f"It is a setting of {said}" + (
                f", and {of} is {_show(made.declared)}." if made is not None else "."
            )
    return ""

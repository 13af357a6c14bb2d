"""Modules whose code calls submodules in the places of recorded operations."""

import itertools
import pkgutil
import types
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from types import FunctionType
from typing import Any, ClassVar, TypeVar

from torch import nn

from ..errors import GraphError
from ..layers.hooked import follow_class
from ..recording.places import Place, Position
from .editing import Edit, Parameter
from .functions import layers, rewritten, takes_any
from .reading import Recorded, Step, route
from .source import Source, title_of

__all__ = ["Change", "Rewritten", "interpose"]

Module = TypeVar("Module", bound=nn.Module)


def interpose(owner: nn.Module, edits: Iterable[tuple[Place, str, Recorded]]) -> None:
    """Let the code of a module call submodules in the places of recorded operations, and nowhere else.

    The module's class becomes a subclass of itself with the same name, in which the methods that are concerned have a
    new text: ``x + y`` is ``self.add(x, y)``. Helper functions that compute an operation become methods. The text is
    the attribute ``source`` of a method. Copies and pickles hold the class and the places, and make the subclass anew.

    Args:
        owner: the module in whose code the operations are written.
        edits: for each operation its place, the name of the submodule, and what was recorded.

    Raises:
        GraphError: an operation can't be rewritten; the module is as it was.

    Example:
        >>> import torch
        >>> import bitwright.nn as qnn
        >>> from bitwright.graph import record
        >>> from bitwright.graph.rewriting import function_at
        >>> class Block(nn.Module):
        ...     def forward(self, x):
        ...         return (x * 2).softmax(-1) + x
        >>> block = Block()
        >>> add, *_ = record(block, torch.ones(3)).functions(["add"])
        >>> block.add = qnn.QuantFunction(function_at(block, add.place, add))
        >>> interpose(block, [(add.place, "add", add)])
        >>> print(type(block).forward.source)
        def forward(self, x):
            return self.add((x * 2).softmax(-1), x)
        <BLANKLINE>
        >>> block, isinstance(block, Block)
        (Block(
          (add): QuantFunction(operator.add)
        ), True)
    """
    methods: dict[str, _Rewriting] = {}
    taken = {*dir(type(owner)), *vars(owner), *owner._modules, *owner._parameters, *owner._buffers}
    for place, name, node in edits:
        steps, _ = route(owner, place, node, name)
        taken.add(name)
        level = methods.setdefault(place.method, _Rewriting(steps[0]))
        for step, following in itertools.pairwise(steps):
            level = level.helpers.setdefault(step.edit.position, _Rewriting(following, step.edit, node.path))
        level.edits[steps[-1].edit.position] = steps[-1].edit
    recipe: list[Change] = []
    for method, each in methods.items():
        recipe += each.changes(method, None, taken)
    made = _subclass(type(owner), tuple(recipe))
    object.__setattr__(owner, "__class__", made)
    follow_class(owner)


@dataclass(frozen=True)
class Change:
    """One function of a rewritten class.

    Args:
        name: of the method.
        function: the helper function that it is made of; None for the method of that name.
        depth: how many decorators there are around the text.
        edits: what is written otherwise, with lines from the function's first.
        digest: of the text that the edits are for.
    """

    name: str
    function: Callable[..., Any] | None
    depth: int
    edits: tuple[Edit, ...]
    digest: str

    def __reduce__(self) -> tuple[Any, ...]:
        function = self.function
        where = None if function is None else _import_path(function)
        return _change, (self.name, function if where is None else None, where, self.depth, self.edits, self.digest)

    def made(self, base: type) -> FunctionType:
        """The method for a subclass.

        Raises:
            GraphError: the source is not there, or another one.
        """
        function = self.function or next(vars(each)[self.name] for each in base.__mro__ if self.name in vars(each))
        inner = layers(function)[min(self.depth, len(layers(function)) - 1)]
        try:
            digest = Source(inner).digest
        except LookupError:
            digest = ""
        if digest != self.digest:
            raise GraphError(
                f"{title_of(inner)} was edited since this model was saved. Build it again with quantize and load its "
                "state dict."
            )
        return rewritten(function, self.depth, self.edits)


def _import_path(function: Callable[..., Any]) -> str | None:
    """Where a function can be imported from; private names of classes too, which `pickle` doesn't find."""
    path, *rest = function.__qualname__.split(".")
    for name in rest:
        owner = path.rpartition(".")[2].lstrip("_")
        path += f"._{owner}{name}" if name.startswith("__") and not name.endswith("__") else f".{name}"
    where = f"{function.__module__}:{path}"
    try:
        return where if pkgutil.resolve_name(where) is function else None
    except (AttributeError, ImportError, ValueError):
        return None


def _change(name: str, function: Callable[..., Any] | None, where: str | None, *rest: Any) -> Change:
    """A change, as `pickle` makes it."""
    return Change(name, function if where is None else pkgutil.resolve_name(where), *rest)


@dataclass
class _Rewriting:
    """What is rewritten in one function, and in those that it calls."""

    step: Step
    call: Edit | None = None
    path: str = ""  # of an operation, for messages
    edits: dict[Position, Edit] = field(default_factory=dict)
    helpers: dict[Position, "_Rewriting"] = field(default_factory=dict)

    def changes(self, name: str, function: Callable[..., Any] | None, taken: set[str]) -> list[Change]:
        """The functions of the new class: this one under a name, and its helpers under free ones."""
        edits, found = dict(self.edits), list[Change]()
        for position, helper in self.helpers.items():
            called = helper.step.function
            free = _free(f"_{called.__name__.strip('_')}", taken)
            assert helper.call is not None
            edits[position] = replace(helper.call, name=free)
            found += helper.changes(free, called, taken)
        around = layers(self.step.function)[: self.step.depth + 1]
        source = Source(around.pop())
        if not self.step.bound:
            self._check_decorators(around)
            node = source.node
            at = (node.lineno, node.end_lineno or 0, node.col_offset, node.end_col_offset or 0)
            parameter = Parameter(at, _free("self", source.names(), "owner")).moved(-source.line)
            edits[parameter.position] = parameter
        change = Change(name, function, self.step.depth, tuple(edits.values()), source.digest)
        return [change, *found]

    def _check_decorators(self, around: list[FunctionType]) -> None:
        for each in around:
            if not takes_any(each):
                raise GraphError(
                    f"{self.path} is computed in {title_of(self.step.function)}, whose decorator takes fixed "
                    "arguments, so it can't become a method. Let the decorator's function take *args and **kwargs, or "
                    f'write "{self.path}": None.'
                )


def _free(name: str, taken: set[str], instead: str | None = None) -> str:
    """A name that is not taken yet, and is now."""
    base, found, number = instead or name, name, 1
    while found in taken:
        found, number = (base if instead and number == 1 else f"{base}_{number + 1 - bool(instead)}"), number + 1
    taken.add(found)
    return found


class Rewritten:
    """What the subclasses have in common that `interpose` makes: how their instances are copied and pickled."""

    _recipe: ClassVar[tuple[Change, ...]]
    _rewrites: ClassVar[type]

    def __init_subclass__(cls) -> None:
        """A copy of a class in all but a few expressions: its bases are not told of another one."""

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        reduced = super().__reduce_ex__(protocol)
        cls, recipes = type(self), list[tuple[Change, ...]]()
        if isinstance(reduced, str) or "_recipe" not in vars(cls):
            return reduced  # type: ignore[return-value]
        root: type = cls
        while "_recipe" in vars(root):
            recipes.insert(0, vars(root)["_recipe"])
            root = vars(root)["_rewrites"]
        make, arguments, *state = reduced
        arguments = tuple(root if each is cls else each for each in arguments)
        return _restored, (root, tuple(recipes), make, arguments), *state


def _restored(
    root: type, recipes: tuple[tuple[Change, ...], ...], make: Callable[..., Any], arguments: tuple[Any, ...]
) -> Any:
    """An instance of a rewritten class, as `pickle` makes it."""
    cls = root
    for recipe in recipes:
        cls = _subclass(cls, recipe)
    made = make(*arguments)
    object.__setattr__(made, "__class__", cls)
    return made


def _subclass(base: type, recipe: tuple[Change, ...]) -> type:
    """The subclass with these changes; the one that there is, if modules have it already."""
    for each in base.__subclasses__():
        if vars(each).get("_recipe") == recipe:
            return each
    body: dict[str, Any] = {name: getattr(base, name) for name in ("__module__", "__qualname__", "__doc__")}
    body |= {"_recipe": recipe, "_rewrites": base} | {each.name: each.made(base) for each in recipe}
    bases = (base,) if issubclass(base, Rewritten) else (Rewritten, base)
    return types.new_class(base.__name__, bases, exec_body=lambda names: names.update(body))

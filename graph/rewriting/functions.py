"""Functions with a changed text: in the same module, on the same closure, under the same decorators."""

import inspect
from collections.abc import Iterator, Sequence
from types import CellType, FunctionType

from .editing import Edit, Parameter, edited
from .source import Source

__all__ = ["bare", "first_argument", "layers", "rewritten", "takes_any"]


def layers(function: object) -> list[FunctionType]:
    """A function, and what its decorators wrap, outermost first.

    Example:
        >>> import torch
        >>> @torch.no_grad()
        ... def f(x):
        ...     return x
        >>> [each.__name__ for each in layers(f)], layers(f)[1] is f.__wrapped__
        (['f', 'f'], True)
    """
    function = bare(function)
    found: list[FunctionType] = []
    while isinstance(function, FunctionType) and function not in found:
        found.append(function)
        function = getattr(function, "__wrapped__", None) or next(_wrapped(function), None)
    return found


def bare(function: object) -> object:
    """The function in a static method, or a bound one."""
    return getattr(function, "__func__", function)


def _wrapped(function: FunctionType) -> Iterator[FunctionType]:
    """What a decorator without `functools.wraps` may wrap."""
    for cell in function.__closure__ or ():
        content = _content(cell)
        if isinstance(content, FunctionType):
            yield content


def first_argument(source: Source) -> str | None:
    """What a function calls its first argument."""
    arguments = [*source.node.args.posonlyargs, *source.node.args.args]
    return arguments[0].arg if arguments else None


def rewritten(function: object, depth: int, edits: Sequence[Edit]) -> FunctionType:
    """A function in whose body some expressions call attributes of a module.

    Args:
        function: with its decorators.
        depth: how many decorators there are around what is rewritten.
        edits: with lines from the first one of the function; with a `Parameter`, the module is a new first argument.

    Returns:
        The function, with its decorators. Its attribute ``source`` is the new text, ``function`` what it was.
    """
    around = layers(function)[: depth + 1]
    inner = around.pop()
    source = Source(inner)
    new = next((each.name for each in edits if isinstance(each, Parameter)), None)
    me = new or first_argument(source)
    assert me is not None
    replacements = edited(source, me, [each.moved(source.line) for each in edits])
    code = source.compiled(replacements)
    cells = dict(zip(inner.__code__.co_freevars, inner.__closure__ or (), strict=True))
    closure = tuple(cells[name] for name in code.co_freevars)
    made = FunctionType(code, inner.__globals__, inner.__name__, inner.__defaults__, closure)
    _look_like(made, inner)
    shown = source.shown(replacements)
    for each in reversed(around):
        made = _decorated(each, inner, made)
        inner = each
    vars(made).update(source=shown, function=_original(function))
    return made


def _original(function: object) -> object:
    """A function, or what one that was rewritten before was made of: the one that callers hold."""
    found = bare(function)
    return vars(found).get("function", found) if "source" in vars(found) else found


def _look_like(made: FunctionType, original: FunctionType) -> None:
    made.__kwdefaults__ = original.__kwdefaults__
    made.__qualname__, made.__module__, made.__doc__ = original.__qualname__, original.__module__, original.__doc__
    for name in ("__annotate__", "__type_params__"):
        if hasattr(original, name):
            setattr(made, name, getattr(original, name))
    if not hasattr(original, "__annotate__"):  # before Python 3.14
        made.__annotations__ = original.__annotations__
    vars(made).update(vars(original))


def _decorated(decorator: FunctionType, wrapped: FunctionType, instead: FunctionType) -> FunctionType:
    """What a decorator made of a function, made of another one: the decorator itself is not called again."""
    cells = [CellType(instead) if _content(cell) is wrapped else cell for cell in decorator.__closure__ or ()]
    made = FunctionType(
        decorator.__code__, decorator.__globals__, decorator.__name__, decorator.__defaults__, tuple(cells)
    )
    _look_like(made, decorator)
    vars(made).update({name: instead for name, item in vars(made).items() if item is wrapped})
    return made


def _content(cell: CellType) -> object:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


def takes_any(decorator: FunctionType) -> bool:
    """Whether a decorator passes on whatever arguments it gets."""
    kinds = {each.kind for each in inspect.signature(decorator, follow_wrapped=False).parameters.values()}
    return {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD} <= kinds

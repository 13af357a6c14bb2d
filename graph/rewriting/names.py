"""What the names in a function stand for, wherever it is called: not what its variables do."""

import ast
import builtins
import importlib
import inspect
from types import FunctionType, ModuleType

from torch import nn

from .functions import first_argument
from .source import Source

__all__ = ["UNKNOWN", "Names"]

UNKNOWN = object()


class Names:
    """What expressions in a function stand for.

    Args:
        function: without its decorators.
        source: its source.
        owner: the module that is its first argument, if one is.
        defined_in: the class that private names belong to, if there is one.

    Example:
        >>> import torch
        >>> def f(x):
        ...     return torch.cat(x)
        >>> names = Names(f, Source(Names.value), None)
        >>> names.value(ast.parse("torch.cat", mode="eval").body) is torch.cat
        True
    """

    def __init__(self, function: FunctionType, source: Source, owner: nn.Module | None) -> None:
        self.owner = owner
        self.me = None if owner is None else first_argument(source)
        self._class = source.owner
        self._known = dict(function.__builtins__) if isinstance(function.__builtins__, dict) else vars(builtins)
        self._known = {**self._known, **function.__globals__}
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            self._known[name] = _content(cell)
        for name in _assigned(source.node):
            self._known[name] = UNKNOWN
        for each in ast.walk(source.node):
            if isinstance(each, (ast.Import, ast.ImportFrom)):
                self._known.update(_imported(each, function.__globals__.get("__package__")))
        if self.me is not None:
            self._known[self.me] = owner

    def value(self, node: ast.AST) -> object:
        """What a name, or an attribute of one, stands for; `UNKNOWN` if that may differ from call to call."""
        if isinstance(node, ast.Name):
            return self._known.get(node.id, UNKNOWN)
        if not isinstance(node, ast.Attribute):
            return UNKNOWN
        name = self._mangled(node.attr)
        if self._is_super(node.value):
            return self._above(node.value, name)
        base = self.value(node.value)
        if isinstance(base, nn.Module):
            return _attribute(base, name)
        if isinstance(base, (ModuleType, type)):
            return getattr(base, name, UNKNOWN)
        return UNKNOWN

    def is_bound(self, node: ast.AST) -> bool:
        """Whether what is called gets the owner as its first argument without being given it."""
        if not isinstance(node, ast.Attribute) or self.owner is None:
            return False
        if self._is_super(node.value):
            return True
        name = self._mangled(node.attr)
        if self.value(node.value) is not self.owner or name in vars(self.owner):
            return False
        return isinstance(inspect.getattr_static(type(self.owner), name, None), FunctionType)

    def _mangled(self, name: str) -> str:
        if self._class is None or not name.startswith("__") or name.endswith("__"):
            return name
        return f"_{self._class.lstrip('_')}{name}"

    def _is_super(self, node: ast.AST) -> bool:
        return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "super"

    def _above(self, node: ast.AST, name: str) -> object:
        """What super() finds."""
        assert isinstance(node, ast.Call)
        start = self.value(node.args[0]) if node.args else self._known.get("__class__", UNKNOWN)
        order = type(self.owner).__mro__
        if start not in order:
            return UNKNOWN
        found = (vars(each)[name] for each in order[order.index(start) + 1 :] if name in vars(each))
        return next(found, UNKNOWN)


def _attribute(module: nn.Module, name: str) -> object:
    """An attribute of a module; properties are not asked."""
    for held in (vars(module), module._modules):
        if name in held:
            return held[name]
    found = inspect.getattr_static(type(module), name, UNKNOWN)
    return UNKNOWN if isinstance(found, property) else found


def _content(cell: object) -> object:
    try:
        return cell.cell_contents  # type: ignore[attr-defined]
    except ValueError:
        return UNKNOWN


def _assigned(node: ast.AST) -> set[str]:
    """The names of variables and arguments in a function."""
    found = {each.arg for each in ast.walk(node) if isinstance(each, ast.arg)}
    stored = (each for each in ast.walk(node) if isinstance(each, ast.Name) and not isinstance(each.ctx, ast.Load))
    return found | {each.id for each in stored}


def _imported(node: ast.Import | ast.ImportFrom, package: object) -> dict[str, object]:
    """What an import statement in a function binds."""
    found: dict[str, object] = {}
    for each in node.names:
        try:
            if isinstance(node, ast.Import):
                module = importlib.import_module(each.name)
                start = importlib.import_module(each.name.partition(".")[0])
                found[each.asname or each.name.partition(".")[0]] = module if each.asname else start
            else:
                origin = f"{'.' * node.level}{node.module or ''}"
                module = importlib.import_module(origin, str(package) if package else None)
                found[each.asname or each.name] = getattr(module, each.name, UNKNOWN)
        except ImportError:
            found[each.asname or each.name] = UNKNOWN
    return found

"""Where in the source an operation is written."""

import ast
import inspect
import linecache
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from types import CellType, CodeType, FrameType, FunctionType, MethodType

import torch
from torch import nn

__all__ = ["Place", "Position", "Sources"]

Position = tuple[int, int, int, int]
"""Line, last line, column and last column of an expression, as the syntax tree counts them: columns are UTF-8 bytes."""

Link = tuple[FunctionType | None, Position]
"""A function as its caller knows it, with its decorators, or None if it is not known; and a position in it."""

Written = ast.FunctionDef | ast.Lambda

_TORCH = os.path.dirname(torch.__file__) + os.sep
_CALL = nn.Module._call_impl.__code__


@dataclass(frozen=True)
class Place:
    """Where in the source an operation is written.

    A function or lambda that is written inside the method is part of it; a comprehension, too. What a helper function
    outside the method computes has a chain: the call in the method, calls from helper to helper, the operation.

    Attributes:
        method: the name of the method of the owner's class, "forward" mostly.
        file: where the operation is written.
        chain: a function and a position in it, outermost first. The first function is None and stands for the method;
            the last position is that of the operation. A later function is None if it is not known.

    Example:
        >>> str(Place("forward", "nets/resnet.py", ((None, (43, 43, 8, 23)),)))
        'resnet.py:43'
    """

    method: str
    file: str
    chain: tuple[Link, ...]

    @property
    def helper(self) -> FunctionType | None:
        """The function outside the method in which the operation is written, or None."""
        return self.chain[-1][0] if len(self.chain) > 1 else None

    @property
    def reachable(self) -> bool:
        """Whether every helper function between the method and the operation is known."""
        return all(function is not None for function, _ in self.chain[1:])

    @property
    def position(self) -> Position:
        """The position of the operation."""
        return self.chain[-1][1]

    @property
    def key(self) -> tuple[object, ...]:
        """What is equal for one place, also if its helper function is made anew for every forward."""
        codes = (getattr(function, "__code__", None) for function, _ in self.chain)
        return (self.method, self.file, *zip(codes, (position for _, position in self.chain), strict=True))

    @property
    def order(self) -> tuple[object, ...]:
        """What sorts places as they are written; of two expressions, one in the other, the inner one is first."""
        ends = tuple((end, end_column, -line, -column) for _, (line, end, column, end_column) in self.chain)
        return (ends, os.path.basename(self.file), self.method)

    def __str__(self) -> str:
        where = f"{os.path.basename(self.file)}:{self.position[0]}"
        if len(self.chain) == 1:
            return where
        name = "a function" if self.helper is None else self.helper.__name__
        return f"{where} (in {name}, called at {self.chain[0][1][0]})"


@dataclass
class _Step:
    """A frame between the operation and the method."""

    code: CodeType
    link: Link
    first: object  # the first argument


class Sources:
    """The source behind frames, for the time of a recording.

    Args:
        is_module: whether an object is a module of the model that is recorded.
    """

    def __init__(self, is_module: Callable[[object], bool]) -> None:
        self._is_module = is_module
        self._positions: dict[CodeType, list[Position | None]] = {}
        self._methods: dict[tuple[type, CodeType], str | None] = {}
        self._functions: dict[tuple[CodeType, CodeType | None], FunctionType | None] = {}
        self._inner: dict[CodeType, frozenset[CodeType]] = {}
        self._lines: dict[str, list[bytes]] = {}
        self._trees: dict[str, ast.Module] = {}
        self._written: dict[str, dict[tuple[int, str], Written]] = {}
        self._chained: dict[str, dict[Position, Position]] = {}

    def locate(self, frame: FrameType | None) -> tuple[nn.Module | None, Place | None]:
        """The module whose method is running, and where in its source; what torch itself runs is left out.

        The method is the innermost one on the stack whose first argument is a module of the model.
        """
        steps: list[_Step] = []
        while frame is not None:
            code = frame.f_code
            first = first_argument(frame)
            owner = first if isinstance(first, nn.Module) and self._is_module(first) else None
            if owner is not None and code is _CALL:
                return None, None  # its forward is not a method of its class
            method = None if owner is None else self._method(type(owner), code)
            if method is not None or not is_foreign(code.co_filename):
                position, file = self.positions(code)[frame.f_lasti // 2], code.co_filename
                inside = next((n for n, step in enumerate(steps) if step.code in self._codes_inside(code)), None)
                if inside is not None:  # written here, however many functions it is handed through
                    position, steps = steps[inside].link[1], steps[:inside]
                if position is None:
                    return owner if method is not None else None, None
                if owner is not None and method is not None:
                    file = steps[0].code.co_filename if steps else file
                    chain = tuple(_link_from(owner, step) for step in reversed(steps))
                    return owner, Place(method, file, ((None, position), *chain))
                if not steps or not _has_code(steps[-1].link[0], code):  # or it decorates the function before
                    steps.append(_Step(code, (self._function(frame, first), position), first))
            frame = frame.f_back
        return None, None

    def positions(self, code: CodeType) -> list[Position | None]:
        """The position of the expression of each instruction."""
        if code not in self._positions:
            lines = self._lines_of(code.co_filename)
            found: list[Position | None] = []
            for line, end, column, end_column in code.co_positions():
                if line is None or end is None or column is None or end_column is None:
                    found.append(None)  # some instructions have none, and all of them under python -X no_debug_ranges
                else:
                    position = line, end, column, end_column
                    chained = line <= len(lines) and lines[line - 1][:column].endswith(b".")
                    found.append(self._chains(code.co_filename).get(position, position) if chained else position)
            self._positions[code] = found
        return self._positions[code]

    def tree(self, file: str) -> ast.Module:
        """The syntax tree of a file; an empty one if there is no source."""
        if file not in self._trees:
            try:
                self._trees[file] = ast.parse("".join(linecache.getlines(file)))
            except SyntaxError:
                self._trees[file] = ast.Module([], [])
        return self._trees[file]

    def written(self, code: CodeType) -> Written | None:
        """The definition of a function in the syntax tree of its file, or None."""
        file = code.co_filename
        if file not in self._written:
            found = (each for each in ast.walk(self.tree(file)) if isinstance(each, (ast.FunctionDef, ast.Lambda)))
            self._written[file] = {_start(each): each for each in found}
        return self._written[file].get((code.co_firstlineno, code.co_name))

    def _lines_of(self, file: str) -> list[bytes]:
        if file not in self._lines:
            self._lines[file] = [line.encode() for line in linecache.getlines(file)]
        return self._lines[file]

    def _chains(self, file: str) -> dict[Position, Position]:
        if file not in self._chained:
            self._chained[file] = _chained_calls(self.tree(file))
        return self._chained[file]

    def _method(self, owner: type, code: CodeType) -> str | None:
        """The name under which a class has a method with this code; a decorated one, too."""
        key = owner, code
        if key not in self._methods:
            names = (name for _, name, function in methods_of(owner) if getattr(owner, name, None) is function)
            self._methods[key] = next((each for each in names if _has_code(getattr(owner, each), code)), None)
        return self._methods[key]

    def _codes_inside(self, code: CodeType) -> frozenset[CodeType]:
        if code not in self._inner:
            self._inner[code] = frozenset(codes_in(code)) - {code}
        return self._inner[code]

    def _function(self, frame: FrameType, first: object) -> FunctionType | None:
        """The function that a frame runs, as its caller finds it."""
        caller = frame.f_back
        while caller is not None and is_foreign(caller.f_code.co_filename):
            caller = caller.f_back
        key = frame.f_code, caller and caller.f_code
        if key not in self._functions or not _runs(frame, self._functions[key]):
            function = bare(next((each for each in _candidates(frame, caller, first) if _runs(frame, each)), None))
            self._functions[key] = function if isinstance(function, FunctionType) else None
        return self._functions[key]


def caller_of(module: nn.Module, frame: FrameType | None) -> FrameType | None:
    """The frame that calls a module, seen from a hook of it."""
    while frame is not None and not (frame.f_code is _CALL and first_argument(frame) is module):
        frame = frame.f_back
    return None if frame is None else frame.f_back


def first_argument(frame: FrameType) -> object:
    """The first argument of the function that a frame runs, or None."""
    code = frame.f_code
    return frame.f_locals.get(code.co_varnames[0]) if code.co_argcount > 0 else None


def is_foreign(file: str) -> bool:
    """Whether a file is torch's, or records."""
    return file.startswith(_TORCH) or os.path.dirname(file) == _HERE


_HERE = os.path.dirname(__file__)


def codes_in(code: CodeType) -> Iterator[CodeType]:
    """A function's code, and that of the functions, lambdas and comprehensions that are written in it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from codes_in(constant)


def bare(function: object) -> object:
    """The function in a static, class or bound method, or in a partial."""
    while isinstance(function, (partial, staticmethod, classmethod, MethodType)):
        function = function.func if isinstance(function, partial) else function.__func__
    return function


def layers_of(function: object) -> Iterator[FunctionType]:
    """A function and what its decorators hide."""
    function = bare(function)
    seen: set[int] = set()
    while isinstance(function, FunctionType) and id(function) not in seen:
        seen.add(id(function))
        yield function
        hidden = getattr(function, "__wrapped__", None)
        if hidden is None:  # a decorator without functools.wraps
            cells = [cell.cell_contents for cell in function.__closure__ or () if _is_filled(cell)]
            hidden = next((each for each in cells if isinstance(each, FunctionType)), None)
        function = hidden


def _is_filled(cell: CellType) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:
        return False


def _runs(frame: FrameType, function: object) -> bool:
    """Whether a frame may be that of a function: the code, and what a closure holds."""
    for each in layers_of(function):
        if each.__code__ is frame.f_code:
            held = zip(frame.f_code.co_freevars, each.__closure__ or (), strict=True)
            return all(not _is_filled(cell) or cell.cell_contents is frame.f_locals.get(name) for name, cell in held)
    return False


def _has_code(function: object, code: CodeType) -> bool:
    return any(each.__code__ is code for each in layers_of(function))


def methods_of(owner: type) -> Iterator[tuple[type, str, object]]:
    """What is written in a class and its bases up to nn.Module: the base, the name and the attribute."""
    for base in owner.__mro__:
        if base is nn.Module:
            return
        for name, attribute in list(vars(base).items()):
            yield base, name, attribute


def _link_from(owner: nn.Module, step: _Step) -> Link:
    """The link of a step, without the function if that is a method of an object other than the module."""
    function, position = step.link
    qualname = step.code.co_qualname
    if function is None or step.first is owner or "." not in qualname.rpartition("<locals>.")[2]:
        return step.link
    written = _by_qualname(function.__globals__, qualname)
    return step.link if isinstance(written, (staticmethod, classmethod)) else (None, position)


def _by_qualname(names: dict[str, object], qualname: str) -> object:
    found: object = names
    for part in qualname.split("."):
        found = found.get(part) if isinstance(found, dict) else inspect.getattr_static(found, part, None)
    return found


def _candidates(frame: FrameType, caller: FrameType | None, first: object) -> Iterator[object]:
    """Where the function of a frame may be found."""
    if isinstance(first, nn.Module):  # what super() calls
        yield from (attribute for _, _, attribute in methods_of(type(first)))
    yield _by_qualname(frame.f_globals, frame.f_code.co_qualname)
    if caller is not None:
        yield from list(caller.f_locals.values())
        owner = first_argument(caller)
        if isinstance(owner, nn.Module):
            yield from list(vars(owner).values())
            yield from (attribute for _, _, attribute in methods_of(type(owner)))
        yield from list(caller.f_globals.values())


def _start(written: Written) -> tuple[int, str]:
    """The line and the name that the code of a function has."""
    if isinstance(written, ast.Lambda):
        return written.lineno, "<lambda>"
    return min([written.lineno, *(each.lineno for each in written.decorator_list)]), written.name


def _chained_calls(tree: ast.Module) -> dict[Position, Position]:
    """Calls of a method that stand on another line than their object: the position Python gives, and the whole one."""
    found: dict[Position, Position] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            whole, (_, line, _, column) = position_of(node), position_of(node.func)
            if line != whole[0]:
                found[line, whole[1], column - len(node.func.attr.encode()), whole[3]] = whole
    return found


def position_of(node: ast.expr | ast.stmt) -> Position:
    """The position of an expression or statement in the syntax tree."""
    return node.lineno, node.end_lineno or node.lineno, node.col_offset, node.end_col_offset or node.col_offset

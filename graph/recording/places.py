"""Where in the source an operation is written."""

import ast
import inspect
import linecache
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import CodeType, FrameType, FunctionType
from typing import Any

import torch
from torch import nn

__all__ = ["Place", "Position", "Sources"]

Position = tuple[int, int, int, int]
"""Line, last line, column and last column of an expression, as the syntax tree counts them: columns are UTF-8 bytes."""

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
    chain: tuple[tuple[FunctionType | None, Position], ...]

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
    position: Position
    function: FunctionType | None  # as its caller knows it: with its decorators
    inside: bool = False  # a decorator's frame, or one around code that is written further out


class Sources:
    """The source behind frames and classes, for the time of a recording.

    Args:
        is_module: whether an object is a module of the model that is recorded.
    """

    def __init__(self, is_module: Callable[[object], bool]) -> None:
        self._is_module = is_module
        self._positions: dict[CodeType, list[tuple[int | None, ...]]] = {}
        self._methods: dict[tuple[type, CodeType], str | None] = {}
        self._inner: dict[CodeType, frozenset[CodeType]] = {}
        self._calls: dict[str, dict[Position, Position]] = {}

    def locate(self, frame: FrameType | None) -> tuple[nn.Module | None, Place | None]:
        """The module whose method is running, and where in its source; what torch itself runs is left out.

        The method is the innermost one on the stack whose first argument is a module of the model.
        """
        steps: list[_Step] = []
        while frame is not None:
            code = frame.f_code
            first = _first_argument(frame)
            known = self._is_module(first)
            if known and code is _CALL:
                return None, None  # its forward is not a method of its class
            method = self.method(type(first), code) if known else None
            if method is not None or not _is_foreign(code.co_filename):
                position = self._position(frame)
                if position is None:
                    return (first if method is not None else None), None
                steps = self._around(steps, code)
                inner = steps[-1] if steps and steps[-1].inside else None
                if inner is not None:
                    steps.pop()
                    position = inner.position
                if method is not None:
                    chain = tuple((step.function, step.position) for step in reversed(steps))
                    file = steps[0].code.co_filename if steps else code.co_filename
                    return first, Place(method, file, ((None, position), *chain))
                step = _Step(code, position, _function_of(frame, first))
                if not (steps and step.function is not None and steps[-1].function is step.function):
                    steps.append(step)
            frame = frame.f_back
        return None, None

    def method(self, owner: type, code: CodeType) -> str | None:
        """The name under which a class has a method with this code; a decorated one, too."""
        key = owner, code
        if key not in self._methods:
            self._methods[key] = _method_of(owner, code)
        return self._methods[key]

    def _around(self, steps: list[_Step], code: CodeType) -> list[_Step]:
        """Steps without those that only lead to code that is written inside this one."""
        if code not in self._inner:
            self._inner[code] = frozenset(_codes_in(code))
        for number, step in enumerate(steps):
            if step.code in self._inner[code]:
                step.inside = True
                return steps[: number + 1]
        return steps

    def _position(self, frame: FrameType) -> Position | None:
        code = frame.f_code
        if code not in self._positions:
            self._positions[code] = list(code.co_positions())
        line, end_line, column, end_column = self._positions[code][frame.f_lasti // 2]
        if line is None or end_line is None or column is None or end_column is None:
            return None  # python -X no_debug_ranges
        return self._expression((line, end_line, column, end_column), code.co_filename)

    def _expression(self, position: Position, file: str) -> Position:
        """The position of the whole call: Python gives that of a method in a chain of lines without its object."""
        line, end_line, column, end_column = position
        text = linecache.getline(file, line)[:column]
        if text.rstrip().endswith(".") and column > 0:
            if file not in self._calls:
                self._calls[file] = _chained_calls(file)
            return self._calls[file].get(position, position)
        return position


def _first_argument(frame: FrameType) -> object:
    code = frame.f_code
    return frame.f_locals.get(code.co_varnames[0]) if code.co_argcount > 0 else None


def _is_foreign(file: str) -> bool:
    """Whether a file is torch's, or this one."""
    return file.startswith(_TORCH) or file in _OWN


_OWN = frozenset({__file__, os.path.join(os.path.dirname(__file__), "recorder.py")})


def _codes_in(code: CodeType) -> Iterator[CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield constant
            yield from _codes_in(constant)


def _layers(function: object) -> Iterator[FunctionType]:
    """A function and what its decorators hide."""
    function = getattr(function, "__func__", function)  # staticmethod, classmethod, bound methods
    seen: set[int] = set()
    while isinstance(function, FunctionType) and id(function) not in seen:
        seen.add(id(function))
        yield function
        hidden = getattr(function, "__wrapped__", None)
        if hidden is None:  # a decorator without functools.wraps
            cells = (cell.cell_contents for cell in function.__closure__ or () if _is_filled(cell))
            hidden = next((each for each in cells if isinstance(each, FunctionType)), None)
        function = hidden


def _is_filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:
        return False


def _method_of(owner: type, code: CodeType) -> str | None:
    for name, attribute in _attributes(owner):
        if isinstance(attribute, FunctionType) and getattr(owner, name, None) is attribute:
            if any(each.__code__ is code for each in _layers(attribute)):
                return name
    return None


def _attributes(owner: type) -> Iterator[tuple[str, object]]:
    for base in owner.__mro__:
        if base is nn.Module:
            return
        yield from vars(base).items()


def _function_of(frame: FrameType, first: object) -> FunctionType | None:
    """The function that a frame runs, as its caller finds it; None for a method of some other object."""
    code = frame.f_code
    for candidate in _candidates(frame, first):
        for each in _layers(candidate):
            if each.__code__ is code:
                return candidate if isinstance(candidate, FunctionType) else getattr(candidate, "__func__", None)
    return None


def _candidates(frame: FrameType, first: object) -> Iterable[object]:
    code, caller = frame.f_code, frame.f_back
    if isinstance(first, nn.Module):  # what super() calls, and what is written in a class but is not its forward
        yield from (attribute for _, attribute in _attributes(type(first)))
    found: object = frame.f_globals
    for part in code.co_qualname.split("."):
        found = found.get(part) if isinstance(found, dict) else inspect.getattr_static(found, part, None)
    yield found
    while caller is not None and _is_foreign(caller.f_code.co_filename):
        caller = caller.f_back
    if caller is not None:
        yield from list(caller.f_locals.values())
        owner = _first_argument(caller)
        if isinstance(owner, nn.Module):
            yield from list(vars(owner).values())
            yield from (attribute for _, attribute in _attributes(type(owner)))
        yield from list(caller.f_globals.values())


def _chained_calls(file: str) -> dict[Position, Position]:
    """Positions that Python gives for calls of methods on another line than their object, and those of the calls."""
    try:
        tree = ast.parse("".join(linecache.getlines(file)))
    except SyntaxError:
        return {}
    found: dict[Position, Position] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            name = node.func
            assert node.end_lineno and node.end_col_offset and name.end_lineno and name.end_col_offset
            if name.end_lineno != node.lineno:
                start = name.end_col_offset - len(name.attr)
                given = name.end_lineno, node.end_lineno, start, node.end_col_offset
                found[given] = node.lineno, node.end_lineno, node.col_offset, node.end_col_offset
    return found

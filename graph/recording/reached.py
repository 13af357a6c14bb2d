"""Which of the code of a model ran, and which functions are written in the part that did not."""

import ast
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from types import CodeType, FrameType
from typing import Any

import torch

from .kinds import OPERATORS, kind_of
from .places import Position, Sources, codes_in, is_foreign, position_of

__all__ = ["Function", "Ran", "Unreached", "unreached", "watching"]

Unreached = tuple[type, str, str, str]
"""The class, the method or helper function, the kind, and file and line of a function that did not run."""

Ran = dict[CodeType, set[int]]
"""The offsets of the instructions that ran, in Python code other than torch's."""


@dataclass(frozen=True)
class Function:
    """A function in the source of a model: the class and the name under which it is reported.

    Attributes:
        names: what its code finds by name.
        module: the name of the argument that is the module, None for a function outside of it.
    """

    owner: type
    name: str
    names: Mapping[str, object]
    module: str | None = None


def watching(ran: Ran) -> AbstractContextManager[None]:
    """Note which instructions run in the block.

    What a recorder of tensors sees is not enough: a sum of integers runs unseen. Before Python 3.12 this takes
    ``sys.settrace``, so that a debugger does not stop inside the block.
    """
    return _traced(ran) if sys.version_info < (3, 12) else _monitored(ran)


@contextmanager
def _traced(ran: Ran) -> Iterator[None]:
    def called(frame: FrameType, event: str, arg: object) -> Callable[..., Any] | None:
        if is_foreign(frame.f_code.co_filename):
            return None
        frame.f_trace_lines, frame.f_trace_opcodes = False, True
        offsets = ran.setdefault(frame.f_code, set())

        def stepped(frame: FrameType, event: str, arg: object) -> Callable[..., Any]:
            if event == "opcode":
                offsets.add(frame.f_lasti)
            return stepped

        return stepped

    before = sys.gettrace()
    sys.settrace(called)
    try:
        yield
    finally:
        sys.settrace(before)


@contextmanager
def _monitored(ran: Ran) -> Iterator[None]:
    monitoring: Any = getattr(sys, "monitoring", None)
    tool = next((each for each in range(6) if monitoring.get_tool(each) is None), None)
    if tool is None:  # six other tools are at work
        yield
        return

    watched: set[CodeType] = set()

    def started(code: CodeType, offset: int) -> None:
        if code not in watched and not is_foreign(code.co_filename):
            watched.add(code)
            ran.setdefault(code, set())
            monitoring.set_local_events(tool, code, monitoring.events.INSTRUCTION)

    def stepped(code: CodeType, offset: int) -> None:
        ran[code].add(offset)

    monitoring.use_tool_id(tool, "bitwright")
    try:
        monitoring.register_callback(tool, monitoring.events.PY_START, started)
        monitoring.register_callback(tool, monitoring.events.INSTRUCTION, stepped)
        monitoring.set_events(tool, monitoring.events.PY_START)
        yield
    finally:
        monitoring.set_events(tool, 0)
        for code in watched:
            monitoring.set_local_events(tool, code, 0)
        monitoring.register_callback(tool, monitoring.events.PY_START, None)
        monitoring.register_callback(tool, monitoring.events.INSTRUCTION, None)
        monitoring.free_tool_id(tool)


def unreached(ran: Ran, functions: Mapping[CodeType, Function], sources: Sources) -> list[Unreached]:
    """The functions of a known kind that are written in code that ran in part, where it did not run.

    Args:
        ran: what ran.
        functions: methods and helper functions by their code.
        sources: where source is read.
    """
    found: list[Unreached] = []
    for code, function in functions.items():
        if code in ran and not is_foreign(code.co_filename):
            file = os.path.basename(code.co_filename)
            missing = sorted(_missing(ran, code, function, sources))
            found += [(function.owner, function.name, kind, f"{file}:{line}") for line, _, _, kind in missing]
    return found


def _missing(ran: Ran, code: CodeType, function: Function, sources: Sources) -> Iterator[tuple[int, int, int, str]]:
    """Line, last line and column, and kind."""
    compiled: set[Position | None] = set()
    passed: set[Position | None] = set()
    for each in codes_in(code):
        positions = sources.positions(each)
        compiled.update(positions)
        passed.update(positions[offset // 2] for offset in ran.get(each, ()))
    body = getattr(sources.written(code), "body", [])
    for part in body if isinstance(body, list) else [body]:
        for call, kind in _Calls(function).of(part):
            position = line, end, _, end_column = position_of(call)
            if position in compiled and position not in passed:
                yield line, end, end_column, kind


_SIGNS = {getattr(ast, sign): kind for kind, sign in OPERATORS.items()}
_OF_NUMBERS = frozenset({"range", "len", "int", "float", "size", "zeros", "ones", "arange", "empty", "full", "print"})


class _Calls(ast.NodeVisitor):
    """Expressions that may compute something of a known kind on tensors.

    Not those that tell by themselves that they don't: one operand is a literal, they are part of an index, of a shape,
    or of the text of an error.
    """

    def __init__(self, function: Function) -> None:
        self._names = function.names
        self._module = function.module
        self._found: list[tuple[ast.expr | ast.stmt, str]] = []

    def of(self, part: ast.AST) -> list[tuple[ast.expr | ast.stmt, str]]:
        """Expressions and their kinds."""
        self.visit(part)
        return self._found

    def visit_BinOp(self, node: ast.BinOp) -> None:
        self._operator(node, node.left, node.right)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self._operator(node, node.target, node.value)

    def _operator(self, node: ast.BinOp | ast.AugAssign, *operands: ast.expr) -> None:
        kind = _SIGNS.get(type(node.op))
        if kind is not None and not any(isinstance(each, (ast.Constant, ast.JoinedStr)) for each in operands):
            self._found.append((node, kind))
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        kind = self._kind(node.func)
        if kind is not None:
            self._found.append((node, kind))
        name = getattr(node.func, "attr", getattr(node.func, "id", None))
        if kind in ("reshape", "expand") or name in _OF_NUMBERS:
            self.visit(node.func)
        else:
            self.generic_visit(node)

    def visit_Subscript(self, node: ast.Subscript) -> None:
        self.visit(node.value)

    def visit_Raise(self, node: ast.Raise) -> None:
        pass

    def visit_Assert(self, node: ast.Assert) -> None:
        pass

    def _kind(self, called: ast.expr) -> str | None:
        path: list[str] = []
        root = called
        while isinstance(root, ast.Attribute):
            path.insert(0, root.attr)
            root = root.value
        if isinstance(root, ast.Name) and root.id in self._names:  # torch.add, F.relu, relu
            found = self._names[root.id]
            for name in path:
                found = getattr(found, name, None)
            return None if isinstance(found, type) else kind_of(found)
        if not path or (isinstance(root, ast.Name) and root.id == self._module):  # self.relu is a module
            return None
        return kind_of(getattr(torch.Tensor, path[-1], None))

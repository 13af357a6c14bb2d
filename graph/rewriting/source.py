"""The source of a function, and its code once expressions in it are written otherwise."""

import __future__

import ast
import functools
import hashlib
import linecache
import operator
import re
from collections.abc import Callable, Iterator, Sequence
from types import CodeType, FunctionType

from ..recording.places import Position

__all__ = ["Replacement", "Source", "replaced", "title_of"]

Replacement = tuple[int, int, bytes]
"""Where in the text something else stands, from and to, and what."""

_FUTURE = functools.reduce(
    operator.or_, (getattr(__future__, name).compiler_flag for name in __future__.all_feature_names)
)
_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
_REWRITTEN = re.compile(r"^<rewritten \w+> ")


class Source:
    """The source of a function that is written by ``def``: its text and its syntax tree.

    Args:
        function: as it is defined, without its decorators.

    Attributes:
        file: where it is written.
        line: its first line there, that of the first decorator.
        node: its definition.
        owner: the name of the class that it is defined in, or None.

    Raises:
        LookupError: its file has no source, or has another one than the function was made from.

    Example:
        >>> source = Source(title_of)
        >>> source.node.name, source.node.args.args[0].arg
        ('title_of', 'function')
    """

    node: ast.FunctionDef

    def __init__(self, function: FunctionType) -> None:
        self.code = code = function.__code__
        self.file, self.line = code.co_filename, code.co_firstlineno
        linecache.checkcache(self.file)
        text = "".join(linecache.getlines(self.file, function.__globals__))
        if not text:
            raise LookupError(f"defined in {self.file}")
        found = next((each for each in _definitions(_parsed(text)) if _is_of(each[0], code)), None)
        if found is None:
            raise LookupError(f"no def at {self.file}:{self.line}, which may have been edited since it was imported")
        self.node, around = found
        self.owner = next((each.name for each in reversed(around) if isinstance(each, ast.ClassDef)), None)
        self.text = text.encode()
        self._starts = [0, *(each.end() for each in re.finditer(rb"\n", self.text))]

    def span(self, node: ast.AST) -> tuple[int, int]:
        """From where to where a part of the function is in the text."""
        line, end_line, column, end_column = _position(node)
        return self._starts[line - 1] + column, self._starts[end_line - 1] + end_column

    def at(self, position: Position) -> list[ast.AST]:
        """What is written at a position, the outermost first."""
        return [each for each in ast.walk(self.node) if _position(each) == position]

    @property
    def digest(self) -> str:
        """A number that another text of the function would not have."""
        return hashlib.sha256(self._own_text(())).hexdigest()[:16]

    def names(self) -> set[str]:
        """All the names that the function uses."""
        found = {each.id for each in ast.walk(self.node) if isinstance(each, ast.Name)}
        return found | {each.arg for each in ast.walk(self.node) if isinstance(each, ast.arg)}

    def shown(self, replacements: Sequence[Replacement]) -> str:
        """The text of the function with parts replaced, as it is printed."""
        lines = self._own_text(replacements).decode().split("\n")
        indent = len(lines[0]) - len(lines[0].lstrip())
        return "\n".join(line[indent:] if line[:indent].isspace() or not indent else line for line in lines) + "\n"

    def compiled(self, replacements: Sequence[Replacement]) -> CodeType:
        """The code of the function with parts of its text replaced: in its class, among its closure, on its lines."""
        body = self._own_text(replacements).decode()
        indent = body[: len(body) - len(body.lstrip())]
        free = [name for name in self.code.co_freevars if name.isidentifier() and name != "__class__"]
        owner, around = (
            self.owner,
            [],
        )  # private names are mangled by the class, names of functions further out are closures
        if free or (indent and owner is None):
            around.append(f"def around({', '.join(free)}):")
        if owner is not None:
            around.append(f"{indent[: len(around)]}class {owner}:")
        before = max(self.line - 1 - len(around), 0)
        text = "\n" * before + "\n".join([*around, body, ""])
        file = f"<rewritten {hashlib.sha256(text.encode()).hexdigest()[:8]}> {_REWRITTEN.sub('', self.file)}"
        module = compile(text, file, "exec", self.code.co_flags & _FUTURE, dont_inherit=True)
        linecache.cache[file] = len(text), None, text.splitlines(keepends=True), file
        line = before + len(around) + 1
        found = next(each for each in _codes(module) if each.co_name == self.node.name and each.co_firstlineno >= line)
        return found.replace(co_qualname=self.code.co_qualname)

    def _own_text(self, replacements: Sequence[Replacement]) -> bytes:
        """The lines of the function, with parts replaced."""
        start, end = self._starts[self.line - 1], self.span(self.node)[1]
        line_end = self.text.find(b"\n", end)
        return replaced(self.text, start, len(self.text) if line_end < 0 else line_end, replacements)


def replaced(text: bytes, start: int, end: int, replacements: Sequence[Replacement]) -> bytes:
    """A part of a text, with parts of it replaced; those that lie in others are left out.

    Example:
        >>> replaced(b"return a + b", 7, 12, [(7, 12, b"add(a, b)"), (7, 8, b"c")])
        b'add(a, b)'
    """
    parts, at = [], start
    for first, last, new in sorted(replacements, key=lambda each: (each[0], -each[1])):
        if at <= first and last <= end:
            glued = re.match(rb"\w\w", text[max(first - 1, 0) : first] + new[:1])  # return-x
            parts += [text[at:first], b" " if glued else b"", new]
            at = last
    return b"".join([*parts, text[at:end]])


def title_of(function: Callable[..., object]) -> str:
    """A function as messages name it: with its class, without the function that it is defined in.

    Example:
        >>> title_of(Source.shown)
        'Source.shown'
    """
    return str(getattr(function, "__qualname__", function)).rpartition("<locals>.")[2]


@functools.lru_cache(maxsize=8)  # of texts, so that a file with many blocks is parsed once
def _parsed(text: str) -> ast.Module:
    return ast.parse(text)


def _position(node: ast.AST) -> Position:
    found = tuple(getattr(node, name, 0) or 0 for name in ("lineno", "end_lineno", "col_offset", "end_col_offset"))
    return found  # type: ignore[return-value]


def _definitions(
    node: ast.AST, around: tuple[ast.AST, ...] = ()
) -> Iterator[tuple[ast.FunctionDef, tuple[ast.AST, ...]]]:
    """Every function that is defined in a tree, with the classes and functions around it."""
    for each in ast.iter_child_nodes(node):
        if isinstance(each, ast.FunctionDef):
            yield each, around
        yield from _definitions(each, (*around, each) if isinstance(each, _SCOPES) else around)


def _is_of(node: ast.FunctionDef, code: CodeType) -> bool:
    return node.name == code.co_name and code.co_firstlineno == min(
        [node.lineno, *(each.lineno for each in node.decorator_list)]
    )


def _codes(code: CodeType) -> Iterator[CodeType]:
    for each in code.co_consts:
        if isinstance(each, CodeType):
            yield each
            yield from _codes(each)

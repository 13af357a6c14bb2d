"""Expressions in a function, written as calls of submodules."""

import ast
from collections.abc import Sequence
from dataclasses import dataclass

from ..recording.places import Position
from .source import Replacement, Source, replaced

__all__ = ["Edit", "edited"]


@dataclass(frozen=True)
class Edit:
    """One expression in a function that is to call an attribute of the module instead.

    Args:
        position: of the expression; its lines count from the first line of the function, which is 0.
        name: the attribute: a submodule, or a method.

    Example:
        >>> Edit((2, 2, 15, 20), "add").moved(10).position
        (12, 12, 15, 20)
    """

    position: Position
    name: str

    def moved(self, lines: int) -> "Edit":
        """The edit with other line numbers."""
        line, end_line, column, end_column = self.position
        return type(self)((line + lines, end_line + lines, column, end_column), self.name)

    def replacements(self, source: Source, me: str, inner: Sequence[Replacement]) -> list[Replacement]:
        """The text that takes the place of the expression, and of what belongs to it.

        Args:
            source: of the function.
            me: what the module is called in it.
            inner: what is replaced inside the expression.
        """
        raise NotImplementedError


class Operation(Edit):
    """``a + b`` becomes ``self.add(a, b)``, and ``a += b`` becomes ``a = self.add(a, b)``."""

    def replacements(self, source: Source, me: str, inner: Sequence[Replacement]) -> list[Replacement]:
        node = next(each for each in source.at(self.position) if isinstance(each, (ast.BinOp, ast.AugAssign)))
        parts = (node.left, node.right) if isinstance(node, ast.BinOp) else (node.target, node.value)
        left, right = (_argument(source, part, inner) for part in parts)
        call = f"{me}.{self.name}(".encode() + left + b", " + right + b")"
        return [(*source.span(node), call if isinstance(node, ast.BinOp) else left + b" = " + call)]


class MethodCall(Edit):
    """``x.softmax(-1)`` becomes ``self.softmax(x, -1)``."""

    def replacements(self, source: Source, me: str, inner: Sequence[Replacement]) -> list[Replacement]:
        node = _call(source, self.position)
        assert isinstance(node.func, ast.Attribute)
        start, end = source.span(node)
        value = _argument(source, node.func.value, inner)
        opening = _opening(source.text, source.span(node.func)[1])
        rest = replaced(source.text, opening + 1, end, inner)
        between = b"" if not (node.args or node.keywords) else b"," if rest.lstrip(b" ").startswith(b"\n") else b", "
        return [(start, end, f"{me}.{self.name}(".encode() + value + between + rest)]


class Call(Edit):
    """``torch.cat(xs, 1)`` becomes ``self.cat(xs, 1)``: what is called is exchanged."""

    def replacements(self, source: Source, me: str, inner: Sequence[Replacement]) -> list[Replacement]:
        return [(*source.span(_call(source, self.position).func), f"{me}.{self.name}".encode())]


class Choice(Edit):
    """``act(x)``, where ``act`` is a variable, becomes ``(self._gelu if act is self._gelu.function else act)(x)``."""

    def replacements(self, source: Source, me: str, inner: Sequence[Replacement]) -> list[Replacement]:
        start, end = source.span(_call(source, self.position).func)
        called, method = source.text[start:end], f"{me}.{self.name}".encode()
        return [(start, end, b"(" + method + b" if " + called + b" is " + method + b".function else " + called + b")")]


class Parameter(Edit):
    """``def attend(q, k)`` becomes ``def attend(self, q, k)``, no static method; the position is the definition's."""

    def replacements(self, source: Source, me: str, inner: Sequence[Replacement]) -> list[Replacement]:
        node, start = source.node, source.span(source.node)[0] + len("def ")
        types = getattr(node, "type_params", [])
        after = source.span(types[-1])[1] if types else source.text.index(node.name.encode(), start)
        at, arguments = _opening(source.text, after) + 1, node.args
        alone = not any(getattr(arguments, name) for name in ("posonlyargs", "args", "vararg", "kwonlyargs", "kwarg"))
        static = (each for each in node.decorator_list if isinstance(each, ast.Name) and each.id == "staticmethod")
        signs = (source.text.rindex(b"@", 0, source.span(each)[0]) for each in static)
        return [(at, at, f"{self.name}{'' if alone else ', '}".encode()), *((sign, sign, b"# ") for sign in signs)]


def edited(source: Source, me: str, edits: Sequence[Edit]) -> list[Replacement]:
    """What is replaced in the text of a function, where expressions call submodules.

    Args:
        source: of the function.
        me: what the module is called in it.
        edits: with positions as the syntax tree counts them.
    """
    found: list[Replacement] = []
    for each in sorted(
        edits, key=lambda edit: (edit.position[1], edit.position[3], -edit.position[0], -edit.position[2])
    ):
        found += each.replacements(source, me, found)  # the inner ones come first: they end before, or begin later
    return found


def _call(source: Source, position: Position) -> ast.Call:
    return next(each for each in source.at(position) if isinstance(each, ast.Call))


def _argument(source: Source, node: ast.AST, inner: Sequence[Replacement]) -> bytes:
    """An operand as the argument of a call."""
    text = replaced(source.text, *source.span(node), inner)
    return b"(" + text + b")" if isinstance(node, (ast.Yield, ast.YieldFrom, ast.NamedExpr, ast.Tuple)) else text


def _opening(text: bytes, at: int) -> int:
    """Where the next opening parenthesis is, comments left out."""
    while text[at : at + 1] != b"(":
        at = text.index(b"\n", at) if text[at : at + 1] == b"#" else at + 1
    return at

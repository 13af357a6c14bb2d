"""How a recorded operation is written, and the calls that lead to it."""

import ast
import operator
from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType
from typing import Any, NoReturn, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import GraphError
from ..layers.hooked import hides_class
from ..recording.kinds import KINDS, name_of
from ..recording.places import Place, Position
from .editing import Call, Choice, Edit, MethodCall, Operation
from .functions import first_argument, layers
from .names import UNKNOWN, Names
from .source import Source, title_of

__all__ = ["Recorded", "Step", "function_at", "route"]


class Recorded(Protocol):
    """What is known of a recorded operation: a `Node` of the graph."""

    kind: str
    function: Callable[..., Any] | None
    owner: str
    module: str | None

    @property
    def path(self) -> str:
        """The name of the operation in the model."""
        ...


@dataclass(frozen=True)
class Step:
    """A function on the way from a method of a module to an operation, and where in it the way goes on.

    Attributes:
        function: with its decorators.
        depth: how many decorators there are around what is written there.
        bound: whether its first argument is the module, so that it can be a method as it is.
        edit: at the operation in the last step, at the call of the next function in the others. Lines count from the
            function's first.
    """

    function: Callable[..., Any]
    depth: int
    bound: bool
    edit: Edit


def function_at(owner: nn.Module, place: Place, node: Recorded) -> Callable[..., Any]:
    """The function that a module in the place of a recorded operation has to call, with the operands as written.

    Args:
        owner: the module in whose code the operation is written.
        place: where.
        node: the operation.

    Raises:
        GraphError: the operation can't be rewritten; the message says what to write by hand.

    Example:
        >>> from bitwright.graph import record
        >>> class Block(nn.Module):
        ...     def forward(self, x):
        ...         return torch.softmax(1 - x, -1).mul_(x)
        >>> block = Block()
        >>> [function_at(block, each.place, each).__name__ for each in record(block, torch.ones(3)).functions()]
        ['sub', 'softmax', 'mul_']
    """
    return route(owner, place, node)[1]


def route(owner: nn.Module, place: Place, node: Recorded, name: str = "") -> tuple[list[Step], Callable[..., Any]]:
    """The way from a method of the owner to a recorded operation, and the function that is written there.

    Args:
        owner: the module in whose code the operation is written.
        place: where.
        node: the operation.
        name: of the submodule that is to be called there.

    Raises:
        GraphError: the operation can't be rewritten; the message says what to write by hand.
    """
    if place.method in vars(owner) and (place.method != "forward" or hides_class(owner)):
        raise GraphError(
            f"{node.path} is computed in {type(owner).__name__}.{place.method}, and this module has a {place.method} "
            f"of its own, which hides that of its class. Write it in a subclass, or {_left(node)}."
        )
    function: object = _method(type(owner), place.method)
    bound, steps = True, list[Step]()
    for index, (_, position) in enumerate(place.chain):
        reader = _Reader(owner if bound else None, function, position, node)
        if index == len(place.chain) - 1:
            edit, written = reader.operation(name, owner)
            return [*steps, reader.step(bound, edit)], written
        following, at = place.chain[index + 1]
        called = following or reader.called(at)
        edit, is_bound = reader.call(called)
        steps.append(reader.step(bound, edit))
        function, bound = called, is_bound
    raise AssertionError(place)


def _method(owner: type, name: str) -> object:
    return next((vars(base)[name] for base in owner.__mro__ if name in vars(base)), None)


class _Reader:
    """Reads one function on the way to an operation."""

    def __init__(self, owner: nn.Module | None, function: object, position: Position, node: Recorded) -> None:
        self.node, self.position = node, position
        assert isinstance(function, FunctionType)
        self.outer = function
        self.depth, self.source = self._source(function, position)
        self.function = layers(function)[self.depth]
        self.where = f"{self.source.file.rpartition('/')[2]}:{position[0]}"
        if any(isinstance(each, ast.Name) and each.id == "classmethod" for each in self.source.node.decorator_list):
            self._refuse(f"{title_of(self.function)} at {self.where}, a class method, which has no module at hand")
        if owner is not None and first_argument(self.source) is None:
            self._refuse(f"{title_of(self.function)}, which names no argument for the module itself")
        self.names = Names(self.function, self.source, owner)
        self.me = self.names.me
        if self.me is not None:
            self._check_me(self.me)

    def _source(self, function: FunctionType, position: Position) -> tuple[int, Source]:
        """The source of the function, or of what its decorators wrap: where the position is."""
        reasons: list[str] = []
        for depth, layer in enumerate(layers(function)):
            try:
                source = Source(layer)
            except LookupError as error:
                reasons.append(str(error))
                continue
            if source.at(position):
                return depth, source
        inner = layers(function)[-1]
        if reasons:
            raise GraphError(
                f"{title_of(inner)} has no source ({reasons[-1]}), so {self.node.kind} can't be "
                "given a quantizer. Define the class in a file, or write None for it."
            )
        return self._refuse(f"{title_of(inner)} was edited since it was imported")

    def step(self, bound: bool, edit: Edit) -> Step:
        """This function on the way."""
        return Step(self.outer, self.depth, bound, edit)

    def called(self, position: Position) -> FunctionType | None:
        """What is called, if the recorder has not told: a function that has something at the position."""
        node = self._written(ast.Call)
        found = None if node is None else self.names.value(node.func)
        function = getattr(found, "__func__", found)
        for each in layers(function):
            try:
                if Source(each).at(position) and isinstance(function, FunctionType):
                    return function
            except LookupError:
                continue
        return None

    def call(self, called: FunctionType | None) -> tuple[Edit, bool]:
        """The call of a helper function, and whether it is that of a method of the module."""
        node = self._written(ast.Call)
        if called is None or node is None:
            what = "a function that can't be found again" if called is None else title_of(called)
            return self._refuse(f"{what}, called at {self.where} in {title_of(self.function)}")
        known = self.names.value(node.func)
        if known is UNKNOWN and isinstance(node.func, ast.Name):
            return Choice(self._relative(), ""), False
        if not any(each in layers(called) for each in layers(known)):
            return self._refuse(
                f"{title_of(called)}, which {title_of(self.function)} calls at {self.where} as "
                f"{ast.unparse(node.func)}(...), a name that may stand for another function, too"
            )
        return Call(self._relative(), ""), self.names.is_bound(node.func)

    def operation(self, name: str, owner: nn.Module) -> tuple[Edit, Callable[..., Any]]:
        """The operation as it is written: how to rewrite it, and the function."""
        for read in (self._module, self._operator, self._function, self._method_call):
            found = read(name, owner)
            if found is not None:
                return found
        what = next((_shown(each) for each in self.source.at(self.position) if _shown(each)), "something else")
        return self._refuse(
            f"{what} at {self.where} in {title_of(self.function)}, not by an operator or a call written there"
        )

    def _module(self, name: str, owner: nn.Module) -> tuple[Edit, Callable[..., Any]] | None:
        """A call of a submodule."""
        if self.node.module is None:
            return None
        node = self._written(ast.Call)
        path = self.node.module[len(self.node.owner) :].removeprefix(".")
        if node is not None and self.names.value(node.func) is owner.get_submodule(path):
            return Call(self._relative(), name), owner.get_submodule(path)
        return None

    def _operator(self, name: str, owner: nn.Module) -> tuple[Edit, Callable[..., Any]] | None:
        node = self._written(ast.BinOp, ast.AugAssign)
        if not isinstance(node, (ast.BinOp, ast.AugAssign)):
            return None
        function = _OPERATORS.get(type(node.op))
        stored = isinstance(node, ast.AugAssign) and not isinstance(node.target, ast.Name)
        if function is None or name_of(function) != self.node.kind or stored:
            return None
        return Operation(self._relative(), name), function

    def _function(self, name: str, owner: nn.Module) -> tuple[Edit, Callable[..., Any]] | None:
        node = self._written(ast.Call)
        function = UNKNOWN if node is None else self.names.value(node.func)
        if (
            function is UNKNOWN
            or not callable(function)
            or isinstance(function, nn.Module)
            or not self._is_it(function)
        ):
            return None
        return Call(self._relative(), name), function

    def _method_call(self, name: str, owner: nn.Module) -> tuple[Edit, Callable[..., Any]] | None:
        """A call of a method of a tensor."""
        node = self._written(ast.Call)
        if node is None or not isinstance(node.func, ast.Attribute):
            return None
        function = getattr(Tensor, node.func.attr, None)
        own = getattr(self.node.function, "__name__", "")
        is_method = own and getattr(Tensor, own, None) is self.node.function
        known = self.names.value(node.func.value) is not UNKNOWN
        if not callable(function) or not is_method or known or not self._is_it(function):
            return None
        return MethodCall(self._relative(), name), function

    def _is_it(self, function: object) -> bool:
        return function is self.node.function or name_of(function) == self.node.kind

    def _written(self, *kinds: type[ast.AST]) -> Any:
        return next((each for each in self.source.at(self.position) if isinstance(each, kinds)), None)

    def _relative(self) -> Position:
        line, end_line, column, end_column = self.position
        return line - self.source.line, end_line - self.source.line, column, end_column

    def _check_me(self, me: str) -> None:
        """The name of the module must stand for it where the operation is written."""
        around = [each for each in ast.walk(self.source.node) if _holds(each, self.position)]
        inner = [each for each in around if isinstance(each, _FUNCTIONS) and each is not self.source.node]
        arguments = [each for function in inner for each in ast.walk(function.args) if isinstance(each, ast.arg)]
        hidden = any(each.arg == me for each in arguments)
        stored = any(
            isinstance(each, ast.Name) and each.id == me and not isinstance(each.ctx, ast.Load)
            for each in ast.walk(self.source.node)
        )
        if hidden or stored:
            self._refuse(f"{title_of(self.function)} at {self.where}, where {me} is something else than the module")

    def _refuse(self, by: str) -> NoReturn:
        raise GraphError(f"{self.node.path} is computed by {by}. {_by_hand(self.node)}, or {_left(self.node)}.")


_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
_OPERATORS: dict[type[ast.operator], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.MatMult: operator.matmul,
    ast.Pow: operator.pow,
}
_SIGNS = {"add": "a + b", "sub": "a - b", "mul": "a * b", "div": "a / b", "matmul": "a @ b"}


def _holds(node: ast.AST, position: Position) -> bool:
    if not isinstance(node, (ast.stmt, ast.expr)):
        return False
    line, end_line, column, end_column = position
    end = node.end_lineno or 0, node.end_col_offset or 0
    return (node.lineno, node.col_offset) <= (line, column) and (end_line, end_column) <= end


def _shown(node: ast.AST) -> str:
    """How a message shows what is written."""
    if isinstance(node, ast.Call):
        return f"{ast.unparse(node.func)}(...)"
    if isinstance(node, ast.AugAssign):
        sign = ast.unparse(node).removeprefix(ast.unparse(node.target)).split()[0]
        return f"{ast.unparse(node.target)} {sign} ..."
    return ast.unparse(node) if isinstance(node, ast.expr) else ""


def _by_hand(node: Recorded) -> str:
    """What to write instead of something that can't be rewritten."""
    known = KINDS.get(node.kind, (node.function,))
    homes = (("torch", torch), ("torch.nn.functional", F), ("operator", operator))
    named = (
        f"{home}.{each.__name__}"
        for home, space in homes
        for each in known
        if each is not None and getattr(space, each.__name__, None) is each
    )
    function = next(named, f"torch.{node.kind}")
    name = node.path.rpartition(".")[2]
    expression = _SIGNS.get(node.kind, f"{function}(...)")
    return f"Write {expression} there, or self.{name} = qnn.QuantFunction({function}, ...) in the block"


def _left(node: Recorded) -> str:
    return f'"{node.path}": None'

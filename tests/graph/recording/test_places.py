"""Where operations are written: Python's idioms, one module each."""

import ast
import functools
import linecache
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bitwright.graph.recording.places import Place
from bitwright.graph.recording.recorder import record

X = torch.tensor([[1.0, -2.0]])


def text(place: Place) -> str:
    """What is written at a place."""
    line, end, column, end_column = place.position
    lines = linecache.getlines(place.file)[line - 1 : end]
    lines[-1] = lines[-1].encode()[:end_column].decode()
    lines[0] = lines[0].encode()[column:].decode()
    return "".join(lines)


def places(model: nn.Module, x: torch.Tensor = X) -> list[tuple[str, str, str | None]]:
    """Name, source text, and the helper function of every function call, in the order of calls."""
    found = []
    for node in record(model, x).functions():
        assert node.place is not None
        helper = node.place.helper
        found.append((node.path, text(node.place), None if helper is None else helper.__name__))
    return found


def scaled(a, b):
    return a * b + 1


def twice(a):
    return scaled(a, a) - scaled(a, 2)


def logged(function):
    @functools.wraps(function)
    def wrapper(*args):
        return function(*args)

    return wrapper


def anonymous(function):
    def wrapper(*args):
        return function(*args)

    return wrapper


@logged
def decorated(a):
    return a.sigmoid()


@torch.no_grad()
def without_gradients(a):
    return a.tanh()


def apply(function, a):
    return function(a)


class Operators(nn.Module):
    def forward(self, x):
        y = x + x
        y += x
        y = 1 - y
        return -y @ x.T


def test_operators():
    assert places(Operators()) == [
        ("add", "x + x", None),
        ("add_2", "y += x", None),
        ("sub", "1 - y", None),
        ("neg", "-y", None),
        ("permute", "x.T", None),
        ("matmul", "-y @ x.T", None),
    ]


class Calls(nn.Module):
    def forward(self, x):
        x = torch.add(x, other=x)
        x = F.relu(
            x.add(
                1,
            )
        )
        x = (
            x.mul(2)
            .add(x)  # a chain of lines
            .sub(3, alpha=2)
        )
        é = x.exp()
        y = é.add(é)  # columns are bytes
        return F.softmax(*[y], **{"dim": -1})  # noqa: PIE804


def test_calls():
    assert places(Calls()) == [
        ("add", "torch.add(x, other=x)", None),
        ("add_2", "x.add(\n                1,\n            )", None),
        ("relu", "F.relu(\n            x.add(\n                1,\n            )\n        )", None),
        ("mul", "x.mul(2)", None),
        ("add_3", "x.mul(2)\n            .add(x)", None),
        ("sub", "x.mul(2)\n            .add(x)  # a chain of lines\n            .sub(3, alpha=2)", None),
        ("exp", "x.exp()", None),
        ("add_4", "é.add(é)", None),
        ("softmax", 'F.softmax(*[y], **{"dim": -1})', None),
    ]


class Inside(nn.Module):
    def forward(_net, x):  # noqa: N805
        def inner(a):
            return a * _net.scale

        parts = [each + 1 for each in (x, x)]
        parts = list(each - 1 for each in parts)  # noqa: C400
        parts = list(map(lambda each: each / 2, parts))  # noqa: C417
        parts = [  # a chain of lines
            each
            .exp()
            for each in parts
        ]  # fmt: skip
        return apply(inner, torch.stack(parts)) + apply(lambda a: a.tanh(), x)

    scale = 3


def test_code_written_inside_the_method_is_part_of_it():
    assert places(Inside()) == [
        *[("add", "each + 1", None)] * 2,
        *[("sub", "each - 1", None)] * 2,
        *[("div", "each / 2", None)] * 2,
        *[("exp", "each\n            .exp()", None)] * 2,
        ("stack", "torch.stack(parts)", None),
        ("mul", "a * _net.scale", None),
        ("tanh", "a.tanh()", None),
        ("add_2", "apply(inner, torch.stack(parts)) + apply(lambda a: a.tanh(), x)", None),
    ]


class Helpers(nn.Module):
    def __init__(self):
        super().__init__()
        self.act = lambda a: a.relu()
        self.part = functools.partial(scaled, b=3)
        self.hidden = functools.partial(lambda a, b: a.clamp(b), b=3)
        self.functional = F.gelu

    def forward(self, x):
        x = twice(x)
        x = decorated(x)
        x = without_gradients(x)
        return self.functional(self.part(self.act(self.hidden(x))))


def test_helper_functions():
    assert places(Helpers()) == [
        ("mul", "a * b", "scaled"),
        ("add", "a * b + 1", "scaled"),
        ("mul_2", "a * b", "scaled"),
        ("add_2", "a * b + 1", "scaled"),
        ("sub", "scaled(a, a) - scaled(a, 2)", "twice"),
        ("sigmoid", "a.sigmoid()", "decorated"),
        ("tanh", "a.tanh()", "without_gradients"),
        ("clamp", "a.clamp(b)", "<lambda>"),
        ("relu", "a.relu()", "<lambda>"),
        ("mul_3", "a * b", "scaled"),
        ("add_3", "a * b + 1", "scaled"),
        ("gelu", "self.functional(self.part(self.act(self.hidden(x))))", None),
    ]


def test_a_helper_of_a_helper_is_reached_by_a_chain_of_known_functions():
    node = record(Helpers(), X).node("mul_2")
    assert node.place is not None
    assert [function for function, _ in node.place.chain] == [None, twice, scaled]
    assert node.place.reachable
    lines = Path(__file__).read_text().splitlines()
    called, written = lines.index("        x = twice(x)") + 1, lines.index("    return a * b + 1") + 1
    assert str(node.place) == f"test_places.py:{written} (in scaled, called at {called})"
    assert [each for each, _ in record(Helpers(), X).node("sigmoid").place.chain] == [None, decorated]


def maker(factor):
    def times(x):
        return x * factor

    return times


class Makes(nn.Module):
    def forward(self, x):
        function = maker(x + 1)
        return function(x)


def test_a_function_that_is_made_anew_for_every_forward_is_one_place():
    graph = record(Makes(), [X, X])
    _, node = graph.functions()
    assert (node.path, node.place.helper.__name__, len(graph.nodes)) == ("mul", "times", 4)


def test_functions_with_one_code_are_told_apart_by_what_they_hold():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.double, self.triple = maker(2), maker(3)

        def forward(self, x):
            return self.triple(self.double(self.triple(x)))

    model = Net()
    helpers = [node.place.helper for node in record(model, X).functions()]
    assert helpers == [model.triple, model.double, model.triple]


class Base(nn.Module):
    def forward(self, x):
        return self._mix(x) * 2

    def _mix(self, x):
        return x + 1

    @staticmethod
    def still(x):
        return x.exp()

    @classmethod
    def ofclass(cls, x):
        return x.tanh()


class Derived(Base):
    def forward(self, x):
        x = super().forward(x)
        x = self.__private(self.still(x))
        return Derived.ofclass(x)

    def __private(self, x):
        return x - 1


def test_methods():
    assert places(Derived()) == [
        ("add", "x + 1", None),
        ("mul", "self._mix(x) * 2", "forward"),
        ("exp", "x.exp()", "still"),
        ("sub", "x - 1", None),
        ("tanh", "x.tanh()", "ofclass"),
    ]
    nodes = {node.path: node.place for node in record(Derived(), X).functions()}
    assert {path: place.method for path, place in nodes.items()} == {
        "add": "_mix",
        "mul": "forward",
        "exp": "forward",
        "sub": "_Derived__private",
        "tanh": "forward",
    }
    assert nodes["mul"].chain[1][0] is Base.forward


class Decorated(nn.Module):
    @logged
    def forward(self, x):
        return self.mix(x) + 1

    @anonymous
    def mix(self, x):
        return x * 2


def test_decorated_methods():
    assert places(Decorated()) == [("mul", "x * 2", None), ("add", "self.mix(x) + 1", None)]
    assert [node.place.method for node in record(Decorated(), X).functions()] == ["mix", "forward"]


class Rope:
    def turn(self, x):
        return x * 2

    @staticmethod
    def shift(x):
        return x + 2


class Objects(nn.Module):
    def __init__(self):
        super().__init__()
        self.rope = Rope()

    def forward(self, x):
        return Rope.shift(self.rope.turn(x))


def test_a_method_of_another_object_is_not_reachable():
    turn, shift = record(Objects(), X).functions()
    assert (text(turn.place), turn.place.reachable, turn.place.helper) == ("x * 2", False, None)
    assert str(turn.place).endswith(f"(in a function, called at {turn.place.chain[0][1][0]})")
    assert (text(shift.place), shift.place.reachable) == ("x + 2", True)


class Held(nn.Module):
    """Modules that are called without being children, or not by a call."""

    def __init__(self):
        super().__init__()
        self.listed = [Operators()]
        self.base = Base()

    def forward(self, x):
        x = nn.ReLU()(x)
        return self.base.forward(x) + self.base._mix(x)


def test_the_owner_is_the_module_whose_method_runs():
    assert places(Held()) == [
        ("relu", "nn.ReLU()(x)", None),
        ("base.add", "x + 1", None),
        ("base.mul", "self._mix(x) * 2", None),
        ("base.add", "x + 1", None),
        ("add", "self.base.forward(x) + self.base._mix(x)", None),
    ]


def test_a_forward_on_the_instance_has_no_place():
    model = nn.Sequential(nn.Identity(), Base())
    model[1].forward = lambda x: x + 1
    (node,) = record(model, X).functions()
    assert (node.path, node.place) == ("1.add", None)


def test_code_without_a_file():
    names = {"nn": nn}
    exec("class Net(nn.Module):\n    def forward(self, x):\n        return x + x", names)
    (node,) = record(names["Net"](), X).functions()
    assert (node.place.file, node.place.position) == ("<string>", (3, 3, 15, 20))


class Caller(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.ReLU())
        self.act = nn.ReLU()

    def forward(self, x):
        return self.act(x) + through(self.act, self.layers(x))


def through(layer, x):
    return layer(x)


def test_calls_of_layers():
    first, inner, second = [node for node in record(Caller(), X).nodes if node.module is not None]
    assert text(first.place) == "self.act(x)"
    assert (inner.owner, inner.place.method) == ("layers", "forward")
    assert inner.place.file.endswith("container.py")
    assert (text(second.place), second.place.helper, second.owner) == ("layer(x)", through, "")


def test_one_place_in_a_loop_is_one_site():
    class Loop(nn.Module):
        def forward(self, x):
            for _ in range(3):
                x = x + 1
            return sum([x, x])

    graph = record(Loop(), X)
    assert [node.path for node in graph.functions()] == ["add"] * 3 + ["add_2"] * 2
    assert len({node.place for node in graph.functions()}) == 2


@pytest.mark.parametrize("name", ["add", "mul_2"])
def test_positions_are_those_of_the_syntax_tree(name):
    node = record(Helpers(), X).node(name)
    for number, (function, position) in enumerate(node.place.chain):
        file = node.place.file if number else __file__
        found = [
            each
            for each in ast.walk(ast.parse(Path(file).read_text()))
            if isinstance(each, (ast.BinOp, ast.Call))
            and (each.lineno, each.end_lineno, each.col_offset, each.end_col_offset) == position
        ]
        assert len(found) == 1, function

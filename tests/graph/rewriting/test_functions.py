"""Functions with another text, under the same decorators."""

import functools

import torch

from bitwright.graph.rewriting.editing import Call, Operation, Parameter
from bitwright.graph.rewriting.functions import first_argument, layers, rewritten, takes_any
from bitwright.graph.rewriting.source import Source

CALLS = []


def counted(times):
    CALLS.append("the decorator")

    def decorate(function):
        @functools.wraps(function)
        def around(*args, **kwargs):
            CALLS.append(times)
            return function(*args, **kwargs)

        return around

    return decorate


def bare(function):
    return lambda x, y=1: function(x, y)


@counted(2)
@torch.no_grad()
def decorated(x, y=5, *, z: int = 7):
    return abs(x + y) * z


@bare
def hidden(x, y):
    return x + y


class Owner:
    def add(self, x, y):
        return x + y + 1000

    def negative(self, x):
        return -x


def edits(function, *found):
    """Edits at what is written in a function's one line."""
    line = Source(function).text.decode().split("\n")[function.__code__.co_firstlineno + 2 :]
    made = []
    for kind, written, name in found:
        row, text = next((n, each) for n, each in enumerate(line) if written in each)
        column, row = text.index(written), row + 3
        made.append(kind((row, row, column, column + len(written)), name))
    return made


def definition(function):
    node, line = Source(function).node, Source(function).line
    return Parameter((node.lineno - line, node.end_lineno - line, 0, node.end_col_offset), "owner")


def test_layers():
    assert [each.__name__ for each in layers(decorated)] == ["decorated"] * 3
    assert [each.__name__ for each in layers(hidden)] == ["<lambda>", "hidden"]
    assert layers(staticmethod(hidden)) == layers(hidden)
    assert layers(len) == []


def test_a_helper_becomes_a_method_under_its_decorators():
    inner = layers(decorated)[-1]
    found = [*edits(inner, (Operation, "x + y", "add"), (Call, "abs(x + y)", "negative")), definition(inner)]
    CALLS.clear()
    made = rewritten(decorated, 2, found)
    assert CALLS == []
    assert made.source == (  # type: ignore[attr-defined]
        "@counted(2)\n"
        "@torch.no_grad()\n"
        "def decorated(owner, x, y=5, *, z: int = 7):\n"
        "    return owner.negative(owner.add(x, y)) * z\n"
    )
    assert made.function is decorated  # type: ignore[attr-defined]
    assert made(Owner(), 1) == -1006 * 7
    assert made(Owner(), 1, y=2, z=1) == -1003
    assert CALLS == [2, 2]
    assert decorated(1) == 42
    assert layers(made)[-1].__annotations__ == {"z": int}


def test_a_decorator_that_names_its_arguments():
    assert [takes_any(each) for each in layers(decorated)] == [True, True, False]
    assert not takes_any(layers(hidden)[0])


def test_the_first_argument():
    assert first_argument(Source(layers(decorated)[-1])) == "x"
    assert first_argument(Source(test_layers)) is None

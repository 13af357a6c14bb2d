"""The text and the code of functions."""

import re
import types

import pytest

from bitwright.graph.rewriting.source import Source, replaced, title_of


def outer(by):
    class Inner:
        __times = 3

        def method(self, x, *, y: "int" = 2):
            """What it does."""
            return self.__times * x + by - y  # the end

    return Inner


METHOD = outer(10).method


def position(source, written):
    """Where something is written in a function, as the syntax tree counts it."""
    start = source.text.index(written.encode(), source.span(source.node)[0])
    line = source.text.count(b"\n", 0, start) + 1
    column = start - source.text.rfind(b"\n", 0, start) - 1
    return line, line, column, column + len(written.encode())


def test_what_is_at_a_position():
    source = Source(METHOD)
    assert source.line == METHOD.__code__.co_firstlineno
    assert (source.node.name, source.owner) == ("method", "Inner")
    (found,) = source.at(position(source, "self.__times * x"))
    start, end = source.span(found)
    assert source.text[start:end] == b"self.__times * x"
    assert source.at(position(source, "__times * x")) == []
    assert source.names() == {"self", "x", "y", "by"}


def test_private_names_closures_and_lines_are_kept():
    source = Source(METHOD)
    start, end = source.span(source.at(position(source, "self.__times * x"))[0])
    code = source.compiled([(start, end, b"self.__times * 100")])
    assert code.co_qualname == METHOD.__code__.co_qualname
    assert code.co_firstlineno == METHOD.__code__.co_firstlineno
    assert re.fullmatch(r"<rewritten [0-9a-f]{8}> .*test_source\.py", code.co_filename)
    made = types.FunctionType(code, globals(), "method", None, METHOD.__closure__)
    assert made(outer(0)(), 1, y=2) == 308
    assert METHOD(outer(0)(), 1) == 11


def test_the_text_that_is_shown_has_no_indentation():
    assert Source(METHOD).shown([]) == (
        'def method(self, x, *, y: "int" = 2):\n'
        '    """What it does."""\n'
        "    return self.__times * x + by - y  # the end\n"
    )


def test_another_text_has_another_digest(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    digests = []
    for number, text in enumerate(("x + 1", "x + 1", "x - 1")):
        (tmp_path / f"module_{number}_of_a_user.py").write_text("#\n" * number + f"def f(x):\n    return {text}\n")
        digests.append(Source(__import__(f"module_{number}_of_a_user").f).digest)
    assert digests[0] == digests[1] != digests[2]
    assert len(digests[0]) == 16


def test_functions_without_a_source():
    namespace = {}
    exec("def f(x):\n    return x", namespace)
    with pytest.raises(LookupError, match=r"^defined in <string>$"):
        Source(namespace["f"])
    function = lambda x: x  # noqa: E731
    line = function.__code__.co_firstlineno
    message = f"^no def at {re.escape(__file__)}:{line}, which may have been edited since it was imported$"
    with pytest.raises(LookupError, match=message):
        Source(function)


@pytest.mark.parametrize(
    ("replacements", "wanted"),
    [
        ([], b"return-x+y"),
        ([(6, 8, b"f(x)")], b"return f(x)+y"),  # not returnf(x)
        ([(6, 8, b"(f)(x)"), (9, 10, b"z")], b"return(f)(x)+z"),
        ([(9, 10, b"z"), (6, 10, b"-x")], b"return-x"),  # the outer one stands for both
        ([(7, 7, b"2*")], b"return-2*x+y"),
    ],
)
def test_parts_of_a_text_are_replaced(replacements, wanted):
    assert replaced(b"return-x+y", 0, 10, replacements) == wanted


def test_titles():
    assert title_of(METHOD) == "Inner.method"
    assert title_of(outer) == "outer"

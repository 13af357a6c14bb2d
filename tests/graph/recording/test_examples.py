"""What counts as examples."""

import re
from collections import UserDict
from typing import NamedTuple

import pytest
import torch

from bitwright.graph import GraphError
from bitwright.graph.recording.examples import calls_of

X = torch.ones(1)


class Pair(NamedTuple):
    a: int
    b: int


def test_one_forward():
    assert calls_of(X) == [((X,), {})]
    assert calls_of((X, 3)) == [((X, 3), {})]
    assert calls_of({"x": X}) == [((), {"x": X})]
    assert calls_of(()) == [((), {})]
    assert calls_of(Pair(1, 2)) == [((1, 2), {})]


def test_several_forwards():
    assert calls_of([X, (X, X), UserDict(x=X)]) == [((X,), {}), ((X, X), {}), ((), {"x": X})]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            3,
            "examples is 3. Pass a tensor, a tuple of positional arguments, a dict of keyword arguments, or a list of "
            "any of these, one for each forward: examples=(x,).",
        ),
        (
            [X, None],
            "examples[1] is None. Pass a tensor, a tuple of positional arguments, a dict of keyword arguments, or a "
            "list of any of these, one for each forward: examples=(x,).",
        ),
        ([], "examples is an empty list, so there is no forward to run. Pass at least one: examples=(x,)."),
        (
            {0: X},
            "examples is a dict with the key 0, and a dict holds keyword arguments by their names. Pass a dict that "
            "forward takes as an argument inside a tuple: examples=({...},).",
        ),
    ],
)
def test_anything_else_is_refused(given, message):
    with pytest.raises(GraphError, match=f"^{re.escape(message)}$"):
        calls_of(given)

"""Functions that no example reached."""

import functools
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from bitwright.graph.recording.reached import watching
from bitwright.graph.recording.recorder import record

X = torch.tensor([[1.0, -2.0]])
SOURCE = Path(__file__).read_text().splitlines()


def missing(model, examples=X):
    """Class, method, kind, and the mark behind the line."""
    found = []
    for owner, method, kind, where in record(model, examples).unreached:
        file, _, line = where.partition(":")
        assert file == "test_reached.py"
        found.append((owner.__name__, method, kind, SOURCE[int(line) - 1].partition("# ")[2]))
    return found


def helper(x, deep):
    if deep:
        return x.softmax(-1)  # helper
    return x + 1


def never(x):
    return x + x


class Control(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.relu = nn.Linear(2, 2), nn.ReLU()

    def forward(self, x, times=1):
        rows = times + x.shape[0]  # integers, which run
        x = self.a(x)
        if times > 1:
            x = x + self.a(x)  # one
            x += x  # two
        elif times < 0:
            raise ValueError("impossible: " + str(times + rows))
        elif times == 0:
            if 0:
                never(x + x)  # not even compiled
            never(x)
            x = nn.ReLU()(x)  # makes a module
            rows = rows + 1  # a literal says that it is a number
            x = self.relu(torch.cat([x, F.relu(x)]))  # three
            x = x[: rows + times].view(rows * times, -1).sub(3)  # four
        assert times > 0, "times is " + str(times - rows)
        return helper(self.mix(x), deep=times > 5)

    def mix(self, x, flag=False):
        inner = lambda a: a @ a  # noqa: E731  five
        return inner(x) if flag else x * 2

    def unused(self, x):
        return x + x


def test_what_is_written_where_no_example_came_by():
    assert missing(Control()) == [
        ("Control", "forward", "add", "one"),
        ("Control", "forward", "add", "two"),
        ("Control", "forward", "relu", "three"),
        ("Control", "forward", "cat", "three"),
        ("Control", "forward", "reshape", "four"),
        ("Control", "forward", "sub", "four"),
        ("Control", "mix", "matmul", "noqa: E731  five"),
        ("Control", "helper", "softmax", "helper"),
    ]


def test_an_example_for_each_branch():
    assert missing(Control(), [X, (X, 2), (X[:, :1].expand(2, 2), 9)]) == [
        ("Control", "forward", "relu", "three"),
        ("Control", "forward", "cat", "three"),
        ("Control", "forward", "reshape", "four"),
        ("Control", "forward", "sub", "four"),
        ("Control", "mix", "matmul", "noqa: E731  five"),
    ]


def decorated(function):
    @functools.wraps(function)
    def wrapper(*args):
        return function(*args)

    return wrapper


class Base(nn.Module):
    @decorated
    def forward(self, x):
        y = x + x if x.sum() > 100 else x - x  # a line of two branches
        return self.sign(y) * y

    @staticmethod
    def sign(x):
        return x.sigmoid() if x.sum() > 0 else x.tanh()  # sign


class Derived(Base):
    pass


class Other(Base):
    def forward(self, x):
        return super().forward(x)


def test_inherited_decorated_and_static_methods():
    for model in (Derived(), Other(), nn.Sequential(Derived(), Other())):
        assert sorted(missing(model)) == [
            ("Base", "forward", "add", "a line of two branches"),
            ("Base", "sign", "sigmoid", "sign"),
        ]


def test_torch_itself_is_not_reported():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    assert record(layer, torch.randn(1, 3, 8)).unreached == []


def test_code_without_source():
    names = {"nn": nn}
    exec("class Net(nn.Module):\n    def forward(self, x):\n        return x + x if x.sum() > 100 else x", names)
    assert record(names["Net"](), X).unreached == []


def test_watching_leaves_other_tracers_alone():
    events = []

    def tracer(frame, event, arg):
        events.append(event)

    before = sys.gettrace()
    sys.settrace(tracer)
    try:
        ran = {}
        with watching(ran):
            helper(X, deep=True)
            never(X)
        assert sys.gettrace() is tracer
        assert len(ran[never.__code__]) > 2
        assert decorated.__code__ not in ran
        so_far = len(ran[helper.__code__])
        with watching(ran):
            helper(X, deep=False)
        assert len(ran[helper.__code__]) > so_far
        events.clear()
        never(X)
        assert events == ["call"]
    finally:
        sys.settrace(before)

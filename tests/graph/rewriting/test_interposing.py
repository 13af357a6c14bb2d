"""Every way to write an operation: the named expressions call submodules, everything else is as it was."""

import copy
import functools
import inspect
import operator
import re
import textwrap

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.functional import relu as rectified

from bitwright.graph import GraphError
from bitwright.graph.recording.recorder import record
from bitwright.graph.rewriting import function_at, interpose


class Passing(nn.Module):
    """Calls a function, and counts."""

    def __init__(self, function):
        super().__init__()
        self.function, self.calls = function, 0

    def forward(self, *args, **kwargs):
        self.calls += 1
        return self.function(*args, **kwargs)


def sites(model, *args, kinds=None):
    """The recorded operations of a model by owner, each once."""
    found = {}
    for node in record(model, [args]).functions(kinds):
        found.setdefault(node.owner, {}).setdefault(node.name, node)
    return found


def rewritten(model, *args, kinds=None):
    """A copy of a model in which each operation is a call of a module."""
    found = sites(model, *args, kinds=kinds)
    model = copy.deepcopy(model)
    for path, nodes in found.items():
        owner = model.get_submodule(path)
        for name, node in nodes.items():
            owner.add_module(name, Passing(function_at(owner, node.place, node)))
        interpose(owner, [(node.place, name, node) for name, node in nodes.items()])
    return model


def source(model, method="forward"):
    return textwrap.dedent(getattr(type(model), method).source)


def calls(model):
    return {path: each.calls for path, each in model.named_modules() if isinstance(each, Passing)}


def attend(q, k, v, *, scale=1.0):
    weights = torch.softmax(q @ k.transpose(-1, -2) * scale, -1)  # (N, T, T)
    return weights @ v


def project(x, weight):
    return attend(x @ weight, x, x)


def loud(function):
    @functools.wraps(function)
    def around(*args, **kwargs):
        return function(*args, **kwargs)

    around.volume = 11
    return around


def plain(function):
    def around(self, x):
        return function(self, x)

    return around


@loud
def shifted(x, by=1.0):
    return x + by


class Operators(nn.Module):
    def forward(self, x):
        y = x + 1.0  # one more
        z = 2 - y * (x / 3)
        return (z
                + x @ y)  # fmt: skip


class Assignments(nn.Module):
    def forward(self, x):
        out = x * 2
        out += x
        out -= 1; out *= x  # noqa: E702
        return out


class Functions(nn.Module):
    def forward(self, x):
        y = torch.cat([x, rectified(x)], dim=1)
        return F.softmax(input=torch.add(y, y, alpha=2), dim=-1)


class Methods(nn.Module):
    def forward(self, x):
        y = x.add(1).relu()
        return (
            y.mul(x)  # kept
            .softmax(-1)
            .add(
                x,  # the input
                alpha=2,
            )
        )


class InPlace(nn.Module):
    def forward(self, x):
        y = x.clone()
        same = y
        y.add_(x)
        torch.relu_(y)
        F.relu(y, inplace=True)
        return same + y


class Helpers(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.eye(4))

    def forward(self, x):
        first = attend(x, x, x)
        return project(attend(q=first, k=x, v=x, scale=0.5), self.weight) + shifted(x, by=2.0)


class Comprehensions(nn.Module):
    def forward(self, x):
        parts = [each + 1 for each in x.unbind(0)]
        last = max((part * 2 for part in parts), key=lambda part: float(part.sum()))
        twice = lambda value: value + value  # noqa: E731

        def inner(value):
            return twice(value) * last

        return torch.stack([inner(part) for part in parts])


class Base(nn.Module):
    def forward(self, x):
        return self._shift(x) * 2

    def _shift(self, x):
        return x + 1


class Super(Base):
    def forward(self, x):
        return super().forward(x) + x

    def _shift(self, x):
        return super(Super, self)._shift(x) - 3


class Explicit(Base):
    def forward(self, x):
        return Base.forward(self, x) - x


class _Private(nn.Module):
    __scale = 3

    def forward(self, x):
        return self.__scaled(x) + self.__static(x, by=self.__scale)

    def __scaled(self, x):
        return x * self.__scale

    @staticmethod
    def __static(x, *, by):
        return x / by


class Decorated(nn.Module):
    @torch.no_grad()
    @loud
    def forward(self, x, bias: float = 0.5) -> Tensor:
        return self.half(x) + bias

    @plain
    def half(self, x):
        return x / 2


def make_closed(shift):
    class Closed(nn.Module):
        def forward(self, x, *, factor=4):
            return __class__._double(x + shift) * factor

        @staticmethod
        def _double(x):
            return x * two

    two = 2
    return Closed


Closed = make_closed(7)


class OtherNames(nn.Module):
    def __init__(self):
        super().__init__()
        self.activation = F.gelu

    def forward(module, x, /):  # noqa: N805
        import torch.nn.functional as functional

        return functional.relu(module.activation(x)) + 1


class ControlFlow(nn.Module):
    def forward(self, x, gate=None):
        for _ in range(3):
            x = x + 1
        if float(x.sum()) < 0:
            return x + 2
        if self.training:
            x = x + torch.zeros(())
        return x * 2 if gate is None else x * gate


class Tabs(nn.Module):
	def forward(self, x):
		é = "é", x + 1; return é[1] * x  # noqa: E702


class Walrus(nn.Module):
    def forward(self, x):
        if (y := x + 1).sum() != (y * 2).sum():
            return (z := y) - x + z
        return x


class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = Operators(), Helpers()

    def forward(self, x):
        return {"sum": self.one(x) + self.two(x)}



"""What names in a function stand for."""

import ast

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bitwright.graph.rewriting.names import UNKNOWN, Names
from bitwright.graph.rewriting.source import Source


class Base(nn.Module):
    def forward(self, x):
        return x


class Block(Base):
    __private = 3

    def __init__(self):
        super().__init__()
        self.activation, self.layer = F.gelu, nn.Linear(2, 2)

    @property
    def costly(self):
        raise AssertionError

    @staticmethod
    def helper(x):
        return x

    def forward(self, x, argument=None):
        from operator import add as plus

        import torch.linalg
        import torch.nn.functional as functional

        variable = torch.add
        for loop in (variable, functional, plus, torch.linalg):
            x = loop(super().forward(x))
        return x


@pytest.fixture
def names():
    return Names(Block.forward, Source(Block.forward), Block())


def value(names, text):
    return names.value(ast.parse(text, mode="eval").body)


def test_values(names):
    assert value(names, "torch.add") is torch.add
    assert value(names, "F.relu") is F.relu
    assert value(names, "sum") is sum
    assert value(names, "self.activation") is F.gelu
    assert value(names, "self.layer") is names.owner.layer
    assert value(names, "self.layer.forward") is nn.Linear.forward
    assert value(names, "self.helper").__func__ is Block.helper
    assert value(names, "self.__private") == 3
    assert value(names, "super().forward") is Base.forward
    assert value(names, "super(Block, self).forward") is Base.forward
    assert value(names, "functional.softmax") is F.softmax
    assert value(names, "plus").__name__ == "add"
    assert value(names, "torch.linalg.norm") is torch.linalg.norm


@pytest.mark.parametrize(
    "text",
    [
        *("x", "argument", "variable", "loop", "nowhere", "torch.nowhere", "self.nowhere", "x.add", "variable.add"),
        *("self.costly", "self.layers[0]", "super().nowhere", "super(Other, self).forward", "(lambda: 1)", "f()"),
    ],
)
def test_what_is_not_known(names, text):
    assert value(names, text) is UNKNOWN


def test_what_gets_the_module_as_its_first_argument(names):
    bound = {text: names.is_bound(ast.parse(text, mode="eval").body) for text in ("self.forward", "super().forward")}
    assert bound == {"self.forward": True, "super().forward": True}
    for text in ("self.helper", "self.activation", "Base.forward", "torch.add", "forward", "self.layer"):
        assert not names.is_bound(ast.parse(text, mode="eval").body)

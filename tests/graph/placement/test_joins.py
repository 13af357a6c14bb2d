"""Which tensors meet."""

import torch
from torch import nn

from bitwright.graph.placement.joins import joins_of
from bitwright.graph.recording.recorder import record


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        for name in "abcde":
            setattr(self, name, nn.Linear(4, 4))
        self.start = nn.Parameter(torch.ones(4))

    def forward(self, x):
        a, b = self.a(x), self.b(x)
        y = a + b.reshape(4, 2).reshape(2, 4)  # a and b
        y = y + self.c(y)  # and c
        z = torch.cat([self.d(y), self.e(y)], 1)  # d and e
        return z + 1, y + self.start, a * b, y - x


def test_groups():
    joins = joins_of(record(Net(), torch.randn(2, 4)))
    found = [([node.path for node in join.producers], join.paths) for join in joins]
    assert found == [(["input", "a", "b", "c"], ["add", "add_2", "sub"]), (["d", "e"], ["cat"])]


def test_models_without_joins():
    assert joins_of(record(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), torch.randn(2, 4))) == []

"""Which tensors are never negative, and who makes them."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bitwright.graph.placement.producers import inputs_of, never_negative, producer
from bitwright.graph.recording.recorder import record


class Applied(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function
        self.layer = nn.Linear(4, 2)

    def forward(self, x):
        return self.layer(self.function(x))


X = torch.linspace(-1, 1, 8).reshape(2, 4)


@pytest.mark.parametrize(
    ("function", "positive"),
    [
        (torch.relu, True),
        (F.relu6, True),
        (torch.sigmoid, True),
        (lambda x: x.softmax(-1), True),
        (lambda x: F.hardtanh(x, 0, 1), True),
        (F.hardtanh, False),
        (lambda x: x.relu().reshape(4, 2).t().reshape(2, 4), True),
        (lambda x: x.relu() + x.sigmoid(), True),
        (lambda x: x.relu() * x.sigmoid(), True),
        (lambda x: x.relu() * x, False),
        (lambda x: x.relu() + 1, True),
        (lambda x: x.relu() - 1, False),
        (lambda x: x.relu() + -1, False),
        (lambda x: torch.cat([x.relu()[:, :2], x.abs()[:, 2:]], 1), True),
        (lambda x: torch.cat([x.relu()[:, :2], x[:, 2:]], 1), False),
        (lambda x: F.avg_pool1d(x.relu(), 1), True),
        (lambda x: F.dropout(x.relu(), 0.5, False), True),
        (F.gelu, False),
        (lambda x: x.exp(), True),
        (lambda x: x + 5, False),  # positive on the example, which says nothing of others
        (lambda x: x, False),
    ],
)
def test_never_negative(function, positive):
    graph = record(Applied(function), X)
    assert [never_negative(edge) for edge in inputs_of(graph, "layer")] == [positive]


def test_every_call_counts():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            return self.layer(self.layer(x.relu()))

    graph = record(Twice(), X)
    assert [never_negative(edge) for edge in inputs_of(graph, "layer")] == [True, False]


def test_constants_have_no_producer():
    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)
            self.start = nn.Parameter(torch.ones(1, 4))

        def forward(self, x):
            return x + self.layer(self.start)

    graph = record(Constant(), X)
    assert inputs_of(graph, "layer") == [None]
    assert not never_negative(None)


def test_producers_are_past_what_moves_values():
    graph = record(Applied(lambda x: x.relu().reshape(4, 2).t().reshape(2, 4)), X)
    (edge,) = inputs_of(graph, "layer")
    assert (edge[0].kind, producer(edge)[0].kind) == ("reshape", "relu")

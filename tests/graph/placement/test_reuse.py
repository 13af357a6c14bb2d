"""Activation layers that serve in several places."""

import torch
from torch import nn

from bitwright.graph.placement.reuse import separate
from bitwright.graph.recording.recorder import record

X = torch.randn(2, 4)


class Reused(nn.Module):
    def __init__(self):
        super().__init__()
        self.act, self.act_2 = nn.ReLU(), nn.Linear(4, 4)
        self.inner = nn.Sequential(nn.Linear(4, 4), self.act)

    def twice(self, x):
        return self.act(x)

    def forward(self, x):
        x = self.act(self.act_2(self.act(x)))
        for _ in range(2):  # one place
            x = self.act(x)
        return self.inner(self.twice(x))


def test_every_place_gets_its_own():
    model = Reused()
    expected = model(X)
    made = separate(model, record(model, X), lambda layer: True)
    assert made == {"inner.1": "act"}  # first, so that the paths of what is left are those of the places
    made = separate(model, record(model, X), lambda layer: True)
    assert made == {"act_3": "act", "act_4": "act", "act_5": "act"}
    assert torch.equal(model(X), expected)
    calls = [node.module for node in record(model, X).nodes if node.kind == "ReLU"]
    assert calls == ["act", "act_3", "act_4", "act_4", "act_5", "inner.1"]


def test_places_on_one_line():
    class Line(nn.Module):
        def __init__(self):
            super().__init__()
            self.act = nn.ReLU()

        def forward(self, x):
            return self.act(x) + self.act(-x) + self.act(2 * x)

    model = Line()
    expected = model(X)
    assert separate(model, record(model, X), lambda layer: True) == {"act_2": "act", "act_3": "act"}
    assert torch.equal(model(X), expected)


def test_only_what_is_wanted_and_has_no_state():
    class Stateful(nn.ReLU):
        def __init__(self):
            super().__init__()
            self.register_buffer("count", torch.zeros(()))

    act = Stateful()
    model = nn.Sequential(act, nn.Linear(4, 4), act)
    assert separate(model, record(model, X), lambda layer: True) == {}
    model = Reused()
    assert separate(model, record(model, X), lambda layer: False) == {}


def test_what_can_not_be_rewritten_stays():
    class Listed(nn.Module):
        def __init__(self):
            super().__init__()
            self.act = nn.ReLU()

        def forward(self, x):
            act = self.act
            return act(act(x) - 1)

    model = Listed()
    assert separate(model, record(model, X), lambda layer: True) == {}
    assert list(model._modules) == ["act"]

"""Norms that a model computes, whoever wrote them."""

import pytest
import torch
from torch import nn

from bitwright.graph import record
from bitwright.graph.rotation.norms import Norm, norm_calls
from tests.graph.rotation.prenorm import HandLayerNorm, HandNorm, OneMore


class Unit(nn.Module):
    """No parameters, and another factor: rows of length 1."""

    def forward(self, x):
        return x / x.norm(dim=-1, keepdim=True)


class Mixed(HandNorm):
    """No norm: features meet."""

    def forward(self, x):
        return super().forward(x).cumsum(-1)


class Deviation(HandLayerNorm):
    """The mean is subtracted, but what divides is not the root mean square that is left."""

    def forward(self, x):
        return (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 0.1) * self.g + self.b


def found(module, size=6):
    model = nn.Sequential(module, nn.Identity())
    calls = dict.fromkeys(norm_calls(record(model, torch.randn(2, 3, size)), model).values())
    assert all(call.read[0].kind == "input" for call in calls)
    return [call.norm for call in calls]


@pytest.mark.parametrize(
    ("module", "norm"),
    [
        (nn.RMSNorm(6, eps=1e-5), Norm("0", 6, gain="0.weight", eps=1e-5)),
        (nn.LayerNorm(6, bias=False), Norm("0", 6, True, "0.weight", eps=1e-5)),
        (nn.LayerNorm(6, elementwise_affine=False), Norm("0", 6, True, eps=1e-5)),
        (HandNorm(6), Norm("0", 6, gain="0.weight")),
        (OneMore(6), Norm("0", 6, gain="0.weight", offset=1.0)),
        (HandLayerNorm(6), Norm("0", 6, True, "0.g", 0.0, "0.b", 1e-3)),
        (Unit(), Norm("0", 6)),
    ],
)
def test_norms(module, norm):
    assert found(module) == [norm]


@pytest.mark.parametrize(
    "module", [Mixed(6), Deviation(6), nn.LayerNorm((3, 6)), nn.Softmax(-1), nn.GroupNorm(1, 3), nn.GELU()]
)
def test_no_norms(module):
    assert found(module) == []


def test_calls_one_behind_the_other():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = HandNorm(4)

        def forward(self, x, y):
            return self.norm(x), self.norm(y)

    model = Twice()
    graph = record(model, (torch.randn(2, 4), torch.randn(2, 4)))
    calls = dict.fromkeys(norm_calls(graph, model).values())
    assert [call.read[0].name for call in calls] == ["input", "input_2"]

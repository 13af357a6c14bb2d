"""How the ranges of batches become one."""

import pytest
import torch

from bitwright.graph.calibration.averages import AVERAGES, Mean, Moving, Widest
from bitwright.qcore import CalibratedScaling, IntRange, LearnedScaling, MinMax

START = [torch.zeros(2), torch.zeros(2)]
FIRST = [torch.tensor([2.0, 4.0]), torch.tensor([-1.0, 0.0])]
SECOND = [torch.tensor([3.0, 1.0]), torch.tensor([0.0, -1.0])]


def result(average):
    average.add(FIRST, 3)
    average.add(SECOND, 1)
    return [each.tolist() for each in average.result(pooled=False)]


def test_each_in_numbers():
    assert result(Mean(START)) == [[2.25, 3.25], [-0.75, -0.25]]
    assert result(Widest(START)) == [[4, 5], [-1, -1]]
    assert result(Moving(START, 0.5)) == [[2.5, 2.5], [-0.5, -0.5]]


def test_small_steps_are_not_lost():
    mean = Mean([torch.zeros(1)])
    for _ in range(1000):
        mean.add([torch.tensor([0.1])], 20_000)
    assert mean.result(pooled=False)[0].item() == pytest.approx(torch.tensor(0.1).item(), rel=1e-12)


def test_names_and_momentum():
    assert list(AVERAGES) == ["mean", "max", "ema"]
    eight = IntRange(8, signed=False)
    for scaling, momentum in (
        (CalibratedScaling(eight, momentum=0.25), 0.25),
        (CalibratedScaling(eight, momentum=None), 0.1),
        (LearnedScaling(eight, MinMax()), 0.1),
    ):
        assert AVERAGES["ema"](START, scaling).momentum == momentum

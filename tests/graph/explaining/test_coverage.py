"""What a quantizer clips, and which levels it never uses."""

import pytest
import torch

from bitwright.graph.explaining.coverage import Coverage
from bitwright.qcore import E2M1, Grid, Integers, PerAxis, PerGroup


def test_batches_add_up():
    coverage, grid = Coverage(), Grid(torch.tensor(0.5), number_format=Integers(3, signed=False))
    coverage.add(torch.tensor([0.0, 0.5, 9.0, -0.2]), grid)
    assert (coverage.clipped, coverage.levels, coverage.dead) == (0.25, 8, 5)
    coverage.add(torch.tensor([1.0, 1.5, 1.0, 2.0]), grid)
    assert (coverage.clipped, coverage.levels, coverage.dead) == (0.125, 8, 2)


def test_zero_points_and_channels():
    coverage = Coverage()
    grid = Grid(torch.tensor([[0.5], [1.0]]), torch.tensor([[1.0], [0.0]]), Integers(2, signed=False), PerAxis(0))
    coverage.add(torch.tensor([[-0.5, 1.0, 2.0], [0.0, 3.0, 4.0]]), grid)  # 0 3 5, 0 3 4
    assert (coverage.clipped, coverage.dead) == (2 / 6, 2)


def test_groups():
    coverage = Coverage()
    grid = Grid(torch.tensor([[0.5, 1.0]]), None, Integers(3), PerGroup(2, 1))
    coverage.add(torch.tensor([[0.5, 1.5, 3.0, 4.0]]), grid)  # 1 3 3 4
    assert (coverage.clipped, coverage.dead) == (0.25, 6)


def test_values_that_are_not_finite():
    coverage = Coverage()
    coverage.add(torch.tensor([float("nan"), float("inf")]), Grid(torch.tensor(1.0), number_format=Integers(2)))
    assert (coverage.clipped, coverage.dead) == (0.5, 2)  # NaN counts as 0


def test_wide_ranges_are_not_counted():
    coverage = Coverage()
    coverage.add(torch.tensor([1.0]), Grid(torch.tensor(1.0), number_format=Integers(17)))
    assert (coverage.clipped, coverage.levels, coverage.dead) == (0.0, None, None)


def test_nothing_seen():
    coverage = Coverage()
    assert (coverage.clipped, coverage.levels, coverage.dead) == (None, None, None)
    coverage.add(torch.ones(0), Grid(torch.tensor(1.0), number_format=Integers(2)))
    assert (coverage.clipped, coverage.levels, coverage.dead) == (None, 4, 4)


def test_levels_that_are_no_integers():
    coverage = Coverage()
    grid = Grid(torch.tensor(0.5), number_format=E2M1)
    coverage.add(torch.tensor([0.0, -0.0, 0.25, 2.9, 9.0]), grid)
    assert coverage.clipped == pytest.approx(0.2)
    assert (coverage.levels, coverage.dead) == (15, 12)  # 0, 0.5 and 6 are in use

import pickle

import torch

from bitwright.qcore import Grid, HalfEven, Integers, UnalignedIntegers

TWO = UnalignedIntegers(2)


def test_levels():
    assert (TWO.levels, TWO.low, TWO.high, TWO.bits, TWO.dtype) == ((0, 1, 2, 3), 0, 3, 2, torch.uint8)
    assert (TWO.whole, TWO.has_zero, TWO.signed, str(TWO)) == (False, False, False, "uint2 with a float zero point")
    assert UnalignedIntegers(2) == TWO == pickle.loads(pickle.dumps(TWO))
    assert Integers(2, signed=False) != TWO


def test_rounding():
    steps = torch.tensor([-1.0, 0.5, 1.5, 9.0])
    assert TWO.nearest(steps, HalfEven()).tolist() == [0, 0, 2, 3]
    assert TWO.encode(steps).tolist() == [0, 0, 2, 3]
    assert TWO.decode(torch.tensor([0, 3], dtype=torch.uint8)).tolist() == [0, 3]


def test_grid_counts_from_the_zero_point():
    grid = Grid(torch.tensor(0.5), torch.tensor(1.25), TWO)
    values = grid.from_int(torch.tensor([0, 1, 3]))
    assert values.tolist() == [-0.625, -0.125, 0.875]
    assert grid.to_int(values).tolist() == [0, 1, 3]


def test_levels_next_to_numbers():
    steps, zero_point = torch.tensor([-2.0, 0.0, 0.5, 2.0]), torch.tensor(1.25)
    assert TWO.near(steps, HalfEven(), zero_point).tolist() == [-1.25, -0.25, 0.75, 1.75]
    assert TWO.within(steps, HalfEven(), zero_point).tolist() == [False, True, True, True]

"""Codes of any format are compared on their sorted levels; scales that follow the input by what moves them."""

import math

import pytest
import torch

from bitwright.export.comparing.levels import RunTime, compare_levels, compare_run_time, run_time_of
from bitwright.qcore import BINARY, E2M1, E4M3, E5M2, NF4, Floor, Grid, HalfEven, Integers, PerToken, resolve
from bitwright.quantizers import (
    Fp8e4m3Act,
    Int8DynamicAct,
    Int8DynamicActPerToken,
    MXFloat4e2m1Act,
    ShiftedUint8DynamicAct,
)


def counts(values, theirs, grid, rounding=HalfEven()):  # noqa: B008
    row, ties = compare_levels("act", "on", torch.tensor(values), torch.tensor(theirs), grid, rounding)
    return row.differences, row.tie_flips, row.largest, ties.tolist()


def on(number_format, scale=1.0, **others):
    return Grid(torch.tensor(scale), number_format=number_format, **others)


@pytest.mark.parametrize(
    ("values", "theirs", "number_format", "found"),
    [
        ([2.5, 1.2, 9.0], [2.0, 1.0, 6.0], E2M1, (0, 0, 0.0, [True, False, False])),
        ([5.0001], [4.0], E2M1, (0, 1, 1.0, [True])),  # the gap is 2 there: within 2e-3 of a boundary
        ([5.003], [4.0], E2M1, (1, 0, 1.0, [False])),
        ([1.2501], [1.0], E2M1, (0, 1, 1.0, [True])),
        ([1.2506], [1.0], E2M1, (1, 0, 1.0, [False])),  # the gap is 0.5
        ([0.2], [-0.0], E2M1, (0, 0, 0.0, [False])),  # a number, whatever its code
        ([2.0], [4.0], E2M1, (1, 0, 2.0, [False])),
        ([2.0], [2.25], E2M1, (1, 0, 20.0, [False])),  # no level at all
        ([300.0], [320.0], E4M3, (1, 0, 1.0, [False])),
        ([math.nan, 1e9], [math.nan, 448.0], E4M3, (0, 0, 0.0, [False, False])),
        ([1e-3], [0.0], E5M2, (0, 1, 20.0, [True])),  # 2**-20 of a range from -57344 to 57344 is 0.1
        ([1e-5, -1.0], [-1.0, -1.0], BINARY, (0, 1, 1.0, [True, False])),
        ([0.11], [0.0], NF4, (1, 0, 1.0, [False])),
        ([2.4995, 2.49], [3, 3], Integers(4), (1, 1, 1.0, [True, False])),
    ],
)
def test_levels(values, theirs, number_format, found):
    assert counts(values, theirs, on(number_format)) == found


def test_scale_zero_point_and_rounding():
    grid = on(Integers(8, signed=False), 0.5, zero_point=torch.tensor(3.0))
    assert counts([0.999, 0.9999, -9.0], [5, 5, 0], grid) == (0, 0, 0.0, [False, False, False])
    assert counts([0.999, 0.9999, 0.9], [4, 5, 5], grid, Floor()) == (1, 1, 1.0, [False, True, False])


def test_several_scales():
    grid = Grid(torch.tensor([[1.0], [10.0]]), number_format=E2M1, granularity=PerToken())
    assert counts([[2.6, 0.0], [26.0, 40.0]], [[3.0, 0.0], [3.0, 6.0]], grid)[0] == 1


def test_what_a_run_found():
    found = {"act.codes": torch.tensor([1, 2]), "b.levels": torch.tensor([-3.0]), "b.z": torch.tensor(3)}
    names = {"act.codes": "act.codes", "b.levels": "b.levels", "b.zero_point": "b.z"}
    run = run_time_of(found, names)
    assert run["act"].levels.tolist() == [1, 2]
    assert run["act"].scale is None
    assert run["b"].levels.tolist() == [0.0]  # the code
    assert RunTime(torch.tensor([[1.0], [2.0]]), torch.tensor([0.5, 0.25])).step(1) == (2.0, 0.25, None)


def compared(declared, x, scale, zero_point=None, held=None, levels=None):
    quantizer = resolve(declared, {}).eval()
    values, grid = quantizer._quantize(x)
    zero = None if zero_point is None else torch.as_tensor(zero_point)
    levels = grid.number_format.decode(grid.to_int(values)) if levels is None else levels
    found = RunTime(levels, None if held is not None else torch.as_tensor(scale), zero)
    return compare_run_time("act", "on", quantizer, x, (), (grid, grid), held, found)


def test_a_scale_that_follows_may_be_off_by_as_much_as_its_input():
    x = torch.tensor([1.27, -0.5])
    assert compared(Int8DynamicAct, x, 0.01).row.differences == 0
    assert compared(Int8DynamicAct, x, 0.01 * (1 + 5e-7)).row.differences == 0
    off = compared(Int8DynamicAct, x, 0.0101).row
    assert (off.differences, off.note) == (2, "the file works out another scale")


@pytest.mark.parametrize(
    ("off", "code", "found"),
    [
        (5e-7, 50, (0, 0, "")),
        (-5e-7, 51, (0, 1, "")),  # 50.4 steps, and 2**-20 of the tensor's range are 0.12 of them
        (0.0, 52, (1, 0, "")),
        (2e-6, 50, (4, 0, "the file works out another scale")),
    ],
)
def test_tokens_that_are_small_beside_others_may_be_off_by_as_much_as_these(off, code, found):
    x = torch.tensor([[1.0, 0.0], [1e-3, 50.4e-3 / 127]])
    scale = [[1 / 127], [(1e-3 + off) / 127]]
    near = compared(Int8DynamicActPerToken, x, scale, levels=torch.tensor([[127, 0], [127, code]]))
    assert (near.row.differences, near.row.tie_flips, near.row.note) == found
    assert near.ties.tolist() == [[False, False], [off != 0, True]]


def test_a_scale_that_jumps_explains_all_that_follows():
    x = torch.tensor([[4.0, 1.0], [3.0, 1.0]])
    near = compared(MXFloat4e2m1Act, x, [[0.5], [0.5]], levels=torch.tensor([[6.0, 2.0], [6.0, 2.0]]))
    assert near.row.differences == 0
    assert near.ties.tolist() == [[True, True], [False, False]]
    assert near.values.tolist() == [[3.0, 1.0], [3.0, 1.0]]  # the file's
    far = compared(MXFloat4e2m1Act, x, [[1.0], [1.0]], levels=torch.tensor([[4.0, 1.0], [3.0, 1.0]]))
    assert far.row.note == "the file works out another scale"


def test_a_zero_point_that_follows():
    x = torch.tensor([-1.0, 1.55])
    assert compared(ShiftedUint8DynamicAct, x, 0.01, 100).row.differences == 0
    assert compared(ShiftedUint8DynamicAct, x, 0.01, 101).row.note == "the file works out another zero point"


def test_a_scale_that_stays():
    x, same = torch.tensor([1.0, 2.0]), (torch.tensor(0.5), torch.tensor(0))
    assert compared(Fp8e4m3Act(scale=0.5), x, None, held=same).row.differences == 0
    other = compared(Fp8e4m3Act(scale=0.5), x, None, held=(torch.tensor(0.25), torch.tensor(0))).row
    assert (other.differences, other.note) == (2, "the file has another scale")
    several = compared(Fp8e4m3Act(scale=0.5), x, None, held=(torch.ones(3), torch.zeros(3))).row
    assert (several.differences, several.note) == (2, "the file has another scale")

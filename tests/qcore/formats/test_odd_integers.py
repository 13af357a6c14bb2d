import math
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitwright.qcore import BINARY, Ceil, Floor, HalfEven, OddIntegers, SettingError

ROUND = HalfEven()


@given(bits=st.integers(1, 6), numbers=st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=20))
def test_nearest_and_ties_up(bits, numbers):
    form = OddIntegers(bits)
    tiny = [each for each in numbers if abs(each) < 2**-126]
    numbers = [each for each in numbers if each not in tiny] or [0.0]
    expected = [min(max(2 * math.floor(each / 2) + 1, form.low), form.high) for each in numbers]
    x = torch.tensor(numbers)
    assert form.nearest(x, ROUND).tolist() == expected
    assert form.inplace(x.clone(), ROUND).tolist() == expected
    assert form.inplace(x.double(), ROUND).tolist() == expected


def test_binary():
    x = torch.tensor([-7.0, -0.0, 0.0, 1e-30, -1e-30, math.inf, -math.inf, math.nan])
    for found in (BINARY.nearest(x, ROUND), BINARY.inplace(x.clone(), ROUND)):
        assert found.tolist()[:-1] == [-1, 1, 1, 1, -1, 1, -1]
        assert found[-1].isnan()
    assert (BINARY.levels, BINARY.bits, BINARY.has_zero, str(BINARY)) == ((-1, 1), 1, False, "binary")
    assert BINARY.encode(torch.tensor([1.0, -1.0])).tolist() == [1, 0]
    assert BINARY.decode(torch.tensor([1, 0])).tolist() == [1, -1]


def test_gradients_of_binary_numbers_end_beyond_one():
    x = torch.tensor([-1.0, 1.0, 1 + 2**-23, -1 - 2**-23])
    assert BINARY.inside(x, ROUND).tolist() == [True, True, False, False]
    assert OddIntegers(2).edges(ROUND) == (-4, 4)


def test_other_roundings():
    x = torch.tensor([-1.5, 1.5, 9.0])
    assert OddIntegers(2).nearest(x, Floor()).tolist() == [-3, 1, 3]
    assert OddIntegers(2).inplace(x.clone(), Ceil()).tolist() == [-1, 3, 3]


def test_relu_of_levels_without_zero():
    x = torch.tensor([-9.0, 0.5])
    assert OddIntegers(2).nearest(x, ROUND, relu=True).tolist() == [1, 1]
    assert OddIntegers(2).inplace(x.clone(), ROUND, relu=True).tolist() == [1, 1]


def test_values():
    assert OddIntegers(1) == BINARY
    assert OddIntegers(2) != BINARY
    assert pickle.loads(pickle.dumps(OddIntegers(3))) == OddIntegers(3)
    assert (OddIntegers(3).low, OddIntegers(3).high, str(OddIntegers(3))) == (-7, 7, "odd integers of 3 bits")
    assert OddIntegers(3).power == 4


@pytest.mark.parametrize("bit_width", [0, 17, 2.0, True])
def test_refusals(bit_width):
    with pytest.raises(SettingError) as error:
        OddIntegers(bit_width)
    assert str(error.value) == f"bit_width={bit_width!r} is not possible: expected a whole number from 1 to 16."


def test_directed_roundings_are_exact():
    x = torch.tensor([-1 + 2.0**-24, -1 - 2.0**-23, 1 - 2.0**-24, -1.0, 1.0])
    for found in (OddIntegers(2).nearest(x, Ceil()), OddIntegers(2).inplace(x.clone(), Ceil())):
        assert found.tolist() == [1, -1, 1, -1, 1]
    assert OddIntegers(2).nearest(x, Floor()).tolist() == [-1, -3, -1, -1, 1]

import pickle
from itertools import pairwise

import pytest
import torch

from bitwright.qcore import AdditivePowersOfTwo, Codebook, HalfEven, SettingError

# The sums of the paper, for magnitudes of 1 to 3 bits, over the largest
MAGNITUDES = {
    1: (0.0, 1.0),
    2: (0, 1 / 4, 1 / 2, 1),
    3: (0, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1),
}


@pytest.mark.parametrize("bits", [1, 2, 3])
def test_signed_levels_are_those_of_the_paper(bits):
    levels = torch.tensor(AdditivePowersOfTwo(bits + 1).levels)
    above = torch.tensor(MAGNITUDES[bits])
    torch.testing.assert_close(levels / levels[-1], torch.cat([-above.flip(0)[:-1], above]))


def test_two_terms_of_two_bits():
    levels = AdditivePowersOfTwo(4, signed=False).levels
    one, other = (0, 1, 1 / 4, 1 / 16), (0, 1 / 2, 1 / 8, 1 / 32)
    assert levels == tuple(sorted(a + b for a in one for b in other))
    assert AdditivePowersOfTwo(5).levels[15:] == levels


def test_a_term_of_one_bit_takes_the_power_between():
    one, other, single = (0, 1, 1 / 4, 1 / 32), (0, 1 / 2, 1 / 8, 1 / 64), (0, 1 / 16)
    expected = sorted({a + b + c for a in one for b in other for c in single})
    assert AdditivePowersOfTwo(6).levels[31:] == tuple(expected)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("signed", [True, False])
def test_all_codes_are_levels(bits, signed):
    form = AdditivePowersOfTwo(bits, signed)
    assert len(form.levels) == 2**bits - signed
    assert all(one < other for one, other in pairwise(form.levels))
    assert (form.bits, form.has_zero, form.signed, form.symmetric) == (bits, True, signed, signed)
    assert form.decode(form.encode(torch.tensor(form.levels))).tolist() == list(form.levels)


@pytest.mark.parametrize("bits", [4, 8])
def test_same_numbers_as_a_table_of_its_levels(bits):
    form, x = AdditivePowersOfTwo(bits), torch.linspace(-2.2, 2.2, 4001)
    expected = Codebook(form.levels).nearest(x, HalfEven())
    assert torch.equal(form.nearest(x, HalfEven()), expected)
    assert torch.equal(form.inplace(x.clone(), HalfEven()), expected)


def test_values():
    form = AdditivePowersOfTwo(4)
    assert pickle.loads(pickle.dumps(form)) == form != AdditivePowersOfTwo(4, signed=False)
    assert str(form) == "additive powers of two, 4 bits"
    assert str(AdditivePowersOfTwo(3, signed=False)) == "unsigned additive powers of two, 3 bits"


@pytest.mark.parametrize("bit_width", [1, 9, 4.0, True])
def test_refusals(bit_width):
    with pytest.raises(SettingError) as error:
        AdditivePowersOfTwo(bit_width)
    assert str(error.value) == f"bit_width={bit_width!r} is not possible: expected a whole number from 2 to 8."

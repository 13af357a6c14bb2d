"""The levels of a grid."""

import copy
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitwright.qcore import Integers, IntRange, NumberFormat, int_bounds
from bitwright.qcore.formats.integers import storage_dtype

FORMATS = st.builds(Integers, st.integers(2, 32), st.booleans(), st.booleans())


def test_defaults():
    assert Integers() == Integers(8, signed=True, narrow_range=False)
    assert (Integers().bit_width, Integers().signed, Integers().narrow_range) == (8, True, False)
    assert isinstance(Integers(), NumberFormat)


@pytest.mark.parametrize(
    ("given_format", "bounds", "dtype", "printed"),
    [
        (Integers(), (-128, 127), torch.int8, "int8"),
        (Integers(4), (-8, 7), torch.int8, "int4"),
        (Integers(4, narrow_range=True), (-7, 7), torch.int8, "int4 narrow"),
        (Integers(2, signed=False), (0, 3), torch.int8, "uint2"),
        (Integers(8, signed=False), (0, 255), torch.uint8, "uint8"),
        (Integers(8, signed=False, narrow_range=True), (0, 254), torch.uint8, "uint8 narrow"),
        (Integers(9), (-256, 255), torch.int16, "int9"),
        (Integers(16, signed=False), (0, 65535), torch.int32, "uint16"),
        (Integers(32), (-(2**31), 2**31 - 1), torch.int32, "int32"),
        (Integers(32, signed=False), (0, 2**32 - 1), torch.int64, "uint32"),
        (Integers(1, signed=False), (0, 1), torch.int8, "uint1"),  # of a dropout's mask
        (Integers(44), (-(2**43), 2**43 - 1), torch.int64, "int44"),  # of a sum
    ],
    ids=str,
)
def test_levels(given_format, bounds, dtype, printed):
    assert given_format.bounds == bounds
    assert given_format.dtype == dtype
    assert str(given_format) == printed


def test_a_learned_width_counts_in_whole_bits():
    learned = Integers(torch.tensor(5.0), signed=False)
    assert (learned.bounds, learned.dtype, str(learned)) == ((0, 31), torch.int8, "uint5")
    assert [type(each) for each in learned.bounds] == [int, int]


@given(FORMATS)
def test_bounds_and_words_are_those_of_the_range(number_format):
    int_range = IntRange(*number_format)
    assert number_format.bounds == int_range.bounds() == int_bounds(*number_format)
    assert str(number_format) == str(int_range)
    low, high = number_format.bounds
    info = torch.iinfo(number_format.dtype)
    assert info.min <= low
    assert high <= info.max


@given(FORMATS, FORMATS)
def test_values(one, other):
    assert (one == other) == (tuple(one) == tuple(other))
    assert hash(one) == hash(Integers(*one))
    for copied in (pickle.loads(pickle.dumps(one)), copy.copy(one), copy.deepcopy(one), eval(repr(one))):
        assert type(copied) is Integers
        assert copied == one


def test_printed_is_the_call():
    assert repr(Integers(4)) == "Integers(bit_width=4, signed=True, narrow_range=False)"


@pytest.mark.parametrize("name", ["bit_width", "signed", "narrow_range", "bounds", "anything"])
def test_immutable(name):
    with pytest.raises(AttributeError):
        setattr(Integers(4), name, 3)


@pytest.mark.parametrize(
    ("bounds", "dtype"),
    [
        ((-128, 127), torch.int8),
        ((0, 127), torch.int8),
        ((0, 128), torch.uint8),
        ((0, 255), torch.uint8),
        ((0, 256), torch.int16),
        ((-129, 0), torch.int16),
        ((0, 65535), torch.int32),
        ((-(2**31), 2**31 - 1), torch.int32),
        ((0, 2**32 - 1), torch.int64),
    ],
)
def test_storage_dtype(bounds, dtype):
    assert storage_dtype(*bounds) == dtype

"""The levels of a grid."""

import copy
import pickle
from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import bitwright.nn as qnn
from bitwright.qcore import (
    E4M3,
    GridQuant,
    HalfEven,
    Integers,
    Interval,
    IntRange,
    NumberFormat,
    StatisticScaling,
    int_bounds,
)
from bitwright.qcore.formats.integers import interval, storage_dtype
from bitwright.quantizers import FormatBase

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


class Posit(NamedTuple("_Posit", [("bit_width", int)]), NumberFormat):  # type: ignore[misc]
    """A user's own levels: posits of so many bits, exponents of 0 bits; the code is the place among them."""

    __slots__ = ()

    @property
    def levels(self):
        count = 2 ** (self.bit_width - 2)
        above = [each / count for each in range(count)]
        return tuple(sorted({*above, *[-each for each in above], *[1 / each for each in above[1:]], 1.0, -1.0}))


def test_a_format_of_the_users_own():
    form = Posit(4)
    assert form.levels == (-1, -0.75, -0.5, -0.25, 0, 0.25, 0.5, 0.75, 1, 4 / 3, 2, 4)
    assert (form.low, form.high, form.threshold, form.power, form.bits) == (-1, 4, 4, 4, 4)
    assert (form.signed, form.symmetric, form.has_zero, form.few, form.dtype) == (True, False, True, True, torch.uint8)
    assert form.edges(HalfEven()) == (-1.125, 5)
    x = torch.tensor([0.3, 2.9, 9.0, -9.0])
    assert form.nearest(x, HalfEven()).tolist() == form.inplace(x.clone(), HalfEven()).tolist() == [0.25, 2, 4, -1]
    assert form.encode(x).tolist() == [5, 10, 11, 0]
    assert form.decode(form.encode(x)).tolist() == [0.25, 2, 4, -1]
    assert form == Posit(4) != Posit(5)
    assert bool(form)
    assert str(form) == "Posit(bit_width=4)"


class PositWeight(FormatBase):
    quantizes = "weight"
    number_format = Posit(5)
    scaling = "statistic"


def test_a_layer_on_a_format_of_the_users_own():
    torch.manual_seed(0)
    layer = qnn.QuantLinear(8, 4, weight_quant=PositWeight)
    x = torch.randn(3, 8)
    y = layer(x)
    y.sum().backward()
    weight = layer.quant_weight()
    assert weight.is_valid
    assert torch.equal(weight.grid.from_int(weight.int()), weight.value)
    assert layer.weight_quant.scheme() == "Posit(bit_width=5), per tensor, float scale"
    torch.compiler.reset()
    assert torch.equal(torch.compile(layer, fullgraph=True, backend="aot_eager")(x), y)


def test_what_a_format_must_say():
    class Nothing(NumberFormat):
        pass

    for name in ("levels", "low", "bits"):
        with pytest.raises(NotImplementedError):
            getattr(Nothing(), name)
    for call in (
        lambda: Nothing().nearest(torch.ones(1), HalfEven()),
        lambda: E4M3.shifted(torch.ones(1), HalfEven(), torch.ones(1)),
        lambda: E4M3.near(torch.ones(1), HalfEven(), torch.ones(1)),
        lambda: E4M3.within(torch.ones(1), HalfEven(), torch.ones(1)),
    ):
        with pytest.raises(NotImplementedError):
            call()
    assert Nothing() != Nothing()
    assert len({Nothing(), Nothing()}) == 2
    assert Nothing()


@given(FORMATS, st.lists(st.floats(-300, 300, width=32), min_size=1, max_size=9))
def test_integers_and_the_interval_of_their_ends(form, numbers):
    interval, x = Interval(*form.bounds), torch.tensor(numbers)
    assert (interval.low, interval.high) == (form.low, form.high) == form.bounds
    assert interval.edges(HalfEven()) == form.edges(HalfEven())
    assert torch.equal(interval.nearest(x, HalfEven()), form.nearest(x, HalfEven()))
    assert torch.equal(interval.inplace(x.clone(), HalfEven()), form.inplace(x.clone(), HalfEven()))
    assert torch.equal(interval.inside(x, HalfEven()), form.inside(x, HalfEven()))
    assert interval.few == (form.high - form.low < 512) == form.few
    assert interval != form
    assert interval.whole
    assert form.whole
    assert (interval.signed, interval.symmetric) == (form.low < 0, form.low == -form.high)


def test_levels_of_integers():
    assert Integers(2).levels == (-2, -1, 0, 1)
    assert Interval(0, 2).levels == (0, 1, 2)
    assert (Integers(8).power, Integers(8).mantissa_bits, Interval(-3, 5).power) == (64, 6, 4)
    assert interval(torch.tensor(-3.0), torch.tensor(3.0)).learned
    assert type(interval(-3, 3)) is Interval
    assert str(Interval(-3, 5)) == "integers from -3 to 5"
    assert not Interval(1, 3).has_zero


class Centred(NamedTuple("_Centred", [("threshold", float)]), NumberFormat):  # type: ignore[misc]
    __slots__ = ()

    @property
    def levels(self):
        return (-4.0, -1.0, 0.0, 1.0, 4.0)


@pytest.mark.parametrize(("threshold", "values"), [(4.0, [2, 0.5, -0.5]), (1.0, [2, 0, 0]), (8.0, [1, 1, -1])])
@pytest.mark.parametrize("axis", [None, 0])
def test_threshold_of_its_own(threshold, values, axis):
    quant = GridQuant(Centred(threshold), StatisticScaling(Centred(threshold), detach_scale=True, axis=axis), axis=axis)
    weight = torch.tensor([[2.0, 0.7, -0.8]], requires_grad=True)
    y = quant(weight)
    y.sum().backward()
    assert y.tolist() == [values]
    assert weight.grad.tolist() == [[threshold < 8, 1, 1]]

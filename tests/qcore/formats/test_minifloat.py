import math
import pickle
import re

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitwright.qcore import (
    E2M1,
    E2M3,
    E3M2,
    E4M3,
    E4M3FNUZ,
    E5M2,
    Ceil,
    Floor,
    HalfEven,
    HalfUp,
    Minifloat,
    QuantTensorError,
    SettingError,
    StochasticRounding,
    TowardZero,
    powers_of_two,
)
from tests.qcore.formats.vectors import FORMATS, floats, golden, same_bits

ROUND = HalfEven()
every = pytest.mark.parametrize("name", FORMATS)
ANY = st.floats(-1e6, 1e6, width=32)


def theirs(name):
    """The type of ml_dtypes."""
    return getattr(ml_dtypes, f"float{FORMATS[name].bits}_{name}")


def every_code(name):
    return torch.arange(2 ** FORMATS[name].bits)


@every
def test_golden_vectors(name):
    form, vectors = FORMATS[name], golden(name)
    x, y = floats(vectors["x"]), floats(vectors["y"])
    x, y = torch.cat([x, -x]), torch.cat([y, -y])
    y = y if form.negative_zero else y + 0.0
    assert (form.high, form.exponent_bits, form.mantissa_bits) == (
        vectors["max"],
        vectors["exponent_bits"],
        vectors["mantissa_bits"],
    )
    assert same_bits(form.nearest(x, ROUND), y)
    assert same_bits(form.inplace(x.clone(), ROUND), y)
    assert torch.equal(form.inplace(x.double(), ROUND), y.double())
    assert torch.equal(form.nearest(x.double(), ROUND), y.double())


@every
def test_levels_and_codes_are_those_of_ml_dtypes(name):
    form = FORMATS[name]
    known = np.arange(2**form.bits, dtype=np.uint8).view(theirs(name)).astype(np.float64)
    assert np.array_equal(known, form.levels, equal_nan=True)
    assert (form.low, form.high) == (-form.high, float(ml_dtypes.finfo(theirs(name)).max))
    codes = every_code(name)[torch.tensor(np.isfinite(known))]
    assert form.encode(form.decode(codes)).tolist() == codes.tolist()
    assert str(form) == name


@every
@given(numbers=st.lists(ANY, min_size=1, max_size=20))
def test_any_number_goes_where_ml_dtypes_has_it(name, numbers):
    form, x = FORMATS[name], torch.tensor(numbers)
    bounded = x.clamp(form.low, form.high).numpy()
    expected = torch.tensor(bounded.astype(theirs(name)).astype(np.float32))
    assert same_bits(form.nearest(x, ROUND), expected)
    assert same_bits(form.decode(form.encode(x)), expected)


@pytest.mark.parametrize(
    ("form", "high", "normal", "smallest", "power", "edge"),
    [
        (E4M3, 448, 2**-6, 2**-9, 256, 464),
        (E5M2, 57344, 2**-14, 2**-16, 32768, 61440),
        (E4M3FNUZ, 240, 2**-7, 2**-10, 128, 248),
        (E3M2, 28, 0.25, 0.0625, 16, 30),
        (E2M3, 7.5, 1, 0.125, 4, 7.75),
        (E2M1, 6, 1, 0.5, 4, 7),
    ],
    ids=str,
)
def test_numbers_of_the_standards(form, high, normal, smallest, power, edge):
    levels = [each for each in form.levels if math.isfinite(each)]
    assert max(levels) == form.high == form.threshold == high
    assert min(each for each in levels if each > 0) == smallest
    assert form.power == form.power_of_two_threshold == power
    assert form.edges(ROUND) == (-edge, edge)
    assert form.nearest(torch.tensor(normal * 1.0), ROUND) == normal
    assert form.symmetric
    assert form.signed
    assert form.has_zero
    assert not form.whole


@every
def test_ends_and_special_numbers(name):
    form = FORMATS[name]
    x = torch.tensor([math.inf, -math.inf, math.nan, 1e30, -1e30])
    for found in (form.nearest(x, ROUND), form.inplace(x.clone(), ROUND)):
        assert found.tolist()[:2] == [form.high, form.low]
        assert found[2].isnan()
        assert found.tolist()[3:] == [form.high, form.low]


@pytest.mark.parametrize("rounding", [ROUND, HalfUp()], ids=repr)
@pytest.mark.parametrize("form", [E4M3, E2M1], ids=str)
def test_many_numbers_are_rounded_piece_by_piece(form, rounding):
    x = torch.linspace(-1.1, 1.1, (1 << 19) + 6).reshape(2, -1) * form.high
    for steps in (x, x.t()):
        found = form.inplace(steps.clone(), rounding)
        assert torch.equal(found, form.nearest(steps, rounding))


@given(numbers=st.lists(st.floats(-(2.0**127), 2.0**127, width=32), min_size=1, max_size=20))
def test_largest_numbers_of_a_wide_format(numbers):
    bfloat16 = Minifloat(8, 7, infinities=True, nan=True)
    x = torch.tensor([*numbers, bfloat16.high, 2.0**-149, -(2.0**-133)])
    assert bfloat16.inplace(x.clone(), ROUND).tolist() == x.bfloat16().tolist()


def test_negative_zero_stays_but_where_there_is_none():
    x = torch.tensor([-0.0, -1e-9])
    for form, signs in ((E4M3, [True, True]), (E4M3FNUZ, [False, False])):
        assert form.nearest(x, ROUND).signbit().tolist() == signs
        assert form.inplace(x.clone(), ROUND).signbit().tolist() == signs
    assert E4M3.encode(x).tolist() == [128, 128]
    assert E4M3FNUZ.encode(x).tolist() == [0, 0]


def test_codes_of_special_numbers():
    nan = torch.tensor([math.nan])
    assert E4M3.encode(nan).tolist() == [0x7F]
    assert E4M3FNUZ.encode(nan).tolist() == [0x80]
    assert E5M2.encode(nan).tolist() == [0x7E]
    assert E5M2.encode(torch.tensor([math.inf])).tolist() == [0x7B]
    message = "NaN has no code in e2m1fn: the values it came from are not finite."
    with pytest.raises(QuantTensorError, match=re.escape(message)):
        E2M1.encode(nan)


def test_without_saturation():
    x = torch.tensor([448.0, 464.0, 465.0, -1e9, math.inf, math.nan])
    form = Minifloat(4, 3, nan=True, saturating=False)
    for found in (form.nearest(x, ROUND), form.inplace(x.clone(), ROUND)):
        assert found.tolist()[:2] == [448, 448]
        assert found[2:].isnan().all()
    infinite = Minifloat(5, 2, infinities=True, nan=True, saturating=False)
    assert infinite.nearest(torch.tensor([61439.0, 61440.0, -math.inf]), ROUND).tolist() == [
        57344,
        math.inf,
        -math.inf,
    ]
    assert infinite.encode(torch.tensor([math.inf, -math.inf])).tolist() == [0x7C, 0xFC]
    assert (str(form), str(infinite)) == ("e4m3fn, not saturating", "e5m2, not saturating")


@pytest.mark.parametrize(
    ("rounding", "expected"),
    [(Floor(), [1.0, -1.5, 4.0]), (Ceil(), [1.5, -1.0, 6.0]), (TowardZero(), [1.0, -1.0, 4.0])],
    ids=repr,
)
def test_other_roundings(rounding, expected):
    x = torch.tensor([1.3, -1.3, 5.9])
    assert E2M1.nearest(x, rounding).tolist() == expected
    assert E2M1.inplace(x.clone(), rounding).tolist() == expected


def test_stochastic_rounding_is_right_on_average():
    x = torch.full((4000,), 4.5)
    found = E2M1.nearest(x, StochasticRounding(seed=0))
    assert set(found.tolist()) == {4.0, 6.0}
    assert found.mean().item() == pytest.approx(4.5, abs=0.1)


def test_relu():
    x = torch.tensor([-3.0, 1.3])
    assert E2M1.nearest(x, ROUND, relu=True).tolist() == [0, 1.5]
    assert E2M1.inplace(x.clone(), ROUND, relu=True).tolist() == [0, 1.5]


@every
@given(numbers=st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=20))
def test_gaps_by_comparison_are_those_by_bits(name, numbers):
    form = FORMATS[name]
    x = torch.tensor(numbers).clamp(form.low, form.high)
    assert torch.equal(form._gap_by_comparison(x), form._gap(x))


def test_powers_of_two():
    form = powers_of_two(4)
    assert form.levels[:8] == (0, 1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1)
    x = torch.tensor([0.007, 0.0079, 0.7, 0.76, -9.0])
    assert form.nearest(x, ROUND).tolist() == [0, 1 / 64, 0.5, 1, -1]
    assert form.encode(torch.tensor([0.5, -1.0, 1 / 64])).tolist() == [6, 15, 1]
    assert (form.bits, str(form)) == (4, "e3m0b7fn")


def test_values():
    assert Minifloat(4, 3, nan=True) == E4M3
    assert hash(Minifloat(4, 3, nan=True)) == hash(E4M3)
    assert E4M3 != E4M3FNUZ
    assert tuple(E4M3) != E4M3
    for form in FORMATS.values():
        assert eval(repr(form)) == form
    assert repr(E4M3FNUZ) == "Minifloat(4, 3, nan=True, negative_zero=False)"
    assert pickle.loads(pickle.dumps(E4M3FNUZ)) == E4M3FNUZ
    assert str(Minifloat(4, 3)) == "e4m3fn without NaN"
    assert str(Minifloat(3, 2, nan=True)) == "e3m2fn with NaN"
    assert E4M3.dtype == torch.uint8
    assert Minifloat(5, 10, infinities=True, nan=True).dtype == torch.int32
    assert E4M3.settled() is E4M3


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((0, 3), "exponent_bits=0 is not possible: expected a whole number from 1 to 8."),
        ((4, 11), "mantissa_bits=11 is not possible: expected a whole number from 0 to 10."),
        ((4, True), "mantissa_bits=True is not possible: expected a whole number from 0 to 10."),
        ((4, 3, 0.5), "exponent_bias=0.5 is not possible: expected a whole number from -100 to 200."),
        (
            (5, 2, None, True),
            "infinities=True is not possible: expected False where there is no NaN, or no -0. Write nan=True.",
        ),
        (
            (8, 2),
            "exponent_bias=127 is not possible: expected one with which float32 holds every level: these go from "
            "2.94e-39 to 5.95e+38. Write infinities=True and nan=True, which take the largest ones away.",
        ),
        (
            (4, 3, 160),
            "exponent_bias=160 is not possible: expected one with which float32 holds every level: these go from "
            "1.71e-49 to 4.2e-44.",
        ),
        (
            (2, 1, None, False, False, True, False),
            "saturating=False is not possible: expected True where there is neither infinity nor NaN. Write nan=True.",
        ),
    ],
)
def test_refusals(given, message):
    with pytest.raises(SettingError) as error:
        Minifloat(*given)
    assert str(error.value) == message


def test_a_wrong_name():
    with pytest.raises(TypeError, match=r"^Minifloat\(\) got an unexpected keyword argument 'bias'"):
        Minifloat(4, 3, bias=7)


def test_it_works_on_the_device_of_its_numbers():
    """Meta stands for any device other than the CPU: operations on both of them fail there, too."""
    x = torch.empty(3, 2, device="meta")
    for found in (E2M1.nearest(x, ROUND), E2M1.inplace(x.clone(), ROUND), E2M1.covered(x.clone(), ROUND)):
        assert (found.device.type, found.shape) == ("meta", (3, 2))

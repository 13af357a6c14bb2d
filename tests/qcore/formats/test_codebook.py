import math
import pickle
from fractions import Fraction
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitwright.qcore import (
    NF4,
    Ceil,
    Codebook,
    Floor,
    HalfEven,
    HalfUp,
    Integers,
    SettingError,
    StochasticRounding,
    TowardZero,
)

ROUND = HalfEven()
LEVELS = st.lists(st.floats(-100, 100, width=32), min_size=2, max_size=40, unique=True).map(sorted)
NUMBERS = st.lists(st.floats(-300, 300, width=32), min_size=1, max_size=20)


def defined(x, levels, rounding):
    """The level of a number, by exact fractions."""
    if x <= levels[0] or x >= levels[-1]:
        return levels[0] if x <= levels[0] else levels[-1]
    at = max(index for index, level in enumerate(levels) if level <= x)
    if levels[at] == x:
        return levels[at]
    lower, upper = levels[at], levels[at + 1]
    below, above = Fraction(x) - Fraction(lower), Fraction(upper) - Fraction(x)
    if rounding == "half_even" or (rounding == "toward_zero" and lower < 0 < upper):
        up = above < below or (above == below and at % 2 == 1)
    else:
        up = {"half_up": above <= below, "floor": False, "ceil": True, "toward_zero": lower < 0}[rounding]
    return upper if up else lower


@pytest.mark.parametrize("rounding", [HalfEven(), HalfUp(), Floor(), Ceil(), TowardZero()], ids=repr)
@given(levels=LEVELS, numbers=NUMBERS)
def test_by_exact_fractions(rounding, levels, numbers):
    form = Codebook(levels)
    middles = [(one + other) / 2 for one, other in pairwise(levels)]
    numbers = [*numbers, *levels, *torch.tensor(middles).tolist()]
    expected = [defined(each, levels, rounding.name) for each in numbers]
    x = torch.tensor(numbers)
    assert form.nearest(x, rounding).tolist() == expected
    assert form.inplace(x.clone(), rounding).tolist() == expected
    assert form.inplace(x.double(), rounding).tolist() == expected


def test_ties_go_to_the_even_code():
    form = Codebook((0, 1, 2, 3))
    assert form.nearest(torch.tensor([0.5, 1.5, 2.5]), ROUND).tolist() == [0, 2, 2]


def test_border_that_float32_does_not_hold():
    levels = (0.0, 1.0, 1 + 2**-23)  # the middle of the last two is none of its numbers
    form = Codebook(levels)
    assert form.nearest(torch.tensor(levels), ROUND).tolist() == list(levels)


def test_special_numbers():
    x = torch.tensor([math.inf, -math.inf, math.nan])
    for found in (NF4.nearest(x, ROUND), NF4.inplace(x.clone(), ROUND)):
        assert found.tolist()[:2] == [1, -1]
        assert found[2].isnan()


def test_relu():
    x = torch.tensor([-3.0, 0.9])
    assert NF4.nearest(x, ROUND, relu=True).tolist() == [0, 1]
    assert NF4.inplace(x.clone(), ROUND, relu=True).tolist() == [0, 1]


def test_a_rounding_of_another_kind_decides_by_the_share():
    form = Codebook((0, 1, 4))
    found = form.nearest(torch.full((4000,), 3.25), StochasticRounding(seed=0))
    assert set(found.tolist()) == {1.0, 4.0}
    assert found.mean().item() == pytest.approx(3.25, abs=0.1)
    assert form.nearest(torch.tensor([-1.0, 0.2, 0.9, 9.0]), torch.round).tolist() == [0, 0, 1, 4]
    assert form.nearest(torch.tensor([0.5, 2.5]), torch.round).tolist() == [0, 4]  # ties to the even code


def test_normal_float():
    assert (NF4.bits, NF4.low, NF4.high, NF4.has_zero, NF4.symmetric) == (4, -1, 1, True, True)
    assert NF4.levels[7] == 0
    assert str(NF4) == "nf4"
    assert NF4.levels[:7] != tuple(-level for level in reversed(NF4.levels[9:]))
    assert NF4.encode(torch.tensor([-1.0, 0.0, 1.0])).tolist() == [0, 7, 15]
    assert NF4.decode(torch.arange(16)).tolist() == list(NF4.levels)
    assert NF4.edges(ROUND) == pytest.approx((-1.1519, 1.1385), abs=1e-4)
    assert not NF4.whole


def test_edges_are_those_of_integers():
    assert Codebook(range(-8, 8)).edges(ROUND) == Integers(4).edges(ROUND) == (-8.5, 7.5)


def test_many_levels():
    form = Codebook([each / 8 for each in range(-64, 64)])
    x = torch.linspace(-9, 9, 999)
    assert torch.equal(form.nearest(x, ROUND), torch.round(x * 8).clamp(-64, 63) / 8)
    assert (form.bits, form.dtype) == (7, torch.uint8)


LARGE = [NF4, Codebook((-1, 0, 1)), Codebook((-2, -0.5, 0.25, 1, 8)), Codebook((1e-30, 1e-20, 1e30)), Codebook((-1, 1))]
LARGE += [Codebook([each / 8 for each in range(-64, 64)]), Codebook([1 + each * 2**-23 for each in range(3)])]


@pytest.mark.parametrize("form", LARGE, ids=lambda form: f"{len(form.levels)} levels")
@pytest.mark.parametrize("rounding", [HalfEven(), HalfUp(), Floor(), Ceil(), TowardZero()], ids=repr)
def test_large_tensors_are_searched_by_leading_bits(form, rounding):
    levels = torch.tensor(form.levels)
    known = torch.cat([levels, (levels[1:] + levels[:-1]) / 2])
    around = [torch.nextafter(known, torch.full_like(known, end)) for end in (-math.inf, math.inf)]
    special = torch.tensor([0.0, -0.0, 1e-45, -1e-45, math.inf, -math.inf, math.nan, -math.nan])
    generator = torch.Generator().manual_seed(0)
    spread = torch.randn(140_000, generator=generator) * 2.0 ** torch.randint(-9, 3, (140_000,), generator=generator)
    x = torch.cat([known, *around, special, spread * form.high])
    expected = form.nearest(x, rounding)
    torch.testing.assert_close(form.inplace(x.clone(), rounding), expected, rtol=0, atol=0, equal_nan=True)
    if rounding.name == "half_even":
        last = x[: x.numel() // 8 * 8].reshape(8, -1).t()  # not contiguous
        found = form.inplace(last.clone(memory_format=torch.preserve_format), rounding)
        assert found.stride() == last.stride()
        torch.testing.assert_close(found, form.nearest(last, rounding), rtol=0, atol=0, equal_nan=True)


def test_values():
    assert Codebook([-1, 0, 1]) == Codebook((-1.0, 0.0, 1.0))
    assert pickle.loads(pickle.dumps(NF4)) == NF4
    assert str(Codebook((-0.5, 0.1))) == "codebook (-0.5, 0.100000001)"


@pytest.mark.parametrize("levels", [(), (1.0,), (1.0, 0.0), (0.0, math.inf), (0.0, math.nan), 3, ("a", "b")])
def test_refusals(levels):
    with pytest.raises(SettingError) as error:
        Codebook(levels)
    remedy = (
        "" if isinstance(levels, int) or "a" in levels else " Two levels that float32 can't tell apart count as one."
    )
    assert str(error.value) == (
        f"levels={levels!r} is not possible: expected 2 or more finite numbers in ascending order.{remedy}"
    )

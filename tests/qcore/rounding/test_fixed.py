import copy
import io
import math
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from bitwright.qcore import (
    ROUNDINGS,
    Ceil,
    Floor,
    HalfEven,
    HalfUp,
    LearnedRounding,
    Rounding,
    SettingError,
    StochasticRounding,
    TowardZero,
)
from bitwright.qcore.rounding import round_straight_through

NUMBERS = st.floats(-(2**20), 2**20, width=32)

# What each does, in Python's own exact arithmetic.
DEFINITIONS = {
    HalfEven: round,
    HalfUp: lambda x: math.floor(x) + (x - math.floor(x) >= 0.5),
    Floor: math.floor,
    Ceil: math.ceil,
    TowardZero: math.trunc,
}

SAMPLES = [-2.5, -1.5, -1.2, -0.5, -0.3, 0.0, 0.3, 0.5, 1.2, 1.5, 2.5]


@pytest.mark.parametrize(
    ("rounding", "expected"),
    [
        (HalfEven, [-2, -2, -1, 0, 0, 0, 0, 0, 1, 2, 2]),
        (HalfUp, [-2, -1, -1, 0, 0, 0, 0, 1, 1, 2, 3]),
        (Floor, [-3, -2, -2, -1, -1, 0, 0, 0, 1, 1, 2]),
        (Ceil, [-2, -1, -1, 0, 0, 0, 1, 1, 2, 2, 3]),
        (TowardZero, [-2, -1, -1, 0, 0, 0, 0, 0, 1, 1, 2]),
    ],
)
def test_ties_and_signs(rounding, expected):
    x = torch.tensor(SAMPLES)
    assert rounding()(x).tolist() == expected
    assert x.tolist() == torch.tensor(SAMPLES).tolist()  # untouched
    assert rounding().inplace(x) is x
    assert x.tolist() == expected


@pytest.mark.parametrize("rounding", DEFINITIONS)
@given(st.lists(NUMBERS, min_size=1))
def test_against_exact_arithmetic(rounding, numbers):
    x = torch.tensor(numbers)
    expected = [DEFINITIONS[rounding](each) for each in x.tolist()]
    assert rounding()(x).tolist() == expected
    assert rounding().inplace(x).tolist() == expected


def test_just_below_one_half():
    """Adding one half would round it up."""
    below = torch.tensor([0.49999997, -0.49999997, 8388607.5, 0.5])
    assert HalfUp()(below).tolist() == [0, 0, 8388608, 1]
    assert HalfEven()(below).tolist() == [0, 0, 8388608, 0]


@pytest.mark.parametrize("rounding", DEFINITIONS)
def test_what_is_not_finite_stays(rounding):
    found = rounding()(torch.tensor([float("inf"), -float("inf"), float("nan")]))
    assert found[:2].tolist() in ([math.inf, -math.inf], [math.inf, -math.inf])
    assert found[2].isnan()


@pytest.mark.parametrize("rounding", DEFINITIONS)
def test_stateless(rounding):
    assert issubclass(rounding, Rounding)
    assert repr(rounding()) == f"{rounding.__name__}()"
    assert type(pickle.loads(pickle.dumps(rounding()))) is rounding
    assert rounding.deterministic


def test_choices():
    assert ROUNDINGS == {
        "half_even": HalfEven,
        "half_up": HalfUp,
        "floor": Floor,
        "ceil": Ceil,
        "toward_zero": TowardZero,
        "stochastic": StochasticRounding,
        "learned": LearnedRounding,
    }
    assert {name: rounding.name for name, rounding in ROUNDINGS.items()} == {name: name for name in ROUNDINGS}


def test_base_class_rounds_nothing():
    with pytest.raises(NotImplementedError):
        Rounding()(torch.ones(1))


# Stochastic


@given(st.floats(-100, 100, width=32), st.integers(0, 2**31))
def test_stochastic_takes_a_neighbour(number, seed):
    drawn = StochasticRounding(seed)(torch.full((64,), number))
    assert set(drawn.tolist()) <= {math.floor(number), math.ceil(number)}


@pytest.mark.parametrize("number", [0.25, -0.25, 3.9, -7.5])
def test_stochastic_is_right_on_average(number):
    drawn = StochasticRounding(seed=1)(torch.full((40000,), number))
    assert drawn.mean().item() == pytest.approx(number, abs=4 * 0.5 / 200)  # 4 standard errors


def test_stochastic_leaves_whole_numbers():
    x = torch.arange(-8.0, 9.0) * 2**20
    assert StochasticRounding(seed=1)(x).tolist() == x.tolist()


def test_stochastic_repeats_with_its_seed():
    x = torch.linspace(-3, 3, 1000)
    one, other = StochasticRounding(seed=3), StochasticRounding(seed=3)
    first, second = one(x), one(x)
    assert torch.equal(first, other(x))
    assert not torch.equal(first, second)
    assert not torch.equal(first, StochasticRounding(seed=4)(x))
    state = torch.get_rng_state()
    one(x)
    assert torch.equal(state, torch.get_rng_state())  # a sequence of its own


def test_stochastic_without_seed_draws_from_torch():
    x, rounding = torch.linspace(-3, 3, 1000), StochasticRounding()
    torch.manual_seed(5)
    first = rounding(x)
    torch.manual_seed(5)
    assert torch.equal(rounding(x), first)
    assert not torch.equal(rounding(x), first)


def test_stochastic_in_evaluation():
    ties = torch.tensor([0.5, 1.5, -0.5, 2.4])
    assert StochasticRounding(seed=0).eval()(ties).tolist() == [0, 2, 0, 2]
    random = StochasticRounding(seed=0, deterministic_evaluation=False).eval()
    assert random(torch.full((1000,), 0.5)).mean().item() == pytest.approx(0.5, abs=0.07)
    assert StochasticRounding().deterministic
    assert not random.deterministic


def test_stochastic_resumes_after_copy_and_pickle():
    x, rounding = torch.linspace(-3, 3, 1000), StochasticRounding(seed=3)
    rounding(x)
    saved = io.BytesIO()
    torch.save(rounding, saved)
    saved.seek(0)
    copies = copy.deepcopy(rounding), pickle.loads(pickle.dumps(rounding)), torch.load(saved, weights_only=False)
    following = rounding(x)
    for each in copies:
        assert torch.equal(each(x), following)


def test_stochastic_is_a_module_without_state():
    rounding = StochasticRounding(seed=3)
    assert isinstance(rounding, nn.Module)
    assert rounding.state_dict() == {}
    assert repr(rounding) == "StochasticRounding(seed=3)"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_roundings_keep_the_dtype(dtype):
    for rounding in ROUNDINGS.values():
        made = rounding((2,)) if rounding is LearnedRounding else rounding()
        assert made(torch.tensor([0.4, 1.6], dtype=dtype)).dtype == dtype


@pytest.mark.parametrize("seed", [1.5, True, "0"])
def test_impossible_seed(seed):
    with pytest.raises(SettingError) as error:
        StochasticRounding(seed)
    assert str(error.value) == (
        f"seed={seed!r} is not possible: expected a whole number, or None for torch's global generator."
    )


def test_impossible_flag():
    with pytest.raises(SettingError) as error:
        StochasticRounding(deterministic_evaluation=1)
    assert str(error.value) == "deterministic_evaluation=1 is not possible: expected True or False."


# Straight through


@pytest.mark.parametrize("rounding", [*DEFINITIONS, StochasticRounding])
def test_gradient_is_straight_through(rounding):
    x = torch.tensor(SAMPLES, requires_grad=True)
    y = round_straight_through(x, rounding())
    assert (y == y.round()).all()
    (gradient,) = torch.autograd.grad(y, x, torch.arange(11.0))
    assert gradient.tolist() == list(range(11))


def test_plain_function_rounds_too():
    x = torch.tensor([0.4, 0.6], requires_grad=True)
    y = round_straight_through(x, torch.round)
    assert y.tolist() == [0, 1]
    assert torch.autograd.grad(y.sum(), x)[0].tolist() == [1, 1]


def test_rounding_that_changes_nothing():
    x = torch.tensor([0.4, 0.6], requires_grad=True)
    y = round_straight_through(x, lambda x: x)
    assert y is not x
    assert torch.autograd.grad(y.sum(), x)[0].tolist() == [1, 1]


def test_rounding_with_a_gradient_of_its_own():
    class Soft:
        straight_through = False

        def __call__(self, x):
            return x.round().detach() + 2 * (x - x.detach())

    x = torch.tensor([0.4, 0.6], requires_grad=True)
    y = round_straight_through(x, Soft())
    assert y.tolist() == [0, 1]
    assert torch.autograd.grad(y.sum(), x)[0].tolist() == [2, 2]

import copy
import math
import pickle
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.func import grad, jvp, vmap

from bitwright.qcore import (
    Ceil,
    Codebook,
    Floor,
    HalfEven,
    HalfUp,
    LearnedCodebook,
    LearnedLevels,
    QuantizerError,
    SettingError,
    StochasticRounding,
    TowardZero,
)
from bitwright.qcore.kernels.dispatch import to_levels

ROUND = HalfEven()
TABLE = (-1.0, -0.3, 0.0, 0.4, 1.0)
EVERY = [HalfEven(), HalfUp(), Floor(), Ceil(), TowardZero()]
LEVELS = st.lists(st.floats(-64, 64, width=16, allow_subnormal=False), min_size=2, max_size=20, unique=True)
NUMBERS = st.lists(st.floats(-200, 200, width=32), min_size=1, max_size=20)


def learned(levels=TABLE):
    return LearnedCodebook(LearnedLevels(levels))


@pytest.mark.parametrize("rounding", EVERY, ids=repr)
@given(levels=LEVELS.map(sorted), numbers=NUMBERS)
def test_same_numbers_as_the_table(rounding, levels, numbers):
    fixed = Codebook(levels)
    middles = [(one + other) / 2 for one, other in zip(fixed.levels, fixed.levels[1:], strict=False)]
    x = torch.tensor([*numbers, *fixed.levels, *middles, math.inf, -math.inf])
    for steps in (x, x.double()):
        assert torch.equal(learned(levels).nearest(steps, rounding), fixed.nearest(steps, rounding))
        assert torch.equal(learned(levels).inside(steps, rounding), fixed.inside(steps, rounding))


def test_gradient_of_a_level_is_the_sum_over_its_values():
    form, scale = learned(), torch.tensor(0.5, requires_grad=True)
    x = torch.tensor([-0.2, -0.1, 0.01, 0.2, 0.21, 9.0], requires_grad=True)
    y = to_levels(x, scale, form)
    upstream = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0, 32.0])
    found = torch.autograd.grad(y, (x, scale, form.module.table), upstream)
    assert torch.equal(y.detach(), torch.tensor([-0.15, -0.15, 0, 0.2, 0.2, 0.5]))
    assert found[0].tolist() == [1, 2, 4, 8, 16, 0]
    assert found[2].tolist() == [0, 1.5, 2, 12, 16]
    inside = ((y - x) / scale * upstream)[:-1].sum() + 32  # LSQ's, beyond the end the level
    assert found[1].item() == pytest.approx(inside.item(), rel=1e-5)


def test_second_derivatives():
    x = torch.linspace(-0.6, 0.6, 13, dtype=torch.float64)

    def defined(x, scale, table):
        places = Codebook(TABLE).encode(x.detach() / scale.detach()).long()
        steps = x / scale
        inside = Codebook(TABLE).inside(steps.detach(), ROUND)
        return (table[places] + torch.where(inside, steps - steps.detach(), 0.0)) * scale

    def second(function):
        form = learned()
        leaves = x.clone().requires_grad_(), torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
        first = torch.autograd.grad(function(*leaves, form).square().sum(), leaves, create_graph=True)
        return torch.autograd.grad(sum(each.square().sum() for each in first), (*leaves, form.module.table))

    expected = second(lambda x, scale, form: defined(x, scale, form.module().double()))
    for one, other in zip(second(to_levels), expected, strict=True):
        torch.testing.assert_close(one, other)


def test_transforms_and_compiled():
    form, scale = learned(), torch.tensor(0.5)
    x = torch.randn(3, 10, generator=torch.Generator().manual_seed(0))
    expected = torch.autograd.grad(to_levels(leaf := x.clone().requires_grad_(), scale, form).sum(), leaf)[0]
    assert torch.equal(vmap(grad(lambda x: to_levels(x, scale, form).sum()))(x), expected)
    assert torch.equal(jvp(lambda x: to_levels(x, scale, form), (x,), (torch.ones_like(x),))[1].detach(), expected)
    torch.compiler.reset()
    compiled = torch.compile(lambda x: to_levels(x, scale, form), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), to_levels(x, scale, form))
    found = [
        torch.autograd.grad(each(x).square().sum(), form.module.table)[0]
        for each in (compiled, lambda x: to_levels(x, scale, form))
    ]
    torch.testing.assert_close(*found)


def test_levels_that_pass_each_other_are_sorted():
    form = learned((-1, 0, 1))
    with torch.no_grad():
        form.module.table.copy_(torch.tensor([0.5, 0.0, 2.0]))
    assert form.levels == (0, 0.5, 2)
    assert form.snapshot() == Codebook((0, 0.5, 2))
    found = torch.autograd.grad(form.nearest(torch.tensor([0.6, 0.1, 0.2, 9]), ROUND).sum(), form.module.table)
    assert found[0].tolist() == [1, 2, 1]


def test_levels_that_meet_count_as_one():
    form = learned((-1, 0, 1))
    with torch.no_grad():
        form.module.table.copy_(torch.tensor([-1.0, 0.5, 0.5]))
    assert form.snapshot() == Codebook((-1, 0.5))
    assert form.nearest(torch.tensor([0.4, 0.6]), StochasticRounding(seed=0)).tolist() == [0.5, 0.5]
    assert form.encode(torch.tensor([-1.0, 0.5])).tolist() == [0, 1]


@pytest.mark.parametrize(("numbers", "said"), [((math.nan, 0.0), "0, nan"), ((2.0, 2.0), "2, 2")])
def test_levels_that_make_no_codebook(numbers, said):
    form = learned((0, 1))
    with torch.no_grad():
        form.module.table.copy_(torch.tensor(numbers))
    message = (
        f"LearnedLevels: the levels are now {said}, and a codebook needs 2 or more that differ and are finite. Train "
        "the levels with a smaller learning rate, or write learned_levels=False."
    )
    with pytest.raises(QuantizerError, match=f"^{re.escape(message)}$"):
        form.snapshot()


def test_scales_are_made_for_the_table_of_the_start():
    form = learned()
    with torch.no_grad():
        form.module.table.mul_(3)
    assert (form.low, form.high, form.threshold, form.power, form.bits) == (-1, 1, 1, 1, 3)
    assert form.edges(ROUND) == pytest.approx((-4.05, 3.9))


def test_other_roundings_decide_by_the_share():
    found = learned((0, 1, 4)).nearest(torch.full((4000,), 3.25), StochasticRounding(seed=0))
    assert set(found.tolist()) == {1.0, 4.0}
    assert found.mean().item() == pytest.approx(3.25, abs=0.1)


def test_copies():
    form = learned()
    for each in (copy.deepcopy(form), pickle.loads(pickle.dumps(form))):
        assert each.levels == form.levels
        assert each.module is not form.module
    assert str(form) == "learned codebook of 5 levels"
    assert repr(form.module) == "LearnedLevels(5 levels)"


def test_meta_device_and_half_precision():
    module = LearnedLevels(TABLE, device="meta").to_empty(device="cpu")
    assert torch.equal(module(), torch.tensor(TABLE))
    half = module.to(torch.bfloat16)
    assert half.table.dtype == torch.bfloat16
    assert half().dtype == torch.float32


def test_refusals():
    with pytest.raises(SettingError) as error:
        LearnedLevels((1, 0))
    assert str(error.value) == (
        "levels=(1, 0) is not possible: expected 2 or more finite numbers in ascending order. Two levels that float32 "
        "can't tell apart count as one."
    )

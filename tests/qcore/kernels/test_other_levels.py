"""Levels that are no integers: the fused, the traced and the composed form agree, values and gradients."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.func import grad, jvp, vmap

from bitwright.qcore import (
    BINARY,
    E2M1,
    E4M3,
    E4M3FNUZ,
    E5M2,
    NF4,
    AdditivePowersOfTwo,
    Codebook,
    Floor,
    HalfEven,
    HalfUp,
    Minifloat,
    OddIntegers,
    StochasticRounding,
    powers_of_two,
)
from bitwright.qcore.formats.integers import Interval
from bitwright.qcore.kernels.composed import composed
from bitwright.qcore.kernels.dispatch import to_levels
from bitwright.qcore.kernels.fused import (
    EagerFakeQuant,
    MagnitudeFakeQuant,
    TracedFakeQuant,
)
from bitwright.qcore.kernels.weights import AbsMaxFakeQuant, AbsMaxRowsFakeQuant

ROUND = HalfEven()
FORMATS = [
    *(E4M3, E5M2, E4M3FNUZ, E2M1, Minifloat(3, 4, infinities=True, nan=True), powers_of_two(4)),
    *(NF4, AdditivePowersOfTwo(4), Codebook((-2, -0.5, 0.25, 1, 8)), BINARY, OddIntegers(3), Interval(-3, 5)),
]
SYMMETRIC = [each for each in FORMATS if each.low == -each.high]
every = pytest.mark.parametrize("form", FORMATS, ids=str)
ROUNDINGS = [HalfEven(), HalfUp(), Floor()]


def draw(form, shape, seed=0, dtype=torch.float32):
    """Numbers on both sides of the ends, some of them levels and middles of two."""
    generator = torch.Generator().manual_seed(seed)
    reach = 1.5 * max(abs(form.low), form.high)
    x = (torch.rand(*shape, generator=generator, dtype=dtype) * 2 - 1) * reach
    flat = x.view(-1)
    known = sorted(level for level in form.levels if math.isfinite(level))[-flat.numel() // 3 :]
    flat[: len(known)] = torch.tensor(known, dtype=dtype)
    return x


def gradients(function, x, scale):
    leaves = x.clone().requires_grad_(), scale.clone().requires_grad_()
    y = function(*leaves)
    weights = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).reshape(y.shape)
    return y.detach(), *torch.autograd.grad((y * weights).sum(), leaves)


def same(found, expected):
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])
    torch.testing.assert_close(found[2], expected[2], rtol=2e-5, atol=2e-5 * float(expected[1].abs().sum()))


@pytest.mark.parametrize(
    ("form", "relu"),
    [*((each, False) for each in FORMATS), *((each, True) for each in FORMATS if each.has_zero)],
    ids=str,
)
@pytest.mark.parametrize("rounding", ROUNDINGS, ids=repr)
@pytest.mark.parametrize("clips", [True, False])
@pytest.mark.parametrize("shape", [(), (4, 1)])
def test_forms_agree(form, rounding, clips, shape, relu):
    x, scale = draw(form, (4, 30)), torch.full(shape, 0.25)
    expected = gradients(lambda x, s: composed(x, s, form, None, rounding, relu=relu, clips=clips), x, scale)
    for function in (EagerFakeQuant, TracedFakeQuant):
        same(gradients(lambda *each, f=function: f.apply(*each, None, form, rounding, relu, clips), x, scale), expected)
    with torch.no_grad():
        assert torch.equal(to_levels(x, scale, form, None, rounding, relu=relu, clips=clips), expected[0])


@every
@given(numbers=st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=30), scale=st.floats(2**-7, 100, width=32))
def test_values_agree_on_any_numbers(form, numbers, scale):
    x, step = torch.tensor(numbers), torch.tensor(scale)
    expected = composed(x, step, form)
    assert torch.equal(to_levels(x, step, form), expected)
    assert torch.equal(TracedFakeQuant.apply(x, step, None, form, ROUND, False, True), expected)
    steps = form.nearest(x / step, ROUND)
    assert torch.equal(expected, steps * step)


@every
def test_gradient_is_straight_through_between_the_edges(form):
    low, high = form.edges(ROUND)
    near = [low * 0.999, low * 1.001, high * 0.999, high * 1.001, float(form.high), float(form.low)]
    inside = [low < each < high for each in near]
    x, scale = torch.tensor(near), torch.tensor(1.0)
    y, of_x, of_scale = gradients(lambda *each: to_levels(*each, form), x, scale)
    weights = torch.linspace(-1, 2, 6)
    assert inside[4:] == [True, True]
    torch.testing.assert_close(of_x, weights * torch.tensor(inside))
    assert of_scale.item() == pytest.approx(
        (weights * torch.where(torch.tensor(inside), y - x, y)).sum().item(), rel=1e-4, abs=1e-3
    )


@every
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_types(form, dtype):
    x, scale = draw(form, (40,)).to(dtype), torch.tensor(0.25)
    wide = x if dtype == torch.float64 else x.float()
    found = to_levels(x, scale.to(wide.dtype), form)
    assert found.dtype == dtype
    assert torch.equal(found, composed(wide, scale.to(wide.dtype), form).to(dtype))


@every
def test_special_numbers(form):
    x = torch.tensor([math.inf, -math.inf, math.nan])
    for found in (
        to_levels(x, torch.tensor(0.5), form),
        composed(x, torch.tensor(0.5), form),
        TracedFakeQuant.apply(x, torch.tensor(0.5), None, form, ROUND, False, True),
    ):
        assert found.tolist()[:2] == [form.high / 2, form.low / 2]
        assert found[2].isnan()


@every
def test_nothing(form):
    x = torch.empty(0, 3, requires_grad=True)
    to_levels(x, torch.tensor(0.5), form).sum().backward()
    assert x.grad.shape == (0, 3)
    assert to_levels(x.detach(), torch.tensor(0.5), form, None, lambda x: x.round()).shape == (0, 3)


@pytest.mark.parametrize("form", SYMMETRIC, ids=str)
@pytest.mark.parametrize("function", [AbsMaxFakeQuant, AbsMaxRowsFakeQuant])
@pytest.mark.parametrize("detached", [False, True])
def test_largest_magnitude(form, function, detached):
    x = torch.randn(5, 33, generator=torch.Generator().manual_seed(1))

    def defined(x):
        source = x.detach() if detached else x
        rows = source.reshape(1 if function is AbsMaxFakeQuant else 5, -1)
        scale = rows.abs().amax(1, keepdim=True) / form.high
        return composed(x, scale.reshape(()) if function is AbsMaxFakeQuant else scale, form)

    found, expected = [
        gradients(lambda x, _, f=each: f(x) + 0 * _, x, torch.tensor(1.0))
        for each in (lambda x: function.apply(x, 1e-10, form, ROUND, detached)[0], defined)
    ]
    assert torch.equal(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1], rtol=1e-4, atol=1e-4)
    assert (found[1] != 0).all()  # nothing is clipped


@every
@pytest.mark.parametrize(("shape", "size"), [(None, 1), ([-1, 1], 4)])
def test_learned_scales(form, shape, size):
    threshold = max(-form.low, form.high)
    x, offset = draw(form, (4, 30)), torch.zeros(size)
    base = torch.full((size,), 0.25 * threshold)

    def fused(x, offset):
        rest = (shape, threshold, 1e-10, form, ROUND, False, True)
        return MagnitudeFakeQuant.apply(x, base, offset, rest)[0]

    def defined(x, offset):
        return composed(x, ((base + offset).abs() / threshold).reshape(shape or ()), form)

    same(gradients(fused, x, offset), gradients(defined, x, offset))


@every
def test_second_derivatives(form):
    x, scale = draw(form, (12,), dtype=torch.float64) * 0.97, torch.tensor(0.25, dtype=torch.float64)

    def second(function):
        leaves = x.clone().requires_grad_(), scale.clone().requires_grad_()
        first = torch.autograd.grad(function(*leaves).square().sum(), leaves, create_graph=True)
        return torch.autograd.grad(sum(each.square().sum() for each in first), leaves)

    expected = second(lambda *each: composed(*each, form))
    for function in (EagerFakeQuant, TracedFakeQuant):
        found = second(lambda *each, f=function: f.apply(*each, None, form, ROUND, False, True))
        torch.testing.assert_close(found, expected)


@every
def test_transforms(form):
    x, scale = draw(form, (3, 10)), torch.tensor(0.25)

    def loss(x):
        return (to_levels(x, scale, form) * torch.arange(10.0)).sum()

    expected = gradients(lambda x, _: to_levels(x, scale, form) + 0 * _, x, scale)[1]
    assert torch.equal(grad(loss)(x) != 0, (expected != 0) & (torch.arange(10) > 0))
    assert torch.equal(vmap(grad(loss))(x), grad(lambda x: loss(x))(x))
    along = jvp(lambda x: to_levels(x, scale, form), (x,), (torch.ones_like(x),))[1]
    assert torch.equal(along != 0, expected != 0) or not expected.all()


@every
def test_compiled(form):
    torch.compiler.reset()
    x, scale = draw(form, (4, 30)), torch.tensor(0.25)
    compiled = torch.compile(lambda x, s: to_levels(x, s, form), fullgraph=True, backend="aot_eager")
    same(gradients(compiled, x, scale), gradients(lambda x, s: to_levels(x, s, form), x, scale))


def test_rounding_of_the_users_own():
    x, scale = torch.tensor([0.3, 0.8, 9.0]), torch.tensor(0.25)
    assert to_levels(x, scale, E2M1, None, lambda x: x.floor()).tolist() == [0.25, 0.75, 1.5]

    class Learned:
        straight_through = False

        def __call__(self, x):
            return x.detach().round() + 0.5 * (x - x.detach())

    leaf = torch.tensor([0.3, 9.0], requires_grad=True)
    to_levels(leaf, scale, E2M1, None, Learned()).sum().backward()
    assert leaf.grad.tolist() == [0.5, 0]


def test_stochastic_rounding_runs_on_the_composed_form():
    x = torch.full((4000,), 4.5, requires_grad=True)
    y = to_levels(x, torch.tensor(1.0), E2M1, None, StochasticRounding(seed=0))
    y.sum().backward()
    assert set(y.tolist()) == {4.0, 6.0}
    assert (x.grad == 1).all()

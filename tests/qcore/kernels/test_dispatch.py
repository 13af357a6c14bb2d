"""Fake quantization against its definition in numpy's arithmetic, in every form that computes it."""

from contextlib import contextmanager
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from bitwright.qcore import (
    ROUNDINGS,
    Ceil,
    Floor,
    HalfEven,
    HalfUp,
    LearnedRounding,
    QuantizerError,
    StochasticRounding,
    TowardZero,
    composed_fake_quant,
    fake_quant,
    int_bounds,
    quantize_to_int,
)
from bitwright.qcore.formats.int_range import representable_bounds
from bitwright.qcore.kernels.dispatch import as_real

FORMS = ["eager", "traced", "composed"]
ROUND = {HalfEven: np.rint, HalfUp: lambda x: np.floor(x) + (x - np.floor(x) >= 0.5), Floor: np.floor}
ROUND |= {Ceil: np.ceil, TowardZero: np.trunc}


@contextmanager
def using(form):
    """`fake_quant` in one of its forms: the traced one is what a compiler would trace."""
    if form == "composed":
        yield lambda x, *args, relu=False, clips=True: composed_fake_quant(x.relu() if relu else x, *args)
    else:
        with mock.patch("torch.compiler.is_compiling", return_value=form == "traced"):
            yield fake_quant


def definition(x, scale, low, high, zero_point=0.0, rounding=HalfEven):
    """ONNX's QuantizeLinear and DequantizeLinear, in the precision of ``x``."""
    zero_point = np.asarray(zero_point, x.dtype)
    codes = np.clip(ROUND[rounding](x / scale) + zero_point, low, high)
    return (codes - zero_point) * scale


def gradients(x, scale, low, high, grad, zero_point=0.0, axes=None):
    """The gradients of input, scale and zero point: straight through, and LSQ's. Sums are float64."""
    x, scale, grad, zero_point = (np.asarray(each, np.float32) for each in (x, scale, grad, zero_point))
    steps = x / scale
    codes = np.rint(steps) + zero_point
    inside = (codes >= low) & (codes <= high)
    of_scale = np.where(inside, codes - zero_point - steps, np.clip(codes, low, high) - zero_point).astype(np.float64)
    of_zero_point = np.where(inside, 0, -scale).astype(np.float64)
    return grad * inside, (grad * of_scale).sum(axes), (grad * of_zero_point).sum(axes)


RANGES = st.tuples(st.integers(2, 8), st.booleans(), st.booleans()).map(lambda given: int_bounds(*given))
WIDE_RANGES = st.tuples(st.integers(2, 32), st.booleans(), st.booleans()).map(lambda given: int_bounds(*given))
SCALES = st.floats(2**-10, 2**6, width=32)
PLACES = st.lists(st.floats(-2, 2, width=32), min_size=1, max_size=30)  # in units of the largest integer


def spread(places, scale, high):
    """Values inside and outside the range."""
    return torch.tensor(places, dtype=torch.float32) * high * scale


def clear_of_the_ends(x, scale, low, high, zero_point=0.0):
    """Whether no value is within rounding error of where clipping begins: there either gradient is right."""
    codes = np.asarray(x, np.float64) / np.asarray(scale, np.float64) + zero_point
    return (np.abs(np.abs(codes - (low + high) / 2) - (high - low + 1) / 2) > 1e-3).all()


# Values


@pytest.mark.parametrize("form", FORMS)
def test_values(form):
    x = torch.tensor([-9.0, -0.3, -0.125, 0.0, 0.125, 0.26, 0.375, 0.5, 9.0])
    with using(form) as quant:
        assert quant(x, torch.tensor(0.25), -8, 7).tolist() == [-2, -0.25, 0, 0, 0, 0.25, 0.5, 0.5, 1.75]
        assert quant(x, torch.tensor(0.25), -7, 7).tolist() == [-1.75, -0.25, 0, 0, 0, 0.25, 0.5, 0.5, 1.75]
        assert quant(x, torch.tensor(0.25), 0, 15).tolist() == [0, 0, 0, 0, 0, 0.25, 0.5, 0.5, 3.75]
    assert x[0] == -9  # untouched


@pytest.mark.parametrize("form", FORMS)
def test_values_with_zero_point(form):
    x = torch.tensor([-9.0, -1.0, 0.0, 0.26, 9.0])
    with using(form) as quant:
        assert quant(x, torch.tensor(0.25), 0, 15, torch.tensor(3.0)).tolist() == [-0.75, -0.75, 0, 0.25, 3]
        assert quant(x, torch.tensor(0.25), 0, 15, torch.tensor(0.0)).tolist() == [0, 0, 0, 0.25, 3.75]
        assert quant(x, torch.tensor(0.25), 0, 15, torch.tensor(15.0)).tolist() == [-3.75, -1, 0, 0, 0]


@pytest.mark.parametrize("form", FORMS)
def test_ties_are_rounded_before_the_zero_point_is_added(form):
    """2.5 + 1 = 3.5 would be rounded to 4, and 2 is what ONNX has."""
    x, one = torch.tensor([0.5, 1.5, 2.5]), torch.tensor(1.0)
    with using(form) as quant:
        assert quant(x, one, 0, 15, one).tolist() == [0, 2, 2]


def test_division_not_multiplication_by_the_reciprocal():
    """In float32 2.25 / 0.3 is less than 7.5, 2.25 * (1 / 0.3) is not."""
    x, scale = torch.tensor([2.25]), torch.tensor(0.3)
    assert torch.round(x * (1 / scale)).item() == 8
    for form in FORMS:
        with using(form) as quant:
            assert quant(x, scale, -16, 15).item() == (7 * scale).item()


@pytest.mark.parametrize("form", FORMS)
@given(PLACES, SCALES, WIDE_RANGES, st.sampled_from(list(ROUND)))
def test_definition(form, places, scale, bounds, rounding):
    x = spread(places, scale, bounds[1])
    low, high = representable_bounds(*bounds, 24)
    expected = definition(x.numpy(), np.float32(scale), np.float32(low), np.float32(high), rounding=rounding)
    with using(form) as quant:
        assert quant(x, torch.tensor(scale), *bounds, None, rounding()).tolist() == expected.tolist()
        with torch.no_grad():
            assert quant(x, torch.tensor(scale), *bounds, None, rounding()).tolist() == expected.tolist()


@pytest.mark.parametrize("form", FORMS)
@given(PLACES, SCALES, RANGES, st.floats(0, 1))
def test_definition_with_zero_point(form, places, scale, bounds, place):
    zero_point = round(bounds[0] + place * (bounds[1] - bounds[0]))
    x = spread(places, scale, bounds[1])
    expected = definition(x.numpy(), np.float32(scale), *bounds, zero_point)
    with using(form) as quant:
        assert quant(x, torch.tensor(scale), *bounds, torch.tensor(float(zero_point))).tolist() == expected.tolist()


@st.composite
def channels(draw):
    """Values of some channels, a scale and a zero point for each."""
    count = draw(st.integers(1, 4))
    low, high = draw(RANGES)
    scale = torch.tensor(draw(st.lists(SCALES, min_size=count, max_size=count))).reshape(1, -1, 1)
    zero_point = torch.tensor(draw(st.lists(st.integers(low, high), min_size=count, max_size=count))).reshape(1, -1, 1)
    places = draw(st.lists(st.floats(-2, 2, width=32), min_size=count * 6, max_size=count * 6))
    x = torch.tensor(places).reshape(2, count, 3) * high * scale
    return x, scale, zero_point.float(), low, high


@pytest.mark.parametrize("form", FORMS)
@given(channels())
def test_definition_per_channel(form, drawn):
    x, scale, zero_point, low, high = drawn
    expected = definition(x.numpy(), scale.numpy(), low, high, zero_point.numpy())
    symmetric = definition(x.numpy(), scale.numpy(), low, high)
    with using(form) as quant:
        assert quant(x, scale, low, high, zero_point).tolist() == expected.tolist()
        assert quant(x, scale, low, high).tolist() == symmetric.tolist()


@given(PLACES, SCALES, WIDE_RANGES)
def test_grid_membership(places, scale, bounds):
    """Each value is an integer in range times the scale, and `quantize_to_int` tells which."""
    x, step = spread(places, scale, bounds[1]), torch.tensor(scale)
    codes = quantize_to_int(x, step, *bounds)
    assert torch.equal(codes, codes.round())
    assert bounds[0] <= codes.min()
    assert codes.max() <= bounds[1]
    assert torch.equal(codes * step, fake_quant(x, step, *bounds))


@given(PLACES, SCALES, RANGES, st.sampled_from([HalfEven, HalfUp]))
def test_idempotent(places, scale, bounds, rounding):
    once = fake_quant(spread(places, scale, bounds[1]), torch.tensor(scale), *bounds, None, rounding())
    assert torch.equal(fake_quant(once, torch.tensor(scale), *bounds, None, rounding()), once)


@given(PLACES, SCALES, RANGES, st.sampled_from(list(ROUND)))
def test_monotonic(places, scale, bounds, rounding):
    x = spread(sorted(places), scale, bounds[1])
    y = fake_quant(x, torch.tensor(scale), *bounds, None, rounding())
    assert (y.diff() >= 0).all()


@given(PLACES, SCALES, RANGES)
def test_within_half_a_step(places, scale, bounds):
    x, step = spread(places, scale, bounds[1]), torch.tensor(scale)
    clipped = x.clamp(bounds[0] * step, bounds[1] * step)
    assert ((fake_quant(x, step, *bounds) - clipped).abs() <= step / 2 * (1 + 1e-4)).all()


@given(SCALES, WIDE_RANGES, st.floats(0, 1), st.sampled_from(list(ROUND)))
def test_zero_maps_to_zero(scale, bounds, place, rounding):
    zero_point = torch.tensor(float(round(bounds[0] + place * (bounds[1] - bounds[0]))))
    zero, step = torch.zeros(2), torch.tensor(scale)
    low, high = representable_bounds(*bounds, 24)
    assert fake_quant(zero, step, *bounds, None, rounding()).tolist() == [0, 0]
    assert fake_quant(zero, step, *bounds, zero_point.clamp(low, high), rounding()).tolist() == [0, 0]


@given(PLACES, SCALES, st.integers(2, 16))
def test_symmetric_range_is_symmetric(places, scale, bit_width):
    bounds = int_bounds(bit_width, signed=True, narrow_range=True)
    x = spread(places, scale, bounds[1])
    assert torch.equal(fake_quant(-x, torch.tensor(scale), *bounds), -fake_quant(x, torch.tensor(scale), *bounds))


@pytest.mark.parametrize("bit_width", range(2, 33))
def test_every_bit_width(bit_width):
    for signed in (True, False):
        low, high = representable_bounds(*int_bounds(bit_width, signed, False), 24)
        x = torch.tensor([-1e30, -1.0, 0.0, 1.0, 1e30])
        expected = [low / 4, -0.25 if signed else 0, 0, 0.25, high / 4]
        assert fake_quant(x * 0.25, torch.tensor(0.25), *int_bounds(bit_width, signed, False)).tolist() == expected


def test_quantize_to_int():
    x = torch.tensor([-9.0, 0.3, 0.375, 9.0])
    assert quantize_to_int(x, torch.tensor(0.25), -8, 7).tolist() == [-8, 1, 2, 7]
    assert quantize_to_int(x, torch.tensor(0.25), 0, 15, torch.tensor(3.0)).tolist() == [0, 4, 5, 15]
    assert quantize_to_int(x, torch.tensor(0.25), -8, 7, None, Ceil()).tolist() == [-8, 2, 2, 7]
    assert quantize_to_int(x.half(), torch.tensor(0.25), -8, 7).dtype == torch.float32


# Gradients


@pytest.mark.parametrize("form", FORMS)
def test_gradients(form):
    x = torch.tensor([-9.0, -0.3, 0.1, 9.0], requires_grad=True)
    scale = torch.tensor(0.25, requires_grad=True)
    with using(form) as quant:
        y = quant(x, scale, -8, 7)
        of_x, of_scale = torch.autograd.grad(y, (x, scale), torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert of_x.tolist() == [0, 2, 3, 0]
    assert of_scale.item() == pytest.approx(-8 + 2 * (-1 + 1.2) + 3 * (0 - 0.4) + 4 * 7)


@pytest.mark.parametrize("form", FORMS)
def test_gradients_with_zero_point(form):
    x = torch.tensor([-9.0, -0.3, 0.1, 9.0], requires_grad=True)
    scale = torch.tensor(0.25, requires_grad=True)
    zero_point = torch.tensor(3.0, requires_grad=True)
    with using(form) as quant:
        y = quant(x, scale, 0, 15, zero_point)
        found = torch.autograd.grad(y, (x, scale, zero_point), torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert found[0].tolist() == [0, 2, 3, 0]
    assert found[1].item() == pytest.approx(-3 + 2 * (-1 + 1.2) + 3 * (0 - 0.4) + 4 * 12)
    assert found[2].item() == pytest.approx(-0.25 * (1 + 4))


def check_gradients(form, x, scale, low, high, zero_point, axes):
    grad = torch.linspace(-1, 1, x.numel()).reshape(x.shape)
    wanted = gradients(x, scale, low, high, grad, 0 if zero_point is None else zero_point, axes)
    leaves = [each.clone().requires_grad_() for each in (x, scale, zero_point) if each is not None]
    with using(form) as quant:
        found = torch.autograd.grad(quant(*leaves[:2], low, high, *leaves[2:]), leaves, grad)
    torch.testing.assert_close(found[0], torch.from_numpy(wanted[0]), rtol=1e-6, atol=0)
    for leaf, each, expected in zip(leaves[1:], found[1:], wanted[1:], strict=False):
        assert each.shape == leaf.shape
        assert each.dtype == leaf.dtype
        size = x.numel() * max(abs(low), abs(high), 1)  # the sum of terms of this size has float32's error
        expected = torch.as_tensor(expected).reshape(leaf.shape)
        torch.testing.assert_close(each.double(), expected, rtol=1e-4, atol=4e-7 * size)


@pytest.mark.parametrize("form", FORMS)
@given(PLACES, SCALES, RANGES, st.sampled_from([(), (1,), (1, 1)]))
def test_gradients_by_definition(form, places, scale, bounds, shape):
    x = spread(places, scale, bounds[1]).reshape(-1, 1)
    assume(clear_of_the_ends(x, scale, *bounds))
    check_gradients(form, x, torch.tensor(scale).reshape(shape), *bounds, None, None)


@pytest.mark.parametrize("form", FORMS)
@given(PLACES, SCALES, RANGES, st.floats(0, 1))
def test_gradients_by_definition_with_zero_point(form, places, scale, bounds, place):
    zero_point = round(bounds[0] + place * (bounds[1] - bounds[0]))
    x = spread(places, scale, bounds[1])
    assume(clear_of_the_ends(x, scale, *bounds, zero_point))
    check_gradients(form, x, torch.tensor(scale), *bounds, torch.tensor(float(zero_point)), None)


@pytest.mark.parametrize("form", FORMS)
@given(channels(), st.booleans())
def test_gradients_by_definition_per_channel(form, drawn, shifted):
    x, scale, zero_point, low, high = drawn
    zero_point = zero_point if shifted else None
    assume(clear_of_the_ends(x, scale, low, high, 0 if zero_point is None else zero_point.numpy()))
    check_gradients(form, x, scale, low, high, zero_point, (0, 2))


@given(PLACES, SCALES, st.integers(9, 24))
def test_gradients_of_many_integers(places, scale, bit_width):
    """Sums of products with thousands of integers must not cancel."""
    low, high = int_bounds(bit_width, signed=True, narrow_range=False)
    x = torch.tensor(places).clamp(-0.9, 0.9) * high * scale
    step, found = torch.tensor(scale), {}
    for form in FORMS:
        leaf = step.clone().requires_grad_()
        with using(form) as quant:
            (found[form],) = torch.autograd.grad(quant(x, leaf, low, high).sum(), leaf)
    error = x.numel() * high * 2**-22  # of x / scale in float32
    assert abs(found["traced"]) <= x.numel() * 0.5 + error
    torch.testing.assert_close(found["eager"], found["traced"], rtol=0, atol=max(error, 1e-4))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rounding", list(ROUND))
def test_gradient_of_every_rounding(form, rounding):
    x = torch.tensor([-2.3, -0.3, 0.1, 0.6, 1.6, 2.3], requires_grad=True)
    scale = torch.tensor(0.25, requires_grad=True)
    with using(form) as quant:
        of_x, of_scale = torch.autograd.grad(quant(x, scale, -8, 7, None, rounding()).sum(), (x, scale))
    steps = x.detach().numpy() / np.float32(0.25)
    codes = ROUND[rounding](steps)
    assert of_x.tolist() == [0, 1, 1, 1, 1, 0]
    assert of_scale.item() == pytest.approx(sum((codes - steps)[1:5]) - 8 + 7, rel=1e-5)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("zero_point", [None, 3.0])
def test_gradient_at_the_ends(form, zero_point):
    """What is rounded to the last integer is inside."""
    shift = 0 if zero_point is None else zero_point
    x = (torch.tensor([-8.4, -8.0, 7.0, 7.4, -8.6, 7.6]) - shift).requires_grad_()
    with using(form) as quant:
        quant(x, torch.tensor(1.0), -8, 7, None if zero_point is None else torch.tensor(zero_point)).sum().backward()
    assert x.grad.tolist() == [1, 1, 1, 1, 0, 0]


def test_gradient_at_the_ends_of_bounds_that_are_tensors():
    x = torch.tensor([-8.4, -8.0, 7.0, 7.4, -8.6, 7.6], requires_grad=True)
    bounds = torch.tensor(-8.0, requires_grad=True), torch.tensor(7.0, requires_grad=True)
    found = torch.autograd.grad(fake_quant(x, torch.tensor(1.0), *bounds).sum(), (x, *bounds))
    assert [each.tolist() for each in found] == [[1, 1, 1, 1, 0, 0], 1, 1]


@pytest.mark.parametrize("rounding", [HalfEven(), torch.round])
@pytest.mark.parametrize("form", ["eager", "traced"])
def test_gradients_through_what_is_clipped(form, rounding):
    x = torch.tensor([-9.0, 1.1, 9.0], requires_grad=True)
    scale = torch.tensor(0.25, requires_grad=True)
    with using(form) as quant:
        y = quant(x, scale, -8, 7, None, rounding, clips=False)
        of_x, of_scale = torch.autograd.grad(y.sum(), (x, scale))
        relu = quant(x, scale, 0, 7, None, rounding, relu=True, clips=False)
        of_relu, _ = torch.autograd.grad(relu.sum(), (x, scale))
    assert y.tolist() == [-2, 1, 1.75]
    assert of_x.tolist() == [1, 1, 1]
    assert of_scale.item() == pytest.approx(-8 + (4 - 4.4) + 7)
    assert of_relu.tolist() == [0, 1, 1]  # the ReLU is no clipping


@pytest.mark.parametrize("form", ["eager", "traced"])
def test_gradients_only_where_asked_for(form):
    grad = torch.tensor([1.0, 1.0])
    for asked in range(1, 8):
        leaves = [torch.tensor([0.3, 9.0]), torch.tensor(0.25), torch.tensor(3.0)]
        wanted = [leaf.requires_grad_() for index, leaf in enumerate(leaves) if asked >> index & 1]
        with using(form) as quant:
            found = torch.autograd.grad(quant(*leaves[:2], 0, 15, leaves[2]), wanted, grad)
        expected = [[1, 0], -0.2 + 12, -0.25]
        for each, which in zip(found, [index for index in range(3) if asked >> index & 1], strict=True):
            torch.testing.assert_close(each, torch.tensor(expected[which], dtype=torch.float32))


@given(PLACES, SCALES, RANGES)
def test_forms_agree(places, scale, bounds):
    x = spread(places, scale, bounds[1])
    assume(clear_of_the_ends(x, scale, *bounds))
    found = {}
    for form in FORMS:
        leaves = x.clone().requires_grad_(), torch.tensor(scale, requires_grad=True)
        with using(form) as quant:
            y = quant(*leaves, *bounds)
            found[form] = y, *torch.autograd.grad((y * x).sum(), leaves)
    for form in ("eager", "traced"):
        assert torch.equal(found[form][0], found["composed"][0])
        torch.testing.assert_close(found[form][1], found["composed"][1], rtol=1e-6, atol=0)
        size = (x.abs() * max(abs(bounds[0]), bounds[1])).sum().item()
        torch.testing.assert_close(found[form][2], found["composed"][2], rtol=1e-4, atol=1e-6 * size + 1e-6)


# ReLU


@pytest.mark.parametrize("form", ["eager", "traced"])
@given(PLACES, SCALES, st.integers(2, 10), st.booleans(), st.sampled_from(list(ROUND)))
def test_relu_is_a_relu_before(form, places, scale, bit_width, narrow_range, rounding):
    bounds = int_bounds(bit_width, signed=False, narrow_range=narrow_range)
    x = spread([0.0, *places], scale, bounds[1])
    assume(clear_of_the_ends(x[x > 0], scale, *bounds))
    found = []
    with using(form) as quant:
        for folded in (True, False):
            leaves = x.clone().requires_grad_(), torch.tensor(scale, requires_grad=True)
            arguments = (leaves[1], *bounds, None, rounding())
            y = quant(leaves[0], *arguments, relu=True) if folded else quant(leaves[0].relu(), *arguments)
            found.append((y, *torch.autograd.grad((y * torch.arange(len(x))).sum(), leaves)))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])
    torch.testing.assert_close(found[0][2], found[1][2], rtol=1e-4, atol=1e-6 * len(x) ** 2 * bounds[1])


def test_relu_with_a_rounding_of_the_users_own():
    x = torch.tensor([-1.0, 0.0, 0.3, 9.0], requires_grad=True)
    y = fake_quant(x, torch.tensor(0.25), 0, 15, None, lambda x: x.round(), relu=True)
    assert y.tolist() == [0, 0, 0.25, 3.75]
    assert torch.autograd.grad(y.sum(), x)[0].tolist() == [0, 0, 1, 0]


def test_relu_per_channel():
    x = torch.tensor([[-1.0, 0.3], [-1.0, 9.0]], requires_grad=True)
    for form in ("eager", "traced"):
        with using(form) as quant:
            y = quant(x, torch.tensor([[0.25], [0.5]]), 0, 15, relu=True)
            assert y.tolist() == [[0, 0.25], [0, 7.5]]
            assert torch.autograd.grad(y.sum(), x)[0].tolist() == [[0, 1], [0, 0]]


# Roundings and bit widths that are not plain


def test_rounding_of_the_users_own():
    def to_even(x):
        return 2 * torch.round(x / 2)

    x = torch.tensor([-9.0, 0.2, 0.8, 9.0], requires_grad=True)
    y = fake_quant(x, torch.tensor(0.25), -8, 7, None, to_even)
    assert y.tolist() == [-2, 0, 1, 1.75]
    assert torch.autograd.grad(y.sum(), x)[0].tolist() == [0, 1, 1, 0]


def test_stochastic_rounding():
    x = torch.full((20000,), 0.3, requires_grad=True)
    y = fake_quant(x, torch.tensor(0.25), -8, 7, None, StochasticRounding(seed=0))
    assert set(y.tolist()) == {0.25, 0.5}
    assert y.mean().item() == pytest.approx(0.3, abs=0.003)
    assert torch.autograd.grad(y.sum(), x)[0].unique().tolist() == [1]


def test_rounding_of_the_users_own_is_handed_wide_tensors_that_are_not_empty():
    handed = []

    def rounding(x):
        handed.append((x.dtype, x.numel()))
        return torch.round(x)

    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.uint8):
        for size in (0, 3):
            x, scale = torch.ones(size, dtype=dtype), torch.tensor(0.25)
            kept = dtype if dtype.is_floating_point else torch.float32
            assert fake_quant(x, scale, -8, 7, None, rounding).dtype == kept
            assert composed_fake_quant(x, scale, -8, 7, None, rounding).shape == (size,)
            assert quantize_to_int(x, scale, -8, 7, None, rounding).tolist() == [4] * size
    wide = [(dtype, 3) for dtype in [torch.float32] * 3 + [torch.float64] + [torch.float32] for _ in range(3)]
    assert handed == wide


def test_rounding_of_the_users_own_with_a_gradient_of_its_own_and_nothing_to_round():
    def rounding(x):
        assert x.numel()
        return x * 2

    vars(rounding)["straight_through"] = False
    x = torch.zeros(0, requires_grad=True)
    assert fake_quant(x, torch.tensor(0.25), -8, 7, None, rounding).requires_grad


@pytest.mark.parametrize("zero_point", [None, 3.0])
def test_bounds_for_each_channel(zero_point):
    """Of 8, 4 and 2 bits."""
    x = torch.tensor([[-99.0, 0.3, 99.0]] * 3, requires_grad=True)
    high = torch.tensor([[127.0], [7.0], [1.0]], requires_grad=True)
    scale = torch.tensor([[0.5], [0.25], [0.25]], requires_grad=True)
    shift = None if zero_point is None else torch.full((3, 1), zero_point)
    y = fake_quant(x, scale, -high, high, shift)
    shift = zero_point or 0.0
    expected = [
        [max(-bound - shift, each) * step for each in (low, middle, min(bound - shift, top))]
        for bound, step, low, middle, top in (
            (127, 0.5, -198, 1, 198),
            (7, 0.25, -396, 1, 396),
            (1, 0.25, -396, 1, 396),
        )
    ]
    expected[2][1] = min(1.0, 1 - shift) * 0.25
    assert y.tolist() == expected
    of_x, of_high, of_scale = torch.autograd.grad(y.sum(), (x, high, scale))
    assert of_x.tolist() == [[0, 1, 0], [0, 1, 0], [0, 0 if zero_point else 1, 0]]
    assert of_high.shape == of_scale.shape == (3, 1)
    assert of_high[:2].tolist() == [[0], [0]]  # both ends move by as much


def test_bounds_may_be_tensors():
    x = torch.tensor([-9.0, 0.3, 9.0], requires_grad=True)
    low, high = torch.tensor(-8.0, requires_grad=True), torch.tensor(7.0, requires_grad=True)
    y = fake_quant(x, torch.tensor(0.25), low, high)
    assert y.tolist() == [-2, 0.25, 1.75]
    found = torch.autograd.grad(y.sum(), (x, low, high))
    assert [each.tolist() for each in found] == [[0, 1, 0], 0.25, 0.25]
    assert fake_quant(x, torch.tensor(0.25), 0, high * 2 + 1).tolist() == [0, 0.25, 3.75]
    shifted = fake_quant(x, torch.tensor(0.25), 0, high * 2 + 1, torch.tensor(3.0))
    assert shifted.tolist() == [-0.75, 0.25, 3]


# Dtypes, layouts, and what is not a plain number


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_integers_become_floating(form, dtype):
    x = torch.tensor([0, 1, 100, 127], dtype=dtype)
    with using(form) as quant:
        y = quant(x, torch.tensor(0.75), 0, 511)
        assert y.dtype == torch.float32
        assert y.tolist() == [0, 0.75, 99.75, 126.75]
        assert quant(x, torch.tensor(0.75), 0, 511, torch.tensor(4.0)).tolist() == [0, 0.75, 99.75, 126.75]


@pytest.mark.parametrize("form", FORMS)
def test_truth_values_become_floating(form):
    with using(form) as quant:
        y = quant(torch.tensor([True, False]), torch.tensor(0.75), -8, 7)
    assert (y.dtype, y.tolist()) == (torch.float32, [0.75, 0])


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16])
def test_integers_take_the_default_dtype(default):
    before = torch.get_default_dtype()
    torch.set_default_dtype(default)
    try:
        y = fake_quant(torch.tensor([3, 250]), torch.tensor(0.75, dtype=torch.float32), 0, 511)
    finally:
        torch.set_default_dtype(before)
    assert (y.dtype, y.tolist()) == (default, [3, 249.75 if default == torch.float64 else 250])


def test_integers_of_a_quantizer_in_a_compiled_function():
    x = torch.tensor([0, 200, 255], dtype=torch.uint8)
    made = torch.compile(lambda x: fake_quant(x, torch.tensor(0.75), 0, 511), fullgraph=True, backend="aot_eager")
    assert made(x).tolist() == [0, 200.25, 255]


@pytest.mark.parametrize("function", [fake_quant, composed_fake_quant, quantize_to_int])
def test_complex_values_are_refused(function):
    with pytest.raises(QuantizerError) as error:
        function(torch.tensor([1 + 2j]), torch.tensor(0.5), -8, 7)
    assert str(error.value) == (
        "fake_quant: the values are complex64, and a grid holds real numbers. Quantize torch.view_as_real(x), which "
        "has the real and the imaginary parts side by side, or x.abs()."
    )
    with pytest.raises(QuantizerError, match=r"^0\.act_quant: the values are complex128"):
        as_real(torch.zeros(1, dtype=torch.complex128), "0.act_quant")


@pytest.mark.parametrize("form", FORMS)
@given(PLACES, SCALES, RANGES)
def test_float64(form, places, scale, bounds):
    x = spread(places, scale, bounds[1]).double() * 1.1
    expected = definition(x.numpy(), np.float64(scale) / 3, *bounds)
    with using(form) as quant:
        y = quant(x, torch.tensor(scale, dtype=torch.float64) / 3, *bounds)
    assert y.dtype == torch.float64
    assert y.tolist() == expected.tolist()


@pytest.mark.parametrize("form", ["eager", "traced"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@given(PLACES, RANGES)
def test_half_precision_is_computed_in_float32(form, dtype, places, bounds):
    x = (torch.tensor(places) * 3).to(dtype)
    expected = torch.from_numpy(definition(x.float().numpy(), np.float32(0.1), *bounds)).to(dtype)
    with using(form) as quant:
        y = quant(x, torch.tensor(0.1), *bounds)
    assert y.dtype == dtype
    assert y.tolist() == expected.tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale_dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_gradients_have_the_dtype_of_their_tensor(dtype, scale_dtype):
    for form in ("eager", "traced"):
        for shape in ((), (2, 1)):
            x = torch.tensor([[0.3, 9.0], [0.5, -9.0]], dtype=dtype, requires_grad=True)
            scale = torch.full(shape, 0.25, dtype=scale_dtype, requires_grad=True)
            zero_point = torch.full(shape, 3.0, dtype=scale_dtype, requires_grad=True)
            with using(form) as quant:
                y = quant(x, scale, 0, 15, zero_point)
                found = torch.autograd.grad(y.sum(), (x, scale, zero_point))
            assert [each.dtype for each in found] == [dtype, scale_dtype, scale_dtype]
            assert y.dtype == dtype or (dtype == torch.float32 and scale_dtype == torch.float64 and shape)
            assert found[0].tolist() == [[1, 0], [1, 0]]


@pytest.mark.parametrize("form", FORMS)
def test_layouts(form):
    torch.manual_seed(0)
    plain = torch.randn(2, 4, 6, 6)
    scale, zero_point = torch.rand(1, 4, 1, 1) / 4 + 0.01, torch.tensor([0.0, 3.0, 7.0, 15.0]).reshape(1, 4, 1, 1)
    layouts = {
        "plain": plain.clone(),
        "channels last": plain.clone(memory_format=torch.channels_last),
        "transposed": plain.transpose(1, 3).contiguous().transpose(1, 3),
        "every other": plain.repeat_interleave(2, 3)[..., ::2],
        "expanded": plain[:1].expand(2, 4, 6, 6),
    }
    grad = torch.randn(2, 4, 6, 6)
    with using(form) as quant:
        for name, x in layouts.items():
            for given_scale, given_zero_point in ((scale, zero_point), (scale[0, 0, 0, 0], zero_point[0, 1, 0, 0])):
                found = []
                for each in (x, x.contiguous()):
                    leaves = each.detach().requires_grad_(), given_scale.clone().requires_grad_()
                    y = quant(*leaves, 0, 15, given_zero_point)
                    found.append((y, *torch.autograd.grad(y, leaves, grad)))
                for one, other in zip(*found, strict=True):
                    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-4, msg=name)
                assert torch.equal(found[0][0], found[1][0])


@pytest.mark.parametrize("form", FORMS)
def test_output_is_a_new_tensor(form):
    x = torch.tensor([0.25, 0.5])
    with using(form) as quant:
        y = quant(x, torch.tensor(0.25), -8, 7)
    assert y.tolist() == x.tolist()
    assert y.data_ptr() != x.data_ptr()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", [(0,), (2, 0, 3), ()])
def test_empty_and_scalar(form, shape):
    x = torch.zeros(shape, requires_grad=True)
    scale = torch.tensor(0.25, requires_grad=True)
    with using(form) as quant:
        y = quant(x, scale, -8, 7)
        of_x, of_scale = torch.autograd.grad(y.sum(), (x, scale))
    assert y.shape == of_x.shape == shape
    assert of_scale.item() == 0


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", [(), (1, 1), (2, 1)])
def test_not_a_number_stays_where_it_is(form, shape):
    x = torch.tensor([[float("nan"), 0.3], [9.0, -0.3]])
    with using(form) as quant:
        for zero_point in (None, torch.full(shape, 3.0)):
            y = quant(x, torch.full(shape, 0.25), 0 if zero_point is not None else -8, 7, zero_point)
            assert y[0, 0].isnan()
            assert not y.reshape(-1)[1:].isnan().any()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", [(), (1,)])
def test_infinite_values_are_clipped(form, shape):
    x = torch.tensor([float("inf"), -float("inf"), 0.3], requires_grad=True)
    with using(form) as quant:
        y = quant(x, torch.full(shape, 0.25), -8, 7)
        assert y.tolist() == [1.75, -2, 0.25]
        assert torch.autograd.grad(y.sum(), x)[0].tolist() == [0, 0, 1]


@pytest.mark.parametrize("form", ["eager", "traced"])
@pytest.mark.parametrize(("shape", "high"), [((), 7), ((), 32767), ((3,), 7)])
def test_infinite_values_leave_the_gradient_of_the_scale_finite(form, shape, high):
    x = torch.tensor([float("inf"), -float("inf"), 0.3])
    scale = torch.full(shape, 0.25, requires_grad=True)
    with using(form) as quant:
        (found,) = torch.autograd.grad(quant(x, scale, -high - 1, high).sum(), scale)
    expected = torch.tensor([high, -high - 1, 1 - 1.2])
    torch.testing.assert_close(found, expected if shape else expected.sum(), rtol=1e-5, atol=1e-5)


def test_every_choice_of_rounding_is_tested():
    assert {*ROUND, StochasticRounding, LearnedRounding} == set(ROUNDINGS.values())


# Transforms and modes


def test_no_grad_gives_the_same_values():
    torch.manual_seed(0)
    x, scale = torch.randn(2, 4, 8), torch.tensor(0.1, requires_grad=True)
    for zero_point in (None, torch.tensor(3.0)):
        with torch.no_grad():
            without = fake_quant(x, scale, 0, 15, zero_point)
        with torch.inference_mode():
            inference = fake_quant(x, scale, 0, 15, zero_point)
        assert torch.equal(without, fake_quant(x, scale, 0, 15, zero_point))
        assert torch.equal(without, inference)
        assert not without.requires_grad


def test_torch_func():
    def loss(x, scale):
        return (fake_quant(x, scale, -8, 7) * torch.tensor([1.0, 2.0])).sum()

    x, scale = torch.tensor([0.3, 9.0]), torch.tensor(0.25)
    of_x, of_scale = torch.func.grad(loss, argnums=(0, 1))(x, scale)
    assert of_x.tolist() == [1, 0]
    assert of_scale.item() == pytest.approx(1 - 1.2 + 14)
    batched = torch.func.vmap(loss, in_dims=(0, None))(x.repeat(3, 1), scale)
    assert batched.tolist() == pytest.approx([0.25 + 3.5] * 3)


def test_compiled():
    def loss(x, scale, zero_point):
        return (fake_quant(x, scale, 0, 15, zero_point) * x.detach()).sum()

    found = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        torch.manual_seed(0)
        leaves = [torch.randn(100).requires_grad_(), torch.tensor(0.1, requires_grad=True)]
        leaves.append(torch.tensor(7.0, requires_grad=True))
        y = function(*leaves)
        found.append((y, *torch.autograd.grad(y, leaves)))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-4)

"""The modules that integer quantizers resolve into."""

import copy
import io
import pickle
import warnings
from contextlib import contextmanager
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import nn

import bitwright.nn as qnn
from bitwright.qcore import (
    RESTRICTIONS,
    ROUNDINGS,
    STATISTICS,
    BiasQuant,
    BitwrightWarning,
    CalibratedScaling,
    ConstantScaling,
    Grid,
    IntQuant,
    IntRange,
    LearnedScaling,
    PerAxis,
    QuantizerError,
    SettingError,
    StatisticScaling,
    TensorQuant,
    composed_fake_quant,
    resolve,
)
from bitwright.qcore.errors import ReadOnlyError
from bitwright.quantizers import (
    Int8Act,
    Int8ActPerChannel,
    Int8BiasOwnScale,
    Int8WeightPerChannel,
    Int8WeightPerTensor,
    Int8WeightPerTensorLearned,
    Int32Bias,
    ShiftedUint8Act,
    ShiftedUint8WeightPerTensor,
    Uint8Act,
)

NUMBERS = st.floats(-100, 100, width=32)
TENSORS = arrays.arrays(np.float32, arrays.array_shapes(min_dims=1, max_dims=3, max_side=5), elements=NUMBERS)
NAN, INF = float("nan"), float("inf")
PLAIN_ROUNDINGS = ["half_even", "half_up", "floor", "ceil", "toward_zero"]


@contextmanager
def form(name):
    """The eager forms, those that a compiler would trace, or the ones without gradients."""
    traced = mock.patch("torch.compiler.is_compiling", return_value=name == "traced")
    with traced, torch.set_grad_enabled(name != "no grad"):
        yield


def act(quantizer=Int8Act, **overrides):
    return resolve(quantizer(**overrides))


def weight(quantizer=Int8WeightPerTensor, *, provided=None, **overrides):
    quant = resolve(quantizer(**overrides), {"channel_axis": 0, **(provided or {})})
    quant.of_parameter = True  # as a layer says
    return quant


# Values and grid


def test_values_and_grid():
    quant = act(bit_width=4, scale=0.25)
    values, grid = quant.quantize(torch.tensor([-9.0, 0.3, 9.0]))
    assert values.tolist() == quant(torch.tensor([-9.0, 0.3, 9.0])).tolist() == [-2, 0.25, 1.75]
    assert (grid.scale.item(), grid.zero_point, grid.bit_width, grid.axis) == (0.25, None, 4, None)
    assert (grid.signed, grid.narrow_range, grid.bounds) == (True, False, (-8, 7))
    assert grid.source == quant.source
    assert grid.to_int(values).tolist() == [-8, 1, 7]


def test_values_with_zero_point():
    quant = weight(ShiftedUint8WeightPerTensor)
    values, grid = quant.quantize(torch.tensor([-1.0, 0.004, 1.55]))
    assert grid.zero_point.item() == 100
    assert grid.to_int(values).tolist() == [0, 100, 255]
    assert values.tolist() == pytest.approx([-1, 0, 1.55])


def test_values_per_channel():
    quant = weight(Int8WeightPerChannel)
    values, grid = quant.quantize(torch.tensor([[127.0, 1.6], [-254.0, 1.6]]))
    assert values.tolist() == [[127, 2], [-254, 2]]
    assert grid.scale.tolist() == [[1], [2]]
    assert (grid.axis, grid.to_int(values).tolist()) == (0, [[127, 2], [-127, 1]])


def test_properties():
    quant = act(Uint8Act, scale=1.0)
    assert (quant.signed, quant.narrow_range, quant.bit_width, quant.folds_relu) == (False, False, 8, True)
    assert weight().narrow_range
    assert not weight().folds_relu
    assert not act(ShiftedUint8Act).folds_relu
    assert isinstance(quant, TensorQuant)
    assert not quant.follows_input


def test_a_quantizer_is_six_modules_at_most():
    for quant in (weight(), act(), weight(Int8WeightPerTensorLearned), act(ShiftedUint8Act)):
        assert len(list(quant.modules())) <= 2


def test_grid_of_an_input():
    quant = weight()
    grid = quant.grid(torch.tensor([1.27], requires_grad=True))
    assert grid.scale.item() == pytest.approx(0.01)
    assert not grid.scale.requires_grad


@pytest.mark.parametrize("scaling", ["learned", "calibrated", "running"])
def test_asking_for_a_grid_changes_nothing(scaling):
    quant = act(ShiftedUint8Act, scaling=scaling)
    quant(torch.tensor([-1.0, 1.55]))
    before = {name: each.clone() for name, each in quant.state_dict().items()}
    grid = quant.grid(torch.tensor([-9.0, 9.0]))
    assert (grid.scale.item(), grid.zero_point.item()) == (pytest.approx(0.01), 100)
    assert all(torch.equal(each, before[name]) for name, each in quant.state_dict().items())
    assert quant.scaling.training


def test_asking_a_weight_for_a_grid_before_the_first_forward():
    """It still follows the weight."""
    quant = weight(Int8WeightPerTensorLearned)
    assert quant.grid(torch.tensor([254.0])).scale.item() == 2
    assert quant.grid(torch.tensor([254.0])).source is None
    assert (quant.scaling.phase, quant.scaling.magnitude_base.item()) == ("empty", 0)
    assert quant.quantize(torch.tensor([381.0]))[1].scale.item() == 3
    grid = quant.grid(torch.tensor([254.0]))
    assert (grid.scale.item(), grid.source) == (3, quant.source)


@pytest.mark.parametrize(
    ("quantizer", "stored"),
    [
        (Int8Act(scale=0.5), True),
        (Int8Act, True),
        (Int8Act(scaling="learned"), True),
        (Int8Act(scaling="running"), True),
        (ShiftedUint8Act, True),
        (Int8WeightPerTensorLearned, True),
        (Int8Act(scaling="statistic"), False),
        (Int8WeightPerTensor, False),
        (Int8WeightPerChannel, False),
        (ShiftedUint8WeightPerTensor, False),
    ],
    ids=repr,
)
def test_two_tensors_share_a_grid_if_one_stored_scale_made_both(quantizer, stored):
    quant = resolve(quantizer, {"channel_axis": 0})
    x = torch.tensor([[1.0, -2.0]])
    source = quant.source if stored else None
    assert quant.quantize(x)[1].source == quant.quantize(3 * x)[1].source == source
    quant.eval()
    with torch.no_grad():
        assert quant.quantize(3 * x)[1].source == quant.grid(x).source == source


def test_a_range_at_hand_is_shared_by_none():
    quant = weight(Int8WeightPerTensorLearned).eval()
    one, other = (quant.quantize(torch.tensor([each]))[1] for each in (127.0, 254.0))
    assert (one.scale.item(), other.scale.item(), one.source, other.source) == (1, 2, None, None)


def test_scale_as_it_stands():
    quant = act(scaling="learned")
    quant(torch.tensor([128.0]))
    assert (quant.scale().item(), quant.scale().shape) == (1, ())
    assert act(scale=0.25).scale().item() == 0.25
    per_channel = act(Int8ActPerChannel)
    per_channel(torch.tensor([[128.0, 256.0]]))
    assert per_channel.scale().tolist() == [1, 2]
    assert act(Int8ActPerChannel, scale=[0.5, 0.25], axis=-2).scale().tolist() == [0.5, 0.25]
    assert not quant.scale().requires_grad


@pytest.mark.parametrize(
    "quantizer", [Int8WeightPerTensor, Int8WeightPerTensorLearned, Int8Act, ShiftedUint8Act, Int8ActPerChannel]
)
def test_scale_that_does_not_stand_yet(quantizer):
    quant = resolve(quantizer)
    for _ in range(2):
        with pytest.raises(QuantizerError) as error:
            quant.scale()
        assert str(error.value) == (
            f"{quant.scheme()}: the scale follows the input, or has seen none yet. Ask for the grid of an input, "
            "quant.grid(x).scale, or run some batches in training mode first."
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            quant.eval().grid(torch.ones(2, 3))  # which is no training


def test_axis_that_the_input_does_not_have():
    model = nn.Sequential(qnn.QuantIdentity(act_quant=Int8ActPerChannel))
    with pytest.raises(QuantizerError) as error:
        model(torch.ones(3))
    assert str(error.value) == (
        "0.act_quant: axis=1 is not a dimension of an input of 1 dimensions. Write one from -1 to 0, or axis=None for "
        "one scale."
    )


def test_grid_is_detached():
    quant = act(ShiftedUint8Act, scaling="learned")
    values, grid = quant.quantize(torch.tensor([-1.0, 1.55]))
    assert values.requires_grad
    assert not grid.scale.requires_grad
    assert not grid.zero_point.requires_grad


@pytest.mark.parametrize("name", ["eager", "traced", "no grad"])
@given(
    TENSORS,
    st.fixed_dictionaries(
        {
            "rounding": st.sampled_from(PLAIN_ROUNDINGS),
            "statistic": st.sampled_from(["abs_max", "abs_max", "mean_sigma", "mse"]),
            "axis": st.sampled_from([None, 0]),
            "bit_width": st.sampled_from([2, 4, 8, 20]),
        }
    ),
)
@settings(max_examples=150)
def test_weights_lie_on_their_grid(name, x, overrides):
    x = torch.from_numpy(x)
    with form(name):
        values, grid = weight(**overrides).quantize(x)
    codes = grid.to_int(values)
    low, high = grid.bounds
    assert low <= codes.min()
    assert codes.max() <= high
    assert torch.equal(grid.from_int(codes), values)


@pytest.mark.parametrize("name", ["eager", "traced", "no grad"])
@pytest.mark.parametrize("axis", [None, 0])
@pytest.mark.parametrize("rounding", ["ceil", "floor"])
def test_largest_weight_is_not_rounded_past_the_last_integer(name, axis, rounding):
    """x / (x / 127) may be a little more than 127."""
    torch.manual_seed(0)
    x = torch.randn(500, 3)
    assert ((x / (x / 127)).abs() > 127).any()
    with form(name):
        for row in x if axis is None else [x]:
            values, grid = weight(rounding=rounding, axis=axis).quantize(row)
            assert (values / grid.scale).abs().max() < 127.5


@pytest.mark.parametrize("name", ["eager", "traced", "no grad"])
@pytest.mark.parametrize("quantizer", [Int8WeightPerTensor, Int8WeightPerChannel, Int8WeightPerTensorLearned])
def test_weights_that_are_not_finite(name, quantizer):
    x = torch.tensor([[INF, -5.0, 0.5], [NAN, 2.0, -1.0], [-INF, 0.25, 0.0]])
    with form(name):
        values, grid = weight(quantizer).quantize(x)
    assert grid.scale.isfinite().all()
    assert values[1, 0].isnan()
    codes = values.nan_to_num(0) / grid.scale
    assert codes.abs().max() <= 127.001
    torch.testing.assert_close(codes, codes.round())


@pytest.mark.parametrize("name", ["eager", "traced", "no grad"])
@pytest.mark.parametrize("shape", [(), (1,), (0,), (3, 0), (2, 1, 3)])
@pytest.mark.parametrize("quantizer", [Int8WeightPerTensor, Int8WeightPerTensorLearned, ShiftedUint8WeightPerTensor])
def test_weights_of_every_shape(name, shape, quantizer):
    for number in (0.0, 3.0, -3.0):
        with form(name):
            values, grid = weight(quantizer).quantize(torch.full(shape, number))
        assert values.shape == shape
        torch.testing.assert_close(values, torch.full(shape, number))
        assert grid.scale.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("quantizer", [Int8WeightPerTensor, Int8WeightPerChannel, Int8Act, ShiftedUint8Act])
def test_dtypes(dtype, quantizer):
    quant = resolve(quantizer, {"channel_axis": 0})
    x = torch.tensor([[-1.0, 0.5], [0.25, 1.5]], dtype=dtype, requires_grad=True)
    values, grid = quant.quantize(x)
    assert values.dtype == dtype
    assert grid.scale.dtype == (
        torch.float64
        if dtype == torch.float64 and quantizer is not Int8Act and quantizer is not ShiftedUint8Act
        else torch.float32
    )
    torch.testing.assert_close(values, x, rtol=0.02, atol=0.02)
    assert torch.autograd.grad(values.sum(), x)[0].dtype == dtype


def test_layouts():
    torch.manual_seed(0)
    x = torch.randn(4, 3, 5, 5)
    for quantizer in (Int8WeightPerTensor, Int8WeightPerChannel, ShiftedUint8WeightPerTensor):
        quant = weight(quantizer)
        for each in (x.contiguous(memory_format=torch.channels_last), x.transpose(1, 3), x[:, :, ::2]):
            leaves = each.detach().requires_grad_(), each.detach().contiguous().requires_grad_()
            values = [quant(leaf) for leaf in leaves]
            assert torch.equal(*values)
            found = [torch.autograd.grad((y * each).sum(), leaf)[0] for y, leaf in zip(values, leaves, strict=True)]
            torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


# Gradients, against plain autograd


def twin(x, statistic, int_range, axis=None, rounding=torch.round):
    """The same quantization in torch's own operations."""
    magnitude = statistic(x, axis).clamp_min(1e-10 * int_range.threshold)
    scale = magnitude / int_range.threshold
    if axis is not None:
        scale = scale.reshape([-1 if each == axis % x.ndim else 1 for each in range(x.ndim)])
    return composed_fake_quant(x, scale, *int_range.bounds(), None, rounding), scale


def largest(x, axis):
    return x.abs().amax() if axis is None else x.abs().amax([each for each in range(x.ndim) if each != axis % x.ndim])


@pytest.mark.parametrize("name", ["eager", "traced"])
@pytest.mark.parametrize("axis", [None, 0, 1, -1])
@pytest.mark.parametrize("detached", [False, True])
@given(st.permutations(range(1, 25)), st.lists(st.sampled_from([-1, 1]), min_size=24, max_size=24), st.integers(2, 12))
def test_gradient_of_weights(name, axis, detached, magnitudes, signs, bit_width):
    """Through the statistic too: the largest weight is pulled by all the others."""
    x = (torch.tensor(magnitudes) ** 1.5 * torch.tensor(signs) / 24).reshape(4, 2, 3).requires_grad_()
    grad = torch.linspace(-1, 1, 24).reshape(4, 2, 3)
    quant = weight(bit_width=bit_width, axis=axis, detach_scale=detached)
    measured = (lambda x, axis: largest(x.detach(), axis)) if detached else largest
    expected, scale = twin(x, measured, IntRange(bit_width, signed=True, narrow_range=True), axis)
    with form(name):
        values, grid = quant.quantize(x)
        (found,) = torch.autograd.grad(values, x, grad)
    assert torch.equal(values, expected)
    assert torch.equal(grid.scale, scale)
    torch.testing.assert_close(found, torch.autograd.grad(expected, x, grad)[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["eager", "traced"])
@pytest.mark.parametrize("restriction", ["float", "log", "power_of_two"])
@given(TENSORS, st.floats(-4, 6), st.floats(-1, 2), st.booleans(), st.booleans(), st.sampled_from(PLAIN_ROUNDINGS))
def test_gradient_of_learned_scales(name, restriction, x, exponent, share, signed, per_channel, rounding):
    """LSQ's, down to the offset from the stored magnitude."""
    x = torch.from_numpy(x)
    channels = x.shape[0] if per_channel else None
    reach = 2.0**exponent * (1 + torch.arange(channels) / 7 if per_channel else torch.tensor(1.0))
    stored = RESTRICTIONS[restriction]().store(reach)
    overrides = {"restriction": restriction, "rounding": rounding, "signed": signed, "bit_width": 5}
    overrides |= {"axis": 0, "channels": channels} if per_channel else {}
    quant = act(scaling="learned", max_value=1.0, **overrides)
    with torch.no_grad():
        quant.scaling.magnitude_base.copy_(stored * share)
        quant.scaling.magnitude_offset.copy_(stored - quant.scaling.magnitude_base)
    scale = quant.scaling.scale_of(quant.scaling.restriction.load(quant.scaling.magnitude), x)
    steps = x / scale.detach()
    low, high = quant.int_range.bounds()
    assume(((steps - low + 0.5).abs() > 1e-3).all())
    assume(((steps - high - 0.5).abs() > 1e-3).all())
    leaf = x.clone().requires_grad_()
    grad = torch.linspace(-1, 1, x.numel()).reshape(x.shape)
    expected = composed_fake_quant(leaf, scale, low, high, None, ROUNDINGS[rounding]())
    offset = quant.scaling.magnitude_offset
    wanted = torch.autograd.grad(expected, (leaf, offset), grad)
    with form(name):
        values = quant(leaf)
        found = torch.autograd.grad(values, (leaf, offset), grad)
    assert torch.equal(values, expected)
    torch.testing.assert_close(found[0], wanted[0], rtol=1e-5, atol=0)
    assert found[1].shape == offset.shape == (channels or 1,)
    torch.testing.assert_close(found[1], wanted[1], rtol=1e-3, atol=1e-4 * float(1 + steps.abs().max()))


@example(np.full((1, 2, 2), 2, np.float32), 0.0, 1.0, False, True, "half_even", 2)
@given(
    TENSORS,
    st.floats(-100, 100, width=32),
    st.floats(-100, 100, width=32).filter(bool),
    st.booleans(),
    st.booleans(),
    st.sampled_from(PLAIN_ROUNDINGS),
    st.sampled_from([2, 4, 8, 12]),
)
def test_one_step_computes_what_several_do(x, base, offset, signed, per_channel, rounding, bit_width):
    """A learned scale's values and gradients, fused and by way of the scale: the same bits, sums aside."""
    x = torch.from_numpy(x)
    overrides = {"signed": signed, "rounding": rounding, "bit_width": bit_width}
    overrides |= {"axis": 0, "channels": x.shape[0]} if per_channel else {}
    quant = act(scaling="learned", max_value=1.0, **overrides)
    scaling, grad = quant.scaling, torch.linspace(-1, 1, x.numel()).reshape(x.shape)
    steps = 1 + torch.arange(scaling.magnitude_base.numel()) / 7
    with torch.no_grad():
        scaling.magnitude_base.copy_(base * steps)
        scaling.magnitude_offset.copy_(offset / steps)

    def run():
        leaf = x.clone().requires_grad_()
        values, grid = quant.quantize(leaf)
        of_x, of_offset = torch.autograd.grad(values, (leaf, scaling.magnitude_offset), grad)
        return type(values.grad_fn).__name__, values, grid.scale, of_x, of_offset

    name, *fused = run()
    assert name == "MagnitudeFakeQuantBackward"
    with mock.patch.object(LearnedScaling, "fused", return_value=None):
        name, *unfused = run()
    assert name == "EagerFakeQuantBackward"
    for one, other in zip(fused[:3], unfused[:3], strict=True):
        assert torch.equal(one, other)
    magnitude = scaling.magnitude.detach().abs().clamp_min(scaling._floor())
    assert torch.equal(fused[1].reshape(magnitude.shape), magnitude / scaling.int_range.threshold)
    rounded = 2**-22  # the gradient is a sum that may cancel, multiplied and divided in another order
    torch.testing.assert_close(fused[3], unfused[3], rtol=rounded, atol=rounded * grad.abs().sum().item())


@pytest.mark.parametrize("name", ["eager", "traced"])
@pytest.mark.parametrize("axis", [None, 0])
def test_a_half_precision_offset_leaves_the_range_as_wide_as_it_was_measured(name, axis):
    """As where a model is sharded in mixed precision: parameters are cast, buffers are not."""
    quant = act(Uint8Act, scaling="learned", max_value=1.3, axis=axis, channels=2)
    quant.scaling.magnitude_offset = nn.Parameter(torch.full((1 if axis is None else 2,), 0.25, dtype=torch.bfloat16))
    x = torch.tensor([0.3, 99.0])
    with form(name):
        values, grid = quant.quantize(x)
        (found,) = torch.autograd.grad(values.sum(), quant.scaling.magnitude_offset)
    assert grid.scale.dtype == torch.float32
    assert torch.equal(
        grid.scale, (torch.full_like(quant.scaling.magnitude_base, 1.3) + 0.25).reshape(grid.scale.shape) / 255
    )
    assert (found.dtype, found.shape) == (torch.bfloat16, quant.scaling.magnitude_offset.shape)
    assert found[-1].item() == pytest.approx(1, abs=2**-7)  # what is clipped


@pytest.mark.parametrize("axis", [None, 0])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_state_gives_no_half_precision_scale(dtype, axis):
    quant = act(Uint8Act, scaling="learned", max_value=1.3, axis=axis, channels=2, dtype=dtype)
    values, grid = quant.quantize(torch.tensor([0.3, 99.0]))
    with torch.no_grad():
        expected, same = quant.eval().quantize(torch.tensor([0.3, 99.0]))
    assert grid.scale.dtype == same.scale.dtype == torch.float32
    assert torch.equal(values, expected)


@pytest.mark.parametrize("name", ["eager", "traced"])
@pytest.mark.parametrize("axis", [None, 0])
@pytest.mark.parametrize("magnitude", [0.001, -0.001, 0.0])
def test_gradient_below_the_minimum_scale(name, axis, magnitude):
    """The scale does not follow a magnitude that it no longer comes from."""
    quant = act(scaling="learned", max_value=1.0, min_scale=0.5, axis=axis, channels=2, bit_width=4)
    with torch.no_grad():
        quant.scaling.magnitude_offset.fill_(magnitude).sub_(quant.scaling.magnitude_base)
    x = torch.tensor([0.3, 99.0], requires_grad=True)
    with form(name):
        values, grid = quant.quantize(x)
        of_x, of_magnitude = torch.autograd.grad(values.sum(), (x, quant.scaling.magnitude_offset))
    assert grid.scale.unique().tolist() == [0.5]
    assert of_x.tolist() == [1, 0]
    assert of_magnitude.unique().tolist() == [0]


def test_gradient_of_a_learned_range():
    """Scale and lower end are learned together; the zero point passes gradients on (LSQ+)."""
    quant = act(ShiftedUint8Act, scaling="learned", bit_width=4)
    quant(torch.tensor([-1.0, 2.0]))
    x = torch.tensor([-9.0, 0.3, 9.0], requires_grad=True)
    y = quant(x)
    assert y.tolist() == pytest.approx([-1, 0.4, 2])
    offsets = quant.scaling.low_offset, quant.scaling.magnitude_offset
    of_x, of_low, of_magnitude = torch.autograd.grad(y.sum(), (x, *offsets))
    assert of_x.tolist() == [0, 1, 0]
    assert of_low.tolist() == [pytest.approx(2)]  # both ends move with it
    assert of_magnitude.tolist() == [pytest.approx(1 + (2 - 1.5) / 15)]  # the upper end, and what is rounded


def test_gradient_with_a_promise_to_pass_what_is_clipped():
    x = torch.tensor([-9.0, 0.3, 9.0], requires_grad=True)
    assert torch.autograd.grad(act(scale=0.1, bit_width=4)(x).sum(), x)[0].tolist() == [0, 1, 0]
    assert torch.autograd.grad(act(scale=0.1, bit_width=4, pass_clipped=True)(x).sum(), x)[0].tolist() == [1, 1, 1]


@pytest.mark.parametrize("rounding", ["floor", "round", "ceil"])
def test_power_of_two_scales_clip(rounding):
    """The largest weight may lie past the last integer: it gets no gradient but the scale's."""
    quant = weight(restriction="power_of_two", power_of_two_rounding=rounding, detach_scale=True)
    x = torch.tensor([1.0, -1.3, 1.4], requires_grad=True)
    clipped = {"floor": [0, 0, 0], "round": [0, 0, 0], "ceil": [1, 1, 1]}[rounding]
    assert torch.autograd.grad(quant(x).sum(), x)[0].tolist() == clipped
    one = torch.tensor([1.0], requires_grad=True)  # 128 steps of 2**-7, and the last integer is 127
    assert torch.autograd.grad(quant(one).sum(), one)[0].tolist() == [0]


@pytest.mark.parametrize("name", ["eager", "traced"])
def test_relu(name):
    """Folded into the clamp; statistics are those of the activation."""
    x = torch.tensor([-99.0, 0.0, 1.0, 2.54], requires_grad=True)
    quant = act(Uint8Act, statistic="abs_max", bit_width=7)
    with form(name):
        values, grid = quant.quantize(x, True)
        assert grid.scale.item() == pytest.approx(0.02)
        assert values.tolist() == pytest.approx([0, 0, 1, 2.54])
        quant.scaling.finish_calibration()
        found = torch.autograd.grad(quant.quantize(x, True)[0].sum(), x)[0]
    assert found.tolist() == [0, 0, 1, 1]


def test_rounding_of_the_users_own():
    quant = act(scale=0.25, rounding=lambda x: torch.floor(x + 0.25))
    assert quant(torch.tensor([0.2, 0.15])).tolist() == [0.25, 0]
    assert quant.scheme() == "int8, per tensor, float scale"
    assert quant.extra_repr() == "int8, per tensor, float scale, <lambda>"


def test_scaling_of_the_users_own():
    class Halving(nn.Module):
        def forward(self, x):
            return torch.tensor(0.5)

    quant = act(scaling=Halving)
    assert quant(torch.tensor([0.8, -99.0])).tolist() == [1, -64]
    assert list(quant.scaling.state_dict()) == []
    assert quant.scheme() == "int8, per tensor, float scale"  # a class may be renamed
    assert quant.quantize(torch.ones(1))[1].source is None
    quant.rederive()
    assert quant(torch.tensor([0.8])).item() == 1


def test_what_a_scaling_of_the_users_own_is_handed():
    """float32 or wider, and never an empty tensor."""

    class Recorded(nn.Module):
        def forward(self, x):
            seen.append((x.dtype, x.numel()))
            return x.abs().max() / 127

    seen = []
    quant = act(scaling=Recorded)
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        assert quant(torch.tensor([127.0, 1.6], dtype=dtype)).tolist() == [127, 2]
    assert seen == [(torch.float32, 2)] * 3 + [(torch.float64, 2)]
    assert quant(torch.zeros(0, 3)).shape == (0, 3)
    assert len(seen) == 4


@pytest.mark.parametrize("axis", [None, 1])
def test_a_zero_point_of_the_users_own_is_handed_no_empty_tensor(axis):
    def lowest(x, scale):
        return torch.round(-x.amin() / scale)

    quant = act(zero_point=lowest, scale=1.0, axis=axis)
    assert quant.quantize(torch.tensor([[-3.0, 1.0]]))[1].zero_point.unique().tolist() == [3]
    values, grid = quant.quantize(torch.zeros(0, 2))
    assert (values.shape, grid.zero_point.unique().tolist()) == ((0, 2), [0])


def test_every_statistic_serves_a_weight():
    torch.manual_seed(0)
    x = torch.randn(1000)
    for name in STATISTICS:
        overrides = {"percentile": 99.0} if name == "percentile" else {}
        values = weight(statistic=name, **overrides)(x)
        assert ((values - x).square().mean() / x.square().mean()).item() < 0.01, name


def test_stochastic_rounding():
    quant = act(scale=1.0, rounding="stochastic", seed=0)
    x = torch.full((1000,), 0.25)
    assert quant(x).mean().item() == pytest.approx(0.25, abs=0.05)
    assert not quant.eval()(x).any()
    assert [name for name, _ in quant.named_children()] == ["scaling", "rounding"]
    assert quant.scheme() == "int8, per tensor, float scale"
    assert quant.extra_repr() == "int8, per tensor, float scale, stochastic"


# In evaluation


def test_evaluation_sees_every_change_of_the_state():
    """Also those that raise no version: through `.data`, through numpy, by a fused optimizer."""
    quant = act(scaling="learned")
    quant(torch.tensor([127.0]))
    x = torch.tensor([1.3])
    quant.eval()
    with torch.no_grad():
        before = quant.quantize(x)
        quant.scaling.magnitude_base.mul_(2)
        assert quant.quantize(x)[1].scale.item() == 2 * before[1].scale.item()
        quant.scaling.magnitude_offset.add_(127)
        assert quant.quantize(x)[1].scale.item() == 3 * before[1].scale.item()
        quant.scaling.magnitude_offset.data.add_(127)
        assert quant.quantize(x)[1].scale.item() == 4 * before[1].scale.item()
        quant.scaling.magnitude_base.numpy()[:] += 127
        assert quant.quantize(x)[1].scale.item() == 5 * before[1].scale.item()
        state = {"scaling.magnitude_base": torch.tensor([12.0]), "scaling.magnitude_offset": torch.tensor([0.8])}
        quant.load_state_dict({**quant.state_dict(), **state})
        assert quant(x).item() == pytest.approx(1.3)
        quant.double()
        assert quant.quantize(x.double())[1].scale.dtype == torch.float64
        per_channel = act(Int8ActPerChannel, scale=[0.5, 0.25])
        per_channel.eval()
        assert per_channel(torch.ones(1, 2)).shape == (1, 2)
        assert per_channel.quantize(torch.ones(1, 2, 3))[1].scale.shape == (1, 2, 1)
        per_channel.scaling.scale.data.mul_(2)
        assert per_channel.quantize(torch.ones(1, 2))[1].scale.tolist() == [[1, 0.5]]


def test_evaluation_sees_parts_that_were_replaced():
    quant = act(scaling="learned", max_value=1.28).eval()
    x = torch.tensor([0.019])
    with torch.no_grad():
        assert quant(x).item() == pytest.approx(0.02)
        quant.rounding = ROUNDINGS["floor"]()
        assert quant(x).item() == pytest.approx(0.01)
        quant.int_range = IntRange(2, signed=True)
        assert quant(torch.tensor([9.0])).item() == pytest.approx(0.01)


class OwnZeroPoint(nn.Module):
    """A zero point that is a parameter, or follows the input."""

    def __init__(self, follows=False):
        super().__init__()
        self.follows = follows
        self.position = nn.Parameter(torch.tensor(10.0))

    def forward(self, x, scale):
        position = -x.detach().min() / scale if self.follows else self.position
        return position.round().clamp(0, 255)


def test_evaluation_sees_a_zero_point_of_the_users_own():
    x = torch.tensor([-5.0, -0.5, 1.0])
    quant = act(Uint8Act, scale=0.125, zero_point=OwnZeroPoint).eval()
    follows = act(Uint8Act, scale=0.125, zero_point=OwnZeroPoint, follows=True).eval()
    with torch.no_grad():
        assert quant(x).tolist() == [-1.25, -0.5, 1]
        quant.zero_point.position.fill_(60.0)
        assert quant(x).tolist() == [-5, -0.5, 1]
        quant.load_state_dict({**quant.state_dict(), "zero_point.position": torch.tensor(2.0)})
        assert quant(x).tolist() == [-0.25, -0.25, 1]
        assert follows(torch.tensor([0.0, 1.0, 2.0])).tolist() == [0, 1, 2]
        assert follows(torch.tensor([-5.0, -3.0, 1.0])).tolist() == [-5, -3, 1]


@pytest.mark.parametrize(
    "quantizer", [Int8Act, Int8Act(scaling="learned"), Int8Act(scaling="running"), ShiftedUint8Act]
)
@pytest.mark.parametrize("gradients", [False, True])
def test_an_activation_that_saw_no_data_warns_once(quantizer, gradients):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = nn.Sequential(nn.Identity(), qnn.QuantIdentity(act_quant=quantizer))

        def forward(self, x):
            return self.block(x)

    model = Model().eval()
    with pytest.warns(BitwrightWarning) as caught, torch.set_grad_enabled(gradients):
        assert model(torch.tensor([-1.28, 1.27])).tolist() == pytest.approx([-1.28, 1.27])
    assert [str(each.message) for each in caught] == [
        "block.1.act_quant is evaluated before it saw any data: it uses the range of the tensor at hand and "
        "learns nothing from it. Calibrate the model, `with bitwright.graph.calibrate(model): model(batch)`, train it, "
        "or load a checkpoint."
    ]
    model(torch.tensor([-1.0, 2.0]))  # no second warning: they are errors here
    quant = model.block[1].act_quant
    assert (quant.calibrated, quant.scaling.phase) == (False, "empty")
    model.train()(torch.tensor([-128.0, 127.0]))
    assert quant.calibrated
    assert model.eval()(torch.tensor([1.3])).item() == pytest.approx(1, rel=0.01)


def test_a_weight_is_all_the_data_that_its_range_needs():
    layer = qnn.QuantLinear(
        3, 2, weight_quant=Int8WeightPerTensorLearned, bias_quant=Int8BiasOwnScale(scaling="learned")
    )
    layer.eval()(torch.ones(1, 3))
    assert (layer.weight_quant.calibrated, layer.weight_quant.calibrating) == (True, False)


def test_which_grids_are_known():
    assert act(scale=0.5).calibrated
    assert not act(scale=0.5).calibrating
    assert act(scaling="statistic").calibrated
    assert act(scaling="learned", max_value=1.0).calibrated
    quant = act(calibration_steps=2)
    assert (quant.calibrated, quant.calibrating) == (False, True)
    quant(torch.ones(1))
    assert (quant.calibrated, quant.calibrating) == (True, True)
    quant(torch.ones(1))
    assert (quant.calibrated, quant.calibrating) == (True, False)


@pytest.mark.parametrize(
    ("name", "item", "said"),
    [
        ("bit_width", 4, "bit_width=4"),
        ("axis", 1, "axis=1"),
        ("signed", False, "signed=False"),
        ("narrow_range", True, "narrow_range=True"),
        ("calibration_steps", 5, "calibration_steps=5"),
        ("min_scale", 0.1, "min_scale=0.1"),
        ("pass_clipped", True, "pass_clipped=True"),
        ("scale", 0.1, "scale=0.1"),
    ],
)
def test_what_was_declared_can_not_be_set_afterwards(name, item, said):
    layer = qnn.QuantReLU(act_quant=Int8Act)
    before = getattr(layer.act_quant, name, None)
    with pytest.raises(ReadOnlyError) as error:
        setattr(layer.act_quant, name, item)
    assert str(error.value) == (
        f"IntQuant: {said} can't be set on a quantizer that is built: its other parts were made for another value. "
        f"Give the layer another one: layer.act_quant = Int8Act({said})."
    )
    assert getattr(layer.act_quant, name, None) == before


@pytest.mark.parametrize(("name", "item"), [("rounding", "floor"), ("zero_point", 3), ("scaling", "learned")])
def test_a_part_can_be_exchanged_for_its_like_only(name, item):
    quant = qnn.QuantReLU(act_quant=Int8Act).act_quant
    assert quant is not None
    with pytest.raises(SettingError, match=rf"^{name}={item!r} is not possible: expected one of '"):
        setattr(quant, name, item)
    quant.rounding, quant.zero_point, quant.scaling = torch.floor, None, ConstantScaling(quant.int_range, 0.5)
    assert quant(torch.tensor([0.9])).tolist() == [0.5]


def test_settings_of_a_weight_and_of_a_module_built_by_hand():
    layer = qnn.QuantLinear(3, 2, bias_quant=Int32Bias)
    with pytest.raises(ReadOnlyError) as error:
        layer.weight_quant.bit_width = 4
    assert str(error.value).endswith(
        "Give the layer another one: layer.weight_quant = Int8WeightPerTensor(bit_width=4)."
    )
    with pytest.raises(ReadOnlyError) as error:
        layer.bias_quant.bit_width = 16
    assert str(error.value).endswith("Give the layer another one: layer.bias_quant = Int32Bias(bit_width=16).")
    with pytest.raises(AttributeError) as error:
        BiasQuant(IntRange(8, signed=True)).bit_width = 4
    assert str(error.value) == (
        "BiasQuant: bit_width=4 can't be set on a quantizer that is built: its other parts were made for another "
        "value. Give the layer another one: layer.act_quant = Q."
    )


def test_evaluation_gives_the_values_of_training():
    torch.manual_seed(0)
    x = torch.randn(3, 4)
    for quantizer in (Int8Act, Int8ActPerChannel, ShiftedUint8Act, Uint8Act):
        quant = act(quantizer, calibration_steps=1)
        quant(x)
        expected = quant(x).detach()
        quant.eval()
        assert torch.equal(quant(x), expected)
        with torch.no_grad():
            assert torch.equal(quant(x), expected)
        with torch.inference_mode():
            assert torch.equal(quant(x), expected)


def test_wrong_number_of_channels_in_evaluation():
    quant = act(Int8ActPerChannel)
    quant(torch.ones(2, 3))
    quant.eval()
    with torch.no_grad():
        quant(torch.ones(2, 3))
        with pytest.raises(QuantizerError) as error:
            quant(torch.ones(2, 5))
    assert str(error.value) == (
        "scaling: the input has 5 entries along axis 1, but the 3 scales were collected for as many. Use another "
        "quantizer for this input."
    )


# Biases


@pytest.mark.parametrize("weight_scale", [torch.tensor(0.25), torch.tensor([[0.25], [0.5]])])
def test_bias_scale_is_input_scale_times_weight_scale(weight_scale):
    quant = resolve(Int32Bias, {"channel_axis": 0})
    inputs, weights = Grid(torch.tensor(0.5)), Grid(weight_scale)
    values, grid = quant.quantize(torch.tensor([0.3, -0.7]), inputs, weights)
    expected = weight_scale.reshape(-1) * 0.5 if weight_scale.ndim else torch.tensor(0.125)
    assert torch.equal(grid.scale, expected)
    assert grid.to_int(values).tolist() == ([2, -3] if weight_scale.ndim else [2, -6])
    assert (grid.axis, grid.bounds) == (0 if weight_scale.ndim else None, (-(2**31), 2**31 - 1))
    assert (grid.bit_width, grid.signed, grid.narrow_range, grid.zero_point) == (32, True, False, None)
    assert grid.source is None
    assert quant.follows_input


@given(
    st.lists(NUMBERS, min_size=1, max_size=8),
    st.floats(2**-10, 1, width=32),
    st.floats(2**-10, 1, width=32),
    st.sampled_from([8, 16, 24]),
)
@pytest.mark.filterwarnings("ignore::bitwright.qcore.BitwrightWarning")  # clipped biases, as drawn
def test_bias_by_definition(numbers, input_scale, weight_scale, bit_width):
    quant = resolve(Int32Bias(bit_width=bit_width))
    inputs = Grid(torch.tensor(input_scale))
    per_channel = torch.full((len(numbers), 1), weight_scale)
    scale = np.float32(input_scale) * np.float32(weight_scale)
    codes = np.clip(
        np.rint(np.array(numbers, np.float32) / scale), -(2.0 ** (bit_width - 1)), 2.0 ** (bit_width - 1) - 1
    )
    for weights in (torch.tensor(weight_scale), per_channel):
        values, grid = quant.quantize(torch.tensor(numbers), inputs, Grid(weights))
        assert values.tolist() == (codes.astype(np.float32) * scale).tolist()
        assert grid.to_int(values).tolist() == codes.tolist()


def test_one_scale_for_each_of_one_channel():
    quant = resolve(Int32Bias)
    assert quant.quantize(torch.ones(1), Grid(torch.full((1, 1), 0.5)), Grid(torch.ones(1, 1)))[1].scale.shape == ()


def test_bias_gradient():
    bias = torch.tensor([0.3, 99.0], requires_grad=True)
    quant = resolve(Int32Bias(bit_width=8))
    with pytest.warns(BitwrightWarning) as caught:
        y = quant(bias, Grid(torch.tensor(0.5)), Grid(torch.tensor(0.25)))
    assert [str(each.message) for each in caught] == [
        "BiasQuant: the bias of channel 1 lies outside the range of int8 on the scale of the products and is clipped. "
        "Write bias_quant=Int32Bias, or bias_quant=Int8BiasOwnScale for a scale of its own."
    ]
    assert y.tolist() == [0.25, 15.875]
    assert torch.autograd.grad(y.sum(), bias)[0].tolist() == [1, 0]


def test_bias_with_a_scale_of_its_own():
    quant = resolve(Int8BiasOwnScale)
    assert quant(torch.tensor([127.0, 0.6])).tolist() == [127, 1]
    assert not quant.follows_input


@pytest.mark.parametrize(
    ("inputs", "weights", "message"),
    [
        (
            None,
            Grid(torch.tensor(0.5)),
            "BiasQuant: this bias quantizer needs the scales of input and weight, and the input is a plain tensor. Set "
            "return_quant_tensor=True on the layer before, or give this one input_quant=Int8Act, or choose a bias "
            "with a scale of its own: bias_quant=Int8BiasOwnScale.",
        ),
        (
            Grid(torch.tensor(0.5)),
            None,
            "BiasQuant: this bias quantizer needs the scales of input and weight, and the weight lies on no grid of "
            "integers. Set weight_quant=Int8WeightPerTensor, or bias_quant=Int8BiasOwnScale.",
        ),
        (
            Grid(torch.ones(1, 4), granularity=PerAxis(1)),
            Grid(torch.tensor(0.5)),
            "BiasQuant: the input has 4 scales (axis 1), so its products with the weight have no common one for the "
            "bias. Quantize the input per tensor (axis=None), or choose bias_quant=Int8BiasOwnScale.",
        ),
    ],
)
def test_bias_without_the_scales_it_needs(inputs, weights, message):
    with pytest.raises(QuantizerError) as error:
        resolve(Int32Bias)(torch.ones(3), inputs, weights)
    assert str(error.value) == message


def test_message_names_the_layer_in_its_model():
    model = nn.Sequential(nn.Identity(), qnn.QuantLinear(2, 3, bias_quant=Int32Bias))
    with pytest.raises(QuantizerError) as error:
        model(torch.ones(1, 2))
    assert str(error.value).startswith(
        "1: the scale of bias_quant follows the input's, and the input is a plain tensor."
    )


# Starting from a weight


def test_learned_scale_of_a_weight():
    quant = weight(Int8WeightPerTensorLearned)
    quant(torch.tensor([381.0]))
    assert quant.scaling.magnitude.item() == 381
    quant(torch.tensor([127.0]))
    assert quant.scaling.magnitude.item() == 381
    with torch.no_grad():
        quant.scaling.magnitude_offset.fill_(5.0)
    quant.rederive()
    assert quant.eval().grid(torch.tensor([254.0])).scale.item() == 2  # until it trains, that of the weight
    assert quant.quantize(torch.tensor([127.0]))[1].scale.item() == 1
    assert quant.scaling.phase == "empty"
    quant.train()(torch.tensor([127.0]))
    assert quant.scaling.magnitude.item() == quant.scaling.magnitude_base.item() == 127
    assert quant.scaling.magnitude_offset.tolist() == [0]


def test_other_scales_of_a_weight_have_no_state():
    quant = weight()
    quant.initialize(torch.ones(1))
    quant.rederive()
    assert quant(torch.tensor([127.0, 1.6])).tolist() == [127, 2]
    assert list(quant.state_dict()) == ["scheme"]


# Schemes and state


@pytest.mark.parametrize(
    ("quantizer", "scheme"),
    [
        (Int8WeightPerTensor, "int8 narrow, per tensor, float scale"),
        (Int8WeightPerTensorLearned, "int8 narrow, per tensor, float scale"),
        (Int8WeightPerChannel(bit_width=4), "int4 narrow, axis 0, float scale"),
        (Uint8Act(rounding="floor"), "uint8, per tensor, float scale"),
        (ShiftedUint8Act, "uint8, per tensor, float scale, zero point"),
        (Int8Act(scale=0.5), "int8, per tensor, float scale"),
        (Int8Act(restriction="log"), "int8, per tensor, log scale"),
        (Int8Act(restriction="power_of_two"), "int8, per tensor, power of two (ceil) scale"),
        (
            Int8Act(restriction="power_of_two", power_of_two_rounding="floor"),
            "int8, per tensor, power of two (floor) scale",
        ),
        (Int32Bias, "int32, scale of the products"),
        (Int32Bias(bit_width=16, narrow_range=True), "int16 narrow, scale of the products"),
        (Int8BiasOwnScale, "int8 narrow, per tensor, float scale"),
    ],
    ids=repr,
)
def test_scheme(quantizer, scheme):
    """What the numbers mean: no name of a class, and nothing of how they were found."""
    quant = resolve(quantizer, {"channel_axis": 0})
    rounding = "floor" if quantizer == Uint8Act(rounding="floor") else "half_even"
    assert (quant.scheme(), quant.extra_repr()) == (scheme, f"{scheme}, {rounding}")
    assert bytes(quant.state_dict()["scheme"].tolist()).decode() == f"{scheme}; version 1"
    assert quant.state_dict()["scheme"].dtype == torch.uint8
    quant.load_state_dict(quant.state_dict())


def test_another_scheme_is_refused():
    eight, four = act(scaling="learned"), act(scaling="learned", bit_width=4)
    eight(torch.tensor([127.0]))
    with pytest.raises(RuntimeError) as error:
        four.load_state_dict(eight.state_dict())
    said = (
        "IntQuant: the file holds int8, per tensor, float scale, the model is int4, per tensor, float scale. Build "
        "the model with the file's quantizers, or load with strict=False to keep this one's scheme."
    )
    assert str(error.value) == (
        f'Error(s) in loading state_dict for IntQuant:\n\tUnexpected key(s) in state_dict: "{said}". '
    )
    incompatible = four.load_state_dict(eight.state_dict(), strict=False)
    assert incompatible.unexpected_keys == [said]
    assert incompatible.missing_keys == []
    assert four.bit_width == 4
    assert four.scaling.magnitude.item() == 127


def test_another_version_is_refused():
    quant = act(scale=0.5)
    later = torch.frombuffer(bytearray(b"int8, per tensor, float scale; version 2"), dtype=torch.uint8)
    with pytest.raises(RuntimeError) as error:
        quant.load_state_dict({**quant.state_dict(), "scheme": later})
    assert "IntQuant: the file holds int8, per tensor, float scale; version 2, the model is int8, per tensor" in str(
        error.value
    )


def test_another_scheme_is_refused_by_a_model():
    model = nn.Sequential(nn.Identity(), qnn.QuantLinear(2, 2))
    other = nn.Sequential(nn.Identity(), qnn.QuantLinear(2, 2, weight_restriction="power_of_two"))
    with pytest.raises(RuntimeError) as error:
        other.load_state_dict(model.state_dict())
    assert "1.weight_quant: the file holds int8 narrow, per tensor, float scale, the model is int8 narrow, per " in str(
        error.value
    )


def test_domain_of_the_state_is_part_of_the_scheme():
    """A logarithm must not be taken for a magnitude."""
    with pytest.raises(
        RuntimeError, match=r"the file holds int8, per tensor, log scale, the model is int8, per tensor"
    ):
        act(scaling="learned").load_state_dict(act(scaling="learned", restriction="log").state_dict())


class Largest(nn.Module):
    def __init__(self, int_range):
        super().__init__()
        self.int_range = int_range

    def forward(self, x):
        return x.abs().max() / self.int_range.threshold


class LargestRenamed(Largest):
    pass


def test_a_renamed_class_loads_its_old_file():
    weight(scaling=LargestRenamed).load_state_dict(weight(scaling=Largest).state_dict())
    weight(rounding="floor").load_state_dict(weight().state_dict())


def test_float_checkpoint_loads_strictly():
    plain = nn.Sequential(nn.Linear(4, 2), nn.ReLU())
    model = nn.Sequential(
        qnn.QuantLinear(4, 2, weight_quant=Int8WeightPerTensorLearned, bias_quant=Int8BiasOwnScale), qnn.QuantReLU()
    )
    scaling = model[0].weight_quant.scaling
    base, offset = scaling.magnitude_base, scaling.magnitude_offset
    incompatible = model.load_state_dict(plain.state_dict())
    assert incompatible.missing_keys == incompatible.unexpected_keys == []
    assert scaling.magnitude_base is base
    assert scaling.magnitude_offset is offset
    assert (base.item(), offset.item(), scaling.phase) == (0, 0, "empty")
    largest = plain[0].weight.abs().max().item()
    assert model[0].quant_weight().scale.item() == pytest.approx(largest / 127)
    model(torch.ones(1, 4))
    assert (base.item(), offset.item()) == (largest, 0)
    assert scaling.magnitude.item() == largest


@pytest.mark.parametrize("name", ["magnitude_base", "measured", "steps"])
def test_what_a_quantized_file_lacks_is_missing(name):
    quant = act(scaling="learned")
    state = quant.state_dict()
    del state[f"scaling.{name}"]
    with pytest.raises(RuntimeError) as error:
        quant.load_state_dict(state)
    assert str(error.value) == (
        f'Error(s) in loading state_dict for IntQuant:\n\tMissing key(s) in state_dict: "scaling.{name}". '
    )


def test_files_are_safe_to_load():
    quant, file = act(ShiftedUint8Act), io.BytesIO()
    quant(torch.tensor([-1.0, 1.55]))
    torch.save(quant.state_dict(), file)
    file.seek(0)
    fresh = act(ShiftedUint8Act)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    x = torch.linspace(-2, 2, 50)
    assert torch.equal(fresh.eval()(x), quant.eval()(x))


@pytest.mark.parametrize("quantizer", [Int8Act, ShiftedUint8Act, Int8WeightPerTensor, Int8Act(rounding="stochastic")])
def test_copies_have_a_grid_of_their_own(quantizer):
    quant = resolve(quantizer)
    quant(torch.tensor([-1.0, 2.0]))
    for other in (copy.deepcopy(quant), pickle.loads(pickle.dumps(quant))):
        assert other.source != quant.source
        assert other.scheme() == quant.scheme()
        assert other.int_range is other.scaling.int_range
        if other.zero_point is not None:
            assert other.zero_point.scaling is other.scaling
        x = torch.tensor([-0.3, 5.0])
        assert torch.equal(other.eval()(x), quant.eval()(x))
        quant.train()


def test_sources_differ():
    assert len({act().source for _ in range(10)}) == 10


def test_lowering_replaces_quantization():
    quant = act(scale=0.5)
    quant.intercept = lambda quant, x, *context: (x + 1, None)
    assert quant(torch.tensor([0.3])).item() == pytest.approx(1.3)
    assert quant.quantize(torch.tensor([0.3]))[1] is None


def test_scheme_is_the_subclasss_to_give():
    with pytest.raises(NotImplementedError):
        TensorQuant().scheme()


def test_built_by_hand():
    int_range = IntRange(4, signed=True)
    quant = IntQuant(int_range, StatisticScaling(int_range))
    assert quant(torch.tensor([8.0, 1.2])).tolist() == [7, 1]
    assert quant.quantizer is None
    assert repr(BiasQuant(int_range)) == "BiasQuant(int4, scale of the products, half_even)"
    assert repr(quant).startswith("IntQuant(\n  int4, per tensor, float scale, half_even\n")


def test_shares_objects_within_a_resolution():
    quant = act(ShiftedUint8Act)
    assert quant.int_range is quant.scaling.int_range is quant.zero_point.int_range
    assert quant.zero_point.scaling is quant.scaling
    assert type(quant.scaling) is CalibratedScaling
    assert type(act(scaling="learned").scaling) is LearnedScaling


def test_impossible_flag():
    with pytest.raises(SettingError) as error:
        resolve(Int8Act(pass_clipped=1), where="QuantReLU()", written={"pass_clipped": "pass_clipped"})
    assert str(error.value) == "QuantReLU(): pass_clipped=1 is not possible: expected True or False."


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"scale": 0.5},
            "here: in ShiftedUint8Act(scale=0.5), scaling='ConstantScaling' is not possible: expected a scaling that "
            "knows the lower end of the range (`low_of`), for the zero point. Write scaling='statistic', 'learned', "
            "'calibrated' or 'running', or zero_point=None.",
        ),
        (
            {"statistic": "abs_max"},
            "here: in ShiftedUint8Act(statistic='abs_max'), statistic=AbsMax() is not possible: expected a statistic "
            "with a lower end (`low`), for the zero point. Write statistic='min_max' or "
            "statistic='percentile_interval', or zero_point=None.",
        ),
    ],
)
def test_zero_points_that_nothing_can_set(overrides, message):
    with pytest.raises(SettingError) as error:
        resolve(ShiftedUint8Act(**overrides), where="here")
    assert str(error.value) == message


def test_a_layer_that_joins_later_starts_no_calibration_anew():
    given = qnn.QuantIdentity(scaling="learned", max_value=1.0)
    other = qnn.QuantIdentity(act_quant=given.act_quant)
    given(torch.tensor([5.0]))
    other(torch.tensor([7.0]))
    assert given.act_quant.scaling.magnitude.item() == 1.0
    calibrated = qnn.QuantIdentity(calibration_steps=2)
    for _ in range(2):
        calibrated(torch.tensor([1.0]))
    qnn.QuantIdentity(act_quant=calibrated.act_quant)(torch.tensor([9.0]))
    assert calibrated.act_quant.scaling.phase == "calibrated"
    assert calibrated.act_quant.scaling.magnitude.item() == 1.0
    assigned = qnn.QuantIdentity()
    assigned.act_quant = calibrated.act_quant
    assert assigned.act_quant.scaling.phase == "calibrated"

"""A2Q and A2Q+: the limit by literal numbers, and that it holds whatever an optimizer does."""

import copy
import pickle
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import bitwright.nn as qnn
from bitwright.export.integer.sums import signed_bits
from bitwright.qcore import QuantizerError, SettingError
from bitwright.quantizers import (
    Fp8e4m3Act,
    Int4Act,
    Int4WeightPerGroup,
    Int8WeightPerChannelA2Q,
    Int8WeightPerChannelA2QPlus,
    Int8WeightPerChannelLearned,
    Int32Bias,
    ShiftedUint4Act,
    Uint4Act,
    Uint8Act,
)

KINDS = [
    Int8WeightPerChannelA2Q,
    Int8WeightPerChannelA2QPlus(centred=True),
    Int8WeightPerChannelA2QPlus,
]
SHAPES: dict[str, tuple[Callable[..., Any], tuple[int, ...]]] = {
    "linear": (lambda **given: qnn.QuantLinear(18, 4, **given), (3, 18)),
    "conv": (lambda **given: qnn.QuantConv2d(4, 6, 3, padding=1, groups=2, **given), (2, 4, 5, 5)),
    "depthwise": (lambda **given: qnn.QuantConv1d(4, 4, 5, groups=4, **given), (2, 4, 9)),
    "transposed": (lambda **given: qnn.QuantConvTranspose1d(4, 6, 3, **given), (2, 4, 5)),
    "transposed groups": (lambda **given: qnn.QuantConvTranspose2d(4, 6, 3, groups=2, **given), (2, 4, 5, 5)),
}
INPUT_RANGES = {Uint4Act: (0, 15), Int4Act: (-8, 7), ShiftedUint4Act: (-15, 15)}


def worst(layer: Any, low: int, high: int) -> tuple[int, int]:
    """The smallest and the largest sum of products and bias that an input of these integers reaches, or partial sum."""
    codes = layer._outputs_first(layer.int_weight()).long().movedim(layer.channel_axis, 0).flatten(1)
    up, down = codes.clamp_min(0).sum(1), codes.clamp_max(0).sum(1)
    bias = torch.zeros(1, dtype=torch.int64)
    if layer.bias is not None and layer.bias_quant is not None:
        bias = layer.int_bias().long()
    smallest, largest = up * low + down * high + bias.clamp_max(0), up * high + down * low + bias.clamp_min(0)
    return int(smallest.min()), int(largest.max())


def linear(weight: list[list[float]], **given: Any) -> qnn.QuantLinear:
    layer = qnn.QuantLinear(len(weight[0]), len(weight), bias=False, **given)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weight))
    return layer


# Literal numbers

EIGHT = {"weight_input_bit_width": 4, "weight_input_signed": False, "weight_bit_width": 4}


def test_nothing_changes_where_there_is_room() -> None:
    weight = [[0.7, -0.25, 0.3, 0.05]]  # in steps of 0.1: 7, -2.5, 3, 0.5
    layer = linear(weight, weight_quant=Int8WeightPerChannelA2Q, **EIGHT)
    assert layer.int_weight().tolist() == [[7, -2, 3, 0]]
    plain = linear(weight, weight_quant=Int8WeightPerChannelLearned, weight_bit_width=4, weight_rounding="toward_zero")
    assert plain.int_weight().tolist() == [[7, -2, 3, 0]]


@pytest.mark.parametrize(
    ("kind", "codes"),
    [
        # 2**7 / 15 = 8.53 in steps of 0.1: magnitudes 7, 5, 4, 2 less 2.49 add up to that
        (Int8WeightPerChannelA2Q, [4, -2, 1, 0]),
        # less their mean: 7, -7, 3.5, -3.5 in steps of 0.6 / 7; 2**8 / 15 = 17.07: magnitudes less 0.98 add up to that
        (Int8WeightPerChannelA2QPlus(centred=True), [6, -6, 2, -2]),
        # 7 and 4 less 1.23 add up to 8.53, 5 and 2 are within it
        (Int8WeightPerChannelA2QPlus, [5, -5, 2, -2]),
    ],
)
def test_projection_of_the_first_weights(kind: Any, codes: list[int]) -> None:
    layer = linear([[0.7, -0.5, 0.4, -0.2]], weight_quant=kind, weight_accumulator_bit_width=8, **EIGHT)
    assert layer.int_weight().tolist() == [codes]
    layer(torch.ones(1, 4))  # the first of training settles norm and threshold
    assert layer.int_weight().tolist() == [codes]
    low, high = worst(layer, 0, 15)
    assert signed_bits(low, high) <= 8


def test_plus_has_room_for_about_twice_as_much() -> None:
    torch.manual_seed(0)
    weight = torch.randn(1, 1000).tolist()
    sums = []
    for kind in KINDS:
        layer = linear(weight, weight_quant=kind, weight_accumulator_bit_width=14, **EIGHT | {"weight_bit_width": 6})
        low, high = worst(layer, 0, 15)
        assert -(2**13) <= low
        assert high < 2**13
        sums.append(layer.int_weight().abs().sum().item())
    assert sums[0] <= 546  # 2**13 / 15 = 546.1
    assert 1.4 * sums[0] < min(sums[1:])
    assert max(sums) <= 1092


def test_small_accumulators_start_from_something() -> None:
    """The first weights scaled down to so small a norm would all be less than one step."""
    torch.manual_seed(0)
    weight = torch.randn(4, 512)
    for kind in KINDS:
        layer = linear(weight.tolist(), weight_quant=kind, weight_accumulator_bit_width=14, **EIGHT)
        kept = layer.int_weight() != 0
        assert (kept.sum(1) > 50).all()
        assert weight[kept].abs().mean() > 1.3 * weight.abs().mean()  # the largest ones


def test_bias_takes_half_of_the_accumulator_at_most() -> None:
    weight = KINDS[0](accumulator_bit_width=10)
    layer = qnn.QuantLinear(8, 2, weight_quant=weight, bias_quant=Int32Bias, input_quant=Uint4Act, input_scale=1.0)
    with torch.no_grad():
        assert layer.bias is not None
        layer.bias.copy_(torch.tensor([0.5, 1000.0]))
    layer(torch.ones(1, 8))
    assert layer.int_bias() is not None
    assert layer.int_bias()[1] == 256  # type: ignore[index]
    low, high = worst(layer, 0, 15)
    assert signed_bits(low, high) <= 10
    assert (layer.int_weight()[0] != 0).any()


# Whatever happens to the parameters

_steps = st.lists(
    st.tuples(st.sampled_from(["step", "noise", "huge", "tiny", "scale"]), st.floats(-3.0, 3.0)), max_size=4
)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
@given(
    bits=st.integers(7, 18),
    inputs=st.sampled_from(list(INPUT_RANGES)),
    width=st.integers(2, 8),
    seed=st.integers(0, 99),
    steps=_steps,
)
@settings(max_examples=4, deadline=None)
def test_bound_always_holds(
    kind: Any, shape: str, bits: int, inputs: Any, width: int, seed: int, steps: list[tuple[str, float]]
) -> None:
    torch.manual_seed(seed)
    make, size = SHAPES[shape]
    layer = make(
        weight_quant=kind(accumulator_bit_width=bits, bit_width=width),
        input_quant=inputs(calibration_steps=1),
        bias_quant=Int32Bias,
    )
    x = torch.randn(size)
    for what, amount in [("step", 0.0), *steps]:
        layer.zero_grad()
        loss = layer(x).square().mean() + 1e-3 * qnn.accumulator_penalty(layer)
        loss.backward()
        with torch.no_grad():
            for each in layer.parameters():
                if what == "step" and each.grad is not None:
                    each -= amount * each.grad
                elif what == "noise":
                    each += amount * torch.randn_like(each)
            if what in ("huge", "tiny"):
                layer.weight *= 1e4 if what == "huge" else 1e-4
            if what == "scale":
                layer.weight_quant.scaling.magnitude_offset += amount
    layer.eval()(x)
    low, high = worst(layer, *INPUT_RANGES[inputs])
    assert -(2 ** (bits - 1)) <= low
    assert high < 2 ** (bits - 1)


@given(
    codes=st.lists(st.lists(st.integers(-127, 127), min_size=3, max_size=3), min_size=1, max_size=4),
    bits=st.integers(9, 24),
)
@settings(max_examples=15, deadline=None)
def test_bound_holds_for_weights_on_the_grid(codes: list[list[int]], bits: int) -> None:
    """Whole numbers of steps, where a float a hair off counts."""
    for kind in KINDS:
        layer = linear(
            [[float(each) for each in row] for row in codes],
            weight_quant=kind(accumulator_bit_width=bits, scaling="constant", scale=1.0),
            weight_input_bit_width=8,
            weight_input_signed=False,
        )
        low, high = worst(layer, 0, 255)
        assert -(2 ** (bits - 1)) <= low
        assert high < 2 ** (bits - 1)


# Training, state, compilers


def trained(kind: Any = Int8WeightPerChannelA2QPlus) -> qnn.QuantLinear:
    torch.manual_seed(0)
    layer = qnn.QuantLinear(
        24, 3, weight_quant=kind(accumulator_bit_width=11, bit_width=4), input_quant=Uint4Act, input_scale=0.1,
        bias_quant=Int32Bias,
    )  # fmt: skip
    optimizer = torch.optim.Adam(layer.parameters(), 0.01)
    for _ in range(3):
        optimizer.zero_grad()
        (layer(torch.rand(8, 24)).square().mean() + 1e-3 * qnn.accumulator_penalty(layer)).backward()
        optimizer.step()
    return layer.eval()


@pytest.mark.parametrize("kind", KINDS)
def test_state(kind: Any) -> None:
    layer, x = trained(kind), torch.rand(8, 24)
    expected = layer(x)
    other = trained(kind)
    other.load_state_dict(qnn.QuantLinear(24, 3).state_dict(), strict=False)
    other.load_state_dict(layer.state_dict())
    for copied in (other, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(copied(x), expected)
        assert torch.equal(copied.int_weight(), layer.int_weight())
    with qnn.frozen(layer), torch.no_grad():
        assert torch.equal(layer(x), expected)
        assert torch.equal(layer(x), expected)
    keys = {key for key in layer.state_dict() if "transform" in key}
    assert keys == {
        f"weight_quant.transform.{part}"
        for part in (
            *("norm.magnitude_offset", "norm.magnitude_base", "norm.measured", "norm.steps"),
            *("threshold.magnitude_base", "threshold.measured", "threshold.steps"),
        )
    }


def test_float_checkpoint_starts_anew() -> None:
    layer, plain = trained(), nn.Linear(24, 3)
    layer.load_state_dict(plain.state_dict())
    fresh = qnn.QuantLinear(
        24, 3, weight_quant=Int8WeightPerChannelA2QPlus(accumulator_bit_width=11, bit_width=4), input_quant=Uint4Act,
        input_scale=0.1, bias_quant=Int32Bias,
    )  # fmt: skip
    fresh.load_state_dict(plain.state_dict())
    x = torch.rand(8, 24)
    assert torch.equal(layer(x), fresh.eval()(x))


def test_without_centring_the_mean_stays() -> None:
    weight, fixed = [[0.875, 0.625, 0.375, 0.125]], {"scaling": "constant", "scale": 0.125}
    assert linear(weight, weight_quant=KINDS[1](**fixed), **EIGHT).int_weight().tolist() == [[3, 1, -1, -3]]
    centred = linear(weight, weight_quant=KINDS[1](**fixed), **EIGHT)
    assert centred.weight_quant is not None
    assert centred.weight_quant.scheme().endswith(", A2Q+ for accumulators of 32 bits, centred")
    layer = linear(weight, weight_quant=KINDS[2](**fixed), **EIGHT)
    assert layer.int_weight().tolist() == [[7, 5, 3, 1]]
    with pytest.raises(SettingError, match="centred='no' is not possible"):
        linear(weight, weight_quant=KINDS[1], weight_centred="no", **EIGHT)


def test_files_say_for_which_accumulators() -> None:
    layer = trained()
    assert layer.weight_quant is not None
    assert layer.weight_quant.scheme() == "int4 narrow, axis 0, float scale, A2Q+ for accumulators of 11 bits"
    other = qnn.QuantLinear(24, 3, weight_quant=Int8WeightPerChannelA2QPlus(accumulator_bit_width=9, bit_width=4))
    with pytest.raises(RuntimeError, match="A2Q\\+ for accumulators of 11 bits, the model is"):
        other.load_state_dict(layer.state_dict())


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_compiled_training_is_eager_training(kind: Any) -> None:
    results: list[list[Tensor]] = []
    for compiled in (False, True):
        torch.manual_seed(1)
        layer = qnn.QuantLinear(
            24, 3, weight_quant=kind(accumulator_bit_width=11, bit_width=4), input_quant=Uint4Act, input_scale=0.1
        )
        run = torch.compile(layer, backend="aot_eager", fullgraph=True) if compiled else layer
        outs = []
        for _ in range(3):  # the first of training settles norm and threshold
            layer.zero_grad()
            outs.append(run(torch.rand(8, 24)))
            outs[-1].square().sum().backward()
            outs += [each.grad for each in layer.parameters() if each.grad is not None]
        results.append([each.detach().clone() for each in outs])
    for one, other in zip(*results, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions(dtype: torch.dtype) -> None:
    layer = trained().to(dtype)
    assert layer(torch.rand(2, 24, dtype=dtype)).dtype == dtype
    low, high = worst(layer, 0, 15)
    assert signed_bits(low, high) <= 11


@pytest.mark.parametrize("fill", [0.0, 1e-30, 1e30, -0.5])
@pytest.mark.parametrize("kind", KINDS)
def test_degenerate_weights(kind: Any, fill: float) -> None:
    layer = linear([[fill] * 5], weight_quant=kind, weight_accumulator_bit_width=9, **EIGHT)
    (layer(torch.rand(2, 5)).sum() + qnn.accumulator_penalty(layer)).backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.isfinite().all()
    assert layer.quant_weight().isfinite().all()


def test_one_nan_is_not_for_all() -> None:
    for kind in KINDS:
        layer = linear([[float("nan"), 1.0, -1.0], [1.0, 0.0, -1.0]], weight_quant=kind, **EIGHT)
        assert layer.quant_weight()[:, 1:].isfinite().all()


def test_second_derivatives() -> None:
    layer = trained().double()
    quant: Any = layer.weight_quant
    context = layer._weight_context(quant, layer._inputs_known())

    def loss(weight: Tensor) -> Tensor:
        return quant(weight, *context).square().sum()

    weight = layer.weight.detach()
    found = torch.autograd.functional.hessian(loss, weight)
    assert torch.isfinite(found).all()
    assert torch.allclose(found, found.reshape(72, 72).t().reshape(found.shape), atol=1e-6)


# Before there was an input, and what is refused


def test_own_input_quantizer_says_which_integers_there_are() -> None:
    layer = qnn.QuantLinear(64, 2, weight_quant=Int8WeightPerChannelA2Q(accumulator_bit_width=12), input_quant=Uint4Act)
    low, high = worst(layer, 0, 15)
    assert signed_bits(low, high) <= 12
    loaded = copy.deepcopy(trained())
    assert torch.equal(loaded.int_weight(), trained().int_weight())


A2Q = Int8WeightPerChannelA2Q
LINEAR = "QuantLinear(in_features=3, out_features=2, bias=True): "
_REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "width": (
        {"weight_accumulator_bit_width": 1},
        "weight_accumulator_bit_width=1 is not possible: expected a whole number of bits from 2 to 64.",
    ),
    "no width": (
        {"weight_accumulator_bit_width": 12.5},
        "weight_accumulator_bit_width=12.5 is not possible: expected a whole number of bits from 2 to 64.",
    ),
    "rounding": (
        {"weight_rounding": "half_even"},
        "weight_rounding=HalfEven() is not possible: expected 'toward_zero', which makes no sum larger.",
    ),
    "zero point": (
        {"weight_zero_point": "range", "weight_statistic": "min_max"},
        "weight_zero_point=RangeZeroPoint() is not possible: expected None, with which no weight adds a constant to "
        "the sum.",
    ),
    "granularity": (
        {"weight_axis": 1},
        "in IntBase, granularity=PerAxis(axis=1) is not possible: expected one whose scales are common to all products "
        "of a sum: PerTensor, or PerAxis of the outputs.",
    ),
    "groups": (
        {
            "weight_quant": Int4WeightPerGroup,
            "weight_transform": "a2q",
            "weight_accumulator_bit_width": 16,
            "weight_rounding": "toward_zero",
        },
        "in PerGroup, granularity=PerGroup(group_size=32, group_axis=1) is not possible: expected one whose scales are "
        "common to all products of a sum: PerTensor, or PerAxis of the outputs.",
    ),
    "no sign": (
        {"weight_input_bit_width": 8},
        "in Int8WeightPerChannelA2Q(input_bit_width=8), input_signed=None is not possible: expected True or False, "
        "where input_bit_width is given. Write input_signed=False for integers from 0 on.",
    ),
    "no bits": (
        {"weight_input_signed": True},
        "in Int8WeightPerChannelA2Q(input_signed=True), input_bit_width=None is not possible: expected the bits of the "
        "input's integers, where input_signed is given.",
    ),
}


@pytest.mark.parametrize("case", _REFUSED)
def test_refused(case: str) -> None:
    given, message = _REFUSED[case]
    with pytest.raises(SettingError, match=f"^{re.escape(LINEAR + message)}$"):
        qnn.QuantLinear(3, 2, **{"weight_quant": A2Q, **given})


_UNKNOWN = (
    "A2Q bounds the sums of products with the input, and the grid of the input is not known. Quantize the input, "
    "input_quant=Uint8Act, run the model on one batch first, or say which integers it has: weight_input_bit_width=8, "
    "weight_input_signed=False."
)
_IN_FORWARD: dict[str, tuple[dict[str, Any], str]] = {
    "no grid": ({}, _UNKNOWN),
    "no integers": (
        {"input_quant": Fp8e4m3Act, "input_scale": 1.0},
        "A2Q bounds sums of integers, and the levels of the input are e4m3fn. Write input_quant=Int8Act, or another "
        "weight_quant.",
    ),
    "others": (
        {"input_quant": Uint8Act, "weight_input_bit_width": 4, "weight_input_signed": False},
        "the weight was declared for input integers from 0 to 15, and the input has 0 to 255. Leave input_bit_width "
        "and input_signed out, so that the limit follows the input.",
    ),
}


@pytest.mark.parametrize("case", _IN_FORWARD)
def test_refused_in_forward(case: str) -> None:
    given, message = _IN_FORWARD[case]
    model = nn.Sequential(qnn.QuantLinear(3, 2, weight_quant=A2Q, **given))
    with pytest.raises(QuantizerError, match=f"^{re.escape('0.weight_quant.transform: ' + message)}$"):
        model(torch.rand(2, 3))


def test_integers_of_the_weight_need_the_input() -> None:
    message = f"weight_quant.transform: {_UNKNOWN}"
    with pytest.raises(QuantizerError, match=f"^{re.escape(message)}$"):
        qnn.QuantLinear(3, 2, weight_quant=A2Q).int_weight()


@pytest.mark.parametrize("kind", [Int8WeightPerChannelA2Q, Int8WeightPerChannelA2QPlus])
def test_accumulators_that_hold_no_weight(kind):
    given = {"weight_quant": kind, "weight_input_bit_width": 8, "weight_input_signed": False}
    layer = qnn.QuantLinear(16, 2, weight_accumulator_bit_width=8, **given)
    message = (
        "weight_quant.transform: an accumulator of 8 bits holds no product with input integers from 0 to 255, so every "
        "weight would be 0. Write at least accumulator_bit_width=9, some bits more for sums, or quantize the input to "
        "fewer bits."
    )
    with pytest.raises(QuantizerError, match=f"^{re.escape(message)}$"):
        layer.quant_weight()
    assert bool(qnn.QuantLinear(16, 2, weight_accumulator_bit_width=9, **given).int_weight().any())

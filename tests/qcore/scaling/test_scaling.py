"""Where scales come from. `MinMax` stands for statistics with a lower end, `AbsMax` for those without."""

import copy
import io
import math
import pickle
import warnings

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

from bitwright.qcore import (
    RESTRICTIONS,
    SCALINGS,
    AbsMax,
    CalibratedScaling,
    ConstantScaling,
    IntRange,
    LearnedBitWidth,
    LearnedScaling,
    LogScale,
    MinMax,
    PowerOfTwoScale,
    QuantizerError,
    RunningScaling,
    SettingError,
    StatisticScaling,
)

NARROW = IntRange(8, signed=True, narrow_range=True)  # threshold 127
SIGNED = IntRange(8, signed=True)  # 128
UNSIGNED = IntRange(8, signed=False)  # 255
STORED = [LearnedScaling, CalibratedScaling, RunningScaling]
NAN, INF = float("nan"), float("inf")


def value(scale):
    return pytest.approx(scale, rel=1e-6)


def feed(scaling, *largest):
    """Forwards of tensors with these largest magnitudes; the last scale."""
    return [scaling(torch.tensor([0.0, each])) for each in largest][-1]


# Constant


def test_constant():
    scale = ConstantScaling(SIGNED, scale=2**-7)(torch.ones(3))
    assert (scale.item(), scale.shape, scale.dtype) == (2**-7, (), torch.float32)
    assert ConstantScaling(SIGNED, scale=torch.tensor(0.25))(torch.ones(3)).item() == 0.25


@pytest.mark.parametrize(
    ("int_range", "given_range", "scale"),
    [
        (NARROW, {"max_value": 1.27}, 0.01),
        (SIGNED, {"max_value": 1.28}, 0.01),
        (UNSIGNED, {"max_value": 2.55}, 0.01),
        (SIGNED, {"max_value": 1.0, "min_value": -1.28}, 0.01),
        (SIGNED, {"max_value": 1.28, "min_value": -1}, 0.01),
        (SIGNED, {"max_value": 6, "restriction": PowerOfTwoScale()}, 8 / 128),
        (UNSIGNED, {"max_value": 6, "restriction": PowerOfTwoScale()}, 8 / 256),
        (SIGNED, {"max_value": 1e-20}, 1e-10),
        (SIGNED, {"max_value": 1e-20, "min_scale": 0.5}, 0.5),
    ],
)
def test_constant_from_a_range(int_range, given_range, scale):
    assert ConstantScaling(int_range, **given_range)(torch.ones(3)).item() == value(scale)


def test_constant_for_each_index():
    scaling = ConstantScaling(SIGNED, scale=[0.5, 0.25], axis=1)
    assert scaling(torch.ones(3, 2)).tolist() == [[0.5, 0.25]]
    assert scaling(torch.ones(3, 2, 4, 4)).shape == (1, 2, 1, 1)
    assert ConstantScaling(SIGNED, scale=0.5, axis=1)(torch.ones(3, 2)).tolist() == [[0.5]]


def test_wrong_number_of_constants():
    model = nn.Sequential(ConstantScaling(SIGNED, scale=[0.5, 0.25], axis=1))
    with pytest.raises(QuantizerError) as error:
        model(torch.ones(4, 3))
    assert str(error.value) == (
        "0: the input has 3 entries along axis 1, and 2 scales are given. Give one scale, or one for each entry."
    )


def test_constant_after_meta():
    scaling = ConstantScaling(SIGNED, scale=0.5, device="meta")
    assert scaling.scale.is_meta
    scaling.to_empty(device="cpu").reset_parameters()
    assert scaling(torch.ones(1)).item() == 0.5


def test_the_constant_is_state():
    """A file of scale 2**-7 brings it along: it is not taken for 2**-3."""
    scaling = ConstantScaling(SIGNED, scale=0.5)
    assert scaling.state_dict() == {"scale": torch.tensor(0.5)}
    assert list(scaling.parameters()) == []
    assert scaling.double()(torch.ones(3)).dtype == torch.float64
    assert pickle.loads(pickle.dumps(scaling))(torch.ones(3)).item() == 0.5
    other = ConstantScaling(SIGNED, scale=2**-3)
    held = other.scale
    other.load_state_dict(ConstantScaling(SIGNED, scale=2**-7).state_dict())
    assert (other(torch.ones(3)).item(), other.scale is held) == (2**-7, True)
    other.reset_parameters()
    assert other(torch.ones(3)).item() == 2**-3
    with pytest.raises(RuntimeError) as error:
        other.load_state_dict({})
    assert str(error.value) == (
        'Error(s) in loading state_dict for ConstantScaling:\n\tMissing key(s) in state_dict: "scale". '
    )


@pytest.mark.parametrize("cast", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("constant", [{"scale": 0.1}, {"max_value": 12.8}])
def test_a_constant_is_not_rounded_with_the_model(constant, cast):
    """0.1 is 0.10009766 in bfloat16, and would stay so after `.float()`."""
    expected = ConstantScaling(SIGNED, **constant).scale
    assert expected.item() == value(0.1)
    scaling = ConstantScaling(SIGNED, **constant).to(cast)
    assert (scaling.scale.dtype, scaling.scale.item()) == (torch.float32, expected.item())
    assert scaling(torch.ones(3, dtype=cast)).item() == expected.item()
    assert scaling.float().scale.item() == expected.item()
    assert scaling.double().to(cast).scale.dtype == torch.float64


def test_constant_restricted_to_powers_of_two():
    assert ConstantScaling(SIGNED, scale=0.25, restriction=PowerOfTwoScale())(torch.ones(1)).item() == 0.25
    with pytest.raises(SettingError) as error:
        ConstantScaling(SIGNED, scale=0.3, restriction=PowerOfTwoScale())
    assert str(error.value) == (
        "scale=0.3 is not possible: expected a scale that PowerOfTwoScale('ceil') allows. Write scale=0.5."
    )
    with pytest.raises(SettingError) as error:
        ConstantScaling(SIGNED, scale=[0.3, 0.5], axis=0, restriction=PowerOfTwoScale("floor"))
    assert str(error.value) == (
        "scale=[0.3, 0.5] is not possible: expected a scale that PowerOfTwoScale('floor') allows. "
        "Write scale=[0.25, 0.5]."
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "scale=None is not possible: expected a positive number such as 2**-7. Or give the range: max_value=1.0."),
        (
            {"min_value": -1.0},
            "scale=None is not possible: expected a positive number such as 2**-7. Or give the range: max_value=1.0.",
        ),
        (
            {"scale": 0.5, "max_value": 2},
            "scale=0.5 is not possible: expected a scale or a range, not both (max_value=2).",
        ),
        (
            {"scale": 0.5, "min_value": -2},
            "scale=0.5 is not possible: expected a scale or a range, not both (min_value=-2).",
        ),
        ({"scale": "one"}, "scale='one' is not possible: expected a positive number such as 2**-7."),
        ({"scale": 0.0}, "scale=0.0 is not possible: expected a positive, finite number."),
        ({"scale": -1}, "scale=-1 is not possible: expected a positive, finite number."),
        ({"scale": INF}, "scale=inf is not possible: expected a positive, finite number."),
        ({"scale": NAN}, "scale=nan is not possible: expected a positive, finite number."),
        (
            {"scale": [0.5, 0.25]},
            "scale=[0.5, 0.25] is not possible: expected one number. Say which dimension the numbers are for: axis=1.",
        ),
        ({"max_value": 0}, "max_value=0 is not possible: expected a positive, finite number."),
        ({"max_value": INF}, "max_value=inf is not possible: expected a positive, finite number."),
        ({"max_value": "6"}, "max_value='6' is not possible: expected a positive, finite number."),
        ({"max_value": 6, "min_value": NAN}, "min_value=nan is not possible: expected a finite number."),
        ({"scale": 1, "min_scale": 0}, "min_scale=0 is not possible: expected a number above 0."),
        ({"scale": 1, "min_scale": NAN}, "min_scale=nan is not possible: expected a number above 0."),
        ({"scale": 1, "min_scale": True}, "min_scale=True is not possible: expected a number above 0."),
        (
            {"scale": 1, "axis": 1.0},
            "axis=1.0 is not possible: expected a dimension such as 1, or None for one scale per tensor.",
        ),
        (
            {"scale": 1, "axis": True},
            "axis=True is not possible: expected a dimension such as 1, or None for one scale per tensor.",
        ),
    ],
)
def test_impossible_constant(settings, message):
    with pytest.raises(SettingError) as error:
        ConstantScaling(SIGNED, **settings)
    assert str(error.value) == message


# From a statistic of the tensor at hand


@pytest.mark.parametrize(("int_range", "scale"), [(NARROW, 2.54 / 127), (SIGNED, 2.54 / 128), (UNSIGNED, 2.54 / 255)])
def test_statistic(int_range, scale):
    assert StatisticScaling(int_range)(torch.tensor([0.5, -2.54])).item() == value(scale)


def test_statistic_is_taken_anew():
    scaling = StatisticScaling(NARROW)
    assert [scaling(torch.tensor([each])).item() for each in (127.0, 254.0, 127.0)] == [1, 2, 1]
    assert scaling.state_dict() == {}


def test_statistic_for_each_index():
    x = torch.tensor([[127.0, -1.0], [1.27, 254.0], [0.0, 0.0]])
    assert StatisticScaling(NARROW, axis=0)(x).tolist() == [[1], [2], [value(1e-10)]]
    assert StatisticScaling(NARROW, axis=1)(x).tolist() == [[1, 2]]
    assert StatisticScaling(NARROW, axis=-1)(torch.ones(2, 3, 4)).shape == (1, 1, 4)


def test_statistic_is_differentiable():
    x = torch.tensor([1.0, -2.0], requires_grad=True)
    assert torch.autograd.grad(StatisticScaling(NARROW)(x), x)[0].tolist() == [0, value(-1 / 127)]
    assert not StatisticScaling(NARROW, detach_scale=True)(x).requires_grad
    assert StatisticScaling(NARROW, detach_scale=True)(x).item() == value(2 / 127)


@given(st.floats(2**-20, 2**20, width=32), st.sampled_from(["ceil", "floor", "round"]))
def test_power_of_two_by_definition(magnitude, rounding):
    assume(rounding != "round" or abs(math.log2(magnitude) % 1 - 0.5) > 1e-6)
    exponent = {"ceil": math.ceil, "floor": math.floor, "round": round}[rounding](math.log2(magnitude))
    x = torch.tensor([magnitude, -magnitude / 3])
    scale = StatisticScaling(NARROW, restriction=PowerOfTwoScale(rounding))(x).item()
    assert scale == 2.0**exponent / 128


def test_minimum_scale():
    assert StatisticScaling(NARROW)(torch.zeros(3)).item() == value(1e-10)
    assert StatisticScaling(NARROW, min_scale=0.5)(torch.ones(3)).item() == 0.5
    assert StatisticScaling(NARROW, min_scale=0.5)(torch.full((3,), 127.0)).item() == 1
    assert StatisticScaling(NARROW, min_scale=0.3, restriction=PowerOfTwoScale())(torch.zeros(3)).item() == 0.5
    assert StatisticScaling(NARROW)(torch.zeros(0)).item() == value(1e-10)
    x = torch.zeros(2, requires_grad=True)
    assert torch.autograd.grad(StatisticScaling(NARROW)(x), x)[0].tolist() == [0, 0]


@pytest.mark.parametrize("strange", [NAN, INF, -INF])
def test_no_scale_from_what_is_not_finite(strange):
    for statistic in (AbsMax(), MinMax()):
        assert StatisticScaling(NARROW, statistic)(torch.tensor([3.0, strange])).item() == value(1 / 127)
        found = StatisticScaling(NARROW, statistic, axis=0)(torch.tensor([[3.0, strange], [0.0, 254.0]]))
        assert found.tolist() == [[value(1 / 127)], [2]]


def test_lower_end_of_a_statistic():
    scaling = StatisticScaling(UNSIGNED, MinMax())
    assert scaling(torch.tensor([-1.0, 1.55])).item() == value(0.01)
    assert scaling.low_of(torch.tensor([-1.0, 1.55])).item() == -1
    assert scaling.low_of(torch.tensor([NAN])).isfinite()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_scales_are_never_half_precision(dtype):
    x = torch.tensor([1.0, 2.0], dtype=dtype)
    assert StatisticScaling(NARROW)(x).dtype == torch.float32
    for kind in STORED:
        scaling = kind(NARROW, dtype=dtype)
        assert scaling.magnitude_base.dtype == scaling.magnitude.dtype == torch.float32
        assert {each.dtype for each in scaling.parameters()} == ({dtype} if kind is not RunningScaling else set())
        assert scaling(x).dtype == torch.float32
        assert scaling(x).item() == value(2 / 127)
        assert scaling.eval()(x).dtype == torch.float32
    assert StatisticScaling(NARROW)(x.double()).dtype == torch.float64


def test_scale_of_a_learned_bit_width():
    """The scale follows the number of integers, and pulls on it."""
    width = LearnedBitWidth(initial_bit_width=4)
    x = torch.tensor([7.0, -1.0])
    scaling = StatisticScaling(IntRange(width, signed=True, narrow_range=True))
    scale = scaling(x)
    assert scale.item() == 1
    (slope,) = torch.autograd.grad(scale, width.offset)
    assert slope.item() == value(-7 / 49 * 8 * math.log(2))
    assert scaling(torch.zeros(2)).item() == value(1e-10)


def test_impossible_statistic():
    with pytest.raises(SettingError) as error:
        StatisticScaling(NARROW, detach_scale=0)
    assert str(error.value) == "detach_scale=0 is not possible: expected True or False."


# What stored scalings share


def build(kind, *args, **kwargs):
    return kind(NARROW, *args, **kwargs)


@pytest.mark.parametrize("kind", STORED)
@pytest.mark.parametrize("statistic", [AbsMax(), MinMax()], ids=repr)
@pytest.mark.parametrize("axis", [None, 1])
def test_state_has_its_keys_from_the_start(kind, statistic, axis):
    scaling = build(kind, statistic, axis=axis)
    names = ["magnitude", "low"] if statistic.__class__ is MinMax else ["magnitude"]
    learned = [f"{name}_offset" for name in names] if kind is not RunningScaling else []
    keys = [*learned, *(f"{name}_base" for name in names), "measured", "steps"]
    assert list(scaling.state_dict()) == keys
    assert [name for name, _ in scaling.named_parameters()] == learned
    assert [name for name, _ in scaling.named_buffers()] == keys[len(learned) :]
    assert {tuple(scaling.state_dict()[key].shape) for key in keys[:-1]} == {(1,)}
    assert not any(each.any() for each in scaling.state_dict().values())
    assert (scaling.steps.shape, scaling.steps.dtype, scaling.measured.dtype) == ((), torch.int64, torch.float32)
    before = {name: id(each) for name, each in [*scaling.named_parameters(), *scaling.named_buffers()]}
    scaling(torch.randn(2, 5, 3))
    scaling.load_state_dict(scaling.state_dict())
    scaling.eval()(torch.randn(2, 5, 3))
    assert {name: id(each) for name, each in [*scaling.named_parameters(), *scaling.named_buffers()]} == before
    assert list(scaling.state_dict()) == keys
    assert {tuple(scaling.state_dict()[key].shape) for key in keys[:-2]} == {(1,) if axis is None else (5,)}
    assert (scaling.measured.tolist(), scaling.steps.item()) == ([1], 1)


@pytest.mark.parametrize("kind", STORED)
@pytest.mark.parametrize("axis", [None, 1])
def test_loaded_in_place_into_a_model_that_saw_no_data(kind, axis):
    x = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    trained = build(kind, MinMax(), axis=axis)
    expected = trained(x), trained.low_of(x)
    saved = io.BytesIO()
    torch.save(trained.state_dict(), saved)
    saved.seek(0)
    fresh = build(kind, MinMax(), axis=axis).eval()
    state = [*fresh.parameters(), *fresh.buffers()]
    assert len(state) == 6 - 2 * (kind is RunningScaling)
    fresh.load_state_dict(torch.load(saved, weights_only=True))
    now = [*fresh.parameters(), *fresh.buffers()]
    assert all(one is other for one, other in zip(now, state, strict=True))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(fresh(x * 9), expected[0])
        assert torch.equal(fresh.low_of(x * 9), expected[1])
    assert fresh.steps.item() == 1


@pytest.mark.parametrize("kind", STORED)
@pytest.mark.parametrize("way", ["deepcopy", "pickle", "save"])
def test_copies_go_their_own_way(kind, way):
    scaling = build(kind)
    scaling(torch.tensor([1.0]))
    if way == "deepcopy":
        other = copy.deepcopy(scaling)
    elif way == "pickle":
        other = pickle.loads(pickle.dumps(scaling))
    else:
        file = io.BytesIO()
        torch.save(scaling, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    assert torch.equal(other(torch.tensor([2.0])), copy.deepcopy(scaling)(torch.tensor([2.0])))
    assert vars(other).get("_handle", -1) != vars(scaling).get("_handle")
    with torch.no_grad():
        for each in (other.magnitude_base, *other.parameters()):
            each.fill_(9.0)
    assert scaling.magnitude.item() == 1


@pytest.mark.parametrize("kind", STORED)
@pytest.mark.parametrize("gradients", [False, True])
def test_evaluated_before_it_saw_data(kind, gradients):
    """The range at hand, and no trace of it."""
    scaling = build(kind, MinMax()).eval()
    before = {name: each.clone() for name, each in scaling.state_dict().items()}
    with torch.set_grad_enabled(gradients):
        assert scaling(torch.tensor([-120.0, 134.0])).item() == 2
        assert scaling(torch.tensor([-100.0, 27.0])).item() == 1
        assert scaling.low_of(torch.tensor([-100.0, 27.0])).item() == -100
    assert {name: each.tolist() for name, each in scaling.state_dict().items()} == {
        name: each.tolist() for name, each in before.items()
    }
    assert (scaling.phase, scaling.dynamic, scaling.calibrated) == ("empty", True, False)
    assert scaling.train()(torch.tensor([0.0, 381.0])).item() == 3
    assert scaling.eval()(torch.tensor([0.0, 127.0])).item() == 3
    assert (scaling.dynamic, scaling.calibrated) == (False, True)


@pytest.mark.parametrize("kind", STORED)
@pytest.mark.parametrize("restriction", [LogScale(), PowerOfTwoScale()])
def test_range_at_hand_is_restricted_like_any_other(kind, restriction):
    scaling = build(kind, restriction=restriction).eval()
    found = scaling(torch.tensor([100.0])).item()
    assert found == (1.0 if isinstance(restriction, PowerOfTwoScale) else value(100 / 127))
    assert scaling(torch.zeros(3)).item() <= 2e-10


@pytest.mark.parametrize("kind", STORED)
def test_a_scale_for_each_index_needs_no_shape(kind):
    scaling = build(kind, MinMax(), axis=1)
    optimizer = torch.optim.SGD([scaling.magnitude_offset], lr=1.0) if kind is not RunningScaling else None
    assert scaling.magnitude.shape == (1,)
    x = torch.stack([torch.full((4, 4), 127.0), torch.full((4, 4), -254.0), torch.zeros(4, 4)])[None]
    scale = scaling(x)
    assert scale.shape == (1, 3, 1, 1)
    assert scale.reshape(-1).tolist() == [1, 2, value(1e-10)]
    assert scaling.low_of(x).tolist() == [0, -254, 0]
    if optimizer is not None:
        if kind is CalibratedScaling:
            scaling.finish_calibration()
        scaling(x).sum().backward()
        optimizer.step()  # made before the parameter had its length
        assert scaling.magnitude.tolist()[:2] == [value(127 - 1 / 127), value(254 - 1 / 127)]


@pytest.mark.parametrize("kind", STORED)
@pytest.mark.parametrize("training", [True, False])
def test_wrong_number_of_channels(kind, training):
    model = nn.Sequential(build(kind, axis=1))
    model(torch.ones(2, 3))
    with pytest.raises(QuantizerError) as error:
        model.train(training)(torch.ones(2, 4))
    assert str(error.value) == (
        "0: the input has 4 entries along axis 1, but the 3 scales were collected for as many. Use another quantizer "
        "for this input."
    )


@pytest.mark.parametrize("kind", STORED)
def test_channels_known_from_the_start(kind):
    assert build(kind, MinMax(), axis=0, channels=4).magnitude.shape == (4,)
    assert build(kind, MinMax(), axis=0, channels=4).low.shape == (4,)


@pytest.mark.parametrize("kind", STORED)
def test_empty_input_is_no_data(kind):
    scaling = build(kind)
    scaling(torch.zeros(0))
    assert scaling.steps.item() == 0
    assert feed(scaling, 127.0).item() == 1


@pytest.mark.parametrize("kind", [CalibratedScaling, RunningScaling])
@pytest.mark.parametrize("strange", [NAN, INF])
def test_batches_that_are_not_finite_are_left_out(kind, strange):
    scaling = build(kind, MinMax())
    assert feed(scaling, 127.0, strange).item() == 1
    assert scaling.steps.item() == 1
    assert scaling.low.item() == 0
    assert feed(scaling, 254.0).item() == value(1.1)
    per_channel = build(kind, axis=1)
    per_channel(torch.tensor([[127.0, 254.0]]))
    per_channel(torch.tensor([[strange, 1.0]]))
    assert per_channel.magnitude.tolist() == [127, 254]


@pytest.mark.parametrize("kind", [CalibratedScaling, RunningScaling])
def test_batches_that_are_not_finite_are_no_data(kind):
    scaling = build(kind)
    assert feed(scaling, NAN).isfinite()
    assert scaling.eval()(torch.tensor([254.0])).item() == 2
    assert (scaling.phase, scaling.steps.item(), scaling.measured.item()) == ("empty", 0, 0)
    assert feed(scaling.train(), 127.0).item() == 1


def test_learned_from_what_is_not_finite_starts_at_one():
    assert feed(build(LearnedScaling), NAN).item() == value(1 / 127)


@pytest.mark.parametrize("kind", STORED)
def test_stored_magnitude_may_be_negative(kind):
    """A learned one may step over zero; a scale is positive all the same."""
    scaling = build(kind)
    feed(scaling, 127.0)
    with torch.no_grad():
        scaling.magnitude_base.fill_(-254.0)
    assert scaling.eval()(torch.ones(1)).item() == 2
    with torch.no_grad():
        scaling.magnitude_base.fill_(0.0)
    assert scaling.eval()(torch.ones(1)).item() == value(1e-10)
    if kind is not RunningScaling:
        with torch.no_grad():
            scaling.magnitude_base.fill_(127.0)
            scaling.magnitude_offset.fill_(-381.0)
        assert scaling.eval()(torch.ones(1)).item() == 2


@pytest.mark.parametrize("kind", STORED)
def test_log_domain(kind):
    scaling = build(kind, restriction=LogScale())
    assert scaling.magnitude.item() == 0
    assert feed(scaling, 8.0).item() == 8 / torch.tensor(127.0)
    assert scaling.magnitude.item() == 3
    feed(scaling, *[8.0] * 50)
    assert scaling.magnitude.item() == 3
    assert feed(build(kind, restriction=LogScale()), 0.0).item() == value(1e-10)


@pytest.mark.parametrize("kind", STORED)
@pytest.mark.parametrize("magnitude", [8.0, 2.0**-20, 1.0, 2.0**20])
def test_powers_of_two_stay_exact(kind, magnitude):
    """A thousand averages of 8.0 are 8.0, whose power of two is not 16."""
    scaling = build(kind, restriction=PowerOfTwoScale())
    feed(scaling, *[magnitude] * 1000)
    assert scaling.magnitude.item() == magnitude
    assert scaling.eval()(torch.ones(1)).item() == magnitude / 128


@pytest.mark.parametrize("kind", STORED)
def test_power_of_two_restricts_the_scale_not_the_state(kind):
    scaling = build(kind, restriction=PowerOfTwoScale())
    assert feed(scaling, 5.0).item() == 8 / 128
    assert scaling.magnitude.item() == 5


@pytest.mark.parametrize("kind", STORED)
def test_meta_device(kind):
    scaling = build(kind, device="meta")
    assert scaling.magnitude.device.type == scaling.steps.device.type == "meta"


# What was measured, and what was learned since

OFFSETS = [LearnedScaling, CalibratedScaling]


@pytest.mark.parametrize("kind", OFFSETS)
@pytest.mark.parametrize("axis", [None, 0])
def test_training_moves_the_offset_and_never_the_base(kind, axis):
    """One step down the gradient of 1 / 127 for each scale, by a rate of 127 * 127: the magnitude falls by 127."""
    x = torch.tensor([[381.0, 0.0], [-508.0, 127.0]])
    scaling = build(kind, axis=axis, **({"calibration_steps": 1} if kind is CalibratedScaling else {}))
    scaling(x)
    base = [508.0] if axis is None else [381.0, 508.0]
    assert scaling.magnitude_base.tolist() == scaling.magnitude.reshape(-1).tolist() == base
    assert scaling.magnitude_offset.tolist() == [0.0] * len(base)
    optimizer = torch.optim.SGD(scaling.parameters(), lr=127.0**2)
    for step in (1, 2):
        optimizer.zero_grad()
        scaling(x).sum().backward()
        assert scaling.magnitude_offset.grad.tolist() == [value(1 / 127)] * len(base)
        assert not scaling.magnitude_base.requires_grad
        optimizer.step()
        assert scaling.magnitude_base.tolist() == base
        assert scaling.magnitude_offset.tolist() == [value(-127 * step)] * len(base)
        assert scaling.magnitude.shape == (() if axis is None else (2,))
        assert scaling(x).reshape(-1).tolist() == [value(each / 127 - step) for each in base]
    assert scaling.steps.item() == 1


@pytest.mark.parametrize("kind", OFFSETS)
def test_the_lower_end_has_an_offset_too(kind):
    scaling = build(kind, MinMax())
    x = torch.tensor([-1.0, 3.0])
    scaling(x)
    with torch.no_grad():
        scaling.low_offset.fill_(-0.5)
    if kind is CalibratedScaling:
        scaling.finish_calibration()
        scaling(x)
    assert (scaling.low_base.tolist(), scaling.low.item(), scaling.low.shape) == ([-1.0], -1.5, ())
    assert scaling.low_of(x).item() == -1.5
    assert scaling.eval().low_of(x).item() == -1.5
    assert torch.autograd.grad(scaling.low, scaling.low_offset)[0].tolist() == [1]


@pytest.mark.parametrize("kind", OFFSETS)
@pytest.mark.parametrize("way", ["start_calibration", "reset_parameters"])
def test_measuring_anew_forgets_what_was_learned(kind, way):
    scaling = build(kind, MinMax(), axis=0)
    x = torch.tensor([[-1.0, 3.0], [0.0, 2.0]])
    scaling(x)
    held = [scaling.magnitude_base, scaling.low_base, scaling.magnitude_offset, scaling.low_offset]
    with torch.no_grad():
        for each in held[2:]:
            each.copy_(torch.tensor([0.25, -0.5]))
    assert (scaling.magnitude.tolist(), scaling.low.tolist()) == ([4.25, 1.5], [-0.75, -0.5])
    getattr(scaling, way)()
    assert [each.tolist() for each in held] == [[0.0, 0.0]] * 4
    assert (scaling.phase, scaling.measured.tolist(), scaling.steps.item()) == ("empty", [0], 0)
    assert (scaling.magnitude.tolist(), scaling.low.tolist()) == ([1.0, 1.0], [0.0, 0.0])
    scaling(-2 * x)
    assert (scaling.magnitude.tolist(), scaling.low.tolist()) == ([8.0, 4.0], [-6.0, -4.0])
    assert (scaling.magnitude_base.tolist(), scaling.low_base.tolist()) == ([8.0, 4.0], [-6.0, -4.0])
    now = [scaling.magnitude_base, scaling.low_base, scaling.magnitude_offset, scaling.low_offset]
    assert all(one is other for one, other in zip(now, held, strict=True))


@pytest.mark.parametrize("kind", STORED)
def test_no_lower_end_without_one(kind):
    scaling = build(kind)
    assert scaling.low is None
    feed(scaling, 127.0)
    assert scaling.low is None
    assert not any("low" in key for key in scaling.state_dict())
    assert build(kind, MinMax()).low.item() == 0


@pytest.mark.parametrize("kind", STORED)
def test_magnitude_and_lower_end_are_read_only(kind):
    scaling = build(kind, MinMax())
    for name in ("magnitude", "low"):
        with pytest.raises(AttributeError):
            setattr(scaling, name, torch.tensor(1.0))


def test_a_running_average_has_no_offset():
    scaling = build(RunningScaling, MinMax())
    assert scaling.magnitude_offset is None
    assert scaling.low_offset is None
    assert feed(scaling, 127.0).item() == 1
    assert (scaling.magnitude.shape, scaling.magnitude_base.tolist(), scaling.low.item()) == ((), [127.0], 0)


# Learned


def test_learned_starts_from_the_first_input():
    scaling = build(LearnedScaling)
    assert feed(scaling, 127.0).item() == 1
    assert feed(scaling, 254.0).item() == 1
    assert scaling.steps.item() == 1
    assert scaling(torch.ones(1)).requires_grad


def test_learned_follows_the_tensor_until_the_first_training_forward():
    scaling = build(LearnedScaling)
    assert feed(scaling.eval(), 127.0).item() == 1
    assert feed(scaling, 254.0).item() == 2
    assert feed(scaling.train(), 508.0).item() == 4
    assert feed(scaling.eval(), 254.0).item() == 4


def test_learned_gradient():
    scaling = build(LearnedScaling)
    feed(scaling, 127.0).backward()
    assert scaling.magnitude_offset.grad.tolist() == [value(1 / 127)]
    scaling = build(LearnedScaling, restriction=LogScale())
    feed(scaling, 8.0).backward()
    assert scaling.magnitude_offset.grad.tolist() == [value(8 * math.log(2) / 127)]
    scaling = build(LearnedScaling, restriction=PowerOfTwoScale())
    feed(scaling, 5.0).backward()
    assert scaling.magnitude_offset.grad.tolist() == [value(8 / 5 / 128)]


def test_learned_from_a_given_magnitude():
    scaling = build(LearnedScaling, max_value=12.7)
    assert feed(scaling, 127.0).item() == value(0.1)
    assert scaling.steps.item() == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert build(LearnedScaling, max_value=12.7).eval()(torch.ones(1)).item() == value(0.1)
    assert build(LearnedScaling, max_value=12.7, axis=0, channels=2).magnitude.tolist() == [value(12.7)] * 2
    assert build(LearnedScaling, max_value=8, restriction=LogScale()).magnitude.item() == 3


def test_one_given_magnitude_for_all_channels_makes_room_for_a_file_of_each():
    trained, fresh = (build(LearnedScaling, max_value=12.7, axis=0) for _ in range(2))
    trained(torch.ones(3, 2))
    with torch.no_grad():
        trained.magnitude_offset.copy_(torch.tensor([0.0, 12.7, -6.35]))
    fresh.load_state_dict(trained.state_dict())
    torch.testing.assert_close(fresh.standing(), torch.tensor([0.1, 0.2, 0.05]))


def test_learned_stays_as_loaded():
    trained, fresh = build(LearnedScaling), build(LearnedScaling)
    feed(trained, 127.0)
    fresh.load_state_dict(trained.state_dict())
    assert feed(fresh, 254.0).item() == 1


def test_file_that_saw_no_data_leaves_it_so():
    fresh = build(LearnedScaling)
    fresh.load_state_dict(build(LearnedScaling).state_dict())
    assert feed(fresh, 254.0).item() == 2


@pytest.mark.parametrize(
    ("max_value", "message"),
    [
        (0, "max_value=0 is not possible: expected a number above 0."),
        (-6.0, "max_value=-6.0 is not possible: expected a number above 0."),
        (NAN, "max_value=nan is not possible: expected a number above 0."),
        ("6", "max_value='6' is not possible: expected a number above 0."),
    ],
)
def test_impossible_learned(max_value, message):
    with pytest.raises(SettingError) as error:
        build(LearnedScaling, max_value=max_value)
    assert str(error.value) == message


# Collected, then learned


def test_running_average():
    """Each batch weighs a tenth, but for the first; the scale in use is the one after the batch."""
    scaling = CalibratedScaling(NARROW, MinMax(), momentum=0.1)
    found = []
    for low, high in [(-1.0, 1.0), (-2.0, 4.0), (0.0, 1.0)]:
        scale = scaling(torch.tensor([low, high])).item()
        found.append((scale * 127, scaling.magnitude.item(), scaling.low.item(), scaling.steps.item()))
    assert found == [
        (value(2.0), value(2.0), value(-1.0), 1),
        (value(2.4), value(2.4), value(-1.1), 2),
        (value(2.26), value(2.26), value(-0.99), 3),
    ]


def test_plain_mean():
    scaling = build(CalibratedScaling, momentum=None)
    found = [feed(scaling, each).item() * 127 for each in (1.0, 2.0, 6.0, 7.0)]
    assert found == [value(1.0), value(1.5), value(3.0), value(4.0)]


def test_full_momentum_keeps_the_last():
    assert feed(build(CalibratedScaling, momentum=1), 1.0, 127.0).item() == 1


def test_collection_ends():
    scaling = build(CalibratedScaling, calibration_steps=3)
    for step in (1, 2, 3):
        assert scaling.calibrating
        assert scaling.phase == ("empty" if step == 1 else "calibrating")
        assert not feed(scaling, 127.0).requires_grad
        assert scaling.measuring
        assert scaling.steps.item() == step
    assert not scaling.calibrating
    assert scaling.phase == "calibrated"
    scale = feed(scaling, 999.0)
    assert not scaling.measuring
    assert scale.item() == 1
    assert scale.requires_grad
    scale.backward()
    assert scaling.magnitude_offset.grad.tolist() == [value(1 / 127)]
    assert scaling.steps.item() == 3


def test_default_number_of_steps():
    scaling = build(CalibratedScaling)
    feed(scaling, *[1.0] * 299)
    assert scaling.calibrating
    feed(scaling, 1.0)
    assert not scaling.calibrating


def test_finish_collecting():
    scaling = build(CalibratedScaling)
    feed(scaling, 127.0)
    scaling.finish_calibration()
    scale = feed(scaling, 999.0)
    assert (scale.item(), scale.requires_grad) == (1, True)


def test_evaluation_during_collection_reads_only():
    scaling = build(CalibratedScaling)
    feed(scaling, 127.0)
    assert feed(scaling.eval(), 999.0).item() == 1
    assert scaling.steps.item() == 1
    assert scaling.calibrating
    assert feed(scaling.train(), 254.0).item() == value(1.1)


def test_lower_end_is_learned_too():
    scaling = build(CalibratedScaling, MinMax(), calibration_steps=1)
    x = torch.tensor([-1.0, 3.0])
    for forward in range(2):  # the first one collects, for scale and lower end alike
        assert scaling(x).requires_grad == bool(forward)
        assert scaling.low_of(x).requires_grad == bool(forward)
        assert scaling.low_of(x).item() == -1


@pytest.mark.parametrize("restriction", ["float", "log", "power_of_two"])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_resumed_collection_is_the_same_to_the_bit(restriction, momentum):
    def fresh():
        return CalibratedScaling(
            UNSIGNED, MinMax(), RESTRICTIONS[restriction](), axis=1, calibration_steps=9, momentum=momentum
        )

    torch.manual_seed(0)
    batches = [torch.randn(8, 3) for _ in range(12)]
    whole, first, second = fresh(), fresh(), fresh()
    expected = [whole(each) for each in batches]
    for each in batches[:5]:
        first(each)
    second.load_state_dict(first.state_dict())
    assert second.calibrating
    found = [second(each) for each in batches[5:]]
    for one, other in zip(expected[5:], found, strict=True):
        assert torch.equal(one, other)
        assert one.requires_grad == other.requires_grad
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name])
    assert not second.calibrating


def test_compiled_collection():
    """Two graphs: one that collects, one that learns; eager's numbers."""
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    eager = build(CalibratedScaling, MinMax(), calibration_steps=3)
    compiled = copy.deepcopy(eager)
    forward = torch.compile(compiled, backend=backend, fullgraph=True)
    torch.manual_seed(0)
    for step in range(6):
        x = torch.randn(16)
        expected, found = eager(x), forward(x)
        assert torch.equal(expected, found)
        assert compiled.steps.item() == min(step + 1, 3)
        assert compiled.calibrating == eager.calibrating
        assert found.requires_grad == expected.requires_grad
    assert len(graphs) == 2
    assert torch.equal(eager.low, compiled.low)
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"calibration_steps": 0},
            "calibration_steps=0 is not possible: expected a whole number of training steps, 1 or more.",
        ),
        (
            {"calibration_steps": 1.5},
            "calibration_steps=1.5 is not possible: expected a whole number of training steps, 1 or more.",
        ),
        (
            {"calibration_steps": True},
            "calibration_steps=True is not possible: expected a whole number of training steps, 1 or more.",
        ),
        *(
            (
                {"momentum": momentum},
                f"momentum={momentum!r} is not possible: expected a number above 0, up to 1, or None for the plain "
                "mean.",
            )
            for momentum in (0, 1.5, -0.1, NAN, True, "0.1")
        ),
    ],
)
def test_impossible_collection(settings, message):
    with pytest.raises(SettingError) as error:
        build(CalibratedScaling, **settings)
    assert str(error.value) == message


# Running average


def test_running():
    scaling = build(RunningScaling, momentum=0.5)
    assert feed(scaling, 127.0).item() == 1
    assert feed(scaling, 254.0).item() == 1.5
    assert feed(scaling.eval(), 999.0).item() == 1.5
    assert feed(scaling.train(), *[127.0] * 500).item() == value(1.0)
    assert not scaling.calibrating  # it has no end to wait for
    assert list(scaling.parameters()) == []
    assert scaling.steps.item() == 502


def test_running_mean_is_resumed():
    first, second = build(RunningScaling, momentum=None), build(RunningScaling, momentum=None)
    feed(first, 1.0, 2.0)
    second.load_state_dict(first.state_dict())
    assert feed(second, 6.0).item() * 127 == value(3.0)


# Copies: what decides the scale is in tensors


def averaged(copied, scaling, decay, *, integers):
    """One update of an average of a model, as the libraries that train with one write it."""
    for mine, other in zip(copied.state_dict().values(), scaling.state_dict().values(), strict=True):
        if mine.is_floating_point():
            mine.mul_(decay).add_(other.detach(), alpha=1 - decay)
        elif integers == "truncated":
            mine.copy_(mine * decay + (1 - decay) * other)
        elif integers == "copied":
            mine.copy_(other)


@pytest.mark.parametrize("integers", ["skipped", "truncated", "copied"])
@pytest.mark.parametrize("decay", [0.0, 0.5, 0.999])
@pytest.mark.parametrize("restriction", [None, LogScale(), PowerOfTwoScale()])
@pytest.mark.parametrize("kind", STORED)
def test_an_average_of_copies_has_the_average_of_what_was_measured(kind, restriction, decay, integers):
    """From 0 on: the average of what was measured, not of that and of nothing."""
    options = {"restriction": restriction} if restriction else {}
    scaling = build(kind, MinMax(), **options)
    copied = copy.deepcopy(scaling)
    for _ in range(3):
        scaling(torch.tensor([-64.0, 64.0]))
        averaged(copied, scaling, decay, integers=integers)
    assert copied.measured.tolist() == [value(1 - decay**3)]
    assert (copied.calibrated, copied.dynamic) == (True, False)
    right = 64 / 64 if isinstance(restriction, PowerOfTwoScale) else 128 / 127
    for gradients in (False, True):
        with torch.set_grad_enabled(gradients):
            assert copied.eval()(torch.tensor([999.0])).item() == pytest.approx(right, rel=1e-4)
            assert copied.low_of(torch.tensor([-999.0])).item() == pytest.approx(-64, rel=1e-4)
    loaded = build(kind, MinMax(), **options)
    loaded.load_state_dict(copied.state_dict())
    assert torch.equal(loaded.eval()(torch.tensor([999.0])), copied(torch.tensor([999.0])))


@pytest.mark.parametrize("kind", STORED)
def test_tensors_copied_in_place_are_all_there_is_to_a_copy(kind):
    """As DDP broadcasts them, or `.data.copy_` in a target network."""
    scaling = build(kind, MinMax())
    copied = copy.deepcopy(scaling)
    feed(scaling, *[127.0] * 3)
    for mine, other in zip(copied.state_dict().values(), scaling.state_dict().values(), strict=True):
        mine.data.copy_(other.data)
    assert copied.phase == scaling.phase == ("calibrating" if kind is CalibratedScaling else "calibrated")
    assert feed(copied, 254.0).item() == feed(scaling, 254.0).item()
    assert copied.steps.item() == scaling.steps.item() == (1 if kind is LearnedScaling else 4)
    assert feed(copied.eval(), 999.0).item() == feed(scaling.eval(), 999.0).item()
    scaling.reset_parameters()
    for mine, other in zip(copied.state_dict().values(), scaling.state_dict().values(), strict=True):
        mine.data.copy_(other.data)
    assert copied.phase == "empty"
    assert feed(copied, 508.0).item() == 4


@pytest.mark.parametrize("source", STORED)
@pytest.mark.parametrize("target", STORED)
@pytest.mark.parametrize("axis", [None, 1])
def test_kinds_load_into_each_other(source, target, axis):
    """Calibration, then training: the range in use is the file's."""
    saved, fresh = build(source, MinMax(), axis=axis), build(target, MinMax(), axis=axis)
    x = torch.tensor([[-27.0, 100.0], [0.0, 27.0]])
    saved(x)
    learned, lower = (127.0, -1.0) if source is not RunningScaling else (0.0, 0.0)
    if source is not RunningScaling:
        saved.finish_calibration()
        with torch.no_grad():
            saved.magnitude_offset.fill_(learned)
            saved.low_offset.fill_(lower)
    fresh.load_state_dict(saved.state_dict())
    magnitudes = [127.0 + learned] if axis is None else [27.0 + learned, 100.0 + learned]
    assert fresh.magnitude.reshape(-1).tolist() == magnitudes
    assert fresh.low.reshape(-1).tolist() == ([-27.0 + lower] if axis is None else [-27.0 + lower, lower])
    assert torch.equal(fresh.eval()(9 * x), saved.eval()(9 * x))
    assert torch.equal(fresh.low_of(9 * x), saved.low_of(9 * x))
    if learned and target is not RunningScaling:
        assert fresh.phase == "calibrated"
        fresh.train()(9 * x)  # what was learned is not measured over
        assert fresh.magnitude.reshape(-1).tolist() == magnitudes


def test_an_average_of_a_learned_range_loads_into_a_running_one():
    """What was learned is added to what was measured, in the units that an average of copies stores."""
    learned, running = build(LearnedScaling), build(RunningScaling)
    feed(learned, 127.0)
    with torch.no_grad():
        learned.magnitude_base.mul_(0.5)
        learned.measured.mul_(0.5)
        learned.magnitude_offset.fill_(127.0)
    assert feed(learned.eval(), 999.0).item() == 2
    running.load_state_dict(learned.state_dict())
    assert feed(running.eval(), 999.0).item() == 2


# Several layers with one scaling


def test_one_calibration_for_several_calls():
    """The widest range that the calls of one forward bring, averaged over forwards."""
    scaling = build(CalibratedScaling, calibration_steps=2)
    scaling.calls = 2
    found = []
    for largest in (127.0, 254.0, 508.0, 1.0):
        assert scaling.calibrating
        feed(scaling, largest)
        found.append((scaling.magnitude.item(), scaling.steps.item()))
    assert found == [(127, 1), (254, 2), (value(279.4), 3), (value(279.4), 4)]
    assert scaling.phase == "calibrated"
    plain = build(CalibratedScaling, momentum=None)
    plain.calls = 2
    feed(plain, 127.0, 254.0, 508.0, 1.0)
    assert plain.magnitude.item() == 381  # of 254 and 508


def test_ranges_of_several_calls_are_joined():
    scaling = build(CalibratedScaling, MinMax(), calibration_steps=2)
    scaling.calls = 2
    found = []
    for low, high in [(0.0, 127.0), (-127.0, 0.0), (0.0, 254.0), (-63.5, 0.0)]:
        scaling(torch.tensor([low, high]))
        found.append((scaling.magnitude.item(), scaling.low.item()))
    assert found == [
        (127, 0),
        (254, -127),
        (254, value(-114.3)),
        (value(254 + 0.1 * (317.5 - 254)), value(-127 + 0.1 * (127 - 63.5))),
    ]


def test_the_first_value_of_several_calls():
    scaling = build(LearnedScaling)
    scaling.calls = 2
    feed(scaling, 127.0, 254.0, 999.0)
    assert (scaling.magnitude.item(), scaling.phase) == (254, "calibrated")


def test_the_first_range_of_several_calls():
    scaling = build(LearnedScaling, MinMax())
    scaling.calls = 2
    for low, high in [(0.0, 127.0), (-254.0, 0.0), (-999.0, 999.0)]:
        scaling(torch.tensor([low, high]))
    assert (scaling.magnitude.item(), scaling.low.item()) == (381, -254)


# Calibrated again


@pytest.mark.parametrize("kind", [CalibratedScaling, RunningScaling])
def test_calibration_can_be_started_again(kind):
    scaling = build(kind, **({"calibration_steps": 2} if kind is CalibratedScaling else {}))
    feed(scaling, *[127.0] * 3)
    assert scaling.phase == "calibrated"
    scaling.start_calibration()
    assert scaling.phase == "empty"
    assert feed(scaling, 508.0).item() == 4
    assert feed(scaling, 508.0).item() == 4
    assert scaling.phase == "calibrated"


def test_nothing_measured_nothing_ends():
    scaling = build(CalibratedScaling)
    scaling.finish_calibration()
    assert (scaling.phase, scaling.calibrating) == ("empty", True)
    assert feed(scaling, 127.0).item() == 1


@pytest.mark.parametrize("calls", [1, 2])
def test_a_running_average_can_be_ended(calls):
    scaling = build(RunningScaling)
    scaling.calls = calls
    feed(scaling, *[127.0] * calls)
    scaling.finish_calibration()
    assert not scaling.calibrating
    assert feed(scaling, 999.0).item() == 1


# The rest


def test_choices():
    assert SCALINGS == {
        "constant": ConstantScaling,
        "statistic": StatisticScaling,
        "learned": LearnedScaling,
        "calibrated": CalibratedScaling,
        "running": RunningScaling,
    }


def test_measuring():
    """Asked after `prepare`, as the statistics of a ReLU are those of what it passes."""
    x = torch.tensor([1.0])
    assert not ConstantScaling(NARROW, scale=1.0).measuring
    assert StatisticScaling(NARROW).measuring
    learned = build(LearnedScaling)
    assert learned.eval().measuring
    learned.train().prepare(x)  # which measures at once
    assert not learned.measuring
    assert not learned.eval().measuring
    running = build(RunningScaling)
    running.prepare(x)
    assert running.measuring
    running(x)
    assert not running.eval().measuring


def test_printed():
    """The phase is part of it: a model that stopped in mid-calibration shows it."""
    assert repr(ConstantScaling(NARROW, scale=2**-7)) == "ConstantScaling(0.0078125, per tensor)"
    assert repr(ConstantScaling(NARROW, scale=[1.0, 2.0], axis=1, restriction=PowerOfTwoScale())) == (
        "ConstantScaling(2 numbers, per index of axis 1, PowerOfTwoScale('ceil'))"
    )
    assert repr(ConstantScaling(NARROW, scale=1.0, device="meta")) == "ConstantScaling(per tensor)"
    assert repr(StatisticScaling(NARROW, axis=0)) == "StatisticScaling(AbsMax(), per index of axis 0)"
    assert repr(build(LearnedScaling, MinMax())) == "LearnedScaling(MinMax(), per tensor, empty)"
    assert repr(build(LearnedScaling, max_value=1.0)) == "LearnedScaling(AbsMax(), per tensor, calibrated)"
    scaling = build(CalibratedScaling, calibration_steps=2)
    found = [repr(scaling)]
    for _ in range(2):
        feed(scaling, 1.0)
        found.append(repr(scaling))
    assert found == [
        "CalibratedScaling(AbsMax(), per tensor, empty)",
        "CalibratedScaling(AbsMax(), per tensor, calibrating, 1 of 2 steps)",
        "CalibratedScaling(AbsMax(), per tensor, calibrated)",
    ]


@pytest.mark.parametrize("kind", STORED)
@pytest.mark.parametrize("restriction", ["float", "log"])
def test_a_range_that_was_measured_elsewhere(kind, restriction):
    scaling = kind(UNSIGNED, MinMax(), RESTRICTIONS[restriction](), axis=0)
    scaling(torch.ones(1, 2))
    scaling.set_range([torch.tensor([2.55, 5.1]), torch.tensor([-1.0, 0.0])], forwards=4)
    assert (scaling.phase, scaling.calibrating, scaling.low.tolist()) == ("calibrated", False, [-1, 0])
    assert scaling.standing().tolist() == [value(0.01), value(0.02)]
    assert scaling.steps.item() == {LearnedScaling: 1, CalibratedScaling: 300, RunningScaling: 4}[kind]
    scaling(torch.full((2, 1), 9.0))
    moved = kind is RunningScaling and 0.1 * (9 - 5.1) / 255
    assert scaling.standing()[1].item() == value(0.02 + moved)

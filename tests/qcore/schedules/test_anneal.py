import copy
import pickle
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import bitwright.nn as qnn
from bitwright.qcore import (
    SHAPES,
    AbsPercentile,
    Anneal,
    IntRange,
    MeanSigma,
    PercentileInterval,
    QuantizerError,
    SettingError,
    TensorQuant,
    describe,
    in_use,
    resolve,
)
from bitwright.qcore.scaling.magnitude import MagnitudeScaling
from bitwright.qcore.scaling.restriction import FloatScale
from bitwright.quantizers import Int8Act, Int8WeightPerTensor, Int32Bias, ShiftedUint8Act


def at(schedule, step):
    return schedule.at(torch.tensor(step)).item()


@pytest.mark.parametrize(
    ("shape", "values"),
    [
        ("linear", [8, 8, 7, 6, 5, 4, 4]),
        ("cosine", [8, 8, 8 - 4 * 0.1464466094, 6, 8 - 4 * 0.8535533906, 4, 4]),
        ("cubic", [8, 8, 8 - 4 * (1 - 0.75**3), 8 - 4 * 0.875, 8 - 4 * (1 - 0.25**3), 4, 4]),
        (lambda progress: progress**2, [8, 8, 7.75, 7, 5.75, 4, 4]),
        (lambda progress: 3 * progress - 1, [8, 8, 8, 6, 4, 4, 4]),  # never beyond the ends
    ],
)
def test_values_on_the_way(shape, values):
    schedule = Anneal(8, 4, steps=8, shape=shape, after=2)
    assert [at(schedule, step) for step in (0, 2, 4, 6, 8, 10, 99)] == pytest.approx(values, abs=1e-9)
    assert schedule.length == 10


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6), st.integers(1, 10**6), st.sampled_from(sorted(SHAPES)))
def test_ends_are_exact(start, end, steps, shape):
    schedule = Anneal(start, end, steps, shape)
    assert (at(schedule, 0), at(schedule, steps), at(schedule, steps + 1)) == (start, end, end)


def test_is_a_value():
    schedule = Anneal(8, 4, steps=1000)
    assert schedule == Anneal(8, 4, 1000, "linear", 0) != Anneal(8, 4, steps=999)
    assert hash(schedule) == hash(Anneal(8, 4, steps=1000))
    assert pickle.loads(pickle.dumps(schedule)) == copy.deepcopy(schedule) == schedule
    assert repr(Anneal(3.0, 2.5, 10, "cosine", after=5)) == "Anneal(3.0, 2.5, steps=10, shape='cosine', after=5)"
    assert repr(Anneal(3, 2, 10, torch.sqrt)) == "Anneal(3, 2, steps=10, shape=sqrt)"
    quantizer = Int8WeightPerTensor(bit_width=schedule)
    assert quantizer == Int8WeightPerTensor(bit_width=Anneal(8, 4, steps=1000))
    assert repr(quantizer) == "Int8WeightPerTensor(bit_width=Anneal(8, 4, steps=1000))"
    assert describe(quantizer).find("bit_width").value == "Anneal(8, 4, steps=1000)"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"start": "8"}, "start='8' is not possible: expected a finite number."),
        ({"end": float("inf")}, "end=inf is not possible: expected a finite number."),
        ({"start": True}, "start=True is not possible: expected a finite number."),
        ({"steps": 0}, "steps=0 is not possible: expected a whole number of training forwards, 1 or more."),
        ({"steps": 10.5}, "steps=10.5 is not possible: expected a whole number of training forwards, 1 or more."),
        ({"after": -1}, "after=-1 is not possible: expected a whole number of training forwards, 0 or more."),
        (
            {"shape": "cosin"},
            "shape='cosin' is not possible: expected one of 'linear', 'cosine', 'cubic', or a function from progress "
            "to the share of the way.",
        ),
    ],
)
def test_impossible_schedules(settings, message):
    with pytest.raises(SettingError) as error:
        Anneal(**{"start": 8, "end": 4, "steps": 10, **settings})
    assert str(error.value) == message


def test_in_use():
    assert in_use(2.5) == 2.5
    assert in_use(None) is None
    assert in_use(Anneal(3, 2, steps=10)) == 3.0
    assert IntRange(Anneal(8, 4, steps=10), signed=True).bounds() == (-128, 127)


def stepped(quantizer, x, steps):
    """The quantizer after so many training forwards on an input."""
    quant = resolve(quantizer)
    for _ in range(steps):
        quant(x)
    return quant.eval()


def test_bit_widths_are_whole_and_fast():
    quant = resolve(Int8WeightPerTensor(bit_width=Anneal(8, 4, steps=8)))
    x = torch.linspace(-1, 1, 301)
    widths = []
    for _ in range(10):
        grid = quant.quantize(x)[1]
        widths.append(grid.bit_width)
        assert grid.to_int(quant(x)).abs().max() <= 2 ** (grid.bit_width - 1) - 1
    assert all(type(each) is int for each in widths)
    assert widths[:5] == [8, 7, 6, 5, 4]  # each quantizer is called twice in the loop: steps 0, 2, 4, 6, 8


@pytest.mark.parametrize(
    ("quantizer", "steps", "scale"),
    [
        (Int8Act(statistic="mean_sigma", sigma=Anneal(2.0, 0.0, steps=4)), 2, (2.5 + 1.1180340) / 127),
        (Int8Act(percentile=Anneal(100, 50, steps=4)), 2, 3 / 127),
        (Int8Act(percentile=Anneal(100, 50, steps=4)), 4, 2 / 127),
        (ShiftedUint8Act(high_percentile=Anneal(100, 50, steps=2)), 1, 3 / 255),
        (ShiftedUint8Act(low_percentile=Anneal(50, 25, steps=1)), 0, (4 + 2) / 255),
        (ShiftedUint8Act(low_percentile=Anneal(50, 25, steps=1)), 1, (4 + 4) / 255),
    ],
)
def test_statistics_follow(quantizer, steps, scale):
    x = torch.tensor([1.0, 2.0, 3.0, 4.0])
    if "low_percentile=" in repr(quantizer):
        x = torch.tensor([-4.0, -2.0, 3.0, 4.0])
    quant = stepped(quantizer(scaling="statistic", narrow_range="Shifted" not in repr(quantizer)), x, steps)
    assert quant.grid(x).scale.item() == pytest.approx(scale, rel=1e-6)


def test_momentum_follows():
    quant = resolve(Int8Act(momentum=Anneal(1.0, 0.5, steps=1), statistic="abs_max", narrow_range=True))
    quant(torch.tensor([1.27]))
    quant(torch.tensor([2.54]))  # half of the way
    assert quant.eval().grid(torch.ones(1)).scale.item() == pytest.approx(0.015)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: AbsPercentile(Anneal(90, 101, steps=2)),
            "percentile=Anneal(90, 101, steps=2) is not possible: expected a number above 0, up to 100, at both ends. "
            "Write percentile=99.9 for 99.9 percent.",
        ),
        (
            lambda: MeanSigma(Anneal(3, -1, steps=2)),
            "sigma=Anneal(3, -1, steps=2) is not possible: expected a number of standard deviations, 0 or more, at "
            "both ends.",
        ),
        (
            lambda: PercentileInterval(Anneal(0, 60, steps=2), Anneal(99, 50, steps=2)),
            "low_percentile=Anneal(0, 60, steps=2) is not possible: expected less than "
            "high_percentile=Anneal(99, 50, steps=2).",
        ),
        (
            lambda: IntRange(Anneal(8, 2.5, steps=2), signed=True),
            "bit_width=Anneal(8, 2.5, steps=2) is not possible: expected a whole number from 2 to 32, at both ends. "
            "Write bit_width=2.",
        ),
        (
            lambda: qnn.QuantLinear(4, 2, weight_axis=Anneal(0, 1, steps=2)),
            "QuantLinear(in_features=4, out_features=2, bias=True): weight_axis=Anneal(0, 1, steps=2) is not possible: "
            "expected a number that stays: 'statistic' reads it once. Write weight_axis=0. What can be annealed here: "
            "bit_width.",
        ),
        (
            lambda: qnn.QuantReLU(calibration_steps=Anneal(30, 10, steps=2)),
            "QuantReLU(): calibration_steps=Anneal(30, 10, steps=2) is not possible: expected a number that stays: "
            "'calibrated' reads it once. Write calibration_steps=30. What can be annealed here: bit_width, momentum, "
            "percentile.",
        ),
        (
            lambda: qnn.QuantLinear(4, 2, bias_quant=Int32Bias, bias_bit_width=Anneal(32, 16, steps=2)),
            "QuantLinear(in_features=4, out_features=2, bias=True): bias_bit_width=Anneal(32, 16, steps=2) is not "
            "possible: expected a number that stays: BiasQuant counts no training steps. Write bias_bit_width=32.",
        ),
    ],
)
def test_what_cannot_be_annealed(build, message):
    with pytest.raises(QuantizerError) as error:
        build()
    assert str(error.value) == message


class Share(MagnitudeScaling):
    """A scaling of the user's own, with a setting that may be annealed."""

    anneals = ("share",)

    def __init__(self, number_format, share=0.9):
        super().__init__(number_format, FloatScale(), min_scale=1e-10)
        self.share = share

    def forward(self, x):
        return self.scale_of(in_use(self.share) * x.abs().amax(), x)


class Deaf(Share):
    anneals = ()


def test_parts_of_the_users_own():
    class Mine(Int8WeightPerTensor):
        scaling = Share
        share = Anneal(1.0, 0.5, steps=2)

    quant = stepped(Mine, torch.tensor([1.27]), 1)
    assert quant.grid(torch.tensor([1.27])).scale.item() == pytest.approx(0.0075)
    message = (
        "resolve: in Mine, share=Anneal(1.0, 0.5, steps=2) is not possible: expected a number that stays: Deaf reads "
        "it once. Write share=1.0. What can be annealed here: bit_width."
    )
    with pytest.raises(SettingError, match=re.escape(message)):
        resolve(Mine(scaling=Deaf), where="resolve")


def test_quantizers_of_the_users_own_that_count_nothing():
    class Own(TensorQuant):
        def __init__(self, int_range):
            super().__init__()
            self.int_range = int_range

    message = "expected a number that stays: Own counts no training steps. Write bit_width=8."
    with pytest.raises(SettingError, match=re.escape(message)):
        resolve(Int8WeightPerTensor(tensor_quant=Own, bit_width=Anneal(8, 4, steps=2)))


def test_a_model_of_rules_and_copies():
    model = nn.Sequential(qnn.QuantLinear(4, 4, weight_bit_width=Anneal(8, 2, steps=6)), qnn.QuantReLU())
    x = torch.ones(1, 4)
    model(x)
    other = copy.deepcopy(model)
    third = pickle.loads(pickle.dumps(model))
    for _ in range(2):
        model(x)
    widths = [each.eval()[0].quant_weight().bit_width for each in (model, other, third)]
    assert widths == [5, 7, 7]  # copies have clocks of their own
    other.train()(x)
    assert other.eval()[0].quant_weight().bit_width == 6

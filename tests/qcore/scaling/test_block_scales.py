"""Scales of microscaling formats, and scales that are themselves quantized."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import bitwright.nn as qnn
from bitwright.qcore import (
    E2M1,
    E4M3,
    E5M2,
    Anneal,
    IntRange,
    LearnedBitWidth,
    LogScale,
    MXScale,
    PowerOfTwoScale,
    SettingError,
    StatisticScaling,
    TwoLevel,
    composed_fake_quant,
    resolve,
)
from bitwright.qcore.formats.integers import Integers
from bitwright.qcore.kernels.composed import composed
from bitwright.qcore.kernels.dispatch import to_levels
from bitwright.quantizers import (
    Int8WeightPerGroup,
    MXFloat4e2m1Weight,
    MXFloat8e4m3Weight,
    MXInt8Weight,
    NVFloat4Weight,
)
from tests.qcore.formats.vectors import FORMATS, floats, golden, same_bits

RULES = ("floor", "ceil", "even", "rceil")
INT8 = IntRange(8, signed=True, narrow_range=True)
MX = golden("mx")["vectors"]


def amax(values):
    return torch.tensor(values)


@pytest.mark.parametrize("vector", MX, ids=lambda each: f"{each['element']} {each['rule']}")
def test_golden_blocks(vector):
    form, unit = (INT8, 1 / 64) if vector["element"] == "int8" else (FORMATS[vector["element"]], 1.0)
    x, y = floats(vector["x"]).reshape(1, -1), floats(vector["y"])
    scaling = StatisticScaling(form, restriction=MXScale(vector["rule"]), min_scale=2.0**-127 * unit)
    scale = scaling(x)
    if x.any():
        assert scale.item() == vector["scale"] * unit
    found = to_levels(x, scale, form.settled()).reshape(-1)
    assert same_bits(found + 0.0, y + 0.0)


def test_golden_two_level():
    vectors = golden("nvfp4")
    x, y = floats(vectors["x"]).reshape(-1, 16), floats(vectors["y"]).reshape(-1, 16)
    magnitude = x.abs().amax(1)
    steps, tensor_scale = TwoLevel().split(magnitude, E2M1)
    assert tensor_scale.item() == vectors["tensor_scale"]
    assert torch.equal(steps, floats(vectors["block_scales"]))
    scale = TwoLevel().scale(magnitude, E2M1)
    assert torch.equal(to_levels(x, scale[:, None], E2M1), y)


@pytest.mark.parametrize(
    ("quantizer", "name"), [(MXFloat4e2m1Weight, "e2m1fn"), (MXFloat8e4m3Weight, "e4m3fn")], ids=str
)
def test_quantizers_are_the_standard(quantizer, name):
    for vector in MX:
        if vector["element"] != name:
            continue
        x = floats(vector["x"]).reshape(1, 32)
        quant = resolve(quantizer(mx_rule=vector["rule"]), {"channel_axis": 0, "shape": (1, 32)})
        assert torch.equal(quant(x).reshape(-1), floats(vector["y"]))


def test_int8_elements_are_64ths():
    """Brevitas has half the step, and clips everything above 2**floor(log2(amax))."""
    quant = resolve(Int8WeightPerGroup(restriction="mx", min_scale=2.0**-127), {"channel_axis": 0, "shape": (1, 2)})
    values, grid = quant.quantize(torch.tensor([[1.0576, -0.5]]))
    assert values.tolist() == [[1.0625, -0.5]]
    assert grid.scale.item() == 1 / 64


@pytest.mark.parametrize(
    ("rule", "expected"),
    [("floor", [1.0, 1.0, 1.0, 2.0]), ("ceil", [1.0, 2.0, 2.0, 2.0]), ("even", [1.0, 1.0, 2.0, 2.0])],
)
def test_rules_by_hand(rule, expected):
    assert MXScale(rule).scale(amax([4.0, 6.9, 7.0, 8.0]), E2M1).tolist() == expected


def test_rceil_is_the_smallest_that_clips_nothing():
    assert MXScale("rceil").scale(amax([6.0, 6.0000005, 12.0, 448.0]), E2M1).tolist() == [1, 2, 2, 128]
    assert MXScale("rceil").scale(amax([448.0, 449.0]), E4M3).tolist() == [1, 2]


@given(magnitude=st.floats(2**-120, 2**120, width=32), form=st.sampled_from([E2M1, E4M3, E5M2]))
def test_who_covers_clips_nothing(magnitude, form):
    x = amax([magnitude, -magnitude, magnitude / 3])
    for restriction in (MXScale("ceil"), MXScale("rceil"), PowerOfTwoScale("ceil")):
        assert restriction.covers(form)
        scale = restriction.scale(x.abs().amax(), form)
        assert form.inside(x / scale, torch.round).all()
        assert (to_levels(x, scale, form).abs() <= form.high * scale).all()
    for restriction in (MXScale("floor"), MXScale("even"), TwoLevel(), PowerOfTwoScale("floor")):
        assert not restriction.covers(form)


def test_who_covers_integers():
    assert MXScale("ceil").covers(INT8)
    assert LogScale().covers(INT8)
    assert not PowerOfTwoScale().covers(INT8)  # 128 steps are one more than there are


def test_scale_stays_in_e8m0():
    assert MXScale().scale(amax([2.0**-149, 3e38]), E5M2).tolist() == [2.0**-127, 2.0**112]
    for rule, power in (("ceil", 113), ("even", 112), ("rceil", 113)):
        assert MXScale(rule).scale(amax([2.0**-149, 3e38]), E5M2).tolist() == [2.0**-127, 2.0**power]


@pytest.mark.parametrize("restriction", [*map(MXScale, RULES), TwoLevel()], ids=repr)
def test_gradient_is_the_ratio(restriction):
    magnitude = torch.tensor([3.0, 5.0], requires_grad=True)
    scale = restriction.scale(magnitude, E2M1)
    scale.sum().backward()
    assert magnitude.grad.tolist() == pytest.approx((scale / magnitude).tolist())


def test_exporters_find_the_same_powers(monkeypatch):
    from bitwright.qcore.scaling import restriction as module

    x = torch.cat([torch.rand(2000, generator=torch.Generator().manual_seed(0)) * 2.0**each for each in range(-60, 60)])
    x = torch.cat([x[x > 0], 2.0 ** torch.arange(-60.0, 60)])
    for rounding in ("floor", "ceil"):
        expected = module.next_power_of_two(x, rounding)
        with monkeypatch.context() as patch:
            patch.setattr(module, "exporting", lambda: True)
            assert torch.equal(module.next_power_of_two(x, rounding), expected)


def test_constants_must_be_allowed():
    assert MXScale().restrict(amax([1.5, 4.0])).tolist() == [1, 4]
    assert MXScale().int_threshold(E2M1) == 4
    assert (MXScale("even").kind, repr(MXScale())) == ("MX (even)", "MXScale('floor')")
    assert (TwoLevel().kind, repr(TwoLevel(E5M2))) == ("two-level (e4m3fn)", "TwoLevel(e5m2)")


def test_blocks_of_little_under_a_large_one():
    """A block's scale is never 0: its smallest level above is taken."""
    steps, _ = TwoLevel().split(amax([1e6, 1e-6]), E2M1)
    assert steps.tolist() == [448, 2**-9]


def test_groups_that_are_not_full():
    quant = resolve(NVFloat4Weight, {"channel_axis": 0, "shape": (2, 20)})
    values, grid = quant.quantize(torch.randn(2, 20, generator=torch.Generator().manual_seed(0)))
    assert grid.scale.shape == (2, 2)
    assert torch.equal(grid.from_int(grid.to_int(values)), values)


def test_refusals():
    with pytest.raises(SettingError) as error:
        MXScale("round")
    assert str(error.value) == "mx_rule='round' is not possible: expected 'floor', 'ceil', 'even' or 'rceil'."
    with pytest.raises(SettingError) as error:
        TwoLevel("e4m3")
    assert str(error.value) == "scale_format='e4m3' is not possible: expected a number format such as E4M3."


@pytest.mark.parametrize("rule", RULES)
def test_learned_bit_widths_of_integers(rule):
    learned = qnn.QuantLinear(64, 3, weight_quant=MXInt8Weight, weight_bit_width=LearnedBitWidth, weight_mx_rule=rule)
    fixed = qnn.QuantLinear(64, 3, weight_quant=MXInt8Weight, weight_mx_rule=rule)
    fixed.weight = learned.weight
    assert torch.equal(learned.quant_weight().value, fixed.quant_weight().value)
    annealed = qnn.QuantLinear(64, 3, weight_quant=MXInt8Weight, weight_bit_width=Anneal(8, 4, steps=2)).eval()
    assert annealed.quant_weight().is_valid


def test_integers_through_both_doors():
    x = torch.linspace(-3, 3, 50)
    scale = torch.tensor(0.3)
    assert torch.equal(composed(x, scale, Integers(4)), composed_fake_quant(x, scale, -8, 7))
    assert math.isclose(INT8.power, 64)
    assert (INT8.mantissa_bits, Integers(8).mantissa_bits, IntRange(8, signed=False).power) == (6, 6, 128)

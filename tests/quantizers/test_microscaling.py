"""Microscaling and NVFP4: golden blocks, exact fractions, groups along the reduction dimension of every layer."""

from bisect import bisect_left
from fractions import Fraction
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import bitwright.nn as qnn
from bitwright import quantizers
from bitwright.qcore import E2M1, E4M3, PerGroup, resolve
from bitwright.quantizers import (
    Int4WeightPerTensor,
    MXFloat4e2m1Act,
    MXFloat4e2m1Weight,
    MXFloat8e4m3Act,
    MXFloat8e4m3Weight,
    MXGroups,
    MXInt8Act,
    MXInt8Weight,
    NVFloat4Act,
    NVFloat4Weight,
)
from tests.qcore.formats.vectors import floats, golden

ELEMENTS = {  # exponent bits, mantissa bits, bias, largest; by the standard's tables
    "e4m3fn": ("MXFloat8e4m3", 4, 3, 7, 448),
    "e5m2": ("MXFloat8e5m2", 5, 2, 15, 57344),
    "e3m2fn": ("MXFloat6e3m2", 3, 2, 3, 28),
    "e2m3fn": ("MXFloat6e2m3", 2, 3, 1, Fraction(15, 2)),
    "e2m1fn": ("MXFloat4e2m1", 2, 1, 1, 6),
    "int8": ("MXInt8", None, None, None, Fraction(127, 64)),
}
RULES = ("floor", "ceil", "even", "rceil")
KINDS = ("Weight", "Act")


def quantizer(element, kind, rule="floor"):
    """A resolved quantizer for a block of 32."""
    provided = {"channel_axis": 0, "shape": (1, 32)} if kind == "Weight" else {}
    return resolve(getattr(quantizers, ELEMENTS[element][0] + kind)(mx_rule=rule), provided).eval()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("element", ELEMENTS)
def test_golden(element, kind):
    vectors = [each for each in golden("mx")["vectors"] if each["element"] == element]
    assert {each["rule"] for each in vectors} == set(RULES)
    for vector in vectors:
        values, grid = quantizer(element, kind, vector["rule"]).quantize(floats(vector["x"]).reshape(1, 32))
        assert torch.equal(values.reshape(-1), floats(vector["y"]))
        if values.any():
            assert grid.scale.item() == vector["scale"] / (64 if element == "int8" else 1)


@pytest.mark.parametrize("nv", [NVFloat4Weight, NVFloat4Act], ids=repr)
def test_golden_nvfp4(nv):
    vectors = golden("nvfp4")
    x = floats(vectors["x"]).reshape(1, -1)
    quant = resolve(nv, {"channel_axis": 0, "shape": tuple(x.shape)} if nv is NVFloat4Weight else {})
    values, grid = quant.quantize(x)
    assert torch.equal(values.reshape(-1), floats(vectors["y"]))
    scales = grid.scales
    assert scales.scale.item() == vectors["tensor_scale"]
    codes = scales.to_int(grid.scale)
    assert torch.equal(scales.number_format.decode(codes).reshape(-1), floats(vectors["block_scales"]))


# Exact fractions


@cache
def levels_of(element):
    """The levels from 0 on, and the digits of a mantissa, by the definition of a float, or of 64ths."""
    _, exponents, mantissas, bias, high = ELEMENTS[element]
    if element == "int8":
        return [Fraction(code, 64) for code in range(128)], 6
    ulp = Fraction(2) ** (1 - bias - mantissas)
    found = [code * ulp for code in range(2**mantissas)]
    for exponent in range(1, 2**exponents):
        steps = (2**mantissas + code for code in range(2**mantissas))
        found += [step * ulp * 2 ** (exponent - 1) for step in steps]
    return [level for level in found if level <= high], mantissas


def power_below(number):
    power = Fraction(1)
    while power > number:
        power /= 2
    while power * 2 <= number:
        power *= 2
    return power


def power_above(number):
    return power_below(number) if power_below(number) == number else 2 * power_below(number)


def block_of(values, element, rule):
    """The scale and the values of a block, exactly: OCP Microscaling 1.0, 6.3, and the other rules for its scale."""
    levels, digits = levels_of(element)
    values = [Fraction(value) for value in values]
    largest = max(map(abs, values))
    if largest == 0:
        return None, [0.0] * len(values)
    top = power_below(levels[-1])
    scale = {
        "floor": lambda: power_below(largest) / top,
        "ceil": lambda: power_above(largest) / top,
        "even": lambda: power_below(largest + power_below(largest) / 2 ** (digits + 1)) / top,
        "rceil": lambda: power_above(largest / levels[-1]),
    }[rule]()

    def nearest(number):
        above = min(bisect_left(levels, number), len(levels) - 1)
        around = (max(above - 1, 0), above)
        return levels[min(around, key=lambda code: (abs(levels[code] - number), code % 2))]

    signed = (nearest(abs(each / scale)) * (1 if each > 0 else -1) for each in values)
    return float(scale), [float(each * scale) for each in signed]


BLOCKS = st.tuples(
    st.lists(st.floats(-4, 4, width=16), min_size=32, max_size=32), st.integers(-60, 60), st.sampled_from(RULES)
)


@pytest.mark.parametrize("element", ELEMENTS)
@settings(max_examples=20)
@given(block=BLOCKS, kind=st.sampled_from(KINDS))
def test_exact_fractions(element, kind, block):
    numbers, exponent, rule = block
    x = torch.tensor([numbers]) * 2.0**exponent
    scale, expected = block_of(x[0].tolist(), element, rule)
    values, grid = quantizer(element, kind, rule).quantize(x)
    assert values[0].tolist() == expected
    if scale is not None:
        assert grid.scale.item() * (64 if element == "int8" else 1) == scale


def test_blocks_of_gfloat():
    gfloat = pytest.importorskip("gfloat")
    formats = pytest.importorskip("gfloat.formats")

    generator = torch.Generator().manual_seed(0)
    for element, known in {
        "e4m3fn": formats.format_info_mxfp8_e4m3,
        "e5m2": formats.format_info_mxfp8_e5m2,
        "e3m2fn": formats.format_info_mxfp6_e3m2,
        "e2m3fn": formats.format_info_mxfp6_e2m3,
        "e2m1fn": formats.format_info_mxfp4_e2m1,
    }.items():
        x = torch.randn(200, 32, generator=generator) * 2.0 ** torch.randint(-20, 20, (200, 1), generator=generator)
        values = quantizer(element, "Act").quantize(x)[0]
        for block, found in zip(x.double().numpy(), values, strict=True):
            expected = gfloat.quantize_block(known, block, gfloat.compute_scale_amax)
            assert found.tolist() == expected.tolist()


# Layers


@pytest.mark.parametrize(
    ("build", "axis", "scales"),
    [
        (lambda **given: qnn.QuantLinear(70, 6, **given), 1, (6, 3)),
        (lambda **given: qnn.QuantConv2d(70, 6, 3, **given), 1, (6, 3, 3, 3)),
        (lambda **given: qnn.QuantConv2d(70, 70, 3, groups=70, **given), 1, (70, 1, 3, 3)),
        (lambda **given: qnn.QuantConv1d(70, 8, 3, groups=2, **given), 1, (8, 2, 3)),
        (lambda **given: qnn.QuantConvTranspose2d(70, 6, 3, **given), 0, (3, 6, 3, 3)),
    ],
    ids=["linear", "conv", "depthwise", "conv in groups", "transposed"],
)
def test_groups_lie_along_the_input_channels(build, axis, scales):
    module = build(weight_quant=MXFloat4e2m1Weight)
    weight = module.quant_weight()
    assert weight.grid.granularity == PerGroup(32, axis)
    assert weight.scale.shape == scales
    assert weight.is_valid
    block, found = (each.detach().movedim(axis, -1)[0, ..., :32] for each in (module.weight, weight.value))
    assert torch.equal(quantizer("e2m1fn", "Act")(block), found)


def test_inputs_of_convolutions():
    module = qnn.QuantConv2d(64, 6, 3, weight_quant=MXFloat8e4m3Weight, input_quant=MXFloat8e4m3Act, input_group_axis=1)
    x = torch.randn(2, 64, 5, 5, generator=torch.Generator().manual_seed(0))
    assert module.input_quant.grid(x).scale.shape == (2, 2, 5, 5)
    expected = nn.functional.conv2d(module.input_quant.quantize(x)[0], module.quant_weight().value, module.bias)
    assert torch.equal(module(x), expected)


def test_activations_follow_every_tensor():
    act = qnn.QuantIdentity(act_quant=MXFloat4e2m1Act, return_quant_tensor=True).eval()
    x = torch.randn(3, 70, generator=torch.Generator().manual_seed(0))
    for factor in (1.0, 8.0):
        y = act(x * factor)
        assert y.is_valid
        assert torch.equal(y.value, act(x).value * factor)
    assert act.act_quant.dynamic
    assert list(act.state_dict()) == ["act_quant.scheme"]


def test_int8_elements_are_64ths():
    """Brevitas has half the step, and clips everything above 2**floor(log2(amax))."""
    for each in (MXInt8Weight, MXInt8Act):
        quant = resolve(each, {"channel_axis": 0, "shape": (1, 3)} if each is MXInt8Weight else {})
        values, grid = quant.quantize(torch.tensor([[1.0576, -0.5, 1.999]]))
        assert values.tolist() == [[1.0625, -0.5, 1.984375]]
        assert (grid.scale.item(), grid.bounds) == (1 / 64, (-127, 127))


def test_fragments_go_with_other_levels():
    class MXInt4Weight(MXGroups, Int4WeightPerTensor):
        group_size = 16

    weight = qnn.QuantLinear(64, 2, weight_quant=MXInt4Weight).quant_weight()
    assert (weight.bit_width, weight.scale.shape) == (4, (2, 4))
    assert torch.equal(torch.frexp(weight.scale).mantissa, torch.full_like(weight.scale, 0.5))


def test_scales_of_nvfp4_are_stored_in_a_byte():
    weight = qnn.QuantLinear(64, 2, weight_quant=NVFloat4Weight).quant_weight()
    grid = weight.grid
    codes = grid.scales.to_int(grid.scale)
    assert (grid.number_format, grid.scale_format, codes.dtype) == (E2M1, E4M3, torch.uint8)
    assert int(codes.max()) == 126  # the largest block has the highest level, 448
    assert torch.equal(grid.from_int(weight.int()), weight.value)


@pytest.mark.parametrize("each", [MXFloat8e4m3Act, MXInt8Act, NVFloat4Act], ids=repr)
def test_no_gradient_through_the_scale(each):
    x = torch.randn(2, 64, requires_grad=True)
    quant = resolve(each)
    quant(x).sum().backward()
    assert set(x.grad.unique().tolist()) <= {0.0, 1.0}

"""The golden vectors of floats, tables and blocks are what their definitions say, and what the library computes."""

import json
import math
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
import torch

from bitwright.qcore import (
    BINARY,
    E2M1,
    E2M3,
    E3M2,
    E4M3,
    E4M3FNUZ,
    E5M2,
    E5M2FNUZ,
    NF4,
    ROUNDINGS,
    Grid,
    Integers,
    MXScale,
    TwoLevel,
    powers_of_two,
)
from bitwright.qcore.kernels.dispatch import to_levels
from bitwright.testing import golden_blocks, golden_vectors
from bitwright.testing.golden import level_vectors
from bitwright.testing.golden.levels import LEVELS, Float, block_scale, exponent_of
from bitwright.testing.golden.vector import FOLDER
from tests.qcore.formats.vectors import floats, golden, same_bits

OURS = {
    "e4m3fn": E4M3,
    "e5m2": E5M2,
    "e4m3fnuz": E4M3FNUZ,
    "e5m2fnuz": E5M2FNUZ,
    "e3m2fn": E3M2,
    "e2m3fn": E2M3,
    "e2m1fn": E2M1,
    "e3m0b7fn": powers_of_two(4),
    "nf4": NF4,
    "binary": BINARY,
    "ternary": Integers(2, narrow_range=True),
}
names = pytest.mark.parametrize("name", LEVELS)


def test_all_ready_formats_are_here():
    assert set(OURS) == set(LEVELS)


@names
def test_files_are_what_the_oracle_makes(name):
    kept = (FOLDER / f"{name}.json").read_text(encoding="utf-8")
    assert kept == level_vectors.written(LEVELS[name])


def test_blocks_are_what_the_oracle_makes():
    assert (FOLDER / "blocks.json").read_text(encoding="utf-8") == level_vectors.written_blocks()


@names
def test_levels_are_the_librarys(name):
    found = [None if not math.isfinite(level) else level for level in OURS[name].levels]
    if name == "ternary":
        found = [found[1], found[2], None, found[0]]  # codes of integers are two's complement
    assert found == [None if level is None else float(level) for level in LEVELS[name].values]


@names
def test_library_computes_the_golden_codes_and_values(name):
    form = OURS[name]
    for vector in golden_vectors(name):
        x, scale = torch.from_numpy(vector.x), torch.tensor(vector.scale)
        rounding = ROUNDINGS[vector.rounding]()
        expected = torch.from_numpy(vector.values)
        with torch.enable_grad():
            traced = to_levels(x.clone().requires_grad_(), scale, form, None, rounding).detach()
        for found in (to_levels(x, scale, form, None, rounding), traced, form.nearest(x / scale, rounding) * scale):
            assert torch.equal(found, expected), vector
        codes = Grid(scale, number_format=form).to_int(expected).long()
        assert (codes % (1 << form.bits)).tolist() == vector.codes.tolist(), vector


@pytest.mark.parametrize(
    "name", [name for name, each in LEVELS.items() if isinstance(each, Float) and "m0" not in name]
)
def test_ml_dtypes_computes_the_golden_codes(name):
    """A second opinion: its casts, of numbers that lie within the ends, and its codes."""
    bits = OURS[name].bits
    theirs = getattr(ml_dtypes, f"float{bits}_{name}")
    for vector in golden_vectors(name):
        if vector.rounding == "half_even":
            with np.errstate(over="ignore"):
                steps = np.clip(vector.x / np.float32(vector.scale), OURS[name].low, OURS[name].high)
            assert (steps.astype(theirs).view(np.uint8) & (2**bits - 1)).tolist() == vector.codes.tolist()


@pytest.mark.parametrize("name", ["e4m3fn", "e5m2", "e4m3fnuz", "e5m2fnuz", "e3m2fn", "e2m3fn", "e2m1fn"])
def test_an_older_oracle_agrees(name):
    vectors, levels = golden(name), LEVELS[name]
    x, y = floats(vectors["x"]), floats(vectors["y"])
    known = torch.isfinite(x)
    found = [levels.values[levels.nearest(each)] for each in x[known].tolist()]
    assert torch.equal(torch.tensor([float(each or 0) for each in found]), y[known])


def test_an_older_oracle_of_scales_agrees():
    for each in golden("mx")["vectors"]:
        x = floats(each["x"])
        if each["element"] in LEVELS and bool(x.any()):  # the scale of zeros is the implementation's choice
            assert block_scale(x.abs().max().item(), LEVELS[each["element"]], each["rule"]) == each["scale"]


def test_library_computes_the_golden_blocks():
    kinds = set()
    for each in golden_blocks():
        form = OURS[each.element]
        rule = TwoLevel() if each.rule == "two_level" else MXScale(each.rule)
        x = torch.from_numpy(each.x)
        scales = rule.scale(x.abs().amax(1), form)
        assert torch.equal(scales, torch.from_numpy(each.scales)), each
        found = to_levels(x, scales[:, None], form)
        steps = form.decode(torch.from_numpy(each.codes))
        assert same_bits(found, steps * scales[:, None]), each
        kinds.add((each.element, each.rule))
    assert len(kinds) == 5 * 4 + 1


def test_exponents():
    assert [exponent_of(Fraction(each)) for each in (1, 2, 3, 0.75, 5e-324, 1e308)] == [0, 1, 1, -1, -1074, 1023]


def test_rounding_by_definition():
    e2m1 = LEVELS["e2m1fn"]
    found = {
        rounding: [float(e2m1.values[e2m1.nearest(each, rounding)] or 0) for each in (2.5, -2.5, 5.0, -0.3, 99.0)]
        for rounding in ("half_even", "half_up", "floor", "ceil", "toward_zero")
    }
    assert found == {
        "half_even": [2, -2, 4, -0.5, 6],
        "half_up": [3, -2, 6, -0.5, 6],
        "floor": [2, -3, 4, -0.5, 6],
        "ceil": [3, -2, 6, 0, 6],
        "toward_zero": [2, -2, 4, 0, 6],
    }
    assert e2m1.nearest(-0.1) == 8  # the code of -0
    assert LEVELS["e4m3fnuz"].nearest(-1e-9) == 0
    assert LEVELS["binary"].nearest(0.0) == 1


def test_files_are_small():
    assert sum(path.stat().st_size for path in FOLDER.iterdir() if path.stem in {*LEVELS, "blocks"}) < 150_000
    assert json.loads((FOLDER / "nf4.json").read_text(encoding="utf-8"))["version"] == level_vectors.VERSION

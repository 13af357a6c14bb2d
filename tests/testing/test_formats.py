"""check_format: ready formats pass, and each rule is seen to fail."""

import pickle
import re
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings

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
    Integers,
    Minifloat,
    NumberFormat,
    OddIntegers,
    SettingError,
    powers_of_two,
)
from bitwright.testing import QuantizerCheckError, check_format
from bitwright.testing import quantizer_strategies as strategies
from bitwright.testing.checks.levels import RULES

SLOW = ("traces", "exports")
READY = [E4M3, E5M2, E4M3FNUZ, E5M2FNUZ, E3M2, E2M3, E2M1, NF4, BINARY, powers_of_two(4), OddIntegers(3), Integers(4)]
OTHERS = [Minifloat(5, 10, infinities=True, nan=True), Minifloat(4, 3, nan=True, saturating=False), Integers(16)]


@pytest.mark.parametrize("levels", READY + OTHERS, ids=str)
def test_ready_formats_pass(levels):
    check_format(levels, skip=SLOW)


@settings(max_examples=25, deadline=None)
@given(strategies.number_formats())
def test_any_format_passes(levels):
    check_format(levels, skip=SLOW)


class Thirds(NamedTuple("_Thirds", [("number", int)]), NumberFormat):
    """A format of the user's own, which says its levels and no more."""

    __slots__ = ()

    @property
    def levels(self):
        return tuple(code / 3 for code in range(-self.number, self.number))


def test_a_format_of_the_users_own_passes():
    pytest.importorskip("onnxruntime")
    report = check_format(Thirds(4))
    assert [result.status for result in report] == ["passed"] * len(RULES)
    assert str(report) == "Thirds(number=4) (number format): 9 checks, 9 passed"


class NotATuple(NumberFormat):
    levels = (0.0, 1.0)  # type: ignore[assignment, override]


class OneLevel(Thirds):
    levels = (0.0, 0.0)  # type: ignore[assignment, override]


class WrongEnd(Thirds):
    high = 7.0  # type: ignore[assignment, override]


class WrongCode(Thirds):
    def encode(self, steps):
        return super().encode(steps) * 0


class GoesDown(Thirds):
    def nearest(self, steps, rounding, relu=False):
        return torch.floor(steps * 3).clamp(-self.number, self.number - 1) / 3


class IgnoresRounding(Thirds):
    def nearest(self, steps, rounding, relu=False):
        return super().nearest(steps, torch.round, relu)


class OtherInPlace(Thirds):
    def inplace(self, steps, rounding, relu=False):
        return super().inplace(steps, rounding, relu).neg_()


class NarrowEdges(Thirds):
    def edges(self, rounding):
        return -0.5, 0.5


class Untraceable(Thirds):
    def nearest(self, steps, rounding, relu=False):
        return super().nearest(steps, rounding, relu) if steps.sum().item() else steps


BROKEN = {
    "is_a_value": (NotATuple(), "expected an equal number format from a pickle; found "),
    "has_levels": (OneLevel(2), "expected a tuple of levels, two of them finite; found (0.0, 0.0)"),
    "encodes": (WrongCode(2), "expected -0.333333333, a level from its code; found -0.666666667"),
    "goes_to_nearest": (GoesDown(2), "the nearest level to "),
    "rounds": (IgnoresRounding(2), "rounding floor; found "),
    "has_one_result": (OtherInPlace(2), "half_even in place; found "),
    "has_edges": (NarrowEdges(2), "expected edges beyond -0.666666667 and 0.333333333; found -0.5, 0.5"),
    "traces": (Untraceable(2), "expected one graph; found "),
}


@pytest.mark.parametrize("rule", BROKEN)
def test_a_broken_rule_is_named(rule):
    levels, message = BROKEN[rule]
    with pytest.raises(QuantizerCheckError) as caught:
        check_format(levels, skip=[each for each in RULES if each != rule])
    assert message in str(caught.value)
    assert caught.value.report.failed == (rule,)


def test_ends_are_those_of_the_levels():
    report = check_format(WrongEnd(2), skip=SLOW, raises=False)
    assert report["has_levels"].message == "expected high = 0.333333333, as the levels say; found 7.0".replace(
        "0.333333333", repr(1 / 3)
    )


def test_every_rule_is_seen_to_fail():
    assert {*BROKEN, "exports"} == set(RULES)
    assert all((rule.__doc__ or "").strip().endswith(".") for rule in RULES.values())


def test_what_is_no_number_format():
    expected = "expected a number format such as E4M3 or Integers(8), of 16 bits at most."
    for given_value in (8, Integers(32)):
        message = f"number_format={given_value!r} is not possible: {expected}"
        with pytest.raises(SettingError, match=f"^{re.escape(message)}$"):
            check_format(given_value)  # type: ignore[arg-type]
    with pytest.raises(SettingError, match=re.escape("Did you mean 'exports'?")):
        check_format(E2M1, skip="export")


def test_levels_pickle():
    assert pickle.loads(pickle.dumps(Thirds(3))) == Thirds(3)

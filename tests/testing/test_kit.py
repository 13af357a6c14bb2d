"""check_quantizer: the shipped quantizers pass it, and its report says what is wrong."""

import pickle

import pytest
import torch

from bitwright.qcore import QuantizerError, SettingError
from bitwright.quantizers import (
    Int4Act,
    Int8Act,
    Int8BiasOwnScale,
    Int8WeightPerChannel,
    Int8WeightPerTensor,
    Int8WeightPerTensorLearned,
    Int32Bias,
    PerOutputChannel,
    ShiftedUint8Act,
    ShiftedUint8WeightPerChannel,
    Uint4Act,
)
from bitwright.testing import CHECKS, Case, QuantizerCheckError, Subject, check_quantizer, register_check
from tests.quantizers.shipped import ALONE, COMPLETE, families, role

COSTLY = ("compiled", "export_qcdq", "export_qdq")
LEVELS = ("declaration", "number_format", "granularity", "grid_membership", "value_range", "rounding")
WHOLE = set(families(ALONE).values())  # the others differ from one of these in their levels alone
_NORMED = ("infinity", "memory_format", "non_finite_input")  # one number is in the norm of all others
ON_PURPOSE = {  # the rules that a quantizer breaks, as its paper has it
    "Int4WeightPerTensorSAWB": ("idempotence",),  # its line through two moments may meet 0
    "Int4WeightPerChannelSAWB": ("idempotence",),
    "Int8WeightPerChannelNorm": _NORMED,
    "Int8WeightPerChannelA2Q": _NORMED,
    "Int8WeightPerChannelA2QPlus": _NORMED,
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if each in WHOLE else [pytest.mark.slow]) for name, each in ALONE.items()]
)
def test_shipped_quantizer_passes(name):
    checks = None if ALONE[name] in WHOLE else LEVELS
    check_quantizer(ALONE[name], checks=checks, skip=(*COSTLY, *ON_PURPOSE.get(name, ())), examples=5)


def test_every_shipped_quantizer_is_checked_or_needs_other_tensors():
    assert set(COMPLETE) - set(ALONE) == {"Fp8e5m2Grad", "Int8Grad", "TruncTo8bit"}


@pytest.mark.parametrize(
    "quantizer",
    [Uint4Act, ShiftedUint8Act, Int8WeightPerTensorLearned, ShiftedUint8WeightPerChannel, Int32Bias, Int8BiasOwnScale],
    ids=repr,
)
def test_shipped_quantizer_compiles_and_exports(quantizer):
    report = check_quantizer(quantizer, checks=COSTLY)
    assert {result.status for result in report} == {"passed"}, report.table()


@pytest.mark.parametrize(
    "quantizer",
    [
        Int8Act(scaling="running", momentum=None),
        Int8Act(scale=0.1),
        Int4Act(scaling="running", rounding="stochastic"),
        Int8Act(statistic="mean_sigma", rounding="half_up", restriction="log"),
        Int4Act(rounding="floor", pass_clipped=True),
        Int8WeightPerTensor(detach_scale=True, narrow_range=False, bit_width=2),
    ],
    ids=repr,
)
def test_derived_quantizer_passes(quantizer):
    check_quantizer(quantizer, skip=COSTLY, examples=5)


def test_transposed_weights_and_images():
    check_quantizer(Int8WeightPerChannel, shape=(4, 3, 2, 2), channel_axis=1, skip=COSTLY, examples=5)
    check_quantizer(
        Int8WeightPerChannel, shape=(4, 3, 2, 2), checks=["state_dict", "float_checkpoint", "memory_format"]
    )


# The report


class Clamped:
    def __call__(self, x):
        return x.round().clamp(-4, 4)


def test_failure_is_explained_with_the_smallest_input():
    with pytest.raises(QuantizerCheckError) as caught:
        check_quantizer(Int4Act(rounding=Clamped), checks=["value_range", "zero"])
    assert str(caught.value) == (
        "Int4Act(rounding=Clamped) (activation): 2 checks, 1 failed, 1 passed\n"
        "  failed   value_range       expected 7 for values at or beyond that end of the range; found 4 for 7\n"
        "                             smallest input: [[7]], float32\n"
        "                             scale: 1"
    )
    result = caught.value.report["value_range"]
    assert result.counterexample.tolist() == [[7.0]]
    assert pickle.loads(pickle.dumps(caught.value)).report.failed == ("value_range",)


def test_what_a_quantizer_raises_is_reported():
    class Raises:
        def __call__(self, x):
            raise RuntimeError("no such thing")

    report = check_quantizer(Int4Act(rounding=Raises), checks=["zero", "dtype"], raises=False)
    assert [result.message.splitlines()[0] for result in report] == ["raised RuntimeError: no such thing"] * 2


def test_random_numbers_of_the_caller_are_left_alone():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    check_quantizer(Int4Act, checks=["determinism", "zero"])
    assert torch.equal(torch.rand(1), expected)


# What is asked for


def test_checks_are_selected_by_name():
    report = check_quantizer(Int4Act, checks=["zero", "idempotence", "dtype"], skip="dtype")
    assert [result.check for result in report] == ["idempotence", "zero"]


def test_unknown_check_is_named():
    with pytest.raises(SettingError, match=r"^skip='idempotency' is not possible: .* Did you mean 'idempotence'\?$"):
        check_quantizer(Int4Act, skip=["idempotency"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (torch.nn.ReLU(), r"check_quantizer\(ReLU\(\)\): not a quantizer class. Pass a class such as Int8Act"),
        (PerOutputChannel, "PerOutputChannel .*is a fragment"),
        (Int4Act(bit_width=1), "check_quantizer: in Int4Act.*bit_width=1 is not possible"),
    ],
)
def test_what_is_no_quantizer_is_refused(given, message):
    with pytest.raises(QuantizerError, match=message):
        check_quantizer(given)


def test_unknown_role_is_refused():
    with pytest.raises(SettingError, match="role='input' is not possible: expected one of 'weight', 'activation'"):
        check_quantizer(Int4Act, role="input")


@pytest.mark.parametrize("name", ALONE)
def test_role_is_that_of_the_name(name):
    assert Subject(ALONE[name]).role == role(name)


def test_added_check_runs():
    try:

        @register_check
        def few_bits(case: Case) -> None:
            """Four bits are enough."""
            assert case.quantize()[1].bit_width <= 4, "too many"

        assert check_quantizer(Int4Act, checks=["few_bits"]).ok
        report = check_quantizer(Int8Act, checks=["few_bits"], raises=False)
        assert report["few_bits"].message.startswith("raised AssertionError: too many")
        assert CHECKS["few_bits"].says == "Four bits are enough."
    finally:
        CHECKS.pop("few_bits", None)


def test_every_check_says_its_rule():
    assert all(check.says.endswith(".") for check in CHECKS.values())

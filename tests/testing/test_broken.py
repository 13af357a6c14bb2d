"""Every check fails for a quantizer that breaks its rule, and for that one only."""

from typing import NamedTuple

import pytest
import torch
from torch import nn

from bitwright.qcore import IntQuant, IntRange, NumberFormat, RunningScaling
from bitwright.qcore.kernels.derivatives import clamp_through
from bitwright.quantizers import Fp8e4m3Act, Int4Act, Int8Act, Int8WeightPerChannel, Int8WeightPerTensor
from bitwright.testing import CHECKS, check_quantizer

COSTLY = ("compiled", "export_qcdq", "export_qdq")
BROKEN = {}  # the quantizer -> the names of the checks that it fails


def breaks(*checks):
    def register(quantizer):
        BROKEN[quantizer] = checks
        return quantizer

    return register


class Respelling(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values, others):
        return others.clone()

    @staticmethod
    def backward(ctx, *grads):
        return grads[0], None


class Respelled(IntQuant):
    """Right gradients, and values that a subclass may change."""

    def _quantize(self, x, relu=False, floor=None, *more, **named):
        values, grid = super()._quantize(x, relu)
        return Respelling.apply(values, self.respell(x.detach(), values.detach(), grid)), grid

    def respell(self, x, values, grid):
        return values


class Scaling(nn.Module):
    """From the largest magnitude, as a module of one's own."""

    def __init__(self, int_range: IntRange):
        super().__init__()
        self.int_range = int_range

    def forward(self, x):
        largest = x.detach().float().abs().max() if x.numel() else torch.zeros(())
        largest = torch.where(largest.isfinite(), largest, 1.0)
        return largest.clamp_min(1e-10) / self.int_range.threshold


class Running4(Int4Act):
    scaling = "running"


class Running(Int8Act):
    scaling = "running"


class Untrue(NamedTuple("_Untrue", [("bit_width", int)]), NumberFormat):  # type: ignore[misc]
    """Levels whose codes stand for others."""

    __slots__ = ()

    @property
    def levels(self):
        return tuple(map(float, range(2**self.bit_width)))

    def encode(self, steps):
        return super().encode(steps).clamp_max(2)


@breaks("number_format")
class CodesOfOthers(Fp8e4m3Act):
    number_format = Untrue(2)  # type: ignore[assignment]


# Where values go


class HalfWay(Respelled):
    def respell(self, x, values, grid):
        return values + values.sign() * grid.scale / 4


@breaks("grid_membership")
class OffTheGrid(Running4):
    tensor_quant = HalfWay


class OneTooFar(Respelled):
    def respell(self, x, values, grid):
        return torch.where(x / grid.scale > 7.5, 8 * grid.scale, values)


@breaks("value_range")
class ClampedAtEight(Running4):
    tensor_quant = OneTooFar


class OneTooFew(Respelled):
    def respell(self, x, values, grid):
        return values.clamp(max=6 * grid.scale)


@breaks("value_range")
class OffByOneRange(Running4):
    tensor_quant = OneTooFew


class WrapsAround(Respelled):
    def respell(self, x, values, grid):
        return ((torch.round(x / grid.scale) + 8) % 16 - 8) * grid.scale


@breaks("infinity", "monotonicity", "value_range")
class Overflowing(Running4):
    tensor_quant = WrapsAround


class AddsAHalf(Respelled):
    def respell(self, x, values, grid):
        return torch.floor(x / grid.scale + 0.5).clamp(*grid.bounds) * grid.scale


@breaks("rounding")
class HalfUpClaimedAsEven(Running4):
    tensor_quant = AddsAHalf


class Multiplies(Respelled):
    def respell(self, x, values, grid):
        return torch.round(x * (1 / grid.scale)).clamp(*grid.bounds) * grid.scale


@breaks("rounding")
class ByReciprocal(Running):
    tensor_quant = Multiplies


class Shrinks(Scaling):
    def forward(self, x):
        return super().forward(x) * 0.9


@breaks("idempotence")
class ScaleThatCreeps(Int8WeightPerTensor):
    scaling = Shrinks


class ToEven:
    """Up early, then down late: a larger value may get the smaller integer."""

    def __call__(self, x):
        fraction = x - x.floor()
        up = ((fraction > 0.2) & (fraction < 0.3)) | (fraction > 0.6)
        return x.floor() + up.to(x.dtype)


@breaks("monotonicity")
class Zigzag(Int4Act):
    rounding = ToEven


class BelowTheRange:
    def __call__(self, x, scale):
        return torch.full_like(scale.detach(), -11.0)


@breaks("zero")
class ZeroOffTheGrid(Int4Act):
    zero_point = BelowTheRange


class OtherAxis(Scaling):
    def forward(self, x):
        rows = x.detach().float().reshape(x.shape[0], -1)
        largest = rows.abs().max() if x.numel() else torch.zeros(())
        largest = torch.where(largest.isfinite(), largest, 1.0)
        return (largest.clamp_min(1e-10) / 127).repeat(x.shape[0]).reshape(-1, *[1] * (x.ndim - 1))


@breaks("granularity")
class ScalesOfOtherChannels(Int8WeightPerChannel):
    scaling = OtherAxis


# Gradients


class Detached(IntQuant):
    def _quantize(self, x, relu=False, floor=None, *more, **named):
        values, grid = super()._quantize(x.detach(), relu)
        return values, grid


@breaks("gradient")
class GradientMissing(Int8Act(scale=0.1)):
    tensor_quant = Detached


class PassesAll(IntQuant):
    def _quantize(self, x, relu=False, floor=None, *more, **named):
        values, grid = super()._quantize(x.detach(), relu)
        return values + (x - x.detach()), grid


@breaks("gradient", "infinity")  # less itself, infinity is NaN
class GradientLeaks(Running4):
    """Straight through, clipped or not, though pass_clipped is not set."""

    tensor_quant = PassesAll


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, scale):
        return scale.clone()

    @staticmethod
    def backward(ctx, *grads):
        return 2 * grads[0]


class Heavy(IntQuant):
    def _quantize(self, x, relu=False, floor=None, *more, **named):
        scale = self.scaling(x)
        low, high = self.int_range.bounds()
        steps = x / scale
        codes = steps + (torch.round(steps) - steps).detach()
        return clamp_through(codes, low, high) * Doubled.apply(scale), self._grid(scale, None)


@breaks("infinity", "scale_gradient")
class ScaleGradientTwice(Int4Act):
    tensor_quant = Heavy


# Inputs


class InFloat32(IntQuant):
    def _quantize(self, x, relu=False, floor=None, *more, **named):
        return super()._quantize(x.float(), relu)


@breaks("dtype")
class AlwaysFloat32(Running):
    tensor_quant = InFloat32


class Contiguous(IntQuant):
    def _quantize(self, x, relu=False, floor=None, *more, **named):
        values, grid = super()._quantize(x, relu)
        return values.contiguous(), grid


@breaks("memory_format")
class ForgetsChannelsLast(Int8Act):
    tensor_quant = Contiguous


class ThroughHalfSquares(IntQuant):
    """The values times a number that overflows in half precision, and divided by it."""

    def _quantize(self, x, relu=False, floor=None, *more, **named):
        values, grid = super()._quantize(x, relu, floor)
        return values * 1e5 / 1e5 if x.dtype is torch.float16 else values, grid


@breaks("half_precision")
class OverflowsInHalf(Int8WeightPerTensor):
    tensor_quant = ThroughHalfSquares


class NeedsElements(IntQuant):
    def _quantize(self, x, relu=False, floor=None, *more, **named):
        x.detach().amax()
        return super()._quantize(x, relu, floor)


@breaks("empty_input")
class NothingIsTooLittle(Int8WeightPerTensor):
    tensor_quant = NeedsElements


class Unfloored(Scaling):
    def forward(self, x):
        largest = x.detach().float().abs().max() if x.numel() else torch.ones(())
        return torch.where(largest.isfinite(), largest, 1.0) / 127


@breaks("constant_input")
class NaNForZeros(Int8WeightPerTensor):
    scaling = Unfloored


class Trusting(Scaling):
    def forward(self, x):
        largest = x.detach().float().abs().max() if x.numel() else torch.ones(())
        return largest.clamp_min(1e-10) / 127


@breaks("non_finite_input")
class SpoiltByOneNaN(Int8WeightPerTensor):
    scaling = Trusting


class Scribbles(IntQuant):
    def _quantize(self, x, relu=False, floor=None, *more, **named):
        values, grid = super()._quantize(x.clone(), relu)
        x.data.copy_(values.detach())
        return values, grid


@breaks("input_unchanged")
class WritesIntoItsInput(Int8Act):
    tensor_quant = Scribbles


# State


class Histories(RunningScaling):
    def forward(self, x):
        if self.training and "history" not in self._buffers:
            self.register_buffer("history", torch.zeros(()))
        return super().forward(x)

    def _load_from_state_dict(self, state_dict, prefix, *args):
        if prefix + "history" in state_dict and "history" not in self._buffers:
            self.register_buffer("history", torch.zeros(()))
        super()._load_from_state_dict(state_dict, prefix, *args)


@breaks("state_keys")
class Historical(Running):
    scaling = Histories


class Replaces(RunningScaling):
    def _load_from_state_dict(self, state_dict, prefix, *args):
        if prefix + "magnitude_base" in state_dict:
            self.magnitude_base = self.magnitude_base.clone()
        super()._load_from_state_dict(state_dict, prefix, *args)


@breaks("load_in_place")
class LoadsElsewhere(Running):
    scaling = Replaces


class Unsaved(Scaling):
    """What it measured is no buffer, so it is not saved."""

    def __init__(self, int_range: IntRange):
        super().__init__(int_range)
        self.kept = None

    def forward(self, x):
        if self.training or self.kept is None:
            self.kept = super().forward(x)
        return self.kept


@breaks("state_dict")
class NotSaved(Int8Act):
    scaling = Unsaved


class WithLambda(IntQuant):
    def __init__(self, int_range, scaling, rounding, axis=None):
        super().__init__(int_range, scaling, rounding, axis=axis)
        self.wrapper = lambda x: x

    def _quantize(self, x, relu=False, floor=None, *more, **named):
        return super()._quantize(self.wrapper(x), relu)


@breaks("pickling")
class Unpicklable(Running):
    tensor_quant = WithLambda


class Shared(RunningScaling):
    def __deepcopy__(self, memo):
        return self


@breaks("deep_copy")
class SharesItsState(Running):
    scaling = Shared


class Demanding(IntQuant):
    def _load_from_state_dict(
        self, state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
    ):
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        if not any(key.startswith(prefix) for key in state_dict):
            error_msgs.append(f"no state for {prefix}")


@breaks("float_checkpoint")
class NeedsItsKeys(Int8Act):
    tensor_quant = Demanding


class Forgetful(RunningScaling):
    """An average that counts its batches in Python: a loaded one starts again from the first."""

    batches = 0

    def _measure(self, x):
        self.batches += 1
        self.steps.fill_(self.batches - 1)
        self.momentum = None
        super()._measure(x)


@breaks("resume")
class CountsInPython(Running):
    scaling = Forgetful


# Modes


class UpOrDown:
    """Up or down as a coin falls, also in evaluation: one toss for all values, so that they stay in order."""

    def __call__(self, x):
        return x.ceil() if torch.rand(()) < 0.5 else x.floor()


@breaks("determinism")
class Tossing(Running):
    rounding = UpOrDown


class ByMode(Scaling):
    def forward(self, x):
        return super().forward(x) * (1.0 if self.training else 2.0)


@breaks("train_eval")
class OtherScaleInEvaluation(Int8WeightPerTensor):
    scaling = ByMode


class Secretive:
    """Equal to itself alone, and without a repr that makes it again."""

    def __call__(self, x):
        return torch.round(x)


BROKEN[Running(rounding=Secretive())] = ("declaration",)


@pytest.mark.parametrize("quantizer", BROKEN, ids=lambda quantizer: quantizer.__name__.split(" object")[0])
def test_broken_quantizer_fails_its_check_alone(quantizer):
    report = check_quantizer(quantizer, skip=COSTLY, examples=12, raises=False)
    assert set(report.failed) == set(BROKEN[quantizer]), str(report)


# The costly checks, each on its own


class Breaking(Scaling):
    def forward(self, x):
        largest = x.detach().abs().max()
        return (largest if largest.item() > 1 else torch.ones(())) / 127


class GraphBreak(Int8WeightPerTensor):
    scaling = Breaking


class Counting(Scaling):
    def __init__(self, int_range: IntRange):
        super().__init__(int_range)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x) * (1 + 1 / self.calls)


class PythonCounter(Int8WeightPerTensor):
    scaling = Counting


class OtherwiseCompiled(Scaling):
    def forward(self, x):
        return super().forward(x) * (2.0 if torch.compiler.is_compiling() else 1.0)


class OtherNumbersCompiled(Int8WeightPerTensor):
    scaling = OtherwiseCompiled


@pytest.mark.parametrize("quantizer", [GraphBreak, PythonCounter, OtherNumbersCompiled], ids=repr)
def test_what_does_not_compile_fails(quantizer):
    report = check_quantizer(quantizer, checks=["compiled", "determinism", "rounding"], examples=5, raises=False)
    assert report["compiled"].status == "failed", str(report)
    assert report["rounding"].ok


class UpInFiles:
    """Traced for a file it rounds up."""

    def __call__(self, x):
        return x.ceil() if torch.compiler.is_exporting() else torch.round(x)


@pytest.mark.parametrize("check", ["export_qcdq", "export_qdq"])
def test_what_a_file_does_differently_fails(check):
    report = check_quantizer(Running(rounding=UpInFiles), checks=[check], raises=False)
    assert report[check].status == "failed", str(report)


@pytest.mark.parametrize("check", ["export_qcdq", "export_qdq"])
def test_a_refusal_is_no_failure(check):
    report = check_quantizer(Running(bit_width=20), checks=[check])
    assert report[check].status == "refused"
    assert "act_quant: 20 bits, signed;" in report[check].message


def test_every_check_is_seen_to_fail():
    """Adding a check asks for a quantizer that fails it."""
    assert {check for checks in BROKEN.values() for check in checks} | set(COSTLY) == set(CHECKS)


class StopsAt(Respelled):
    """Clips at another end than the one declared."""

    def __init__(self, *, scaling, int_range, rounding="half_even", off=0):
        super().__init__(scaling=scaling, int_range=int_range)
        self.off = off

    def respell(self, x, values, grid):
        end = grid.bounds[1] + self.off
        codes = (x.double() / grid.scale.double()).round().clamp(grid.bounds[0], end)
        return (codes * grid.scale.double()).to(values.dtype)


@pytest.mark.parametrize(
    ("bits", "right", "wrong", "found"),
    [
        (8, 0, 1, "integers from -128 to 127; found 128 for 128"),
        (8, 0, -1, "127 for values at or beyond that end of the range; found 126 for 127"),
        (22, 0, 1, "integers from -2097152 to 2097151; found 2097152 for 2097152"),
        (22, 0, -1, "2097151 for values at or beyond that end of the range; found 2097150 for 2097151"),
        (24, 0, -1, "8388607 for values at or beyond that end of the range; found 8388606 for 8388607"),
        (26, 0, 4, "integers from -33554432 to 33554431; found 33554436 for 33554436"),  # float32 has every fourth
        (26, -1, -3, "33554431 for values at or beyond that end of the range; found 33554428 for 33554432"),
    ],
)
def test_the_ends_of_wide_ranges_are_compared_exactly(bits, right, wrong, found):
    def result(off):
        quantizer = Int8Act(tensor_quant=StopsAt, bit_width=bits, scale=1.0, off=off)
        return check_quantizer(quantizer, checks=["value_range"], raises=False)["value_range"]

    assert result(right).status == "passed"
    smallest = found.rpartition(" ")[2]
    assert result(wrong).message == f"expected {found}\nsmallest input: [[{smallest}]], float32\nscale: 1"

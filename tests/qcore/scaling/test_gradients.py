"""LSQ's gradient factor against the paper's definition in plain autograd."""

import math
import re

import pytest
import torch

import bitwright.nn as qnn
from bitwright.qcore import (
    SCALE_GRADIENTS,
    IntRange,
    LearnedBitWidth,
    LearnedScaling,
    LSQGradient,
    QuantizerError,
    SettingError,
    StatisticScaling,
    resolve,
)
from bitwright.quantizers import (
    Int4WeightPerChannelLSQ,
    Int4WeightPerGroupLSQ,
    Int4WeightPerTensor,
    Int4WeightPerTensorLSQ,
    Uint4ActLSQ,
)


def stepped(values, step, low, high, factor):
    """LSQ's definition: a step whose gradient has a factor, straight-through rounding, clipped beyond half a step."""
    step = step.detach() + (step - step.detach()) * factor
    places = values / step
    rounded = places + (places.round() - places).detach()
    return torch.where(places.round() > high, high, torch.where(places.round() < low, low, rounded)) * step


@pytest.mark.parametrize(
    ("quantizer", "rows", "sharing"),
    [
        (Int4WeightPerTensorLSQ, (1, 192), 192),
        (Int4WeightPerChannelLSQ, (3, 64), 64),
        (Int4WeightPerGroupLSQ, (6, 32), 32),
    ],
    ids=repr,
)
@pytest.mark.parametrize("traced", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_sgd_moves_the_step_as_in_the_paper(quantizer, rows, sharing, traced):
    torch.compiler.reset()
    torch.manual_seed(0)
    weight, upstream = torch.randn(3, 64), torch.randn(3, 64)
    quant = resolve(quantizer, {"channel_axis": 0, "channels": 3, "shape": (3, 64)})
    called = torch.compile(quant, backend="aot_eager", fullgraph=True) if traced else quant
    called(weight)
    step = (weight.reshape(rows).abs().mean(1, keepdim=True) * 2 / math.sqrt(7)).requires_grad_()
    assert quant.grid(weight).scale.reshape(-1).tolist() == pytest.approx(step.reshape(-1).tolist())
    optimizer = torch.optim.SGD(quant.parameters(), lr=0.1)
    (called(weight) * upstream).sum().backward()
    optimizer.step()
    found = stepped(weight.reshape(rows), step, -8, 7, 1 / math.sqrt(sharing * 7))
    assert torch.equal(found.reshape(3, 64), quant_before(weight, step, rows))
    (gradient,) = torch.autograd.grad((found * upstream.reshape(rows)).sum(), step)
    expected = (step - 0.1 * gradient).reshape(-1)
    assert torch.allclose(quant.grid(weight).scale.reshape(-1), expected.abs(), rtol=1e-4)


def quant_before(weight, step, rows):
    return ((weight.reshape(rows) / step).round().clamp(-8, 7) * step).reshape(weight.shape)


def test_features_of_one_sample_count():
    """N is that of a sample, so that the factor doesn't depend on the batch."""
    x = torch.rand(2, 6)
    act = qnn.QuantReLU(act_quant=Uint4ActLSQ)
    plain = qnn.QuantReLU(act_quant=Uint4ActLSQ(scale_gradient=None))
    for layer in (act, plain):
        layer(x).sum().backward()
    factor = act.act_quant.scaling.magnitude_offset.grad / plain.act_quant.scaling.magnitude_offset.grad
    assert factor.item() == pytest.approx(15**2 / math.sqrt(6 * 15), rel=1e-5)


def test_factor_by_hand():
    assert LSQGradient().factor(28, IntRange(4, signed=True)) == 64 / 14  # 8**2 / sqrt(28 * 7)
    learned = IntRange(LearnedBitWidth(4), signed=True)
    factor = LSQGradient().factor(28, learned)
    assert isinstance(factor, torch.Tensor)
    assert factor.item() == pytest.approx(64 / 14)
    assert not factor.requires_grad
    assert SCALE_GRADIENTS == {"lsq": LSQGradient}
    assert repr(LSQGradient()) == "LSQGradient()"


def test_factor_of_your_own():
    class Tenth:
        def factor(self, sharing, number_format):
            return 0.1

    layers = [qnn.QuantReLU(act_quant=Uint4ActLSQ(scale_gradient=each)) for each in (Tenth, None)]
    for layer in layers:
        layer(torch.linspace(0, 3, 10)).sum().backward()
    tenth, whole = (layer.act_quant.scaling.magnitude_offset.grad.item() for layer in layers)
    assert tenth == pytest.approx(whole / 10)


def test_learned_bit_width_has_the_factor_too():
    layer = qnn.QuantLinear(8, 3, weight_quant=Int4WeightPerTensorLSQ, weight_bit_width=LearnedBitWidth)
    layer(torch.randn(2, 8)).sum().backward()
    assert layer.weight_quant.scaling.magnitude_offset.grad.isfinite().all()


@pytest.mark.parametrize("found", [3, "lqs", LSQGradient])
def test_wrong_gradient(found):
    expected = (
        f"scale_gradient={found!r} is not possible: expected one of 'lsq', None, or a class of your own with a method "
        "`factor(sharing, number_format)`."
    )
    with pytest.raises(SettingError, match=f"^{re.escape(expected)}$"):
        LearnedScaling(IntRange(4, signed=True), scale_gradient=found)


def test_logarithms_have_another_gradient():
    expected = (
        "QuantLinear(in_features=4, out_features=2, bias=True): in Int4WeightPerTensorLSQ, "
        "scale_gradient=LSQGradient() is not possible: expected None: LogScale() stores another number than the range "
        "itself, which has another gradient. Write restriction='float'."
    )
    with pytest.raises(SettingError, match=f"^{re.escape(expected)}$"):
        qnn.QuantLinear(4, 2, weight_quant=Int4WeightPerTensorLSQ, weight_restriction="log")


def test_what_is_not_learned_has_no_gradient_factor():
    expected = (
        "QuantLinear(in_features=4, out_features=2, bias=True): nothing in Int4WeightPerTensor uses "
        "weight_scale_gradient='lsq'. It is a setting of weight_scaling='learned' or weight_scaling='calibrated', and "
        "scaling is 'statistic'."
    )
    with pytest.raises(QuantizerError, match=f"^{re.escape(expected)}$"):
        qnn.QuantLinear(4, 2, weight_quant=Int4WeightPerTensor, weight_scale_gradient="lsq")
    assert isinstance(resolve(Int4WeightPerTensor, {"channel_axis": 0}).scaling, StatisticScaling)

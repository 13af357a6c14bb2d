"""Clipping before rounding: gradients end exactly at the ends."""

import re

import pytest
import torch

import bitwright.nn as qnn
from bitwright.qcore import QuantizerError, SettingError, resolve
from bitwright.quantizers import (
    Int4WeightPerChannel,
    Int4WeightPerGroup,
    Int4WeightPerTensorWRPN,
    ShiftedUint8Act,
    Uint4Act,
    Uint4ActPACT,
)


@pytest.mark.parametrize("traced", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_pact(traced):
    """With alpha 1: the gradient of 1 and 2 goes to alpha, that of 0.48 and 0.99 to the input, that of -1 nowhere."""
    act = qnn.QuantReLU(act_quant=Uint4ActPACT, max_value=1.0)
    called = torch.compile(act, fullgraph=True, backend="aot_eager") if traced else act
    x = torch.tensor([-1.0, 0.48, 0.99, 1.0, 2.0], requires_grad=True)
    y = called(x)
    assert y.tolist() == pytest.approx([0, 7 / 15, 1, 1, 1])
    y.backward(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]))
    assert x.grad.tolist() == [0, 2, 3, 0, 0]
    assert act.act_quant.scaling.magnitude_offset.grad.tolist() == [9]


def test_pact_is_the_definition():
    act = qnn.QuantReLU(act_quant=Uint4ActPACT, max_value=1.5)
    x = torch.randn(100, generator=torch.Generator().manual_seed(0)).requires_grad_()
    upstream = torch.randn(100, generator=torch.Generator().manual_seed(1))
    act(x).backward(upstream)
    alpha, other = torch.tensor(1.5, requires_grad=True), x.detach().clone().requires_grad_()
    clipped = 0.5 * (other.abs() - (other - alpha).abs() + alpha)  # the paper's formula
    rounded = (clipped * 15 / alpha).round() * alpha / 15
    (clipped + (rounded - clipped).detach()).backward(upstream)
    assert torch.allclose(x.grad, other.grad)
    assert act.act_quant.scaling.magnitude_offset.grad.item() == pytest.approx(alpha.grad.item(), rel=1e-5)


def test_constant_range():
    """1.05 still rounds to 7 of 7, and is clipped all the same."""
    quant = resolve(Int4WeightPerTensorWRPN, {"channel_axis": 0})
    weight = torch.tensor([1.05, 0.99, -1.05, -0.99], requires_grad=True)
    quant(weight).sum().backward()
    assert weight.grad.tolist() == [0, 1, 0, 1]
    usual = resolve(Int4WeightPerTensorWRPN(clip_first=False), {"channel_axis": 0})
    (gradient,) = torch.autograd.grad(usual(weight).sum(), weight)
    assert gradient.tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("quantizer", [Int4WeightPerChannel, Int4WeightPerGroup], ids=repr)
def test_scales_of_rows(quantizer):
    """The values are those without it; the gradient of each scale counts its own clipped values."""
    quantizers = [quantizer(scaling="learned", max_value=0.5, clip_first=clip) for clip in (True, False)]
    provided = {"channel_axis": 0, "shape": (2, 64), "channels": 2}
    first, plain = (resolve(each, provided) for each in quantizers)
    weight = torch.randn(2, 64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(first(weight), plain(weight))
    first(weight).sum().backward()
    parts = weight.reshape(first.scaling.magnitude_offset.numel(), -1)
    expected = (parts >= 0.5).sum(1) - (parts < -0.5).sum(1)
    assert first.scaling.magnitude_offset.grad.tolist() == pytest.approx(expected.tolist())


def test_wrong_flag():
    expected = "QuantReLU(): clip_first=1 is not possible: expected True or False."
    with pytest.raises(SettingError, match=f"^{re.escape(expected)}$"):
        qnn.QuantReLU(act_quant=Uint4Act, clip_first=1)


def test_with_pass_clipped():
    expected = (
        "QuantReLU(): clip_first=True is not possible: expected False where gradients pass what is clipped. Leave out "
        "pass_clipped."
    )
    with pytest.raises(QuantizerError, match=f"^{re.escape(expected)}$"):
        qnn.QuantReLU(act_quant=Uint4Act, clip_first=True, pass_clipped=True)


def test_with_a_zero_point():
    expected = (
        "QuantIdentity(): clip_first=True is not possible: expected False with a zero point: its gradient comes from "
        "what is clipped."
    )
    with pytest.raises(QuantizerError, match=f"^{re.escape(expected)}$"):
        qnn.QuantIdentity(act_quant=ShiftedUint8Act, clip_first=True)

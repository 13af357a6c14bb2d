import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import bitwright.nn as qnn
from bitwright.qcore import PerAxis, PerTensor, SettingError
from bitwright.qcore.transforms.few_levels import Ternary, XnorSigns
from bitwright.quantizers import BinaryWeightPerTensor, TernaryWeightPerChannel

NUMBERS = st.lists(st.floats(-100, 100, width=32, allow_subnormal=False), min_size=1, max_size=30)


@given(numbers=NUMBERS, share=st.sampled_from([0.0, 0.5, 0.7, 2.0]))
def test_threshold_and_scale_of_the_paper(numbers, share):
    weight = torch.tensor(numbers, dtype=torch.float64)
    threshold = share * weight.abs().mean()
    above = weight.abs() > threshold
    scale = weight.abs()[above].mean() if above.any() else torch.zeros((), dtype=torch.float64)
    expected = torch.where(above, weight.sign() * scale, 0.0)
    found = Ternary(PerTensor(), share)(weight, None)
    assert torch.equal(found != 0, expected != 0)
    torch.testing.assert_close(found, expected)
    assert found.abs().unique().numel() <= 2  # one scale, to the last bit


def test_literal_numbers():
    weight = torch.tensor([[1.0, -0.5, 0.25, -0.1], [8.0, 2.0, -2.0, -4.0]])
    rows = Ternary(PerAxis(0))(weight, None)  # thresholds 0.7 * 0.4625 and 0.7 * 4
    assert rows.tolist() == [[0.75, -0.75, 0, 0], [6, 0, 0, -6]]
    assert Ternary(PerTensor())(weight, None).tolist() == [[0, 0, 0, 0], [4, 4, -4, -4]]  # threshold 0.7 * 2.23125


def test_magnitude_at_the_threshold_becomes_zero():
    assert Ternary(PerTensor(), 1.0)(torch.tensor([2.0, -2.0]), None).tolist() == [0, 0]


def test_gradient_passes_straight_through():
    weight = torch.tensor([1.0, -0.5, 0.1, 0.0], requires_grad=True)
    (Ternary(PerTensor())(weight, None) * torch.arange(4.0)).sum().backward()
    assert weight.grad.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("shape", [(0,), (0, 3), (2, 0), (2, 3)])
@pytest.mark.parametrize("kind", [Ternary, XnorSigns])
@pytest.mark.parametrize("granularity", [PerTensor(), PerAxis(0)], ids=str)
def test_nothing(kind, granularity, shape):
    weight = torch.zeros(shape, requires_grad=True)
    found = kind(granularity)(weight, None)
    found.sum().backward()
    assert torch.equal(found, torch.zeros(shape))
    assert weight.grad.isfinite().all()


@given(numbers=NUMBERS)
def test_signs_with_the_gradient_of_xnor_net(numbers):
    weight = torch.tensor(numbers, dtype=torch.float64, requires_grad=True)
    found = XnorSigns(PerTensor())(weight, None)
    upstream = torch.linspace(-1, 2, len(numbers), dtype=torch.float64)
    (gradient,) = torch.autograd.grad(found, weight, upstream)
    known = weight.detach()
    signs, mean = torch.where(known < 0, -1.0, 1.0).double(), known.abs().mean()
    torch.testing.assert_close(found.detach(), signs * mean)
    torch.testing.assert_close(gradient, upstream * mean * (known.abs() <= 1) + signs * (upstream * signs).mean())


def test_signs_are_rows_own():
    weight = torch.tensor([[1.0, -3.0], [0.0, 0.5]])
    assert XnorSigns(PerAxis(0))(weight, None).tolist() == [[2, -2], [0.25, 0.25]]
    assert XnorSigns(PerTensor()).scheme() == "signs times the mean"
    assert repr(XnorSigns(PerTensor())) == "XnorSigns(per tensor)"


def test_second_derivatives_of_signs():
    weight = torch.tensor([0.5, -0.25, 2.0], dtype=torch.float64)
    found = torch.autograd.functional.hessian(lambda w: XnorSigns(PerTensor())(w, None).square().sum(), weight)

    def defined(w):  # a sign has the slope of a hard tanh
        signs = weight.sign() + torch.where(weight.abs() <= 1, w - weight, 0.0)
        return (signs * (w * weight.sign()).mean()).square().sum()

    torch.testing.assert_close(found, torch.autograd.functional.hessian(defined, weight))


def test_said():
    assert Ternary(PerTensor()).scheme() == "ternary above 0.7 of the mean"
    assert repr(Ternary(PerAxis(0), 0.5)) == "Ternary(0.5 of the mean, axis 0)"


@pytest.mark.parametrize("share", [-0.1, "much", float("nan"), None])
def test_refusals(share):
    message = (
        f"ternary_threshold={share!r} is not possible: expected a share of the mean magnitude, 0 or more, such as 0.7."
    )
    with pytest.raises(SettingError, match=f"^{re.escape(message)}$"):
        Ternary(PerTensor(), share)


@pytest.mark.parametrize("kind", [Ternary, XnorSigns])
def test_special_numbers_keep_to_themselves(kind):
    for special, expected in ((float("nan"), None), (float("inf"), 1), (float("-inf"), -1)):
        weight = torch.tensor([special, 0.75, -0.8, 4.0], requires_grad=True)
        found = kind(PerTensor())(weight, None)
        found[1:].sum().backward()
        assert found[1:].tolist() == [1, -1, 1]  # a statistic that is not finite counts as 1
        assert found[0].isnan() if expected is None else found[0] == expected
        assert weight.grad[1:3].tolist() == [1, 1]


@pytest.mark.parametrize("rounding", ["stochastic", "learned", "floor"])
@pytest.mark.parametrize("kind", [BinaryWeightPerTensor, TernaryWeightPerChannel])
def test_nothing_is_left_to_round(kind, rounding):
    with pytest.raises(
        SettingError, match="expected 'half_even': the transform chooses the levels, and leaves nothing"
    ):
        qnn.QuantLinear(4, 2, weight_quant=kind, weight_rounding=rounding)

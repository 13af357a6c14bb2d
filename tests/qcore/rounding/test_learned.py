"""Roundings that are learned."""

import copy
import re
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import bitwright.nn as qnn
from bitwright.qcore import LearnedRounding, QuantizerError
from bitwright.qcore.rounding.learned import stretched_logit, stretched_sigmoid, stretched_slope
from bitwright.quantizers import Fp8e4m3WeightPerTensor, Int4WeightPerGroup, Int8Act, MXFloat4e2m1Weight, NF4Weight

QUANTIZERS = [Int4WeightPerGroup, Fp8e4m3WeightPerTensor, MXFloat4e2m1Weight, NF4Weight]


@given(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=8))
def test_it_starts_where_numbers_are_and_ends_at_the_nearest(numbers: list[float]) -> None:
    x = torch.tensor(numbers)
    rounding = LearnedRounding(x.shape)
    torch.testing.assert_close(rounding(x), x, atol=1e-5, rtol=1e-6)
    assert torch.equal(rounding.eval()(x), x.round())


def test_the_parameter_decides_between_two_neighbours() -> None:
    rounding = LearnedRounding((4,)).eval()
    x = torch.tensor([0.25, 0.25, -1.75, 3.0])
    with torch.no_grad():
        rounding.offset.copy_(torch.tensor([5.0, -5.0, 5.0, -5.0]))
    assert rounding(x).tolist() == [1.0, 0.0, -1.0, 3.0]


def test_its_gradient_is_that_of_the_stretched_sigmoid() -> None:
    rounding = LearnedRounding((1,))
    x = torch.tensor([0.5], requires_grad=True)
    rounding(x).sum().backward()
    assert rounding.offset.grad is not None
    assert rounding.offset.grad.item() == pytest.approx(1.2 * 0.25)
    assert x.grad is not None
    assert x.grad.item() == 1.0


def test_penalty_is_of_the_undecided() -> None:
    x = torch.tensor([0.5, 0.75, 1.0])
    rounding = LearnedRounding((3,))
    assert rounding.penalty(x, beta=2.0).item() == pytest.approx(1 + 0.75, abs=1e-5)
    with torch.no_grad():
        rounding.offset.fill_(20.0)
    assert rounding.penalty(x, beta=2.0).item() == 0.0


@pytest.mark.parametrize("quantizer", QUANTIZERS, ids=str)
def test_every_format_takes_it(quantizer: Any) -> None:
    torch.manual_seed(0)
    layer = qnn.QuantLinear(40, 3, weight_quant=quantizer, weight_rounding="learned")
    nearest = qnn.QuantLinear(40, 3, weight_quant=quantizer)
    nearest.load_state_dict(nn.Linear.state_dict(layer), strict=False)
    x = torch.randn(5, 40)
    assert torch.equal(layer.eval()(x), nearest.eval()(x))
    layer.train()
    layer(x).pow(2).sum().backward()
    assert layer.weight_quant is not None
    rounding = layer.weight_quant.rounding
    assert isinstance(rounding, LearnedRounding)
    assert rounding.offset.grad is not None
    assert rounding.offset.grad.abs().sum() > 0
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), layer(x))


def test_training_decides_and_the_result_stays() -> None:
    torch.manual_seed(0)
    layer = qnn.QuantLinear(8, 1, bias=False, weight_bit_width=3, weight_rounding="learned")
    layer.weight.requires_grad_(False)
    assert layer.weight_quant is not None
    rounding = layer.weight_quant.rounding
    assert isinstance(rounding, LearnedRounding)
    x = torch.randn(64, 8)
    wanted = x @ layer.weight.t()
    nearest = (layer.eval()(x) - wanted).pow(2).mean().item()
    layer.train()
    optimizer = torch.optim.Adam([rounding.offset], 0.1)
    for step in range(300):
        optimizer.zero_grad()
        beta = 20 - 18 * step / 300
        ((layer(x) - wanted).pow(2).mean() + 1e-2 * qnn.rounding_penalty(layer, beta)).backward()
        optimizer.step()
    assert qnn.rounding_penalty(layer, 2.0).item() < 0.5
    assert (layer.eval()(x) - wanted).pow(2).mean().item() <= nearest
    again = copy.deepcopy(layer)
    assert torch.equal(again(x), layer(x))
    fresh = qnn.QuantLinear(8, 1, bias=False, weight_bit_width=3, weight_rounding="learned").eval()
    fresh.load_state_dict(layer.state_dict())
    assert torch.equal(fresh(x), layer(x))


def test_another_weight_starts_anew() -> None:
    layer = qnn.QuantLinear(3, 2, weight_rounding="learned")
    assert layer.weight_quant is not None
    rounding = layer.weight_quant.rounding
    assert isinstance(rounding, LearnedRounding)
    with torch.no_grad():
        rounding.offset.fill_(1.0)
    layer.load_state_dict(nn.Linear(3, 2).state_dict())
    assert not rounding.offset.any()


def test_half_precision() -> None:
    layer = qnn.QuantLinear(3, 2, weight_rounding="learned", dtype=torch.bfloat16)
    assert layer.weight_quant is not None
    assert layer.weight_quant.rounding.offset.dtype == torch.float32
    assert layer(torch.ones(3, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_a_penalty_needs_something_that_is_learned() -> None:
    with pytest.raises(
        QuantizerError,
        match=re.escape(
            "rounding_penalty: no rounding of this Linear is learned. Write weight_rounding='learned' for the layers "
            "whose weights are to be rounded up or down by training."
        ),
    ):
        qnn.rounding_penalty(nn.Linear(2, 2))


def test_activations_have_nothing_to_learn_it_for():
    message = (
        "QuantIdentity(): rounding='learned' is not possible: expected another rounding: there is one parameter for "
        "each number of a weight. Write rounding='half_even'."
    )
    with pytest.raises(QuantizerError, match=f"^{re.escape(message)}$"):
        qnn.QuantIdentity(act_quant=Int8Act, rounding="learned")


def test_the_stretched_sigmoid_has_its_inverse_and_its_slope() -> None:
    parameter = torch.tensor([-9.0, -2.0, 0.0, 0.5, 2.0, 9.0], dtype=torch.float64, requires_grad=True)
    share = stretched_sigmoid(parameter)
    (slope,) = torch.autograd.grad(share.sum(), parameter)
    share = share.detach()
    expected = torch.tensor([0, 0.043044, 0.5, 0.646952, 0.956956, 1], dtype=torch.float64)
    torch.testing.assert_close(share, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(stretched_slope(share), slope)
    torch.testing.assert_close(stretched_logit(share)[1:-1], parameter.detach()[1:-1])
    assert torch.equal(stretched_sigmoid(parameter.detach(), out=slope), share)

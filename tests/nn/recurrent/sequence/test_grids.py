"""Settled grids, and which quantizers have one."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from bitwright.nn import QuantIdentity
from bitwright.nn.contexts.intercepting import intercepted
from bitwright.nn.recurrent.sequence import Steps, steps_of
from bitwright.nn.recurrent.sequence.grids import StateGrid
from bitwright.qcore import IntQuant, LearnedBitWidth

DOUBLE = torch.float64


def settled(**given: object) -> IntQuant:
    """A quantizer of activations that has measured, and is learned."""
    layer = QuantIdentity(**{"calibration_steps": 1, **given})
    layer(torch.tensor([-1.0, 2.0]))
    layer(torch.tensor([-1.0, 2.0]))
    assert isinstance(layer.act_quant, IntQuant)
    return layer.act_quant


def test_a_constant_scale() -> None:
    quant = QuantIdentity(scaling="constant", scale=2**-7).act_quant
    assert steps_of(quant) == Steps(torch.tensor(2**-7), -128, 127, None)


def test_a_learned_scale_has_its_gradient() -> None:
    quant = settled(bit_width=4)
    steps = steps_of(quant)
    assert steps is not None
    assert steps[:3] == (torch.tensor(0.25), -8, 7)
    steps.scale.backward()
    assert quant.scaling.magnitude_offset.grad.tolist() == [0.125]


def test_a_range_that_is_still_measured_is_not_learned() -> None:
    layer = QuantIdentity(calibration_steps=5)
    layer(torch.tensor([2.56]))
    steps = steps_of(layer.act_quant)
    assert steps is not None
    assert steps.scale.item() == pytest.approx(0.02)
    assert not steps.scale.requires_grad


def test_a_zero_point_comes_along() -> None:
    quant = settled(signed=False, zero_point="range", statistic="min_max")
    steps = steps_of(quant)
    assert steps is not None
    assert (steps.low, steps.high, steps.zero_point) == (0, 255, torch.tensor(85.0))


@pytest.mark.parametrize(
    "make",
    [
        lambda: QuantIdentity().act_quant,
        lambda: settled(rounding="floor"),
        lambda: QuantIdentity(scaling="statistic").act_quant,
        lambda: settled(axis=0),
        lambda: settled(bit_width=LearnedBitWidth),
        lambda: settled(pass_clipped=True),
        lambda: settled(bit_width=25),
        lambda: settled(rounding=torch.round),
    ],
    ids=["uncalibrated", "rounding", "dynamic", "axis", "learned width", "pass clipped", "wide", "own rounding"],
)
def test_no_settled_grid(make: Callable[[], IntQuant]) -> None:
    assert steps_of(make()) is None


def test_parts_of_the_users_own_have_none() -> None:
    class Own(IntQuant):
        pass

    quant = settled()
    assert steps_of(quant) is not None
    quant.scaling = torch.nn.Softplus()
    assert steps_of(quant) is None
    own = Own(quant.int_range, QuantIdentity(scaling="constant", scale=1.0).act_quant.scaling)
    assert steps_of(own) is None


def test_an_intercepted_quantizer_has_none() -> None:
    layer = QuantIdentity(scaling="constant", scale=1.0)
    with intercepted({"": layer.act_quant}, lambda path: lambda quant, x: quant._quantize(x)):
        assert steps_of(layer.act_quant) is None
    assert steps_of(layer.act_quant) is not None


@pytest.mark.parametrize("zero_point", [None, "range"])
@pytest.mark.parametrize("restriction", ["float", "power_of_two", "log"])
@pytest.mark.parametrize("bits", [3, 8, 12])
def test_the_grid_is_the_quantizers(bits: int, restriction: str, zero_point: str | None) -> None:
    """Values, and the gradients of what is learned, in the way in which a sequence uses the grid."""
    signs = {"signed": False, "zero_point": "range", "statistic": "min_max"} if zero_point else {}
    layer = QuantIdentity(bit_width=bits, restriction=restriction, calibration_steps=1, dtype=DOUBLE, **signs)
    x = torch.randn(300, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    layer(x[:30])
    quant: Any = layer.act_quant
    weights = torch.linspace(-1, 2, 300, dtype=DOUBLE)
    parameters = list(quant.parameters())
    y = quant(x)
    expected = torch.autograd.grad(y, parameters, weights)
    steps = steps_of(quant)
    assert steps is not None
    shift = 0.0 if steps.zero_point is None else steps.zero_point.item()
    grid = StateGrid(steps.scale.detach(), steps.low - shift, steps.high - shift)
    moved, passed = grid.moved(x), grid.passed(weights, x)
    torch.testing.assert_close(moved, y.detach(), rtol=0, atol=0)
    ends: list[Tensor] = [steps.scale] if steps.zero_point is None else [steps.scale, steps.zero_point]
    gradients = [grid.scale_grad(weights, passed, x, moved), grid.zero_point_grad(weights, passed)][: len(ends)]
    found = torch.autograd.grad(ends, parameters, gradients)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)


def test_gradients_pass_where_the_rounded_integer_is_in_range() -> None:
    grid = StateGrid(torch.tensor(0.5), -4, 3)
    x = torch.tensor([-2.3, -2.2, 1.7, 1.8, float("inf"), float("nan")])
    grad = torch.arange(1.0, 7.0)
    assert grid.passed(grad, x).tolist() == [0.0, 2.0, 3.0, 0.0, 0.0, 6.0]
    assert grid.passed(grad, x, out=grad) is grad
    assert grad.tolist() == [0.0, 2.0, 3.0, 0.0, 0.0, 6.0]
    assert grid.moved(x)[:5].tolist() == [-2.0, -2.0, 1.5, 1.5, 1.5]


def test_a_running_average() -> None:
    layer = QuantIdentity(scaling="running", statistic="abs_max")
    layer(torch.tensor([1.28]))
    steps = steps_of(layer.act_quant)
    assert steps is not None
    assert steps.scale.item() == pytest.approx(0.01)

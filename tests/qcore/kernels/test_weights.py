"""Weights that set their own scale: the fused functions do what the single operations do."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitwright.qcore import Floor, resolve
from bitwright.qcore.kernels import weights
from bitwright.qcore.kernels.weights import RuledRowsFakeQuant
from bitwright.qcore.scaling.dynamic import StatisticScaling
from bitwright.quantizers import (
    Fp8e4m3WeightPerTensor,
    Int4WeightPerGroup,
    Int8WeightPerChannel,
    Int8WeightPerTensor,
    MXFloat4e2m1Weight,
    MXFloat8e4m3Weight,
    MXInt8Weight,
    NVFloat4Weight,
)

RULED = [
    *(MXFloat4e2m1Weight(mx_rule=rule) for rule in ("floor", "ceil", "even", "rceil")),
    *(MXFloat8e4m3Weight, MXInt8Weight, NVFloat4Weight),
    *(Int8WeightPerTensor(restriction="power_of_two"), Int8WeightPerChannel(restriction="power_of_two")),
    Int8WeightPerChannel(restriction="power_of_two", power_of_two_rounding="floor", rounding=Floor),
    *(Int4WeightPerGroup(restriction="log"), Int4WeightPerGroup(restriction="power_of_two", narrow_range=False)),
    Fp8e4m3WeightPerTensor(restriction="power_of_two", power_of_two_rounding="round"),
]
ruled = pytest.mark.parametrize("quantizer", RULED, ids=repr)
ways = pytest.mark.parametrize(
    "way", [{}, {"detach_scale": True}, {"detach_scale": False, "pass_clipped": True}], ids=str
)


@pytest.fixture
def calls(monkeypatch):
    """What the fused function was called with."""
    found = []
    forward = RuledRowsFakeQuant.forward
    monkeypatch.setattr(RuledRowsFakeQuant, "forward", staticmethod(lambda *args: found.append(args) or forward(*args)))
    return found


def numbers(*shape, dtype=torch.float32):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(len(shape)))


def fused_and_not(monkeypatch, calls, function, x):
    """The results of both ways, the second by single operations."""
    fused = function(x)
    count = len(calls)
    monkeypatch.setattr(StatisticScaling, "_ruled", lambda *args: None)
    plain = function(x)
    assert 0 < count == len(calls)
    return fused, plain


def stepped(quant):
    """Values, scale and gradient."""

    def step(x):
        leaf = x.clone().requires_grad_()
        values, grid = quant._quantize(leaf)
        incoming = torch.linspace(-1, 2, values.numel(), dtype=values.dtype).reshape(values.shape)
        return values.detach(), grid.scale, torch.autograd.grad((values * incoming).sum(), leaf)[0]

    return step


@ruled
@ways
def test_fused_is_the_same(monkeypatch, calls, quantizer, way):
    quant = resolve(quantizer(**way), {"channel_axis": 0})
    x = numbers(6, 70)  # the last group is shorter
    x[1] = 0
    x[2, :40], x[3, 50] = 1e-30, 1e30
    fused, plain = fused_and_not(monkeypatch, calls, stepped(quant), x)
    for found, expected in zip(fused[:2], plain[:2], strict=True):
        assert torch.equal(found, expected)
        assert torch.equal(found.signbit(), expected.signbit())
    if quant.scaling.detach_scale:
        assert torch.equal(fused[2], plain[2])
    else:
        torch.testing.assert_close(fused[2], plain[2], rtol=2e-5, atol=2e-5)


@ruled
def test_what_is_not_finite(monkeypatch, calls, quantizer):
    quant = resolve(quantizer, {"channel_axis": 0})
    x = numbers(4, 64)
    x[0, 3], x[1, 5], x[2, 7], x[2, 9] = math.nan, math.inf, -math.inf, math.nan
    fused, plain = fused_and_not(monkeypatch, calls, stepped(quant), x)
    for found, expected in zip(fused[:2], plain[:2], strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(fused[2], plain[2], rtol=2e-5, atol=2e-5, equal_nan=True)


@ruled
@ways
def test_second_derivatives(monkeypatch, calls, quantizer, way):
    quant = resolve(quantizer(**way), {"channel_axis": 0})

    def second(x):
        leaf = x.clone().requires_grad_()
        (first,) = torch.autograd.grad(quant(leaf).square().sum(), leaf, create_graph=True)
        return torch.autograd.grad(first.square().sum(), leaf)[0]

    torch.testing.assert_close(*fused_and_not(monkeypatch, calls, second, numbers(3, 64, dtype=torch.float64)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("quantizer", [MXFloat4e2m1Weight, NVFloat4Weight], ids=repr)
def test_other_types(monkeypatch, calls, quantizer, dtype):
    quant = resolve(quantizer(detach_scale=False), {"channel_axis": 0})
    fused, plain = fused_and_not(monkeypatch, calls, stepped(quant), numbers(3, 64).to(dtype))
    assert fused[0].dtype == dtype
    assert torch.equal(fused[0], plain[0])
    assert torch.equal(fused[1], plain[1])
    torch.testing.assert_close(fused[2], plain[2])


@ruled
def test_torch_func_takes_single_operations(calls, quantizer):
    quant = resolve(quantizer(detach_scale=True), {"channel_axis": 0})
    x, incoming = numbers(3, 64), numbers(3, 64) + 2
    leaf = x.clone().requires_grad_()
    expected = torch.autograd.grad((quant(leaf) * incoming).sum(), leaf)[0]
    count = len(calls)
    torch.testing.assert_close(torch.func.grad(lambda x: (quant(x) * incoming).sum())(x), expected)
    assert count == len(calls) == 1


def test_the_largest_number_gets_the_gradient_of_its_scale_once():
    quant = resolve(MXFloat4e2m1Weight(detach_scale=False), {"channel_axis": 0})
    x = torch.full((2, 32), 0.5)
    x[:, 3], x[:, 5] = 3.5, -3.5  # a tie: of scale 0.5, the highest level is 3
    leaf = x.clone().requires_grad_()
    values = quant(leaf)
    assert values[0, [0, 3, 5]].tolist() == [0.5, 3, -3]
    (found,) = torch.autograd.grad(values[:, 3].sum(), leaf)
    assert found[0, 3].item() == pytest.approx(3 / 3.5)  # clipped, so the scale's: y / scale, times scale / magnitude
    assert found.count_nonzero() == 2


@given(
    rows=st.lists(st.lists(st.floats(0, width=32), min_size=3, max_size=3), min_size=1, max_size=9),
    missing=st.booleans(),
)
def test_row_maxima(rows, missing):
    for dtype in (torch.float32, torch.float64):
        x = torch.tensor(rows, dtype=dtype)
        if missing:
            x[0, 1] = -math.nan
        torch.testing.assert_close(weights._row_maxima(x.abs()), x.amax(1), rtol=0, atol=0, equal_nan=True)

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import bitwright.nn as qnn
from bitwright.export import ExportError, accumulator_report
from bitwright.quantizers import Int8Act, Int32Bias, ShiftedUint8Act, Uint8Act


def layer_of(weight, bias=None, act=None):
    """A linear layer with these integers; its input has scale 1."""
    weight = torch.tensor(weight, dtype=torch.float32)
    has_bias = bias is not None
    quantizers = {"bias_quant": Int32Bias if has_bias else None, "input_quant": act}
    fc = qnn.QuantLinear(weight.shape[1], weight.shape[0], has_bias, weight_bit_width=4, **quantizers)
    with torch.no_grad():
        fc.weight.copy_(weight)  # one of 7 makes the scale 1
        if bias is not None:
            fc.bias.copy_(torch.tensor(bias))
    return nn.Sequential(fc).eval()


@pytest.mark.parametrize(
    ("act", "low", "high", "bits"),
    [
        (Uint8Act(bit_width=4, scale=1.0), [-45, -105], [120, 0], 8),  # 7 * 15 + 1 * 15, -3 * 15
        (Int8Act(bit_width=4, scale=1.0), [-85, -49], [80, 56], 8),
    ],
)
def test_worst_case(act, low, high, bits):
    row = accumulator_report(layer_of([[7, -3, 1], [-7, 0, 0]], act=act), torch.zeros(1, 3))["0"]
    assert row.worst.low.tolist() == low
    assert row.worst.high.tolist() == high
    assert row.worst_bits == bits
    assert row.actual_bits == 1


def test_bias_counts_where_it_adds():
    model = layer_of([[7, -3, 1]], [-10.0], act=Uint8Act(bit_width=4, scale=1.0))
    row = accumulator_report(model, torch.tensor([[15.0, 0.0, 0.0]]))["0"]
    assert row.worst.low.tolist() == [-55]
    assert row.worst.high.tolist() == [120]  # before the bias is added
    assert (row.actual.low.tolist(), row.actual.high.tolist()) == ([95], [105])  # after, and before


def test_zero_points_shift_the_range():
    model = nn.Sequential(qnn.QuantLinear(4, 2, bias=False, input_quant=ShiftedUint8Act(calibration_steps=1))).train()
    with torch.no_grad():
        model(torch.rand(64, 4) * 3 - 1)
    row = accumulator_report(model.eval(), torch.zeros(1, 4))["0"]
    zero_point = int(model[0].input_quant.grid(torch.zeros(1)).zero_point)
    centred = model[0].int_weight().to(torch.int64)
    expected = (centred.clamp_min(0) * (255 - zero_point) + centred.clamp_max(0) * -zero_point).sum(1)
    assert row.worst.high.tolist() == expected.tolist()


@given(st.data())
def test_no_input_goes_beyond(data):
    numbers = data.draw(st.lists(st.lists(st.integers(-7, 7), min_size=3, max_size=3), min_size=1, max_size=3))
    numbers[0][0] = 7
    model = layer_of(numbers, act=Int8Act(bit_width=4, scale=1.0))
    x = data.draw(st.lists(st.integers(-8, 7), min_size=3, max_size=3))
    row = accumulator_report(model, torch.tensor([x], dtype=torch.float32))["0"]
    sums = torch.tensor(numbers) @ torch.tensor(x)
    assert bool((row.worst.low <= sums).all())
    assert bool((sums <= row.worst.high).all())
    assert row.actual.high.tolist() == sums.tolist()


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("kind", [qnn.QuantConv2d, qnn.QuantConvTranspose2d])
def test_convolutions_reach_their_worst_case(kind, groups):
    layer = kind(4, 6, 3, groups=groups, bias=False, input_quant=Uint8Act(bit_width=2, scale=1.0)).eval()
    weight = layer.int_weight().to(torch.int64)
    row = accumulator_report(nn.Sequential(layer), torch.zeros(1, 4, 5, 5))["0"]
    assert row.worst.high.shape == (6,)
    if kind is qnn.QuantConv2d:
        assert row.worst.high.tolist() == (3 * weight.clamp_min(0).flatten(1).sum(1)).tolist()
    else:
        taps = weight.clamp_min(0).reshape(groups, 4 // groups, 6 // groups, 3, 3).sum((1, 3, 4)).reshape(-1)
        assert row.worst.high.tolist() == (3 * taps).tolist()


def test_certificate():
    model = nn.Sequential(
        layer_of([[7, -3, 1], [7, 7, 7]], act=Uint8Act(bit_width=4, scale=1.0))[0],
        layer_of([[7, -3]], act=Uint8Act(bit_width=4, scale=1.0))[0],
    )
    report = accumulator_report(model, torch.zeros(1, 3))
    assert report.bits == 10
    assert report.certify(10) is report
    assert not report.fits(8)
    with pytest.raises(ExportError) as raised:
        report.certify(8)
    assert str(raised.value) == (
        "accumulators of 8 bits overflow in 1 layer. Use 10 bits, or narrower weights or inputs:\n"
        "  0: channel 1 may reach 315, which takes 10 bits."
    )


def test_without_an_input_grid_nothing_is_certified():
    report = accumulator_report(nn.Sequential(qnn.QuantLinear(3, 2)), torch.zeros(1, 3))
    assert report["0"].worst_bits is None
    with pytest.raises(ExportError) as raised:
        report.certify(32)
    assert str(raised.value) == (
        "certify(32): no bound is known for every layer:\n  0: its input is not quantized. Write input_quant=Int8Act."
    )

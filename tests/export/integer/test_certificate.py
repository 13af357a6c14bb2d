"""Weights trained for an accumulator: the report certifies its bits, and no run of integers overflows them."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bitwright.nn as qnn
from bitwright.export import ExportError, accumulator_report, run_integers
from bitwright.quantizers import (
    Int8Act,
    Int8WeightPerChannelA2Q,
    Int8WeightPerChannelA2QPlus,
    Int32Bias,
    Uint4Act,
    Uint8ActPerChannel,
)

BITS = 11


def model(kind: Any) -> nn.Sequential:
    """Convolutions with groups, a transposed one and a linear layer, trained for a few steps."""
    torch.manual_seed(0)
    given: dict[str, Any] = {
        "weight_quant": kind(accumulator_bit_width=BITS, bit_width=5),
        "bias_quant": Int32Bias,
        "input_quant": Uint4Act(calibration_steps=1),
    }
    net = nn.Sequential(
        qnn.QuantConv2d(4, 6, 3, groups=2, **given),
        qnn.QuantConvTranspose2d(6, 4, 3, stride=2, **given),
        nn.Flatten(),
        qnn.QuantLinear(4 * 9 * 9, 5, **given),
    )
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    for _ in range(4):
        optimizer.zero_grad()
        (net(torch.rand(4, 4, 6, 6)).square().mean() + 1e-3 * qnn.accumulator_penalty(net)).backward()
        optimizer.step()
    return net.eval()


def adversarial(layer: Any, size: tuple[int, ...]) -> Tensor:
    """Inputs at the end of their grid wherever the first output channel has weights of one sign."""
    grid = layer.input_quant.grid(torch.zeros(1))
    weight = layer.int_weight()[0].float()
    signs = torch.stack([weight > 0, weight < 0]).float()
    return signs.reshape(2, *size) * 15 * grid.scale


@pytest.mark.parametrize("kind", [Int8WeightPerChannelA2Q, Int8WeightPerChannelA2QPlus])
def test_certificate_holds(kind: Any) -> None:
    net = model(kind)
    report = accumulator_report(net, torch.rand(2, 4, 6, 6)).certify(BITS)
    assert len(report.rows) == 3
    assert report.bits >= BITS - 1  # and hardly less is used
    for x in (torch.rand(16, 4, 6, 6), 100 * torch.rand(4, 4, 6, 6), torch.full((1, 4, 6, 6), 1e6)):
        run_integers(net, x, accumulator_bits=BITS)


@pytest.mark.parametrize("kind", [Int8WeightPerChannelA2Q, Int8WeightPerChannelA2QPlus])
def test_worst_input_reaches_the_bound_and_no_more(kind: Any) -> None:
    net = model(kind)
    linear = nn.Sequential(net[3])
    x = adversarial(net[3], (4 * 9 * 9,))
    run = run_integers(linear, x, accumulator_bits=BITS)
    row = accumulator_report(linear, x)["0"]
    assert row.worst is not None
    reached = run.sums["0"]
    assert reached.high.max() <= row.worst.high.max()
    assert reached.low.min() >= row.worst.low.min()
    bias = abs(int(net[3].int_bias()[0]))
    assert int(reached.high[0]) >= int(row.worst.high[0]) - bias
    with pytest.raises(ExportError, match="overflow"):
        run_integers(linear, x, accumulator_bits=BITS - 2)


@pytest.mark.parametrize("kind", [Int8WeightPerChannelA2Q, Int8WeightPerChannelA2QPlus(centred=True)])
def test_recurrent_layers_have_an_accumulator_for_each_product(kind: Any) -> None:
    torch.manual_seed(0)
    layer = qnn.QuantLSTM(
        12,
        4,
        weight_quant=kind(input_bit_width=8, input_signed=True, accumulator_bit_width=14),
        input_quant=Int8Act(calibration_steps=1),
        bias_quant=Int32Bias,
    )
    net, optimizer = nn.Sequential(layer), torch.optim.Adam(layer.parameters(), 0.02)
    x = torch.randn(4, 2, 12)
    for _ in range(2):
        optimizer.zero_grad()
        (layer(x)[0].square().mean() + 1e-3 * qnn.accumulator_penalty(net)).backward()
        optimizer.step()
    qnn.finish_calibration(net)
    report = accumulator_report(net.eval(), x).certify(14)
    assert [row.name for row in report.rows] == ["0.weight_ih_l0", "0.weight_hh_l0"]


# The exact worst case


def codes(layer: Any, weight: list[Any]) -> nn.Sequential:
    """A layer with these integers at 4 bits; one of 7 makes the scale 1."""
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weight, dtype=torch.float32).reshape(layer.weight.shape))
    return nn.Sequential(layer).eval()


def test_outputs_of_a_transposed_convolution_sum_one_phase_of_the_stride() -> None:
    given: dict[str, Any] = {"bias": False, "weight_bit_width": 4, "input_quant": Uint4Act(scale=1.0)}
    net = codes(qnn.QuantConvTranspose1d(1, 1, 3, stride=2, **given), [7, -3, 5])
    x = 15 * torch.ones(1, 1, 4)
    row = accumulator_report(net, x)["0"]
    assert row.worst is not None
    assert (row.worst.low.tolist(), row.worst.high.tolist()) == ([-45], [180])  # -3 * 15; (7 + 5) * 15
    sums = run_integers(net, x).sums["0"]
    assert (sums.low.tolist(), sums.high.tolist()) == ([-45], [180])
    spread = codes(qnn.QuantConvTranspose1d(1, 1, 3, stride=2, dilation=2, **given), [7, -3, 5])
    dilated = accumulator_report(spread, x)["0"].worst
    assert dilated is not None
    assert (dilated.low.tolist(), dilated.high.tolist()) == ([-45], [180])  # all in one phase: (7 + 5) * 15


@pytest.mark.parametrize("transposed", [False, True])
def test_depthwise_with_a_scale_for_each_channel(transposed: bool) -> None:
    layer = qnn.QuantConvTranspose1d if transposed else qnn.QuantConv1d
    net = nn.Sequential(
        layer(2, 2, 2, groups=2, weight_bit_width=4, input_quant=Uint8ActPerChannel(bit_width=4, calibration_steps=1))
    )
    codes(net[0], [7, -2, 3, -7])
    x = torch.tensor([[[1.0, 0.5, 1.0], [8.0, 2.0, 4.0]]])
    net.train()(x)
    row = accumulator_report(net.eval(), x)["0"]
    assert row.worst is not None
    assert (row.worst.low.tolist(), row.worst.high.tolist()) == ([-30, -105], [105, 45])

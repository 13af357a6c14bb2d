"""What calibration found: numbers, text, JSON."""

import json

import pytest
import torch
from torch import nn

import bitwright.nn as qnn
from bitwright.graph import GraphWarning
from bitwright.graph.calibration import CalibratedRange, CalibrationReport, calibrate
from bitwright.quantizers import Int8Act, Int8ActPerChannel, ShiftedUint8Act, Uint8Act


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.signed = qnn.QuantIdentity(act_quant=Int8Act(statistic="abs_max"))
        self.shifted = qnn.QuantIdentity(act_quant=ShiftedUint8Act(statistic="min_max"))
        self.never = qnn.QuantReLU()

    def forward(self, x):
        return self.shifted(self.signed(x))


@pytest.fixture
def report():
    model = Net()
    with pytest.warns(GraphWarning, match="never.act_quant"), calibrate(model, average="max") as report:  # noqa: PT031
        model(torch.tensor([[-1.28], [1.27]]))
        model(torch.tensor([[0.5]]))
    return report


def test_numbers(report):
    assert [each.path for each in report] == ["signed.act_quant", "shifted.act_quant"]
    signed, shifted = report
    assert (signed.statistic, signed.batches, signed.samples) == ("AbsMax()", 2, 3)
    assert (signed.smallest, signed.largest) == (pytest.approx(-1.28), pytest.approx(1.27))
    assert (signed.low, signed.high) == (pytest.approx(-1.28), pytest.approx(1.27))
    assert (shifted.low, shifted.high) == (pytest.approx(-1.28), pytest.approx(1.27))
    assert (signed.clipped, signed.scales, signed.empty, signed.not_finite) == (0, 1, 0, 0)
    assert report["shifted.act_quant"] is shifted
    assert (len(report), report.batches, report.unreached) == (2, 2, ["never.act_quant"])


def test_text(report):
    assert str(report).splitlines() == [
        "quantizer          statistic  batches  samples  smallest  largest    low  high  clipped",
        "signed.act_quant   AbsMax()         2        3     -1.28     1.27  -1.28  1.27      0 %",
        "shifted.act_quant  MinMax()         2        3     -1.28     1.27  -1.28  1.27      0 %",
        "never.act_quant  not reached",
    ]
    assert str(CalibrationReport()) == "nothing is calibrated"


def test_json(report):
    found = json.loads(json.dumps(report.to_dict()))
    assert found["batches"] == 2
    assert found["unreached"] == ["never.act_quant"]
    assert CalibratedRange(**found["ranges"]["signed.act_quant"]) == report["signed.act_quant"]


@pytest.mark.parametrize(
    ("kind", "data", "clipped"),
    [
        (Int8Act(percentile=90.0, narrow_range=True), torch.arange(1.0, 1001.0), 0.1),
        (Uint8Act(statistic="abs_max"), torch.tensor([-1.0, -1.0, 1.0, 2.0]), 0.5),
        (
            Int8ActPerChannel(percentile=75.0, narrow_range=True),
            torch.arange(1.0, 1001.0) * torch.tensor([[[1.0], [10.0]]]),
            0.25,
        ),
        (ShiftedUint8Act(low_percentile=10.0, high_percentile=80.0), torch.linspace(-500, 499, 1000), 0.3),
    ],
    ids=["percentile", "unsigned", "channels", "zero point"],
)
def test_the_share_that_is_clipped(kind, data, clipped):
    model = qnn.QuantIdentity(act_quant=kind)
    [found] = calibrate(model, [data])
    assert found.clipped == pytest.approx(clipped, abs=0.004)

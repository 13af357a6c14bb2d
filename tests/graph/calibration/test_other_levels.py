"""Calibration of quantizers whose levels are no integers."""

import re

import pytest
import torch

import bitwright.nn as qnn
from bitwright.graph import GraphError, calibrate
from bitwright.quantizers import Fp8e4m3Act

X = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("statistic", [None, "min_max"])
def test_range(statistic):
    act = qnn.QuantIdentity(act_quant=Fp8e4m3Act(statistic="abs_max"), return_quant_tensor=True)
    with calibrate(act, statistic=statistic):
        act(X)
    act.eval()
    assert act(X).scale.item() == pytest.approx(X.abs().max().item() / 448)
    assert act(X).is_valid


def test_statistics_of_integers_are_refused():
    act = qnn.QuantIdentity(act_quant=Fp8e4m3Act)
    message = (
        "calibrate: statistic='mse' compares ranges of integers, and the levels of act_quant are e4m3fn. Write "
        "statistic='min_max' or statistic=Percentile(99.9), or leave it out."
    )
    with pytest.raises(GraphError, match=re.escape(message)), calibrate(act, statistic="mse"):
        act(X)

"""Parts of a user's own export without a handler."""

import pytest
import torch
from torch import nn

import bitwright.nn as qnn
from bitwright.export import export_onnx_qcdq, export_onnx_qdq, verify_onnx
from bitwright.quantizers import Int8Act, Int8WeightPerTensor, ShiftedUint8Act


class TowardInfinity:
    """Away from zero, always: a rounding of the user's own."""

    name = "away"

    def __call__(self, x):
        return torch.sign(x) * torch.ceil(torch.abs(x))


class Shifted(nn.Module):
    """A rounding with state."""

    def __init__(self):
        super().__init__()
        self.register_buffer("threshold", torch.tensor(0.3))

    def forward(self, x):
        return torch.floor(x + self.threshold)


class RootMeanSquare(nn.Module):
    """A scaling of the user's own."""

    def __init__(self, int_range):
        super().__init__()
        self.int_range = int_range

    def forward(self, x):
        return x.square().mean().sqrt().clamp_min(1e-6) * 4 / self.int_range.max_int


class Eighth(nn.Module):
    def forward(self, x):
        return torch.full((1, x.shape[1], 1, 1), 0.125) if x.ndim == 4 else torch.tensor(0.125)


@pytest.mark.parametrize("export", [export_onnx_qcdq, export_onnx_qdq])
@pytest.mark.parametrize("bits", [4, *(pytest.param(bits, marks=pytest.mark.slow) for bits in (3, 8))])
@pytest.mark.parametrize("rounding", [TowardInfinity, Shifted, torch.trunc], ids=["class", "module", "function"])
def test_rounding(zoo, export, rounding, bits):
    model = nn.Sequential(
        qnn.QuantIdentity(act_quant=ShiftedUint8Act(bit_width=bits), rounding=rounding),
        qnn.QuantConv2d(4, 6, 3, bias=True, weight_rounding=rounding, weight_bit_width=bits),
        qnn.QuantReLU(rounding=rounding, bit_width=bits, axis=1),
    )
    zoo.trained(model, torch.randn(8, 4, 6, 6))
    program = export(model, torch.randn(2, 4, 6, 6))
    report = verify_onnx(model, program, torch.randn(40, 4, 6, 6))
    assert report.differences == 0, report.table()
    assert report.tie_flips <= 1e-3 * report.compared  # where a sum ends beside an integer, its order decides


def test_scaling():
    class MyWeight(Int8WeightPerTensor):
        scaling = RootMeanSquare

    model = nn.Sequential(
        qnn.QuantIdentity(act_quant=Int8Act, scaling=Eighth),
        qnn.QuantConv2d(4, 6, 3, bias=True, weight_quant=MyWeight(bit_width=4)),
    )
    program = export_onnx_qdq(model, torch.randn(2, 4, 6, 6))
    held = program.model.graph.initializers
    assert held["0.act_quant.scale"].shape == [4]
    assert held["1.weight_quant.scale"].shape == []
    assert verify_onnx(model, program, torch.randn(20, 4, 6, 6)).ok

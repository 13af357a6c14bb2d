"""Modules of the user's that read the grid of their input, or ask for a QuantTensor, export like any other."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bitwright.nn as qnn
from bitwright.export import export_onnx_qcdq, verify_onnx
from bitwright.qcore import QuantTensor
from bitwright.quantizers import Int32Bias, ShiftedUint8Act


class Adds(nn.Module):
    def forward(self, x):
        assert isinstance(x, QuantTensor), "Perform add among QuantTensors"
        total = x + x
        assert isinstance(total, QuantTensor)
        assert not isinstance(total * 2, QuantTensor)
        return total


class ReadsValues(nn.Module):
    def forward(self, x):
        return x.value / x.scale


class ReadsIntegers(nn.Module):
    def forward(self, x):
        assert x.is_valid
        return (x.int().float() - x.zero_point) * (x.scale * x.bit_width) + float(x.signed)


class ReadsGrid(nn.Module):
    def forward(self, x):
        return torch.relu(x).clone().grid.scale * F.max_pool1d(x, 2).value


class InMiddle(nn.Module):
    """What it returns goes on into layers that need the grid."""

    def __init__(self):
        super().__init__()
        self.entry = qnn.QuantIdentity(max_value=1.0, return_quant_tensor=True)
        self.layer = qnn.QuantLinear(8, 8, bias_quant=Int32Bias, weight_bit_width=4)
        self.act = qnn.QuantReLU(max_value=2.0, return_quant_tensor=True)

    def forward(self, x):
        x = self.entry(x)
        for _ in range(2):
            y = self.layer(x)
            x = self.act(y + (x if isinstance(x, QuantTensor) else None))
        return {"flat": x.flatten(0), "integers": x.int(), "scale": x.scale}


@pytest.mark.parametrize("kind", [Adds, ReadsValues, ReadsIntegers, ReadsGrid])
@pytest.mark.parametrize("act", [{"max_value": 1.0}, {"act_quant": ShiftedUint8Act, "calibration_steps": 1}])
def test_a_module_that_asks_for_a_quant_tensor(kind, act, zoo):
    model = nn.Sequential(qnn.QuantIdentity(return_quant_tensor=True, **act), kind())
    x = torch.rand(2, 4)
    zoo.trained(model, x)
    program = export_onnx_qcdq(model, x, dynamic_shapes=({0: "batch"},))
    report = verify_onnx(model, program, torch.rand(30, 4))
    assert report.ok, report.table()
    assert report.output_error < 1e-5


def test_its_result_goes_on_into_layers():
    model, x = InMiddle().eval(), torch.rand(2, 8)
    hooks = [[*each._forward_hooks, *each._forward_pre_hooks] for each in model.modules()]
    program = export_onnx_qcdq(model, x)
    assert verify_onnx(model, program, x).ok
    assert [[*each._forward_hooks, *each._forward_pre_hooks] for each in model.modules()] == hooks
    assert isinstance(model.entry(x), QuantTensor)


class Unexportable(nn.Module):
    def forward(self, x):
        if x.value.sum() > 1e9:
            return 2 * x
        return x.value


def test_what_torch_cannot_trace_is_named_as_torch_does():
    """The grid is there, so what is left is the branch on numbers."""
    model = nn.Sequential(qnn.QuantIdentity(max_value=1.0, return_quant_tensor=True), Unexportable()).eval()
    with pytest.raises(Exception, match="data-dependent") as caught:
        export_onnx_qcdq(model, torch.rand(2, 4))
    assert "no attribute" not in str(caught.value)

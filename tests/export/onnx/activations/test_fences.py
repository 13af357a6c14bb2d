"""Passes of the runtime that change 8-bit floats, each with a model that it would change without its fence."""

import pytest
import torch
from torch import nn

import bitwright.nn as qnn
from bitwright.export import export_onnx_qdq, verify_onnx
from bitwright.export.onnx import exporter
from bitwright.qcore import PerToken
from bitwright.quantizers import Fp8e4m3Act, Fp8e4m3DynamicAct, Fp8e4m3WeightPerTensor, MXFloat8e4m3Weight


def relu():
    return nn.Sequential(nn.Conv2d(3, 4, 3), qnn.QuantReLU(act_quant=Fp8e4m3Act, scale=0.01))


def clip():
    return nn.Sequential(nn.Conv2d(3, 4, 3), qnn.QuantReLU6(act_quant=Fp8e4m3Act, scale=0.01))


def bias():
    weight = {"weight_quant": Fp8e4m3WeightPerTensor, "bias": True}
    return nn.Sequential(
        qnn.QuantIdentity(act_quant=Fp8e4m3Act, scale=1.0),  # the bias would be rounded to multiples of that
        qnn.QuantConv2d(3, 4, 3, **weight),
        qnn.QuantIdentity(act_quant=Fp8e4m3Act, scale=0.05),
    )


class Turned(nn.Module):
    """Scales of tokens between two transpositions."""

    def __init__(self):
        super().__init__()
        self.act = qnn.QuantIdentity(act_quant=Fp8e4m3DynamicAct(granularity=PerToken()))

    def forward(self, x):
        return self.act(x.flatten(2).transpose(1, 2)).transpose(1, 2)


def checked(model):
    torch.manual_seed(0)
    for each in model.parameters():
        nn.init.normal_(each)
    model.eval()
    program = export_onnx_qdq(model, torch.randn(2, 3, 8, 8), verify=False)
    return verify_onnx(model, program, torch.randn(20, 3, 8, 8))


@pytest.mark.parametrize("model", [relu, clip, bias, Turned])
def test_fences(model, monkeypatch):
    report = checked(model())
    assert report.differences == 0, report.table()
    monkeypatch.setattr(exporter, "protect", lambda model: None)
    try:
        unfenced = checked(model()).differences
    except Exception as error:  # the load fails, or the run: onnxruntime's errors have no base class of their own
        unfenced = int("quantizelinear" in str(error) or "QuantizeLinear" in str(error))
    assert unfenced > 0


def test_network():
    """The layers around 8-bit floats, in one file."""
    fp8 = {"weight_quant": Fp8e4m3WeightPerTensor}
    model = nn.Sequential(
        qnn.QuantIdentity(act_quant=Fp8e4m3Act, scale=0.01, return_quant_tensor=True),
        qnn.QuantConv2d(3, 8, 3, bias=True, **fp8),
        qnn.QuantReLU6(act_quant=Fp8e4m3Act, scale=0.01, return_quant_tensor=True),
        nn.MaxPool2d(2),
        qnn.QuantConv2d(8, 8, 2, bias=True, **fp8),
        qnn.QuantReLU(act_quant=Fp8e4m3DynamicAct, return_quant_tensor=True),
        nn.Flatten(),
        qnn.QuantLinear(32, 8, bias=True, weight_quant=MXFloat8e4m3Weight),
        qnn.QuantIdentity(act_quant=Fp8e4m3DynamicAct(granularity=PerToken())),
        qnn.QuantLinear(8, 5, bias=True, **fp8),
    )
    torch.manual_seed(0)
    model.eval()
    program = export_onnx_qdq(model, torch.randn(2, 3, 8, 8), dynamic_shapes=({0: "batch"},))
    report = verify_onnx(model, program, torch.randn(50, 3, 8, 8))
    assert report.differences == 0, report.table()

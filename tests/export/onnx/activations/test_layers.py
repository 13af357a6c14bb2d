"""Layers that are more than a matrix, between activations of other formats."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bitwright.nn as qnn
from bitwright.export import export_onnx_qdq, verify_onnx
from bitwright.quantizers import (
    Fp8e4m3Act,
    Fp8e4m3DynamicActPerToken,
    Fp8e4m3WeightPerTensor,
    Int8DynamicAct,
    MXFloat4e2m1Act,
)

FP8 = Fp8e4m3Act(scale=0.02)


class Functions(nn.Module):
    """What is done with tensors on a grid of 8-bit floats."""

    def __init__(self):
        super().__init__()
        self.one = qnn.QuantIdentity(act_quant=FP8, return_quant_tensor=True)
        self.sum = qnn.QuantIdentity(act_quant=FP8)
        self.mean = qnn.QuantAvgPool2d(2, act_quant=FP8)

    def forward(self, x):
        x, y = self.one(x), self.one(2 * x)
        return self.sum(x + y), torch.cat([x, y], 1), self.mean(x), F.max_pool2d(y, 2), F.pad(x, (1, 1))


def checked(model, *args):
    report = verify_onnx(model, export_onnx_qdq(model.eval(), args), args)
    assert report.differences == 0, report.table()


def test_functions():
    checked(Functions(), torch.randn(2, 3, 4, 4))


@pytest.mark.slow
@pytest.mark.parametrize(
    "quantizers",
    [
        {
            "input_quant": FP8,
            "query_quant": FP8,
            "key_quant": FP8,
            "value_quant": FP8,
            "attention_quant": FP8,
            "weight_quant": Fp8e4m3WeightPerTensor,
        },
        {
            "input_quant": Int8DynamicAct,
            "query_quant": Int8DynamicAct,
            "key_quant": Fp8e4m3DynamicActPerToken,
            "value_quant": MXFloat4e2m1Act,
            "attention_quant": Fp8e4m3DynamicActPerToken,
        },
    ],
    ids=["float8", "dynamic"],
)
def test_attention(quantizers):
    x = torch.randn(5, 2, 8)
    checked(qnn.QuantMultiheadAttention(8, 2, **quantizers), x, x, x)

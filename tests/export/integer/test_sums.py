"""Outputs carried as sums of products, without a quantizer of their own between two layers."""

import torch
from torch import nn

import bitwright.nn as qnn
from bitwright.export import export_onnx_qcdq, verify_onnx
from bitwright.quantizers import Int32Bias


def test_a_layer_takes_the_scale_of_sums_for_its_bias():
    torch.manual_seed(0)
    model = nn.Sequential(
        qnn.QuantIdentity(bit_width=4, calibration_steps=2, return_quant_tensor=True),
        qnn.QuantLinear(8, 6, weight_bit_width=4, bias_quant=Int32Bias, return_quant_tensor=True),
        qnn.QuantLinear(6, 3, weight_bit_width=4, bias_quant=Int32Bias),
    )
    for _ in range(3):
        model(torch.randn(16, 8))
    program = export_onnx_qcdq(model, torch.randn(16, 8))
    assert [node.op_type for node in program.model_proto.graph.node].count("Gemm") == 2
    assert verify_onnx(model, program, torch.randn(64, 8)).ok

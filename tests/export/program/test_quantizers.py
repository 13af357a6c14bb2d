"""Every declared quantizer goes out as a program with 0 differences."""

import pytest
import torch
from torch import nn
from torch.export import Dim

import bitwright.nn as qnn
from bitwright import quantizers
from bitwright.export import export_program, verify_program
from bitwright.qcore import BitwrightError

FEW = {
    "Fp8e4m3DynamicActPerToken": [],
    "Int4WeightPerChannelHQO": ["dequantize_per_channel"],
    "Int4WeightPerGroup": ["dequantize_per_channel_group"],
    "Int8ActPerChannel": ["quantize_per_channel", "dequantize_per_channel"],
    "Int8DynamicActPerToken": ["quantize_per_token", "dequantize_per_token"],
    "MXFloat4e2m1Weight": [],
    "NF4Weight": [],
    "ShiftedUint8DynamicAct": ["quantize_per_tensor", "dequantize_per_tensor"],
    "ShiftedUint4DynamicActPerGroup": ["quantize_per_channel_group", "dequantize_per_channel_group"],
    "TernaryWeightPerChannel": ["dequantize_per_channel"],
}
BARE = {"BiasBase", "TruncTo8bit"}  # these need a grid of products


def built(name):
    """A model with a quantizer that has seen data, and its input; None for what is only part of a quantizer."""
    quantizer = getattr(quantizers, name)
    try:
        if "Weight" in name:
            told = {"input_quant": quantizers.Uint8Act} if "A2Q" in name else {}  # their sums are bounded by it
            model = nn.Sequential(qnn.QuantLinear(64, 8, weight_quant=quantizer, **told))
        elif "Bias" in name:
            entry = qnn.QuantIdentity(return_quant_tensor=True)
            model = nn.Sequential(entry, qnn.QuantLinear(64, 8, bias_quant=quantizer))
        elif isinstance(quantizer, type):
            model = nn.Sequential(qnn.QuantIdentity(act_quant=quantizer))
        else:
            return None
    except BitwrightError:
        return None  # a base or a fragment: incomplete by itself
    x = torch.randn(4, 3, 64)
    x = x.abs() if name.startswith("Uint") or "A2Q" in name else x
    with torch.no_grad():
        model.train()(x)
    qnn.finish_calibration(model)
    return model.eval(), x


def agrees(name, exact=False):
    torch.manual_seed(0)
    made = built(name)
    assert made is not None
    model, x = made
    program = export_program(model, x, dynamic_shapes=({0: Dim("batch")},), exact=exact)
    report = verify_program(model, program, torch.cat([x, 0.7 * x, 1.3 * x]))
    assert report.differences == 0, report.table()
    assert report.compared >= 8
    assert report.tie_flips <= (0 if exact else 1e-3 * report.compared)
    return program


@pytest.mark.parametrize("name", FEW)
def test_some(name):
    program = agrees(name)
    found = [str(node.target) for node in program.graph.nodes if "quantized_decomposed" in str(node.target)]
    assert [each.split(".")[1] for each in found] == FEW[name]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::bitwright.qcore.BitwrightWarning")
@pytest.mark.parametrize("exact", [False, True])
def test_all(exact):
    names = [name for name in quantizers.__all__ if name not in BARE and "Grad" not in name and built(name) is not None]
    assert len(names) > 150
    for name in names:
        agrees(name, exact)

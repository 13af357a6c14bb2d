"""Every layer, quantizer, width and granularity exports in both dialects and agrees with onnxruntime."""

from typing import Any

import pytest
from torch import nn

import bitwright.nn as qnn
from bitwright.export import export_onnx_qcdq, export_onnx_qdq, verify_onnx
from bitwright.qcore import LearnedBitWidth
from bitwright.quantizers import (
    Int8Act,
    Int8ActPerChannel,
    Int8ActPowerOfTwo,
    Int8WeightPerChannel,
    Int8WeightPerChannelLearned,
    Int8WeightPerChannelPowerOfTwo,
    Int8WeightPerTensor,
    Int8WeightPerTensorLearned,
    Int8WeightPerTensorMSE,
    Int8WeightPerTensorPowerOfTwo,
    Int32Bias,
    ShiftedUint8Act,
    ShiftedUint8ActPerChannel,
    ShiftedUint8WeightPerChannel,
    ShiftedUint8WeightPerTensor,
    Uint8Act,
    Uint8ActPerChannel,
    Uint8ActPowerOfTwo,
)

DIALECTS = [export_onnx_qcdq, export_onnx_qdq]
WIDTHS = [2, 3, 4, 5, 6, 7, 8, 16]
dialects = pytest.mark.parametrize("export", DIALECTS, ids=["qcdq", "qdq"])

WEIGHTS = {
    "per_tensor": (Int8WeightPerTensor, ShiftedUint8WeightPerTensor),
    "per_channel": (Int8WeightPerChannel, ShiftedUint8WeightPerChannel),
}
ACTIVATIONS = {
    "symmetric_first": (Int8Act, ShiftedUint8Act),
    "asymmetric_first": (ShiftedUint8Act, Int8Act),
}


def agrees(model, export, x, fresh):
    """Export verifies on x; then on inputs that the export did not see."""
    report = verify_onnx(model, export(model, x), fresh)
    assert report.differences == 0, report.table()
    assert report.compared > 1000
    assert report.tie_flips <= 1e-3 * report.compared  # 16 bits; fewer have none in millions


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("granularity", WEIGHTS)
@pytest.mark.parametrize(
    ("export", "act"),
    [(export_onnx_qcdq, "symmetric_first"), (export_onnx_qdq, "asymmetric_first")],
    ids=["qcdq", "qdq"],
)
def test_weight_layers(zoo, granularity, act, bits, export):
    acts, weights = ([each(bit_width=bits) for each in kind] for kind in (ACTIVATIONS[act], WEIGHTS[granularity]))
    model = zoo.trained(zoo.WeightZoo(acts, weights), zoo.example())
    agrees(model, export, zoo.example(), zoo.example(8))


@dialects
@pytest.mark.parametrize(
    "weights",
    [
        (Int8WeightPerTensorPowerOfTwo, Int8WeightPerChannelPowerOfTwo),
        (Int8WeightPerTensorLearned(bit_width=4), Int8WeightPerChannelLearned(bit_width=3)),
        (Int8WeightPerTensorMSE(bit_width=4), Int8WeightPerTensor(bit_width=LearnedBitWidth)),
        (Int8WeightPerTensor(rounding="floor"), Int8WeightPerChannel(narrow_range=False)),
    ],
    ids=["power_of_two", "learned_scale", "mse_and_learned_width", "floor_and_full_range"],
)
def test_other_weight_quantizers(zoo, weights, export):
    model = zoo.trained(zoo.WeightZoo((Uint8Act(bit_width=6),), weights), zoo.example())
    agrees(model, export, zoo.example(), zoo.example(8))


@dialects
@pytest.mark.parametrize(
    ("act", "positive", "bits"),
    [
        *((Int8Act, Uint8Act, bits) for bits in (2, 3, 4, 8, 16)),
        *((ShiftedUint8Act, ShiftedUint8Act, bits) for bits in (2, 4, 6, 8)),
        *((Int8ActPerChannel, Uint8ActPerChannel, bits) for bits in (3, 8)),
        *((ShiftedUint8ActPerChannel, ShiftedUint8ActPerChannel, bits) for bits in (4, 16)),
        *((Int8ActPowerOfTwo, Uint8ActPowerOfTwo, bits) for bits in (4, 8)),
        *((Int8Act(narrow_range=True), Uint8Act(narrow_range=True), bits) for bits in (8, 12)),
    ],
)
def test_activation_layers(zoo, act, positive, bits, export):
    model = zoo.trained(zoo.ActivationZoo(act(bit_width=bits), positive(bit_width=bits)), zoo.example())
    report = verify_onnx(model, export(model, zoo.example()), zoo.example(4))
    assert report.differences == 0, report.table()


@dialects
@pytest.mark.parametrize("bits", [4, 8])
def test_strides_groups_and_paddings(zoo, bits, export):
    def act(kind: Any = ShiftedUint8Act):
        return qnn.QuantIdentity(act_quant=kind(bit_width=bits), return_quant_tensor=True)

    def layer(kind, *shape, **options):
        return kind(*shape, bias=True, bias_quant=Int32Bias, weight_bit_width=bits, **options)

    model = nn.Sequential(
        act(),
        layer(qnn.QuantConv2d, 4, 8, 3, groups=4, padding="same", weight_quant=Int8WeightPerChannel),
        act(Uint8Act),
        layer(qnn.QuantConv2d, 8, 8, 3, padding=2, dilation=2, padding_mode="circular"),
        act(),
        layer(qnn.QuantConvTranspose2d, 8, 6, 3, stride=2, output_padding=1, groups=2),
        act(),
        layer(qnn.QuantConv2d, 6, 6, 3, stride=2, padding=1, groups=3),
        nn.BatchNorm2d(6),
        nn.Flatten(),
    )
    model = zoo.trained(model, zoo.example())
    agrees(model, export, zoo.example(), zoo.example(8))


@dialects
@pytest.mark.parametrize("bits", [3, 8])
@pytest.mark.parametrize("rounding", ["floor", "ceil", "half_up", "toward_zero", "stochastic"])
def test_roundings_of_activations(zoo, rounding, bits, export):
    act = Int8Act(rounding=rounding, bit_width=bits)
    model = zoo.trained(zoo.WeightZoo((act,)), zoo.example())
    agrees(model, export, zoo.example(), zoo.example(8))

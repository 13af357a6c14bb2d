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
OTHER_WEIGHTS = (
    Int8WeightPerTensorPowerOfTwo,
    Int8WeightPerChannelPowerOfTwo,
    Int8WeightPerTensorLearned(bit_width=4),
    Int8WeightPerChannelLearned(bit_width=3),
    Int8WeightPerTensorMSE(bit_width=4),
    Int8WeightPerTensor(bit_width=LearnedBitWidth),
    Int8WeightPerTensor(rounding="floor"),
    Int8WeightPerChannel(narrow_range=False),
)
# What signed values get, and what positive ones get.
ACTIVATIONS = [
    (one(bit_width=bits), positive(bit_width=bits))
    for one, positive, widths in (
        (Int8Act, Uint8Act, (2, 3, 4, 8, 16)),
        (ShiftedUint8Act, ShiftedUint8Act, (2, 4, 6, 8)),
        (Int8ActPerChannel, Uint8ActPerChannel, (3, 8)),
        (ShiftedUint8ActPerChannel, ShiftedUint8ActPerChannel, (4, 16)),
        (Int8ActPowerOfTwo, Uint8ActPowerOfTwo, (4, 8)),
        (Int8Act(narrow_range=True), Uint8Act(narrow_range=True), (8, 12)),
    )
    for bits in widths
]


def turned(choices, by):
    """The choices in turn, from another one on."""
    return [*choices[by:], *choices[:by]]


def agrees(model, export, x, fresh):
    """Export verifies on x; then on inputs that the export did not see."""
    report = verify_onnx(model, export(model, x), fresh)
    assert report.differences == 0, f"{report.table()}\n{model}"
    assert report.compared > 1000
    # The order of a sum moves 8-bit codes by less than 1e-4 of a step: 2 values in 10,000 lie so close to a boundary.
    # 16-bit codes move by 4e-3 of a step, and are a twentieth of the values. No CPU can flip more than both together.
    assert report.tie_flips <= 1e-3 * report.compared, f"{report.table()}\n{model}"


@pytest.mark.parametrize("granularity", WEIGHTS)
@dialects
def test_weight_layers(zoo, granularity, export):
    """The four cases together give each layer a weight of each width, and each dialect acts of each width and kind."""
    case = 2 * list(WEIGHTS).index(granularity) + DIALECTS.index(export)
    weights = [
        WEIGHTS[granularity][number % 2](bit_width=WIDTHS[(number // 2 + number % 2 + 2 * case) % 8])
        for number in range(16)
    ]
    kinds = turned([Int8Act, ShiftedUint8Act], case // 2 ^ case % 2)
    acts = [kinds[number % 2](bit_width=bits) for number, bits in enumerate(WIDTHS)]
    model = zoo.trained(zoo.WeightZoo(acts, weights), zoo.example())
    agrees(model, export, zoo.example(), zoo.example(8))


@dialects
def test_other_weight_quantizers(zoo, export):
    weights = turned(OTHER_WEIGHTS, 3 * DIALECTS.index(export))
    model = zoo.trained(zoo.WeightZoo((Uint8Act(bit_width=6),), weights), zoo.example())
    agrees(model, export, zoo.example(), zoo.example(8))


TURNS = [(0, export_onnx_qcdq), (8, export_onnx_qdq)]  # each has every quantizer
MORE = [(turn, export) for turn in (0, 4, 8, 12) for export in DIALECTS if (turn, export) not in TURNS]


@pytest.mark.parametrize(("turn", "export"), [*TURNS, *(pytest.param(*each, marks=pytest.mark.slow) for each in MORE)])
def test_activation_layers(zoo, turn, export):
    """Each quantizer at several layers."""
    acts, positives = zip(*turned(ACTIVATIONS, turn + 2 * DIALECTS.index(export)), strict=True)
    model = zoo.trained(zoo.ActivationZoo(acts, positives), zoo.example())
    agrees(model, export, zoo.example(), zoo.example(4))


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
def test_roundings_of_activations(zoo, export):
    roundings = ["floor", "ceil", "half_up", "toward_zero", "stochastic"]
    acts = [Int8Act(rounding=rounding, bit_width=bits) for bits in (3, 8) for rounding in roundings]
    model = zoo.trained(zoo.WeightZoo(acts), zoo.example())
    agrees(model, export, zoo.example(), zoo.example(8))

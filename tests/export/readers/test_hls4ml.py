"""hls4ml's C++ code of QONNX files computes what the models do; what it can't read."""

import sys

import pytest
import torch
from torch import nn

import bitwright.nn as qnn
from bitwright.export.optional import installed
from bitwright.quantizers import Int8ActPowerOfTwo, Int8WeightPerChannel, Int32Bias, TernaryWeightPerTensor, TruncTo8bit
from tests.export.readers.networks import (
    FLOATS,
    IMAGES,
    POWERS,
    ROWS,
    chain,
    conv,
    found,
    lenet,
    linear,
    read,
    relu,
    write,
)

pytest.importorskip("onnxscript")
pytest.importorskip("qonnx")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # what qonnx warns of
    pytest.mark.skipif(not installed("hls4ml"), reason="hls4ml is not installed: make test-readers"),
]

PER_CHANNEL = {"weight": Int8WeightPerChannel}
READ = {
    "lenet": (lambda: lenet(POWERS), (4, 4, 16, 16), [4] * 5),
    "float scales": (lambda: chain(linear(16, 8, weight=FLOATS["weight"]), relu(FLOATS["relu"])), ROWS, [4]),
    "per channel": (
        lambda: chain(conv(4, 6, 3, bias=False, **PER_CHANNEL), nn.BatchNorm2d(6), relu()),
        IMAGES,
        [4],
    ),
    "depthwise": (lambda: chain(conv(4, 4, 3, groups=4, padding=1), relu()), IMAGES, [4]),
    "int32 bias": (lambda: chain(conv(4, 6, 3, bias_quant=Int32Bias), relu()), IMAGES, [4]),
    "ternary": (lambda: chain(qnn.QuantLinear(16, 8, weight_quant=TernaryWeightPerTensor), relu()), ROWS, [2]),
    "floor": (lambda: chain(qnn.QuantIdentity(act_quant=Int8ActPowerOfTwo, bit_width=4, rounding="floor")), ROWS, []),
    "relu6": (lambda: chain(conv(4, 6, 3), qnn.QuantReLU6(bit_width=4)), IMAGES, [4]),
}
REFUSED = {
    "linear, per channel": (lambda: chain(linear(16, 8, **PER_CHANNEL)), ROWS, "IndexError"),
    "bias beside a scale for each channel": (lambda: chain(conv(4, 6, 3, **PER_CHANNEL)), IMAGES, "IndexError"),
    "per channel behind a float scale": (
        lambda: chain(conv(4, 6, 3, bias=False, **PER_CHANNEL), entry=FLOATS["entry"]),
        IMAGES,
        "IndexError",
    ),
    "depthwise, per channel": (
        lambda: chain(conv(4, 4, 3, groups=4, padding=1, bias=False, **PER_CHANNEL)),
        IMAGES,
        "ValueError",
    ),
    "groups": (lambda: chain(conv(4, 6, 3, groups=2)), IMAGES, "ValueError: Depth multiplier must be an integer"),
    "hardtanh": (lambda: chain(nn.Hardtanh()), ROWS, "Exception: ERROR: Unsupported operation type: Clip"),
    "transposed": (
        lambda: chain(qnn.QuantConvTranspose2d(4, 6, 3)),
        IMAGES,
        "Exception: ERROR: Unsupported operation type: ConvTranspose",
    ),
    "truncation": (
        lambda: chain(linear(16, 8, bias_quant=Int32Bias, output_quant=TruncTo8bit)),
        ROWS,
        "Exception: ERROR: Unsupported operation type: Trunc",
    ),
    "average": (lambda: chain(nn.AvgPool2d(2)), IMAGES, "RuntimeError: Please convert the model to channels-last"),
}


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hls4ml")
    torch.manual_seed(0)
    made = {name: (make(), shape) for name, (make, shape, _) in (READ | REFUSED).items()}
    expected = {name: write(folder, name, *each) for name, each in made.items()}
    return folder, expected, read(sys.executable, "read_hls4ml.py", folder)


@pytest.mark.parametrize("name", READ)
def test_compiled_networks_compute_the_same(everything, name):
    folder, expected, said = everything
    kinds, widths = said[name]
    assert widths == READ[name][2], kinds
    values = found(folder, name, "outputs").reshape(expected[name].shape)
    assert (values - expected[name]).abs().max() <= 1e-4 * expected[name].abs().max()


@pytest.mark.parametrize("name", REFUSED)
def test_what_hls4ml_does_not_read(everything, name):
    said = everything[2][name]
    assert isinstance(said, str), said
    assert said.startswith(REFUSED[name][2])

"""FINN's front end reads QONNX files to the last operator: integers everywhere, and the numbers of the model."""

import os

import pytest
import torch
from torch import nn

import bitwright.nn as qnn
from bitwright.quantizers import (
    BinaryAct,
    BinaryConnectWeight,
    Int8Act,
    Int8WeightPerChannel,
    Int32Bias,
    TernaryWeightPerTensor,
    Uint8Act,
)
from tests.export.readers.networks import (
    CHANNELS,
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
FINN = os.environ.get("FINN_PYTHON")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(FINN is None, reason="FINN_PYTHON names no interpreter: make test-readers"),
]

PER_CHANNEL = {"weight": Int8WeightPerChannel}
NETWORKS = {
    "lenet, powers of two": (lambda: lenet(POWERS), (4, 4, 16, 16)),
    "lenet, per tensor": (lambda: lenet(FLOATS), (4, 4, 16, 16)),
    "lenet, per channel": (lambda: lenet(CHANNELS), (4, 4, 16, 16)),
    "depthwise": (lambda: chain(conv(4, 4, 3, groups=4, stride=2, padding=1, **PER_CHANNEL), relu()), IMAGES),
    "int32 bias": (  # no powers of two: sums often lie halfway then, where FINN's thresholds round up
        lambda: chain(conv(4, 6, 3, bias_quant=Int32Bias, **PER_CHANNEL), relu(Uint8Act), entry=Int8Act),
        IMAGES,
    ),
    "batch norm of rows": (lambda: chain(linear(16, 8, **PER_CHANNEL), nn.BatchNorm1d(8), relu()), ROWS),
    "ternary": (lambda: chain(qnn.QuantLinear(16, 8, weight_quant=TernaryWeightPerTensor), relu()), ROWS),
    "signs": (
        lambda: chain(qnn.QuantLinear(16, 8, weight_quant=BinaryConnectWeight), qnn.QuantIdentity(act_quant=BinaryAct)),
        ROWS,
    ),
    "relu6": (lambda: chain(conv(4, 6, 3), qnn.QuantReLU6(bit_width=4)), IMAGES),
}
FLOAT_ENDS = ("Mul", "Add")  # the last scale, and the last bias where no quantizer follows


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finn")
    torch.manual_seed(0)
    expected = {name: write(folder, name, make(), shape) for name, (make, shape) in NETWORKS.items()}
    assert FINN is not None
    return folder, expected, read(FINN, "read_finn.py", folder)


@pytest.mark.parametrize("name", NETWORKS)
def test_streamlined_networks_compute_the_same_in_integers(everything, name):
    folder, expected, said = everything
    for step in ("converted", "streamlined"):
        difference = (found(folder, name, step) - expected[name]).abs().max()
        assert difference <= 1e-6 * expected[name].abs().max(), (step, difference)
    nodes = said[name]
    while nodes and nodes[-1][0] in FLOAT_ENDS:
        nodes = nodes[:-1]
    assert {kind for _, kind in nodes} <= {"INT8", "INT32", "UINT4", "BIPOLAR"}, nodes
    assert {kind for kind, _ in nodes} <= {
        *("MultiThreshold", "MatMul", "Im2Col", "MaxPoolNHWC", "Transpose", "Flatten"),
    }

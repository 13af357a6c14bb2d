"""QONNX files in the hands of those that read them: the transformations of qonnx, and hls4ml's front end."""

import json
import subprocess
import sys

import pytest
import torch
from torch import nn

import bitwright.nn as qnn
from bitwright.export import export_qonnx
from bitwright.export.optional import installed
from bitwright.quantizers import Int8ActPowerOfTwo, Int8WeightPerTensorPowerOfTwo, Uint8ActPowerOfTwo

pytest.importorskip("onnxscript")
pytest.importorskip("qonnx")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # what other packages warn of


def lenet():
    weight = {"weight_quant": Int8WeightPerTensorPowerOfTwo, "weight_bit_width": 4}

    def relu():
        return qnn.QuantReLU(act_quant=Uint8ActPowerOfTwo, bit_width=4)

    model = nn.Sequential(
        qnn.QuantIdentity(act_quant=Int8ActPowerOfTwo),
        *(qnn.QuantConv2d(1, 6, 5, padding=2, **weight), nn.BatchNorm2d(6), relu(), nn.MaxPool2d(2)),
        *(qnn.QuantConv2d(6, 16, 5, **weight), relu(), nn.MaxPool2d(2), nn.Flatten()),
        *(qnn.QuantLinear(400, 120, **weight), relu(), qnn.QuantLinear(120, 84, **weight), relu()),
        qnn.QuantLinear(84, 10, **weight),
    )
    x = torch.randn(4, 1, 28, 28)
    with torch.no_grad():
        model(x)
    qnn.finish_calibration(model)
    return model.eval(), x[:1]


@pytest.fixture
def clean():
    from qonnx.core.modelwrapper import ModelWrapper
    from qonnx.util.cleanup import cleanup_model

    torch.manual_seed(0)
    model, x = lenet()
    return cleanup_model(ModelWrapper(export_qonnx(model, x).model_proto)), x, model(x).detach()


def run(wrapper, x):
    from qonnx.core.onnx_exec import execute_onnx

    (found,) = execute_onnx(wrapper, {wrapper.graph.input[0].name: x.numpy()}).values()
    return torch.tensor(found)


def test_the_transformations_of_qonnx_keep_the_numbers(clean):
    from qonnx.transformation.channels_last import ConvertToChannelsLastAndClean
    from qonnx.transformation.extract_conv_bias import ExtractBiasFromConv
    from qonnx.transformation.infer_shapes import InferShapes
    from qonnx.transformation.qonnx_to_qcdq import QuantToQCDQ

    wrapper, x, expected = clean
    for each in (None, ExtractBiasFromConv(), QuantToQCDQ(), ConvertToChannelsLastAndClean()):
        turned = wrapper if each is None else wrapper.transform(each).transform(InferShapes())
        assert torch.allclose(run(turned, x), expected, rtol=0, atol=1e-5 * expected.abs().max().item()), each


PARSING = """
import contextlib, io, json, sys
import hls4ml, onnx
model = onnx.load(sys.argv[1])
with contextlib.redirect_stdout(io.StringIO()):
    config = hls4ml.utils.config.config_from_onnx_model(model, granularity="name", backend="Vivado")
    read = hls4ml.converters.convert_from_onnx_model(
        model, output_dir=sys.argv[2], backend="Vivado", io_type="io_stream", hls_config=config
    )
kinds = [each.class_name for each in read.get_layers()]
widths = [each.weights["weight"].type.precision.width for each in read.get_layers() if each.class_name in sys.argv[3:]]
print(json.dumps([kinds, widths]))
"""


@pytest.mark.skipif(not installed("hls4ml"), reason="hls4ml is not installed")
def test_hls4ml_reads_the_widths(clean, tmp_path):
    from qonnx.transformation.channels_last import ConvertToChannelsLastAndClean
    from qonnx.util.cleanup import cleanup_model

    turned = clean[0].transform(ConvertToChannelsLastAndClean(make_input_channels_last=True))
    cleanup_model(turned).save(str(tmp_path / "last.onnx"))
    command = [sys.executable, "-I", "-W", "ignore", "-c", PARSING]  # apart: it imports a package named quantizers
    arguments = [str(tmp_path / "last.onnx"), str(tmp_path / "project"), "Conv2D", "Dense"]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    kinds, widths = json.loads(done.stdout.splitlines()[-1])
    assert [each for each in kinds if each in ("Conv2D", "Pooling2D", "Dense")] == [
        *("Conv2D", "Pooling2D") * 2,
        *("Dense",) * 3,
    ]
    assert widths == [4, 4, 4, 4, 4]

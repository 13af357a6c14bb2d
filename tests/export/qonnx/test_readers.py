"""QONNX files in the hands of the transformations of qonnx. FINN and hls4ml: tests/export/readers."""

import pytest
import torch
from torch import nn

import bitwright.nn as qnn
from bitwright.export import export_qonnx
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

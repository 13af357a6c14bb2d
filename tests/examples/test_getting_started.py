"""The three LeNets, untrained, three colours in: exported by the calls a newcomer types first."""

import onnx
import pytest
import torch

from bitwright.export import export_onnx_qcdq
from bitwright.qcore import BitwrightWarning


def test_weights(example, tmp_path):
    path = str(tmp_path / "4b_weight_lenet.onnx")
    export_onnx_qcdq(example("lenet_models").WeightLeNet(3), torch.randn(1, 3, 32, 32), export_path=path)
    graph = onnx.load(path).graph
    assert sum(node.op_type == "DequantizeLinear" for node in graph.node) == 5


@pytest.mark.parametrize("name", ["WeightActLeNet", "WeightActBiasLeNet"])
def test_activations_use_the_range_of_the_example_and_say_so(example, tmp_path, name):
    model = getattr(example("lenet_models"), name)(3)
    path = str(tmp_path / "lenet.onnx")
    with pytest.warns(BitwrightWarning, match="saw no data, so the range is that of the input at hand"):
        export_onnx_qcdq(model, torch.randn(1, 3, 32, 32), export_path=path)
    graph = onnx.load(path).graph
    assert sum(node.op_type == "QuantizeLinear" for node in graph.node) == 5
    biases = [each.data_type for each in graph.initializer if "bias_quant" in each.name]
    assert (onnx.TensorProto.INT32 in biases) == (name == "WeightActBiasLeNet")

"""Every library builds the same networks."""

import pytest
import torch
from torch import nn

from benchmarks.layers import Layers, Scheme
from benchmarks.layers_ao import AoLayers
from benchmarks.layers_bitwright import BitwrightLayers
from benchmarks.models import LENET, MLP_512, RESNET18, Encoder, MobileNetV2

FLOAT = Layers(Scheme())


def count(model):
    return sum(1 for _ in model.modules()), sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("network", "modules", "parameters"),
    [(LENET, 11, 62_006), (RESNET18, 72, 11_173_962), (MLP_512, 7, 787_968)],
    ids=["LeNet-5", "ResNet-18", "MLP"],
)
def test_float_networks_are_what_their_names_say(network, modules, parameters):
    assert count(network.build(FLOAT)) == (modules, parameters)


def test_mobilenet_has_53_layers_and_35_activations():
    kinds = [type(each) for each in MobileNetV2(FLOAT).modules()]
    assert [kinds.count(each) for each in (nn.Conv2d, nn.Linear, nn.ReLU)] == [52, 1, 35]
    assert count(MobileNetV2(FLOAT))[1] == 3_504_872  # as torchvision's
    assert MobileNetV2(BitwrightLayers(Scheme(8, 8)))(torch.zeros(2, 3, 32, 32)).shape == (2, 1000)


def test_encoder_has_72_linears():
    with torch.device("meta"):
        encoder = Encoder(FLOAT)
    assert sum(isinstance(each, torch.nn.Linear) for each in encoder.blocks.modules()) == 72
    assert count(encoder)[1] == 85_062_154


@pytest.mark.parametrize("network", [LENET, MLP_512], ids=["LeNet-5", "MLP"])
@pytest.mark.parametrize("scheme", [Scheme(4), Scheme(4, 4), Scheme(4, 4, int_bias=True)])
def test_quantized_networks_start_from_the_same_weights(network, scheme):
    inputs = network.batch()[0][:2]
    quantized = network.build(BitwrightLayers(scheme))
    quantized.load_state_dict(network.build(FLOAT).state_dict())
    assert type(quantized(inputs)) is torch.Tensor
    assert quantized(inputs).shape == network.build(FLOAT)(inputs).shape


def test_torch_ao_builds_the_networks_too():
    model = LENET.build(AoLayers(Scheme(4, 4)))
    assert model(LENET.batch()[0][:2]).shape == (2, 10)


@pytest.mark.parametrize("layers", [FLOAT, BitwrightLayers(Scheme(8, 8))])
def test_encoder_runs(layers):
    encoder = Encoder(layers, depth=1, width=16, heads=2)
    assert encoder(torch.randn(2, 3, 16)).shape == (2, 10)


def test_batches_are_the_same_each_time():
    for one, other in zip(LENET.batch(), LENET.batch(), strict=True):
        assert torch.equal(one, other)


def test_scheme_reaches_the_layers():
    layers = BitwrightLayers(Scheme(3, 5, int_bias=True, calibration_steps=7))
    conv, relu = layers.conv(3, 4, 3, input_quant=True), layers.relu()
    assert conv.weight_quant.bit_width == 3
    assert conv.bias_quant is not None
    assert (conv.input_quant.bit_width, conv.input_quant.scaling.calibration_steps) == (5, 7)
    assert (relu.act_quant.bit_width, relu.act_quant.scaling.calibration_steps) == (5, 7)
    assert relu.return_quant_tensor

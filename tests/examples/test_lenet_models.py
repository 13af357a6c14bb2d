import pytest
import torch
from torch import nn

from bitwright.export import export_onnx_qcdq
from bitwright.qcore import BitwrightWarning, QuantTensor

QUANTIZED = ["WeightLeNet", "WeightActLeNet", "WeightActBiasLeNet"]
WEIGHTS = ["conv1", "conv2", "fc1", "fc2", "fc3"]
ACTIVATIONS = ["quant_inp", "relu1", "relu2", "relu3", "relu4"]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", ["FloatLeNet", *QUANTIZED])
def test_model_takes_images(example, name, channels):
    model = getattr(example("lenet_models"), name)(channels)
    assert model(torch.randn(2, channels, 32, 32)).shape == (2, 10)


def test_channels_are_those_of_the_digits_by_default(example):
    models = example("lenet_models")
    for name in ["FloatLeNet", *QUANTIZED]:
        assert getattr(models, name)().conv1.in_channels == 1


@pytest.mark.parametrize("name", QUANTIZED)
def test_float_checkpoint_loads_strictly(example, name, tmp_path):
    models = example("lenet_models")
    start, model = models.FloatLeNet(), getattr(models, name)()
    torch.save(start.state_dict(), tmp_path / "float.pt")
    found = model.load_state_dict(torch.load(tmp_path / "float.pt"), strict=True)
    assert (found.missing_keys, found.unexpected_keys) == ([], [])
    for key, tensor in start.state_dict().items():
        assert torch.equal(model.state_dict()[key], tensor)


@pytest.mark.parametrize("name", QUANTIZED)
def test_quantized_checkpoint_loads_strictly(example, name):
    model, copy = (getattr(example("lenet_models"), name)() for _ in range(2))
    images = torch.randn(8, 1, 32, 32)
    model(images)  # in training mode: activations collect their ranges
    copy.load_state_dict(model.state_dict())
    assert torch.equal(copy.eval()(images), model.eval()(images))


@pytest.mark.parametrize("name", QUANTIZED)
def test_weights_have_4_bits(example, name):
    model = getattr(example("lenet_models"), name)()
    for layer in WEIGHTS:
        codes = getattr(model, layer).int_weight()
        assert codes.dtype == torch.int8
        assert codes.abs().max() == 7


@pytest.mark.parametrize("name", QUANTIZED[1:])
def test_activations_have_4_bits(example, name):
    model = getattr(example("lenet_models"), name)()
    returned = {}
    for layer in ACTIVATIONS:
        module = getattr(model, layer)
        module.register_forward_hook(lambda module, args, out: returned.update({module: out}))
    model(torch.randn(8, 1, 32, 32))
    for layer in ACTIVATIONS:
        values = returned[getattr(model, layer)]
        assert len(values.unique()) <= 16
        assert isinstance(values, QuantTensor) == (name == "WeightActBiasLeNet")


def test_only_weights_are_quantized_in_the_first(example):
    model = example("lenet_models").WeightLeNet()
    assert [type(getattr(model, layer)) for layer in ACTIVATIONS] == [nn.Identity, *[nn.ReLU] * 4]
    assert all(getattr(model, layer).bias_quant is None for layer in WEIGHTS)


def test_biases_are_integers_on_the_scale_of_the_products(example):
    model = example("lenet_models").WeightActBiasLeNet()
    model(torch.randn(8, 1, 32, 32))
    model.eval()(torch.randn(8, 1, 32, 32))
    for layer, before in zip(WEIGHTS, ACTIVATIONS, strict=True):
        module = getattr(model, layer)
        bias = module.quant_bias()
        assert (bias.bit_width, module.int_bias().dtype) == (32, torch.int32)
        scale = getattr(model, before).act_quant.grid(torch.zeros(1)).scale * module.quant_weight().scale
        assert torch.equal(bias.scale, scale)


@pytest.mark.parametrize("seed", [1, 6, 7])  # inputs of theirs lie on rounding boundaries, at ranges not yet known
def test_untrained_model_exports(example, seed):
    torch.manual_seed(seed)
    model = example("lenet_models").WeightActBiasLeNet(3)
    with pytest.warns(BitwrightWarning, match="saw no data, so the range is that of the input at hand"):
        export_onnx_qcdq(model, torch.randn(1, 3, 32, 32))

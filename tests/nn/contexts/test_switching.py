"""Quantization switched off, as a whole or in part."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import bitwright.nn as qnn
from bitwright.qcore import QuantizerError, QuantTensor
from bitwright.quantizers import Int8Act, Int32Bias


def model():
    torch.manual_seed(1)
    return nn.Sequential(
        qnn.QuantIdentity(act_quant=Int8Act, scale=0.25, return_quant_tensor=True),
        qnn.QuantLinear(4, 3, weight_bit_width=2, bias_quant=Int32Bias, return_quant_tensor=True),
        qnn.QuantReLU(scale=0.0625),
    )


X = torch.tensor([[0.3, -1.1, 2.2, 0.7], [1.0, 0.1, -0.4, 0.9]])


def as_float(net, x, weight=None):
    return F.linear(x, net[1].weight if weight is None else weight, net[1].bias)


def test_everything_is_off():
    net = model()
    with qnn.unquantized(net) as same:
        assert same is net
        out = net(X)
    assert type(out) is torch.Tensor
    assert torch.equal(out, as_float(net, X).relu())
    assert isinstance(net[0](X), QuantTensor)


def test_weights_stay_on():
    net = model()
    with qnn.unquantized(net, weights=False):
        found = net(X)
    assert torch.equal(found, as_float(net, X, net[1].quant_weight().value).relu())


def test_activations_stay_on():
    net = model()
    with qnn.unquantized(net, activations=False):
        found = net(X)
    codes = (X / 0.25).round() * 0.25
    assert torch.equal(found, ((as_float(net, codes).relu()) / 0.0625).round().clamp(0, 255) * 0.0625)


def test_biases_alone_are_off():
    net = model()
    with qnn.unquantized(net, weights=False, activations=False):
        found = net[:2](X)
    codes = (X / 0.25).round() * 0.25
    assert torch.equal(found, as_float(net, codes, net[1].quant_weight().value))
    assert type(found) is torch.Tensor


def test_state_is_untouched():
    net = nn.Sequential(qnn.QuantLinear(4, 3, input_quant=Int8Act), qnn.QuantReLU())
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with qnn.unquantized(net):
        net(X).sum().backward()
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    assert [quant.phase for quant in (net[0].input_quant.scaling, net[1].act_quant.scaling)] == ["empty", "empty"]
    assert net[0].weight.grad is not None


def test_blocks_are_nested():
    net = model()
    expected = net(X)
    with qnn.unquantized(net, activations=False, biases=False):
        with qnn.unquantized(net, weights=False):
            assert torch.equal(net(X), as_float(net, X).relu())
        codes = (X / 0.25).round() * 0.25
        assert torch.equal(net[0](X).value, codes)
    assert torch.equal(net(X), expected)


def test_an_exception_ends_it():
    net = model()
    expected = net(X)
    with pytest.raises(RuntimeError, match="mat1 and mat2"), qnn.unquantized(net):
        net(X[:, :3])
    assert torch.equal(net(X), expected)


def test_frozen_values_are_kept_for_afterwards():
    net = model().eval()
    with torch.no_grad(), qnn.frozen(net):
        expected = net(X)
        with qnn.unquantized(net):
            assert not torch.equal(net(X), expected)
        assert torch.equal(net(X), expected)


def test_what_is_no_model():
    with pytest.raises(QuantizerError) as error, qnn.unquantized(5):
        pass
    assert str(error.value) == ("unquantized: 5 is not a model. Pass a torch.nn.Module, such as qnn.QuantLinear(8, 4).")

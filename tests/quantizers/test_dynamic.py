"""Activations whose scale follows each tensor: in layers, frozen, and what can't go with them."""

import re

import pytest
import torch
from torch import nn

import bitwright.nn as qnn
from bitwright.qcore import PerGroup, PerTensor, PerToken, QuantizerError, resolve
from bitwright.quantizers import (
    Dynamic,
    Fp8e4m3DynamicAct,
    Fp8e4m3DynamicActPerGroup,
    Int8BiasOwnScale,
    Int8DynamicAct,
    Int8DynamicActPerGroup,
    Int8DynamicActPerToken,
    Int32Bias,
    IntBase,
    MXFloat8e4m3Act,
    ShiftedUint8DynamicAct,
    ShiftedUint8DynamicActPerGroup,
    ShiftedUint8DynamicActPerToken,
    Uint8DynamicAct,
    dynamic,
)
from tests.quantizers.shipped import COMPLETE

X = torch.randn(4, 7, 40, generator=torch.Generator().manual_seed(0))
ACTS = [COMPLETE[name] for name in dynamic.__all__]
WHERE = "QuantLinear(in_features=40, out_features=6, bias=True): "


def test_scale_is_the_tensors():
    """The largest magnitude over 127, of each tensor, token and group."""
    x = torch.tensor([[1.27, -0.5], [0.254, 0.1]])
    assert resolve(Int8DynamicAct).grid(x).scale.item() == pytest.approx(0.01)
    assert resolve(Int8DynamicActPerToken).grid(x).scale.tolist() == [[pytest.approx(0.01)], [pytest.approx(0.002)]]
    groups = resolve(Int8DynamicActPerGroup(group_size=1)).grid(x).scale
    torch.testing.assert_close(groups, x.abs() / 127)


def test_both_ends_are_the_tensors():
    x = torch.tensor([[-0.5, 2.05], [1.0, 2.55]])
    grid = resolve(ShiftedUint8DynamicActPerToken).grid(x)
    torch.testing.assert_close(grid.scale, torch.tensor([[0.01], [0.01]]))
    assert grid.zero_point.tolist() == [[50], [0]]
    grid = resolve(ShiftedUint8DynamicAct).grid(x)
    assert (grid.scale.shape, grid.zero_point.item()) == ((), 42)


@pytest.mark.parametrize("quantizer", ACTS, ids=repr)
def test_nothing_is_stored(quantizer):
    quant = resolve(quantizer).eval()
    assert list(quant.state_dict()) == ["scheme"]
    assert (quant.dynamic, quant.calibrated, quant.calibrating) == (True, True, False)
    name = repr(quantizer)
    expected = PerToken() if "PerToken" in name else PerGroup(32, -1) if "PerGroup" in name else PerTensor()
    assert quant.granularity == expected
    one, other = quant.grid(X), quant.grid(3 * X)
    torch.testing.assert_close(other.scale, 3 * one.scale)


@pytest.mark.parametrize("quantizer", ACTS, ids=repr)
def test_layers_compute_with_it(quantizer):
    linear = qnn.QuantLinear(40, 6, input_quant=quantizer)
    expected = nn.functional.linear(linear.input_quant.quantize(X)[0], linear.quant_weight().value, linear.bias)
    assert torch.equal(linear(X), expected)
    groups = {"input_group_axis": 1} if "PerGroup" in repr(quantizer) else {}
    conv = qnn.QuantConv2d(40, 6, 3, padding=1, input_quant=quantizer, **groups)
    x = X.reshape(4, 40, 7, 1).expand(4, 40, 7, 5)
    expected = nn.functional.conv2d(conv.input_quant.quantize(x)[0], conv.quant_weight().value, conv.bias, padding=1)
    assert torch.equal(conv(x), expected)


@pytest.mark.parametrize("quantizer", ACTS, ids=repr)
def test_frozen_models_keep_no_scale(quantizer):
    module = qnn.QuantLinear(40, 6, input_quant=quantizer).eval()
    with torch.no_grad():
        expected = [module(X), module(3 * X)]
        with qnn.frozen(module):
            for _ in range(2):
                assert torch.equal(module(X), expected[0])
                assert torch.equal(module(3 * X), expected[1])
            assert not module.input_quant._kept


def test_never_negative():
    module = qnn.QuantReLU(act_quant=Uint8DynamicAct, return_quant_tensor=True)
    y = module(torch.tensor([-9.0, 0.1, 5.1]))
    assert y.int().tolist() == [0, 5, 255]  # of what ReLU leaves


def test_layers_that_follow():
    """A layer that takes the QuantTensor knows the grid of the tokens, and needs none."""
    act = qnn.QuantIdentity(act_quant=Int8DynamicActPerToken, return_quant_tensor=True)
    module = qnn.QuantLinear(40, 6, bias_quant=Int8BiasOwnScale)
    assert torch.equal(module(act(X)), module(act(X).value))


def test_gradient_reaches_the_largest():
    """The largest magnitude is a level times the scale, whatever it is: its gradient is 1 in all."""
    x = torch.tensor([[0.3, -1.27, 0.5]], requires_grad=True)
    resolve(Int8DynamicActPerToken)(x)[0, 1].backward()
    torch.testing.assert_close(x.grad, torch.tensor([[0.0, 1.0, 0.0]]))


# A bias on the scale of the products, and outputs that carry a grid


def test_bias_on_the_scale_of_the_products():
    module = qnn.QuantLinear(40, 6, input_quant=Int8DynamicAct, bias_quant=Int32Bias, return_quant_tensor=True)
    y = module(X)
    assert y.is_valid
    scale = module.input_quant.grid(X).scale * module.quant_weight().scale
    torch.testing.assert_close(module.quant_bias().scale, scale)


@pytest.mark.parametrize(
    ("quantizer", "granularity"),
    [
        (Int8DynamicActPerToken, "per token"),
        (Int8DynamicActPerGroup, "groups of 32 along axis -1"),
        (ShiftedUint8DynamicActPerGroup, "groups of 32 along axis -1"),
        (Fp8e4m3DynamicActPerGroup, "groups of 32 along axis -1"),
        (MXFloat8e4m3Act, "groups of 32 along axis -1"),
    ],
    ids=repr,
)
def test_no_common_scale(quantizer, granularity):
    """Said when the layer is built: a batch of one token would hide it."""
    message = (
        f"{WHERE}with input_quant {granularity} the products have several scales, and a bias on the scale of the "
        "products needs a common one. Write input_quant=Int8DynamicAct for one scale, or bias_quant=Int8BiasOwnScale."
    )
    with pytest.raises(QuantizerError, match=re.escape(message)):
        qnn.QuantLinear(40, 6, input_quant=quantizer, bias_quant=Int32Bias)
    message = (
        f"QuantLinear(in_features=40, out_features=6, bias=False): with input_quant {granularity} the products have "
        "several scales, and return_quant_tensor=True needs a common one. Write input_quant=Int8DynamicAct for one "
        "scale, or output_quant=Int8Act."
    )
    with pytest.raises(QuantizerError, match=re.escape(message)):
        qnn.QuantLinear(40, 6, bias=False, input_quant=quantizer, return_quant_tensor=True)


@pytest.mark.parametrize(("tokens", "found"), [(3, "3 scales"), (1, "a scale")])
def test_no_common_scale_in_a_tensor_that_arrives(tokens, found):
    act = qnn.QuantIdentity(act_quant=Int8DynamicActPerToken, return_quant_tensor=True)
    module = qnn.QuantLinear(40, 6, bias_quant=Int32Bias)
    message = (
        f"bias_quant: the input has {found} (per token), so its products with the weight have no common one for the "
        "bias. Quantize the input per tensor (axis=None), or choose bias_quant=Int8BiasOwnScale."
    )
    with pytest.raises(QuantizerError, match=re.escape(message)):
        module(act(X[0, :tokens]))
    module = qnn.QuantLinear(40, 6, bias=False, return_quant_tensor=True)
    message = (
        f"QuantLinear: the input has {found} (per token), so its products with the weight lie on no common grid. "
        "Quantize the input per tensor (axis=None), or set output_quant=Int8Act."
    )
    with pytest.raises(QuantizerError, match=re.escape(message)):
        module(act(X[0, :tokens]))


def test_a_number_has_no_groups():
    message = "act_quant: an input of 0 dimensions can't have groups of 32 along axis -1. Quantize it per tensor."
    with pytest.raises(QuantizerError, match=re.escape(message)):
        qnn.QuantIdentity(act_quant=Int8DynamicActPerGroup)(torch.tensor(1.0))


def test_fragments():
    class Int6DynamicAct(Dynamic, IntBase):
        bit_width = 6

    quant = resolve(Int6DynamicAct)
    assert quant(torch.tensor([3.2, -1.0, 0.14])).tolist() == pytest.approx([3.1, -1.0, 0.1])
    assert resolve(Fp8e4m3DynamicAct).grid(torch.tensor([44.8])).scale.item() == pytest.approx(0.1)

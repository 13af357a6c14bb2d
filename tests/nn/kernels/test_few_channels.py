"""Convolutions of images with few channels: torch's numbers, with another way to the gradient of the input."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.checkpoint import checkpoint

import bitwright.nn as qnn
from bitwright.nn.kernels import few_channels
from bitwright.nn.kernels.few_channels import conv2d

pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))


def tensors(batch, inputs, outputs, kernel, size, bias=True):
    generator = torch.Generator().manual_seed(0)
    shapes = (batch, inputs, *size), (outputs, inputs, *kernel), (outputs,)
    made = [torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True) for shape in shapes]
    return made if bias else [*made[:2], None]


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 3),
    st.integers(1, 4),
    st.sampled_from([2, 8, 9, 16]),
    pairs,
    st.tuples(st.integers(7, 11), st.integers(7, 11)),
    pairs,
    st.tuples(st.integers(0, 4), st.integers(0, 4)),
    pairs,
    st.booleans(),
)
def test_equals_torch(batch, inputs, outputs, kernel, size, stride, padding, dilation, bias):
    x, weight, b = given_tensors = tensors(batch, inputs, outputs, kernel, size, bias)
    ours, theirs = (function(x, weight, b, stride, padding, dilation) for function in (conv2d, F.conv2d))
    assert torch.equal(ours, theirs)
    leaves = [each for each in given_tensors if each is not None]
    grad = torch.randn_like(ours)
    found = torch.autograd.grad(ours, leaves, grad)
    for one, other in zip(found, torch.autograd.grad(theirs, leaves, grad), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("outputs", [2, 16])
def test_literal_gradient(outputs):
    x = torch.zeros(2, 1, 3, 3, requires_grad=True)
    weight = torch.tensor([[1.0, 10.0], [100.0, 1000.0]]).expand(outputs, 1, 2, 2)
    conv2d(x, weight, None, (1, 1), (0, 0), (1, 1)).sum().backward()
    expected = torch.tensor([[1.0, 11, 10], [101, 1111, 1010], [100, 1100, 1000]]) * outputs
    assert x.grad.tolist() == expected.expand(2, 1, 3, 3).tolist()


def test_large_inputs_are_taken_in_parts(monkeypatch):
    monkeypatch.setattr(few_channels, "_COLUMNS", 9 * 36)  # one sample at a time
    x, weight, bias = tensors(5, 1, 16, (3, 3), (8, 8))
    grad = torch.randn(5, 16, 6, 6, dtype=torch.float64)
    found = torch.autograd.grad(conv2d(x, weight, bias, (1, 1), (0, 0), (1, 1)), x, grad)
    torch.testing.assert_close(found, torch.autograd.grad(F.conv2d(x, weight, bias), x, grad))


@pytest.mark.parametrize("outputs", [2, 9])
def test_gradients_of_gradients(outputs):
    x, weight, bias = tensors(1, 2, outputs, (2, 2), (4, 4))
    assert torch.autograd.gradgradcheck(lambda *args: conv2d(*args, (1, 1), (1, 1), (1, 1)), (x, weight, bias))


def test_only_what_wants_a_gradient_gets_one():
    x, weight, bias = tensors(1, 1, 2, (2, 2), (4, 4))
    y = conv2d(x, weight.detach(), bias.detach(), (1, 1), (0, 0), (1, 1))
    assert type(y.grad_fn).__name__ == "_FewChannelsBackward"
    y.sum().backward()
    assert x.grad is not None
    assert weight.grad is bias.grad is None


def made_by_torch(y):
    return type(y.grad_fn).__name__ == "ConvolutionBackward0"


def test_where_torchs_own_serves():
    x, weight, bias = tensors(1, 1, 2, (2, 2), (4, 4))
    geometry = (1, 1), (0, 0), (1, 1)
    assert made_by_torch(conv2d(x.detach(), weight, bias, *geometry))
    half = conv2d(x.bfloat16(), weight.bfloat16(), bias.bfloat16(), *geometry)
    assert made_by_torch(half)
    with torch.autocast("cpu", torch.bfloat16):
        assert conv2d(x.float(), weight.float(), bias.float(), *geometry).dtype == torch.bfloat16
    with torch.no_grad():
        assert conv2d(x, weight, bias, *geometry).grad_fn is None
    assert conv2d(x[0], weight, bias, *geometry).shape == (2, 3, 3)  # without a batch


def test_transforms_of_torch_func():
    x, weight, bias = (each.detach() for each in tensors(3, 1, 2, (2, 2), (4, 4)))

    def loss(sample, function):
        return function(sample[None], weight, bias, (1, 1), (0, 0), (1, 1)).square().sum()

    ours, theirs = (
        torch.func.vmap(torch.func.grad(lambda sample, function=function: loss(sample, function)))(x)
        for function in (conv2d, F.conv2d)
    )
    torch.testing.assert_close(ours, theirs)


def test_checkpointing():
    x, weight, bias = tensors(1, 1, 2, (2, 2), (4, 4))

    def block(x):
        return conv2d(x, weight, bias, (1, 1), (0, 0), (1, 1)).square()

    plain = torch.autograd.grad(block(x).sum(), (x, weight))
    for one, other in zip(
        plain, torch.autograd.grad(checkpoint(block, x, use_reentrant=False).sum(), (x, weight)), strict=True
    ):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("settings", "ours"),
    [
        ({}, True),
        ({"padding": 1, "stride": 2, "dilation": 2}, True),
        ({"padding": "same"}, False),
        ({"padding": 1, "padding_mode": "circular"}, False),
        ({"groups": 2}, False),
    ],
)
def test_the_layer_takes_it_for_an_input_that_is_learned_from(settings, ours):
    torch.manual_seed(0)
    layer = qnn.QuantConv2d(4, 6, 3, **settings)
    x = torch.randn(2, 4, 8, 8, requires_grad=True)
    out = layer(x)
    assert (type(out.grad_fn).__name__ == "_FewChannelsBackward") == ours
    expected = layer._conv_forward(x, layer.quant_weight().value, layer.bias)
    assert torch.equal(out, expected)
    assert type(qnn.QuantConv2d(5, 6, 3)(torch.randn(1, 5, 8, 8, requires_grad=True)).grad_fn).__name__ == (
        "ConvolutionBackward0"
    )

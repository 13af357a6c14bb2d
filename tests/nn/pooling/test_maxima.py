"""Max pooling: torch's, and grids are kept."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import bitwright.nn as qnn
from bitwright.qcore import QuantizerError, QuantTensor, grid_of, values_of
from bitwright.quantizers import Int8Act, Int8ActPerChannel

DIMS = [1, 2, 3]


def image(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@st.composite
def arguments(draw, dims):
    """Arguments of torch's max pooling, and a shape that they fit."""
    kernel = draw(st.tuples(*[st.integers(1, 3)] * dims))
    dilation = draw(st.tuples(*[st.integers(1, 2)] * dims))
    padding = tuple(draw(st.integers(0, each // 2)) for each in kernel)
    stride = draw(st.none() | st.tuples(*[st.integers(1, 3)] * dims))
    sizes = zip(kernel, dilation, padding, strict=True)
    shape = [draw(st.integers(max(wide * (each - 1) + 1 - 2 * pad, 1), 6)) for each, wide, pad in sizes]
    batch = draw(st.sampled_from([(3,), (2, 3)]))
    return (kernel, stride, padding, dilation, draw(st.booleans()), draw(st.booleans())), (*batch, *shape)


@pytest.mark.parametrize("dims", DIMS)
@given(data=st.data())
def test_it_is_torchs_and_keeps_grids(dims, data):
    given_, shape = data.draw(arguments(dims))
    ours = getattr(qnn, f"QuantMaxPool{dims}d")(*given_)
    x = image(*shape)
    expected = getattr(nn, f"MaxPool{dims}d")(*given_)(x)
    out = ours(x)
    if not given_[4]:
        expected, out = (expected,), (out,)
    for one, other in zip(out, expected, strict=True):
        assert torch.equal(one, other)
    q = qnn.QuantIdentity(scale=0.25, return_quant_tensor=True)(x)
    pooled = ours(q)[0] if given_[4] else ours(q)
    assert grid_of(pooled).scale == 0.25
    assert pooled.is_valid


@pytest.mark.parametrize("indices", [False, True])
@pytest.mark.parametrize("dims", DIMS)
def test_adaptive_is_torchs_and_keeps_grids(dims, indices):
    q = qnn.QuantIdentity(scale=0.25, return_quant_tensor=True)(image(2, 3, *[5] * dims))
    ours = getattr(qnn, f"QuantAdaptiveMaxPool{dims}d")(2, indices)(q)
    expected = getattr(nn, f"AdaptiveMaxPool{dims}d")(2, indices)(q.value)
    if indices:
        (ours, places), (expected, wanted) = ours, expected
        assert torch.equal(places, wanted)
    assert torch.equal(values_of(ours), expected)
    assert grid_of(ours).scale == 0.25


def test_literal_numbers_and_places():
    x = torch.tensor([[1.1, 2.0, 9.0, 3.0]])
    pooled, places = qnn.QuantMaxPool1d(2, None, 0, 1, True, act_quant=Int8Act, scale=0.5, return_quant_tensor=True)(x)
    assert pooled.int().tolist() == [[4, 18]]
    assert places.tolist() == [[1, 2]]


def test_a_quantized_input_is_pooled_on_its_grid():
    x = image(1, 2, 4, 4)
    pool = qnn.QuantMaxPool2d(2, input_quant=Int8Act, input_scale=0.25, return_quant_tensor=True)
    assert isinstance(pool(x), QuantTensor)
    assert torch.equal(pool(x).int(), nn.MaxPool2d(2)((x / 0.25).round()).to(torch.int8))
    pool.return_quant_tensor = False
    assert type(pool(x)) is torch.Tensor


def test_scales_per_channel_are_kept():
    q = qnn.QuantIdentity(act_quant=Int8ActPerChannel, calibration_steps=1, return_quant_tensor=True)(image(2, 3, 4, 4))
    pooled = qnn.QuantMaxPool2d(2)(q)
    assert torch.equal(grid_of(pooled).scale, grid_of(q).scale)


def test_gradients_go_to_the_largest():
    x = torch.tensor([[1.0, 2.0, 9.0, 3.0]], requires_grad=True)
    qnn.QuantMaxPool1d(2)(qnn.QuantIdentity(scale=0.5, return_quant_tensor=True)(x)).value.sum().backward()
    assert x.grad.tolist() == [[0.0, 1.0, 1.0, 0.0]]


def test_flags_are_flags():
    with pytest.raises(QuantizerError) as caught:
        qnn.QuantMaxPool2d(2, 2, 0, 1, 8)
    assert str(caught.value) == "QuantMaxPool2d: return_indices=8 is not possible: expected True or False."

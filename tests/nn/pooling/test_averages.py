"""Average pooling: torch's averages, then the grid."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import bitwright.nn as qnn
from bitwright.qcore import QuantizerError, QuantTensor
from bitwright.quantizers import Int8Act, Uint8Act

DIMS = [1, 2, 3]


def image(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@st.composite
def arguments(draw, dims):
    """Arguments of torch's average pooling, and a shape that they fit."""
    kernel = draw(st.tuples(*[st.integers(1, 4)] * dims))
    padding = tuple(draw(st.integers(0, each // 2)) for each in kernel)
    stride = draw(st.none() | st.tuples(*[st.integers(1, 4)] * dims))
    least = [each if dims == 3 else max(each - 2 * pad, 1) for each, pad in zip(kernel, padding, strict=True)]
    shape = [draw(st.integers(each, 6)) for each in least]  # in 3-D, torch asks for the whole kernel
    batch = draw(st.sampled_from([(3,), (2, 3)]))
    return (kernel, stride, padding, draw(st.booleans()), draw(st.booleans())), (*batch, *shape)


@pytest.mark.parametrize("dims", DIMS)
@given(data=st.data())
def test_without_a_quantizer_it_is_torchs(dims, data):
    given_, shape = data.draw(arguments(dims))
    divisor = {} if dims == 1 else {"divisor_override": data.draw(st.none() | st.integers(1, 9))}
    ours = getattr(qnn, f"QuantAvgPool{dims}d")(*given_, act_quant=None, **divisor)
    x = image(*shape)
    assert torch.equal(ours(x), getattr(nn, f"AvgPool{dims}d")(*given_, **divisor)(x))


@pytest.mark.parametrize("dims", DIMS)
@given(data=st.data())
def test_adaptive_without_a_quantizer_is_torchs(dims, data):
    count = st.integers(1, 6) if dims == 1 else st.none() | st.integers(1, 6)
    size = data.draw(st.tuples(*[count] * dims) if dims > 1 else count)
    x = image(2, 3, *data.draw(st.tuples(*[st.integers(1, 6)] * dims)))
    ours = getattr(qnn, f"QuantAdaptiveAvgPool{dims}d")(size, act_quant=None)
    assert torch.equal(ours(x), getattr(nn, f"AdaptiveAvgPool{dims}d")(size)(x))


@pytest.mark.parametrize("dims", DIMS)
def test_literal_numbers(dims):
    x = torch.arange(2.0**dims).reshape(1, *[2] * dims)  # 0 to 1, 3 or 7
    expected = round((2**dims - 1) / 2 / 0.25)
    for layer in (getattr(qnn, f"QuantAvgPool{dims}d"), getattr(qnn, f"QuantAdaptiveAvgPool{dims}d")):
        out = layer(2 if "Adaptive" not in layer.__name__ else 1, scale=0.25, return_quant_tensor=True)(x)
        assert out.int().flatten().tolist() == [expected]
        assert layer(1).act_quant.quantizer == Int8Act


def test_averages_of_quantized_values_lie_on_no_grid_without_a_quantizer():
    q = qnn.QuantIdentity(scale=0.5, return_quant_tensor=True)(image(1, 2, 4, 4))
    assert type(qnn.QuantAvgPool2d(2, act_quant=None)(q)) is torch.Tensor
    out = qnn.QuantAvgPool2d(2, act_quant=Uint8Act, scale=0.125, return_quant_tensor=True)(q)
    assert isinstance(out, QuantTensor)
    assert torch.equal(out.value, (nn.AvgPool2d(2)(q.value) / 0.125).round().clamp_min(0) * 0.125)


def test_half_precision_in_three_dimensions():
    x = image(1, 2, 4, 4, 4)
    for dtype in (torch.bfloat16, torch.float16):
        out = qnn.QuantAvgPool3d(2, act_quant=None)(x.to(dtype))
        assert out.dtype == dtype
        assert torch.equal(out, nn.AvgPool3d(2)(x.to(dtype).float()).to(dtype))


def test_flags_are_flags():
    with pytest.raises(QuantizerError) as caught:
        qnn.QuantAvgPool2d(2, 2, 0, 8)
    assert str(caught.value) == "QuantAvgPool2d: ceil_mode=8 is not possible: expected True or False."
    with pytest.raises(QuantizerError) as caught:
        qnn.QuantAvgPool1d(2, count_include_pad=None)
    assert str(caught.value) == "QuantAvgPool1d: count_include_pad=None is not possible: expected True or False."

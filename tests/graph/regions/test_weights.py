import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from bitwright.graph.regions.weights import channel_maxima, channels_of, per_channel, scale_channels


@st.composite
def layers(draw):
    kind = draw(
        st.sampled_from(["Linear", "Conv1d", "Conv2d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d"])
    )
    groups = draw(st.integers(1, 3))
    inputs, outputs = draw(st.integers(1, 2)) * groups, draw(st.integers(1, 3)) * groups
    torch.manual_seed(draw(st.integers(0, 99)))
    bias = draw(st.booleans())
    if kind == "Linear":
        return nn.Linear(inputs, outputs, bias=bias).double(), (2, inputs)
    dimensions = int(kind[-2])
    layer = getattr(nn, kind)(inputs, outputs, 2, groups=groups, bias=bias).double()
    return layer, (2, inputs, *[3] * dimensions)


def along(layer, numbers, ndim):
    return numbers if isinstance(layer, nn.Linear) else numbers.reshape(-1, *[1] * (ndim - 2))


@given(layers())
def test_scaled_outputs_and_inputs(found):
    """What scaling the weight does is what scaling the tensors does."""
    layer, shape = found
    x = torch.randn(shape, dtype=torch.float64)
    outputs = torch.rand(channels_of(layer, "outputs"), dtype=torch.float64) + 0.5
    inputs = torch.rand(channels_of(layer, "inputs"), dtype=torch.float64) + 0.5
    expected = layer(x * along(layer, inputs, x.ndim))
    expected = expected * along(layer, outputs, expected.ndim)
    scale_channels(layer, outputs, inputs)
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)


@given(layers(), st.sampled_from(["outputs", "inputs"]))
def test_maxima_are_one_after_division(found, side):
    layer, _ = found
    matrix = layer.weight.detach().abs().flatten(2).amax(2) if layer.weight.ndim > 2 else layer.weight.detach().abs()
    largest = channel_maxima(layer, side, matrix)
    assert largest.shape == (channels_of(layer, side),)
    divided = matrix / per_channel(layer, side, largest, 2)
    torch.testing.assert_close(channel_maxima(layer, side, divided), torch.ones_like(largest))


@pytest.mark.parametrize("given_side", ["outputs", "inputs"])
def test_scaling_keeps_the_parameter_itself(given_side):
    layer = nn.Linear(2, 2).requires_grad_(False)
    weight, bias = layer.weight, layer.bias
    scale_channels(layer, **{given_side: torch.tensor([2.0, 3.0])})
    assert layer.weight is weight
    assert layer.bias is bias
    assert not weight.requires_grad

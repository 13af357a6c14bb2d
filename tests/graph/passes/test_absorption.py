import copy
import re

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import bitwright.nn as qnn
from bitwright.graph import GraphError
from bitwright.graph.passes.absorption import absorb_biases
from bitwright.graph.passes.equalization import equalize
from bitwright.graph.passes.folding import fold_batch_norms
from tests.graph.models.named import Net


def shifted(norm, mean=5.0, std=0.5):
    """A BatchNorm whose outputs lie around 5."""
    nn.init.constant_(norm.bias, mean)
    nn.init.uniform_(norm.weight, -std, std)
    return norm


def folded(between, reader, shape=(2, 3, 6, 6)):
    torch.manual_seed(0)
    model = Net(
        lambda self, x: self.b(between(self.bn(self.a(x)))), a=nn.Conv2d(3, 4, 1), bn=nn.BatchNorm2d(4), b=reader
    )
    shifted(model.bn)
    return fold_batch_norms(model.double().eval(), torch.randn(shape, dtype=torch.float64))


X = torch.randn(2, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)


def test_numbers():
    """Outputs around 5 with a deviation of 1: 2 of the bias move, and three times 2 arrive."""
    model = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 2))
    for parameter, numbers in zip(model.parameters(), ([[1.0]], [5.0], [[3.0], [-1.0]], [0.5, 0.5]), strict=True):
        parameter.data.copy_(torch.tensor(numbers))
    model[0].register_buffer("folded_mean", torch.tensor([5.0]), persistent=False)
    model[0].register_buffer("folded_std", torch.tensor([1.0]), persistent=False)
    absorbed = absorb_biases(model, torch.ones(1, 1))
    assert absorbed[0].bias.tolist() == [3.0]
    assert absorbed[0].folded_mean.tolist() == [3.0]
    assert absorbed[2].bias.tolist() == [6.5, -1.5]
    assert str(absorbed.report) == (
        "absorb_biases: 1 changed, 1 left (output moved 0)\n"
        "  0  absorbed into 2 (channels 1, largest 2)\n"
        "  2  left: no BatchNorm was folded into it"
    )
    assert absorb_biases(model, torch.ones(1, 1), sigmas=4)[0].bias.tolist() == [4.0]


BETWEEN = {
    "relu": F.relu,
    "nothing": lambda x: x,
    "leaky relu": lambda x: F.leaky_relu(x, 0.2),
    "max pool": lambda x: F.max_pool2d(F.relu(x), 2),
    "adaptive pool": lambda x: F.adaptive_avg_pool2d(F.relu(x), 2),
    "mean": lambda x: F.relu(x).mean((2, 3), keepdim=True),
    "resized": lambda x: F.interpolate(F.relu(x), scale_factor=2.0),
}


@pytest.mark.parametrize("name", BETWEEN)
@pytest.mark.parametrize("bias", [True, False])
def test_output_is_unchanged_where_values_stay_above(name, bias):
    model = folded(BETWEEN[name], nn.Conv2d(4, 2, 1, bias=bias))
    before = copy.deepcopy(model.state_dict())
    absorbed = absorb_biases(model, X)
    torch.testing.assert_close(absorbed(X), model(X), rtol=1e-12, atol=1e-12)
    assert absorbed.report["a"].figures["channels"] == 4
    assert absorbed.report.figures["output moved"] < 1e-12
    assert bool((absorbed.a.bias < model.a.bias).all())
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


@given(st.sampled_from([1, 2, 4]), st.sampled_from(["reflect", "circular", "replicate"]))
def test_convolutions_that_do_not_pad_with_zeros(groups, mode):
    reader = nn.Conv2d(4, 4, 3, padding=1, groups=groups, padding_mode=mode)
    model = folded(F.relu, reader)
    torch.testing.assert_close(absorb_biases(model, X)(X), model(X), rtol=1e-12, atol=1e-12)


def test_flattened():
    model = folded(lambda x: F.relu(x).flatten(1), nn.Linear(4 * 36, 2))
    torch.testing.assert_close(absorb_biases(model, X)(X), model(X), rtol=1e-12, atol=1e-12)


def test_borders_are_wrong_where_zeros_are_padded():
    model = folded(F.relu, nn.Conv2d(4, 2, 3, padding=1))
    absorbed = absorb_biases(model, X, padded=True)
    got, expected = absorbed(X), model(X)
    torch.testing.assert_close(got[:, :, 1:-1, 1:-1], expected[:, :, 1:-1, 1:-1], rtol=1e-12, atol=1e-12)
    assert not torch.allclose(got[:, :, 0], expected[:, :, 0], atol=0.1)
    assert absorbed.report["a"].reason == "wrong at the borders, as b pads with zeros"


def test_after_equalization():
    """Constants are in the units of the equalized layer."""
    model = folded(F.relu, nn.Conv2d(4, 2, 1))
    plain, equalized = absorb_biases(model, X), absorb_biases(equalize(model, X), X)
    torch.testing.assert_close(equalized(X), model(X), rtol=1e-12, atol=1e-12)
    scale = model.a.bias / equalize(model, X).a.bias
    torch.testing.assert_close(equalized.a.bias, plain.a.bias / scale, rtol=1e-12, atol=1e-12)


def test_twice_is_once():
    model = absorb_biases(folded(F.relu, nn.Conv2d(4, 2, 1)), X)
    message = (
        "absorb_biases: nothing to absorb. a: no channel lies 3 standard deviations above zero. "
        "b: no BatchNorm was folded into it."
    )
    with pytest.raises(GraphError, match=f"^{re.escape(message)}$"):
        absorb_biases(model, X)


LEFT = {
    "padding": (
        F.relu,
        nn.Conv2d(4, 2, 3, padding=1),
        "b pads with zeros; pass padded=True to accept errors at the borders",
    ),
    "same": (
        F.relu,
        nn.Conv2d(4, 2, 3, padding="same"),
        "b pads with zeros; pass padded=True to accept errors at the borders",
    ),
    "transposed": (F.relu, nn.ConvTranspose2d(4, 2, 2), "b is transposed: a constant is none behind it"),
    "gelu": (F.gelu, nn.Conv2d(4, 2, 1), "its output reaches gelu (gelu)"),
    "relu6": (F.relu6, nn.Conv2d(4, 2, 1), "its output reaches relu6 (relu6)"),
    "product": (lambda x: F.relu(x) * 2, nn.Conv2d(4, 2, 1), "its output reaches mul (mul)"),
    "padded pool": (lambda x: F.avg_pool2d(x, 3, 1, 1), nn.Conv2d(4, 2, 1), "its output reaches avg_pool (avg_pool)"),
    "padded": (lambda x: F.pad(F.relu(x), (1, 1)), nn.Conv2d(4, 2, 1), "its output reaches pad (pad)"),
    "flipped": (lambda x: F.relu(x).flip(1), nn.Conv2d(4, 2, 1), "several of its channels share a scale"),
}


@pytest.mark.parametrize("name", LEFT)
def test_left_with_the_reason(name):
    between, reader, reason = LEFT[name]
    message = f"absorb_biases: nothing to absorb. a: {reason}. b: no BatchNorm was folded into it."
    with pytest.raises(GraphError, match=f"^{re.escape(message)}$"):
        absorb_biases(folded(between, reader), X)


def test_residual_sum_is_left():
    def forward(self, x):
        return self.b(F.relu(self.bn(self.a(x)) + self.c(x)))

    layers = {
        "a": nn.Conv2d(3, 4, 1),
        "bn": shifted(nn.BatchNorm2d(4)),
        "c": nn.Conv2d(3, 4, 1),
        "b": nn.Conv2d(4, 2, 1),
    }
    model = fold_batch_norms(Net(forward, **layers).double().eval(), X)
    with pytest.raises(GraphError, match=r"nothing to absorb\. a: its output meets that of c\."):
        absorb_biases(model, X)


class Subclass(nn.Conv2d):
    def forward(self, input):  # noqa: A002 - torch's name for it
        return F.conv2d(F.pad(input, (1, 1)), self.weight, self.bias)


def test_reader_with_its_own_forward_is_left():
    with pytest.raises(GraphError, match=r"nothing to absorb\. a: b has a forward of its own\."):
        absorb_biases(folded(F.relu, Subclass(4, 2, 1)), X)


def test_quantized_model():
    message = "absorb_biases: 0 is a QuantLinear, and absorb_biases changes float models. Call it before quantize."
    with pytest.raises(GraphError, match=f"^{re.escape(message)}$"):
        absorb_biases(nn.Sequential(qnn.QuantLinear(2, 2)), torch.ones(1, 2))


def test_model_without_layers():
    message = "absorb_biases: nothing to absorb. The model has no convolution or linear layer."
    with pytest.raises(GraphError, match=f"^{re.escape(message)}$"):
        absorb_biases(nn.ReLU(), torch.ones(1))

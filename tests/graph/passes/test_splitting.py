import copy
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import bitwright.nn as qnn
from bitwright.graph import GraphError
from bitwright.graph.passes.splitting import split_channels
from tests.graph.models.named import Net

GOLDEN = Path(__file__).parent / "golden"


def two(first, second):
    """Two linear layers with given weights, and no biases."""
    model = nn.Sequential(nn.Linear(1, len(first), bias=False), nn.ReLU(), nn.Linear(len(first), 1, bias=False))
    model[0].weight.data.copy_(torch.tensor(first)[:, None])
    model[2].weight.data.copy_(torch.tensor(second)[None])
    return model


def weights(model):
    return model[0].weight.flatten().tolist(), model[2].weight.flatten().tolist()


def test_largest_now_is_split():
    """8 becomes 4 + 4, then one of these 2 + 2; 3 stays."""
    model = two([1.0, 5.0], [8.0, 3.0])
    assert weights(split_channels(model, torch.ones(1, 1), ratio=0.5)) == ([1.0, 5.0, 1.0], [4.0, 3.0, 4.0])
    wide = split_channels(model, torch.ones(1, 1), ratio=1.0)
    assert weights(wide) == ([1.0, 5.0, 1.0, 1.0], [2.0, 3.0, 4.0, 2.0])
    assert [wide[0].out_features, wide[2].in_features] == [4, 4]


def test_outputs():
    model = two([1.0, 5.0], [8.0, 3.0])
    wide = split_channels(model, torch.ones(1, 1), ratio=0.5, split="outputs")
    assert weights(wide) == ([1.0, 2.5, 2.5], [8.0, 3.0, 3.0])


@st.composite
def models(draw):
    torch.manual_seed(draw(st.integers(0, 99)))
    kind = getattr(nn, draw(st.sampled_from(["Conv2d", "ConvTranspose2d"])))
    residual, bias = draw(st.booleans()), draw(st.booleans())
    layers = {"a": kind(3, 6, 2, bias=bias), "b": kind(6, 6, 1, bias=bias), "c": nn.Linear(6 * 4, 5)}

    def forward(self, x):
        x = F.relu(self.a(x))
        x = F.leaky_relu(self.b(x) + x if residual else self.b(x))
        return self.c(F.adaptive_avg_pool2d(x, 2).flatten(1))

    return Net(forward, **layers)


@settings(max_examples=20)
@given(models(), st.floats(0.01, 1), st.sampled_from(["inputs", "outputs"]))
def test_output_is_unchanged(model, ratio, split):
    model = model.double().eval()
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    before = copy.deepcopy(model.state_dict())
    wide = split_channels(model, x, ratio=ratio, split=split)
    torch.testing.assert_close(wide(x), model(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert wide.a.out_channels == 6 + np.ceil(6 * ratio) == wide.b.in_channels
    assert all(each.figures["largest after"] <= each.figures["largest before"] for each in wide.report if each.figures)


@pytest.mark.parametrize(("split", "prefix"), [("inputs", "in"), ("outputs", "out")])
def test_golden_of_another_library(split, prefix):
    """Brevitas appends the twins in the order of channels."""
    golden = np.load(GOLDEN / "brevitas_ocs.npz")
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    for number, parameter in enumerate(model.parameters()):
        parameter.data.copy_(torch.from_numpy(golden[f"p{number}"]))
    x = torch.from_numpy(golden["x"])
    wide = split_channels(model, x, ratio=0.25, split=split)
    order = [0, 1, 2, 3, 4, 5, 6, 7, 9, 8] if split == "inputs" else list(range(10))
    expected = [torch.from_numpy(golden[f"{prefix}_p{number}"]) for number in range(4)]
    for parameter, each in zip(wide.parameters(), (*(each[order] for each in expected[:2]), None, None), strict=True):
        if each is not None:
            torch.testing.assert_close(parameter.data, each, rtol=0, atol=0)
    torch.testing.assert_close(wide[2].weight.data, expected[2][:, order], rtol=0, atol=0)
    torch.testing.assert_close(wide(x), model(x), rtol=1e-12, atol=1e-12)


def test_statistics_of_folded_batch_norms_are_split():
    model = two([1.0, 5.0], [8.0, 3.0])
    model[0].register_buffer("folded_mean", torch.tensor([1.0, 2.0]), persistent=False)
    assert split_channels(model, torch.ones(1, 1), split="outputs")[0].folded_mean.tolist() == [1.0, 1.0, 1.0]
    assert split_channels(model, torch.ones(1, 1), split="inputs")[0].folded_mean.tolist() == [1.0, 2.0, 1.0]


def test_parameters_stay_trainable_as_they_were():
    model = two([1.0, 5.0], [8.0, 3.0])
    model[0].weight.requires_grad_(False)
    assert [each.requires_grad for each in split_channels(model, torch.ones(1, 1)).parameters()] == [False, True]


def test_report():
    def forward(self, x):
        return self.d(F.gelu(self.c(self.b(self.a(x)))))

    layers = {name: nn.Linear(2, 2) for name in "abcde"}
    for layer in layers.values():
        nn.init.constant_(layer.weight, 1.0)
    report = split_channels(Net(forward, **layers), torch.ones(1, 2), ratio=1.0, skip=["c"]).report
    assert str(report) == (
        "split_channels: 2 changed, 3 left\n"
        "  a  repeats 2 outputs\n"
        "  b  halves 2 inputs (largest before 1, largest after 0.5)\n"
        "  c  left: its output reaches gelu (gelu)\n"
        "  d  left: the model returns its output\n"
        "  e  left: no example reaches it"
    )


SLOPES = nn.PReLU(4)
LEFT = {
    "grouped": (lambda x: x, nn.Conv2d(4, 2, 1, groups=2), "b is grouped"),
    "slopes": (SLOPES, nn.Conv2d(4, 2, 1), "its output reaches m (PReLU)"),
    "gelu": (F.gelu, nn.Conv2d(4, 2, 1), "its output reaches gelu (gelu)"),
    "gate": (
        lambda x: x * torch.sigmoid(torch.ones(1, 4, 1, 1)),
        nn.Conv2d(4, 2, 1),
        "its output reaches mul (mul)",
    ),
    "joined": (
        lambda x: torch.cat([x, x], 1),
        nn.Conv2d(8, 2, 1),
        "b reads its channels in another order, or others, too",
    ),
}


@pytest.mark.parametrize("name", LEFT)
def test_left_with_the_reason(name):
    between, reader, reason = LEFT[name]
    layers = {"a": nn.Conv2d(3, 4, 1), "b": reader}
    if isinstance(between, nn.Module):
        layers["m"] = between
    model = Net(lambda self, x: self.b(getattr(self, "m", between)(self.a(x))), **layers)
    message = f"split_channels: nothing to split. a: {reason}. b: the model returns its output."
    with pytest.raises(GraphError, match=f"^{re.escape(message)}$"):
        split_channels(model, torch.randn(1, 3, 4, 4))


def test_forward_that_relies_on_the_number_of_channels():
    def forward(self, x):
        return self.b(self.a(x).view(-1, 4))

    model = Net(forward, a=nn.Linear(3, 4), b=nn.Linear(4, 2))
    message = (
        r"^split_channels: the model does not run with more channels \(.+\)\. Leave out the layers whose number of "
    )
    with pytest.raises(GraphError, match=message + r'channels its forward relies on: skip=\["\.\.\."\]\.$'):
        split_channels(model, torch.randn(1, 3))
    assert model.a.out_features == 4


def refused(message, **settings):
    with pytest.raises(GraphError, match=f"^{re.escape(message)}$"):
        split_channels(two([1.0, 5.0], [8.0, 3.0]), torch.ones(1, 1), **settings)


def test_ratio_out_of_range():
    refused("split_channels: ratio=0 is not between 0 and 1.", ratio=0)


def test_unknown_side():
    refused('split_channels: split=\'both\' is neither "inputs" nor "outputs".', split="both")


def test_skip_that_matches_nothing():
    refused("split_channels: skip='fc*' matches no layer. The layers are 0, 2.", skip=["fc*"])


def test_skipped():
    message = "split_channels: nothing to split. 0: 2 is skipped. 2: the model returns its output."
    refused(message, skip=["2"])


def test_quantized_model():
    message = "split_channels: 0 is a QuantLinear, and split_channels changes float models. Call it before quantize."
    with pytest.raises(GraphError, match=f"^{re.escape(message)}$"):
        split_channels(nn.Sequential(qnn.QuantLinear(2, 2)), torch.ones(1, 2))


def test_model_without_layers():
    message = "split_channels: nothing to split. The model has no convolution or linear layer."
    with pytest.raises(GraphError, match=f"^{re.escape(message)}$"):
        split_channels(nn.ReLU(), torch.ones(1))

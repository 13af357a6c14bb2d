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
from bitwright.graph.passes.smoothing import ChannelScale, smooth

GOLDEN = Path(__file__).parent / "golden"


class OwnNorm(nn.Module):
    """A norm as language models write it."""

    def __init__(self, size):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(size) + 0.5)

    def forward(self, x):
        return self.weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6))


class Block(nn.Module):
    """A pre-norm decoder block: grouped-query attention and a gated MLP."""

    def __init__(self, norm=nn.LayerNorm, size=12, heads=4, groups=2, width=20):
        super().__init__()
        self.heads, self.groups = heads, groups
        self.norm1, self.norm2 = norm(size), norm(size)
        head = size // heads
        self.q, self.k, self.v = nn.Linear(size, size), nn.Linear(size, groups * head), nn.Linear(size, groups * head)
        self.o = nn.Linear(size, size)
        self.gate, self.up, self.down = nn.Linear(size, width), nn.Linear(size, width), nn.Linear(width, size)

    def attend(self, x):
        q = self.q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k = self.k(x).unflatten(-1, (self.groups, -1)).transpose(1, 2)
        v = self.v(x).unflatten(-1, (self.groups, -1)).transpose(1, 2)
        k, v = (each.repeat_interleave(self.heads // self.groups, 1) for each in (k, v))
        weights = torch.softmax(q @ k.transpose(-1, -2), -1)
        return self.o((weights @ v).transpose(1, 2).flatten(2))

    def forward(self, x):
        x = x + self.attend(self.norm1(x))
        y = self.norm2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


def block(norm=nn.LayerNorm, seed=0):
    torch.manual_seed(seed)
    found = Block(norm).double()
    for module in found.modules():
        if isinstance(module, norm):
            nn.init.uniform_(module.weight, 0.1, 30)
    return found


def tokens(count=2, length=5, size=12):
    return torch.randn(count, length, size, dtype=torch.float64)


@settings(max_examples=20)
@given(
    st.sampled_from([nn.LayerNorm, nn.RMSNorm, OwnNorm]),
    st.sampled_from([0.0, 0.3, 0.5, 1.0]),
    st.integers(0, 99),
    st.booleans(),
)
def test_output_is_unchanged(norm, alpha, seed, multipliers):
    model, x = block(norm, seed), tokens()
    before = copy.deepcopy(model.state_dict())
    smoothed = smooth(model, x, alpha=alpha, multipliers=multipliers)
    torch.testing.assert_close(smoothed(x), model(x), rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert len(smoothed.report.changed) == 7
    assert all(bool(each.isfinite().all()) for each in smoothed.parameters())


@pytest.mark.parametrize(("norm", "suffix"), [(nn.LayerNorm, ""), (OwnNorm, ".weight")])
def test_who_divides(norm, suffix):
    report = smooth(block(norm), tokens()).report
    assert {entry.path: entry.action for entry in report} == {  # type: ignore[misc]
        "q": f"smoothed into norm1{suffix}",
        "k": f"smoothed into norm1{suffix}",
        "v": f"smoothed into norm1{suffix}",
        "o": "smoothed into v",
        "gate": f"smoothed into norm2{suffix}",
        "up": f"smoothed into norm2{suffix}",
        "down": "smoothed into up",
    }
    assert all(entry.figures["spread after"] < entry.figures["spread before"] for entry in report)  # type: ignore[misc]


def test_numbers():
    """Channels of range 2 and 8 in the input, 8 and 2 in the weight: divided by .5 and 2, all ranges are 4."""
    norm, fc = nn.LayerNorm(2, eps=0), nn.Linear(2, 1)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([2.0, 8.0]))
        fc.weight.copy_(torch.tensor([[8.0, -2.0]]))
    smoothed = smooth(nn.Sequential(norm, fc), torch.tensor([[1.0, -1.0]]))
    assert smoothed[0].weight.tolist() == [4.0, 4.0]
    assert smoothed[1].weight.tolist() == [[4.0, -4.0]]


def test_layers_that_share_an_input_share_scales():
    """The weight's range is the largest of q, k and v."""
    model, x = block(), tokens()
    smoothed = smooth(model, x)
    ratios = [getattr(smoothed, name).weight / getattr(model, name).weight for name in ("q", "k")]
    scale = model.norm1.weight / smoothed.norm1.weight
    for ratio in ratios:
        torch.testing.assert_close(ratio, scale.expand_as(ratio), rtol=1e-12, atol=0)
    ranges = model.norm1(x).abs().amax((0, 1))
    weights = torch.cat([model.q.weight, model.k.weight, model.v.weight]).abs().amax(0)
    torch.testing.assert_close(scale, (ranges / weights).sqrt(), rtol=1e-12, atol=0)


def test_query_heads_of_one_head_of_values_are_averaged():
    model, x = block(), tokens()
    smoothed = smooth(model, x)
    ratio = (smoothed.o.weight / model.o.weight)[0].reshape(2, 2, 3)  # groups, heads of a group, channels
    torch.testing.assert_close(ratio[:, 0], ratio[:, 1], rtol=1e-12, atol=0)
    read = []
    model.o.register_forward_pre_hook(lambda _, args: read.append(args[0]))
    model(x)
    own = (read[0].abs().amax((0, 1)) / model.o.weight.abs().amax(0)).sqrt().reshape(2, 2, 3)
    torch.testing.assert_close(ratio[:, 0], own.mean(1), rtol=1e-12, atol=0)


def test_skipped_by_name():
    smoothed = smooth(block(), tokens(), skip=["o", "d*"])
    assert [entry.path for entry in smoothed.report] == ["q", "k", "v", "gate", "up"]  # type: ignore[misc]
    assert torch.equal(smoothed.down.weight, block().down.weight)


def test_skipped_reader_leaves_its_input():
    """What k reads can't be divided for q and v alone: these have multipliers."""
    model, x = block(), tokens()
    smoothed = smooth(model, x, skip=["k"])
    assert smoothed.report["q"].text.startswith("smoothed by q.scale: k reads its input, too")
    assert torch.equal(smoothed.norm1.weight, model.norm1.weight)
    torch.testing.assert_close(smoothed(x), model(x), rtol=1e-11, atol=1e-11)


def test_multiplier():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 2)).double().eval()
    x = torch.randn(6, 3, dtype=torch.float64)
    smoothed = smooth(model, [x[:1], x[1:]])
    assert [name for name, _ in smoothed[2].named_children()] == ["scale", "layer"]
    assert list(smoothed.state_dict()) == [
        *("0.scale.scale", "0.layer.weight", "0.layer.bias"),
        *("2.scale.scale", "2.layer.weight", "2.layer.bias"),
    ]
    ranges, weights = x.abs().amax(0), model[0].weight.abs().amax(0)
    torch.testing.assert_close(smoothed[0].scale.scale, (weights / ranges).sqrt(), rtol=1e-12, atol=0)
    torch.testing.assert_close(smoothed(x), model(x), rtol=1e-12, atol=1e-12)
    assert smoothed.report["0"].reason == "its input comes from input (input)"
    assert smoothed.report["2"].reason == "its input comes from 1 (GELU)"


def test_without_multipliers():
    model = nn.Sequential(nn.LayerNorm(3), nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 2))
    smoothed = smooth(model, torch.randn(6, 3), multipliers=False)
    assert [type(each) for each in smoothed] == [type(each) for each in model]
    assert [entry.action for entry in smoothed.report] == ["smoothed into 0", "left"]  # type: ignore[misc]


def test_convolutions_if_asked():
    torch.manual_seed(0)
    model = (
        nn.Sequential(nn.Conv2d(2, 4, 3, padding=1, groups=2), nn.GELU(), nn.ConvTranspose2d(4, 2, 2)).double().eval()
    )
    x = torch.randn(2, 2, 5, 5, dtype=torch.float64)
    smoothed = smooth(model, x, layers=(nn.Conv2d, nn.ConvTranspose2d))
    torch.testing.assert_close(smoothed(x), model(x), rtol=1e-12, atol=1e-12)
    assert smoothed[0].scale.scale.shape == (2, 1, 1)


@pytest.mark.parametrize("dead", ["input", "weight"])
def test_zero_channels_keep_their_scale(dead):
    model, x = nn.Sequential(nn.Linear(3, 2)), torch.randn(5, 3)
    (x if dead == "input" else model[0].weight.data)[:, 1] = 0
    smoothed = smooth(model, x)
    assert smoothed[0].scale.scale[1] == 1
    assert torch.equal(smoothed[0].layer.weight[:, 1], model[0].weight[:, 1])


def test_scales_are_bounded():
    model = nn.Linear(2, 1)
    nn.init.constant_(model.weight, 1e-20)
    smoothed = smooth(nn.Sequential(model), torch.tensor([[1e-15, 1.0]]))
    torch.testing.assert_close(smoothed[0].scale.scale, torch.tensor([3.16227766e-3, 1e-5]))


def test_encoder_layer_of_torch():
    """Its fused path reads weights and calls no layer: smoothing switches it off where it would."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=False)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    x = torch.randn(2, 4, 8)
    smoothed = smooth(model, x)
    assert isinstance(smoothed.layers[0].linear1, nn.Sequential)
    assert smoothed.report["layers.0.linear2"].action == "smoothed into layers.0.linear1"
    with torch.no_grad():
        torch.testing.assert_close(smoothed(x), model(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(smoothed(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("alpha", [0.25, 0.5, 0.75])
def test_golden(alpha):
    golden = np.load(GOLDEN / "smooth_awq.npz")
    layer = nn.Linear(16, 5).double()
    layer.weight.data.copy_(torch.from_numpy(golden["W"]))
    smoothed = smooth(nn.Sequential(layer), torch.from_numpy(golden["X"]), alpha=alpha)
    expected = torch.from_numpy(golden[f"smooth_{alpha}"])
    torch.testing.assert_close(1 / smoothed[0].scale.scale, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("alpha", [0.3, 0.5, 0.8])
def test_golden_of_another_library(alpha):
    """Brevitas takes ranges in float32, and gives a channel without data the scale 0."""
    golden = np.load(GOLDEN / "brevitas_smooth.npz")
    layer = nn.Linear(8, 5).double()
    layer.weight.data.copy_(torch.from_numpy(golden["W"]))
    smoothed = smooth(nn.Sequential(layer), torch.from_numpy(golden["X"]), alpha=alpha)[0]
    alive = torch.arange(8) != 3
    expected = torch.from_numpy(golden[f"w_{alpha}"])[:, alive]
    torch.testing.assert_close(smoothed.layer.weight[:, alive].detach(), expected, rtol=1e-6, atol=0)
    expected = torch.from_numpy(golden[f"s_{alpha}"])[alive]
    torch.testing.assert_close(smoothed.scale.scale[alive], expected, rtol=1e-6, atol=0)


def test_quantized_result_does_not_depend_on_the_scale_of_channels():
    """X times c and W divided by c give the same smoothed tensors, for alpha .5."""
    torch.manual_seed(0)
    layer, x = nn.Linear(4, 3).double(), torch.randn(9, 4, dtype=torch.float64)
    c = torch.tensor([1.0, 10.0, 0.1, 300.0], dtype=torch.float64)
    other = copy.deepcopy(layer)
    other.weight.data.div_(c)
    one, two = smooth(nn.Sequential(layer), x)[0], smooth(nn.Sequential(other), x * c)[0]
    torch.testing.assert_close(one.layer.weight, two.layer.weight, rtol=1e-12, atol=0)
    torch.testing.assert_close(one.scale(x), two.scale(x * c), rtol=1e-12, atol=0)


def refused(message, model, data=None, **settings):
    with pytest.raises(GraphError, match=f"^{re.escape(message)}$"):
        smooth(model, torch.ones(2, 2) if data is None else data, **settings)


def test_alpha_out_of_range():
    refused("smooth: alpha=1.5 is not between 0 and 1.", nn.Sequential(nn.Linear(2, 2)), alpha=1.5)


def test_skip_that_matches_nothing():
    message = "smooth: skip='*.o' matches no layer. The layers are 0, 1."
    refused(message, nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), skip=["*.o"])


def test_no_layer():
    refused("smooth: nothing to smooth. The model has no layer of type Linear that is not skipped.", nn.ReLU())


def test_nothing_to_smooth():
    model = nn.Sequential(nn.Linear(2, 2), nn.GELU(), nn.Linear(2, 2))
    model[2].weight = model[0].weight
    message = "smooth: nothing to smooth. 0: it shares its weight with 2. 2: it shares its weight with 0."
    refused(message, model)


def test_quantized_model():
    message = "smooth: 0 is a QuantLinear, and smooth changes float models. Call it before quantize."
    refused(message, nn.Sequential(qnn.QuantLinear(2, 2)))


def test_failure_in_the_second_batch_leaves_the_model():
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout()).train()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(RuntimeError, match="must match the size of tensor b"):
        smooth(model, [torch.ones(2, 2), torch.ones(2, 3)])
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert all(module.training for module in model.modules())
    assert not model[0]._forward_pre_hooks


def test_channel_scale():
    scale = ChannelScale(torch.tensor([2.0, 3.0]), axis=-2)
    assert scale(torch.ones(1, 2, 2)).tolist() == [[[2.0, 2.0], [3.0, 3.0]]]
    assert repr(scale) == "ChannelScale(2)"


def test_expert_that_sees_no_token():
    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x):
            return torch.cat([self.a(x[:1] * 1), self.b(x[1:] * 1)])

    model, x = Experts(), torch.randn(1, 2)
    smoothed = smooth(model, x)
    assert smoothed.b.scale.scale.tolist() == [1.0, 1.0]
    torch.testing.assert_close(smoothed(x), model(x))

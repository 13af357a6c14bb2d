"""rotate: what it rotates in models of many habits, and what it says."""

import copy
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import bitwright.nn as qnn
from bitwright.graph import GraphError, quantize, rotate
from bitwright.graph.rotation.rotations import Rotations
from bitwright.graph.rotation.spaces import Turn
from bitwright.graph.rotation.weights import turned
from bitwright.graph.rules.ready import W4
from tests.graph.rotation.prenorm import (
    Conv1D,
    Experts,
    Gpt,
    HandLayerNorm,
    HandNorm,
    Inline,
    Llama,
    OneMore,
    Patches,
    Scaled,
    Shared,
    ids,
    of,
)

ALL = ("stream", "values", "hidden", "keys")
MODELS = {
    "RMSNorm": lambda: of(Llama),
    "by hand": lambda: of(Llama, HandNorm, fused=False),
    "one more": lambda: of(Llama, OneMore, embedding=Scaled),
    "LayerNorm": lambda: of(Llama, nn.LayerNorm, fused=False),
    "LayerNorm by hand": lambda: of(Llama, HandLayerNorm),
    **{split: lambda split=split: of(Gpt, split) for split in ("chunk", "split", "unbind", "slices")},
    "Conv1D": lambda: of(Gpt, "chunk", Conv1D),
    "shared": lambda: of(Shared),
    "experts": lambda: of(Experts),
}


@pytest.mark.parametrize("name", MODELS)
def test_results_stay(name):
    model = MODELS[name]()
    before = copy.deepcopy(model.state_dict())
    rotated = rotate(model, ids(), where=ALL, kind="random")
    assert rotated.report.left == ()
    torch.testing.assert_close(rotated(ids(1)), model(ids(1)), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    for path, parameter in rotated.named_parameters():
        if parameter.ndim == 2 and path in before:
            assert not torch.equal(parameter, before[path]), path


def test_torchs_own_layers():
    model, x = of(Patches), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    rotated = rotate(model, x, where=ALL)
    torch.testing.assert_close(rotated(x), model(x), rtol=1e-10, atol=1e-10)
    with torch.no_grad():  # torch's fused path
        torch.testing.assert_close(rotated(x), model(x), rtol=1e-10, atol=1e-10)
    said = {entry.path: entry.action for entry in rotated.report}  # type: ignore[attr-defined]
    assert said["patch"] == "output rotated (Hadamard 16)"
    assert said["first"] == said["positions"] == "rotated"
    assert said["encoder.layers.0.self_attn"] == (
        "input rotated (Hadamard 16), values rotated (Hadamard 4), output rotated (Hadamard 16)"
    )
    assert [str(entry) for entry in rotated.report.left] == [  # type: ignore[attr-defined]
        "encoder.layers.0.self_attn.keys  left: its attention is computed inside of it"
    ]


def test_precision():
    model = of(Llama, dtype=torch.float32)
    rotated = rotate(model, ids(), where=ALL)
    expected = model(ids(1)).detach()
    assert float((rotated(ids(1)).detach() - expected).abs().max() / expected.abs().max()) < 1e-4
    assert {each.dtype for each in rotated.parameters()} == {torch.float32}


def test_norms_in_float32():
    """A float64 model that is as exact as the norm inside."""
    model = of(Inline)
    rotated = rotate(model, ids(), where=ALL)
    torch.testing.assert_close(rotated(ids(1)), model(ids(1)), rtol=1e-5, atol=1e-5)
    assert rotated.report["mul_2"].action == "folded into up"
    assert rotated.report["rms_norm"].action == "folded into head"


def test_report():
    rotated = rotate(of(Llama, layers=2), ids(), where=ALL)
    lines = {entry.path: entry.text.partition(" (peak")[0] for entry in rotated.report}  # type: ignore[attr-defined]
    block = {path.removeprefix("blocks.1."): text for path, text in lines.items() if path.startswith("blocks.1.")}
    assert lines["embed"] == "output rotated (Hadamard 16): embed.weight no longer shared with head.weight"
    assert lines["head"] == "input rotated (Hadamard 16)"
    assert lines["norm"] == "folded into head"
    assert block == {
        "q": "input rotated (Hadamard 16)",
        "k": "input rotated (Hadamard 16)",
        "v": "input rotated (Hadamard 16), output rotated (Hadamard 4)",
        "o": "input rotated (Hadamard 4), output rotated (Hadamard 16)",
        "gate": "input rotated (Hadamard 16)",
        "up": "input rotated (Hadamard 16)",
        "down": "input rotated by blocks.1.down.rotation (Hadamard 24), output rotated (Hadamard 16)",
        "norm1": "folded into blocks.1.q, blocks.1.k, blocks.1.v",
        "norm2": "folded into blocks.1.gate, blocks.1.up",
        "attention": "queries and keys rotated by blocks.1.rotated_attention (Hadamard 4)",
    }
    figures = rotated.report["head"].figures
    assert set(figures) == {"peak before", "peak after"}
    assert rotated.report["blocks.1.down"].figures["cost"] == (12 + 1) / 16  # a matrix of order 12, and butterflies
    assert rotated.embed.weight is not rotated.head.weight


def test_numbers():
    """Two features, a gain of 2 and 3: the columns of the reader are multiplied, then turned by 45 degrees."""
    model = nn.Sequential(nn.Linear(1, 2, bias=False), nn.RMSNorm(2), nn.Linear(2, 1, bias=False)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[3.0], [1.0]]))
        model[1].weight.copy_(torch.tensor([2.0, 3.0]))
        model[2].weight.copy_(torch.tensor([[1.0, 1.0]]))
    rotated = rotate(model, torch.ones(1, 1, dtype=torch.float64))
    assert (rotated[0].weight * 2**0.5).flatten().tolist() == pytest.approx([4.0, 2.0])
    assert rotated[1].weight.tolist() == [1.0, 1.0]
    assert (rotated[2].weight * 2**0.5).flatten().tolist() == pytest.approx([5.0, -1.0])


def test_the_transpose_undoes_it():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(7, 12, generator=generator, dtype=torch.float64)
    rotation = Rotations("random", None, 3).matrix(4, 1)
    turn = Turn("fc", "fc.weight", 1, 4, 12, (2, 6))
    once = turned(weight, turn, rotation)
    torch.testing.assert_close(turned(once, turn, rotation.T), weight, rtol=1e-12, atol=1e-12)
    assert torch.equal(once == weight, (torch.arange(7) // 2 % 3 == 0)[:, None] | (torch.arange(12) < 4))


def test_outliers_spread():
    """A column of large weights: the peak falls to that of weights without outliers."""
    model = of(Llama)
    with torch.no_grad():
        model.blocks[0].q.weight[:, 3] *= 50
    figures = rotate(model, ids()).report["blocks.0.q"].figures
    assert figures["peak before"] > 5
    assert figures["peak after"] < 3


@settings(max_examples=6)
@given(st.sampled_from(["hadamard", "random"]), st.sampled_from([2, 4, 12, None]), st.integers(0, 9))
def test_layers(kind, block_size, seed):
    """Any model: each linear layer behind a transform of its own."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(24, 12), nn.ReLU(), nn.Linear(12, 7), nn.Tanh(), nn.Linear(7, 2)).double()
    x = torch.randn(3, 24, dtype=torch.float64)
    rotated = rotate(model, x, where="layers", kind=kind, block_size=block_size, seed=seed)
    torch.testing.assert_close(rotated(x), model(x), rtol=1e-11, atol=1e-11)
    assert isinstance(rotated[0].rotation, qnn.HadamardTransform)
    assert rotated[0].rotation.block_size == (24 if block_size is None else block_size)
    assert rotated.report["4"].reason == "no Hadamard matrix divides its 7 inputs"


def test_sizes_without_a_matrix():
    model = nn.Sequential(nn.Linear(2, 22), nn.RMSNorm(22), nn.Linear(22, 2))
    assert rotate(model, torch.ones(1, 2)).report["0"].action == "output rotated (11 x Hadamard 2)"


def test_random_signs_follow_the_seed():
    one, two, other = (rotate(of(Llama), ids(), kind="random", seed=seed).embed.weight for seed in (0, 0, 1))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_post_norm():
    layer = nn.TransformerEncoderLayer(16, 4, 24, batch_first=True)
    model = of(lambda: nn.Sequential(nn.Embedding(20, 16), layer, nn.Linear(16, 20)))
    said = (
        "rotate: the model has no residual stream that can be rotated. Of the sums in it, what 0 writes: it "
        "reaches 1.add_2 (add), behind the gain of 1.norm1; what 1.linear2 writes: it reaches 1.add_2 (add). Write "
        "where='layers' to put a transform before each linear layer instead."
    )
    with pytest.raises(GraphError, match=f"^{re.escape(said)}$"):
        rotate(model, ids())
    rotated = rotate(model, ids(), where="layers", skip=["2"])
    torch.testing.assert_close(rotated(ids()), model(ids()), rtol=1e-10, atol=1e-10)
    assert [entry.path for entry in rotated.report.changed] == ["1.linear1", "1.linear2"]  # type: ignore[attr-defined]
    assert rotated.report["2"].reason == "it is skipped"


class TiedByHand(Llama):
    def forward(self, ids):
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x)
        return nn.functional.linear(self.norm(x), self.embed.weight)


def test_a_head_that_multiplies_by_the_embedding():
    said = (
        "rotate: the model has no residual stream that can be rotated. Of the sums in it, what embed writes: "
        "its weight is read by linear, too, where an nn.Linear should be written. Write where='layers' to put a "
        "transform before each linear layer instead."
    )
    with pytest.raises(GraphError, match=f"^{re.escape(said)}$"):
        rotate(of(TiedByHand), ids())


def test_quantized_afterwards():
    rotated = rotate(of(Llama, dtype=torch.float32), ids(), where=ALL)
    quantized = quantize(rotated, {nn.Linear: W4}, examples=ids())
    assert type(quantized.blocks[0].down.layer) is qnn.QuantLinear
    assert bool(quantized(ids()).isfinite().all())


X = torch.ones(1, 2)
CALLS = {
    "where": (
        lambda: rotate(of(Llama), ids(), where="down"),
        "rotate: where='down' is not possible: expected some of stream, values, hidden, keys, layers.",
    ),
    "kind": (
        lambda: rotate(of(Llama), ids(), kind="fourier"),
        "rotate: kind='fourier' is not possible: expected 'hadamard', 'random' or 'learned'.",
    ),
    "no rules": (
        lambda: rotate(of(Llama), ids(), kind="learned"),
        "rotate: kind='learned' minimizes the loss of the quantized model, and rules say how it is quantized. Pass "
        "rules={nn.Linear: W4A8}.",
    ),
    "rules": (
        lambda: rotate(of(Llama), ids(), rules={nn.Linear: W4}, steps=3),
        "rotate: rules and steps say how rotations are learned. Write kind='learned' instead of 'hadamard', or leave "
        "them out.",
    ),
    "steps": (
        lambda: rotate(of(Llama), ids(), kind="learned", rules={nn.Linear: W4}, steps=0),
        "rotate: steps=0 and learning_rate=1.5: expected numbers above 0.",
    ),
    "block_size": (
        lambda: rotate(of(Llama), ids(), block_size=1),
        "rotate: block_size=1 is not possible: expected a whole number above 1, or None.",
    ),
    "seed": (
        lambda: rotate(of(Llama), ids(), kind="random", seed="1"),  # type: ignore[arg-type]
        "rotate: seed='1' is not possible: expected a whole number, such as 0.",
    ),
    "skip": (
        lambda: rotate(nn.Sequential(nn.Linear(2, 2)), X, where="layers", skip=["1"]),
        "rotate: skip='1' matches no layer. The layers are 0.",
    ),
    "nothing": (
        lambda: rotate(nn.Sequential(nn.Linear(3, 3)), X.new_ones(1, 3), where="layers"),
        "rotate: nothing to rotate for where='layers'. 0: no Hadamard matrix divides its 3 inputs.",
    ),
    "no sums": (
        lambda: rotate(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)), X),
        "rotate: the model has no residual stream that can be rotated. No sum joins what linear layers write. Write "
        "where='layers' to put a transform before each linear layer instead.",
    ),
    "quantized": (
        lambda: rotate(nn.Sequential(qnn.QuantLinear(2, 2)), X),
        "rotate: 0 is a QuantLinear, and rotate changes float models. Call it before quantize.",
    ),
    "no model": (
        lambda: rotate(5, X),  # type: ignore[type-var]
        "rotate: 5 is not a model. Pass a torch.nn.Module, such as qnn.QuantLinear(8, 4).",
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_errors(name):
    call, said = CALLS[name]
    with pytest.raises(GraphError, match=f"^{re.escape(said)}$"):
        call()

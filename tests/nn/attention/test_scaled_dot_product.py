"""Attention as a layer: torch's function without quantizers, and with them the integers that the slots say."""

import copy
import pickle
import re

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import bitwright.nn as qnn
from bitwright.qcore import QuantizerError, QuantTensor
from bitwright.quantizers import Int4Act, Int8Act, Int8ActPerChannel

SLOTS = ("query", "key", "value", "scores", "attention", "output")
FLOAT = {f"{slot}_quant": None for slot in SLOTS}


def attention(**options):
    return qnn.QuantScaledDotProductAttention(**options)


@st.composite
def calls(draw):
    """The arguments of one call: query, key, value, and keywords."""
    lead = draw(st.sampled_from([(), (2,), (2, 3)]))
    gqa = draw(st.booleans())
    heads = (4,) if gqa else draw(st.sampled_from([(), (1,), (3,)]))
    groups = (draw(st.sampled_from([1, 2, 4])),) if gqa else heads
    queries, keys = draw(st.integers(1, 5)), draw(st.integers(1, 6))
    width, depth = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))

    def randn(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    tensors = (
        randn(*lead, *heads, queries, width),
        randn(*lead, *groups, keys, width),
        randn(*lead, *groups, keys, depth),
    )
    mask = draw(st.sampled_from(["none", "causal", "bool", "float", "whole"]))
    options = {"enable_gqa": gqa, "scale": draw(st.sampled_from([None, 0.5, -2.0]))}
    if mask == "causal":
        options["is_causal"] = True
    elif mask != "none":
        shape = (*lead, *heads, queries, keys) if mask == "whole" else (queries, keys)
        allowed = torch.rand(shape, generator=generator) < 0.6
        options["attn_mask"] = randn(*shape).masked_fill(~allowed, -torch.inf) if mask == "float" else allowed
    return tensors, options


@given(calls())
def test_without_quantizers_it_is_torchs_function(call):
    tensors, options = call
    assert torch.equal(attention(**FLOAT)(*tensors, **options), F.scaled_dot_product_attention(*tensors, **options))


@given(calls(), st.sampled_from(["scores_quant", "attention_quant"]))
def test_the_way_with_quantizers_of_scores_is_torchs(call, slot):
    """With more bits than a test can tell from none; rows without any key are 0, and their gradients are numbers."""
    tensors, options = call
    mask = options.get("attn_mask")
    layer = attention(**{**FLOAT, slot: Int8Act(bit_width=30, calibration_steps=1)})
    layer(*tensors, **{**options, "scale": 40.0})  # a range that holds everything
    given_, others = ([each.clone().requires_grad_() for each in tensors] for _ in range(2))
    out = layer(*given_, **options)
    expected = F.scaled_dot_product_attention(*others, **options)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    out.sum().backward()
    expected.sum().backward()
    empty = mask is not None and bool(((mask == 0) if mask.dtype == torch.bool else mask.isinf()).all(-1).any())
    for one, other in zip(given_, others, strict=True):
        assert torch.isfinite(one.grad).all()
        if not empty:
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-4)


def test_the_numbers_of_one_head():
    layer = attention(query_scale=0.25, key_scale=0.5, value_scale=0.5, attention_scale=0.25)
    query, key, value = torch.tensor([[0.3], [-1.0]]), torch.tensor([[0.6], [-0.4]]), torch.tensor([[1.1], [-0.7]])
    # on the grids: query .25, -1; key .5, -.5; scores .125, -.125 and -.5, .5; their softmax .562, .438 and .269, .731,
    # on a grid of quarters .5, .5 and .25, .75; value 1, -.5
    assert layer(query, key, value).tolist() == [[0.25], [-0.125]]
    assert layer(query, key, value, is_causal=True).tolist() == [[1.0], [-0.125]]
    assert layer(query, key, value, scale=4.0)[0].tolist() == [1 * 0.75 - 0.5 * 0.25]  # 1.2, .6, .769: on the grid .75


def test_the_query_is_scaled_and_then_quantized():
    layer = attention(**{**FLOAT, "query_quant": Int8Act(scale=0.5)})
    query = torch.tensor([[1.2, 0.6, -3.4, 0.0]])
    key = torch.eye(4)
    expected = F.scaled_dot_product_attention(torch.tensor([[0.5, 0.5, -1.5, 0.0]]), key, key, scale=1.0)
    assert torch.equal(layer(query, key, key), expected)


def test_scores_are_quantized_before_the_mask():
    layer = attention(**{**FLOAT, "scores_quant": Int4Act(scale=0.5)})
    query, key = torch.tensor([[3.0, 9.0]]), torch.eye(2)
    out = layer(query, key, key, torch.tensor([[0.0, -torch.inf]]), scale=1.0)
    assert out.tolist() == [[1.0, 0.0]]
    out = layer(query, key, key, scale=1.0)  # 3 and 3.5, where the range of 4 bits ends
    assert torch.equal(out, torch.tensor([[3.0, 3.5]]).softmax(-1))


def test_attention_is_quantized_before_dropout():
    layer = attention(**{**FLOAT, "attention_quant": Int4Act(scale=0.125)})
    query, key, value = torch.zeros(1, 3), torch.zeros(4, 3), torch.eye(4)
    assert layer(query, key, value).tolist() == [[0.25] * 4]
    torch.manual_seed(0)
    dropped = layer(query, key, value, dropout_p=0.5)
    assert set(dropped.reshape(-1).tolist()) == {0.0, 0.5}
    assert layer.eval()(query, key, value, dropout_p=1.0).tolist() == [[0.0] * 4]  # as torch's function


@pytest.mark.parametrize("slot", ["attention_quant", "scores_quant", None])
def test_rows_without_any_key_are_0(slot):
    layer = attention(**{**FLOAT, **({slot: Int8Act(scale=0.1)} if slot else {})})
    x = torch.randn(2, 4, 8)
    mask = torch.ones(4, 4, dtype=torch.bool)
    mask[2] = False
    for each in (mask, torch.zeros(4, 4).masked_fill(~mask, -torch.inf)):
        out = layer(x, x, x, each)
        assert torch.isfinite(out).all()
        assert (out[:, 2] == 0).all()
        assert (out[:, 1] != 0).all()


def test_groups_are_quantized_before_they_are_repeated():
    layer = attention(key_quant=Int8ActPerChannel, key_axis=-3)
    query, key = torch.randn(2, 6, 5, 4), torch.randn(2, 3, 5, 4)
    layer(query, key, key, enable_gqa=True)
    assert layer.key_quant.grid(key).scale.shape == (1, 3, 1, 1)


def test_quant_tensors_in_and_out():
    entry = qnn.QuantIdentity(scale=0.25, return_quant_tensor=True)
    layer = attention(**{**FLOAT, "output_quant": Int8Act(scale=0.125)}, return_quant_tensor=True)
    x = torch.randn(2, 3, 4)
    out = layer(entry(x), entry(x), entry(x))
    assert isinstance(out, QuantTensor)
    assert out.scale == 0.125
    plain = attention(**FLOAT)(*[entry(x).value] * 3)
    assert torch.equal(out.value, (plain / 0.125).round() * 0.125)
    layer.return_quant_tensor = False
    assert type(layer(x, x, x)) is Tensor


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_precisions(dtype):
    layer = attention(dtype=dtype, scores_quant=Int8Act, output_quant=Int8Act)
    x = torch.randn(2, 3, 4, dtype=dtype)
    assert layer(x, x, x, torch.zeros(3, 3)).dtype == dtype
    assert layer.key_quant.scaling.magnitude.dtype == torch.promote_types(
        dtype, layer.key_quant.scaling.magnitude.dtype
    )


def test_autocast():
    layer = attention()
    x = torch.randn(2, 3, 4)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x, x, x, torch.ones(3, 3, dtype=torch.bool))
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), layer.eval()(x, x, x), rtol=0.05, atol=0.05)


def test_copies():
    layer = attention(key_bit_width=4)
    x = torch.randn(2, 3, 4)
    layer(x, x, x)
    expected = layer.eval()(x, x, x)
    loaded = attention(key_bit_width=4).eval()
    loaded.load_state_dict(layer.state_dict())
    for each in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), loaded):
        assert torch.equal(each(x, x, x), expected)


def test_quantizers_that_are_off_leave_torchs_function():
    layer = attention(scores_quant=Int8Act, output_quant=Int8Act)
    x = torch.randn(2, 3, 40, 8)
    with qnn.unquantized(layer):
        assert torch.equal(layer(x, x, x), F.scaled_dot_product_attention(x, x, x))
    assert not torch.equal(layer(x, x, x), F.scaled_dot_product_attention(x, x, x))


@pytest.mark.slow
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("options", [{}, {"attention_quant": None}], ids=["all", "kernel"])
def test_compiled(options, training):
    torch._dynamo.reset()
    layer = attention(**options)
    query, key = torch.randn(2, 4, 5, 8), torch.randn(2, 2, 6, 8)
    layer(query, key, key, enable_gqa=True)
    twin = torch.compile(copy.deepcopy(layer).train(training), backend="aot_eager", fullgraph=True)
    layer.train(training)
    for kwargs in ({"is_causal": True}, {"attn_mask": torch.rand(5, 6) < 0.5}):
        assert torch.equal(
            twin(query, key, key, enable_gqa=True, **kwargs), layer(query, key, key, enable_gqa=True, **kwargs)
        )


# Errors


def whole(message):
    return pytest.raises(QuantizerError, match=f"^{re.escape(message)}$")


def test_settings_are_checked():
    with whole(
        "QuantScaledDotProductAttention: keys_bit_width=4 is for no quantizer of this layer: keywords start with one "
        "of query_, key_, value_, scores_, attention_, output_. Did you mean key_bit_width=4?"
    ):
        attention(keys_bit_width=4)
    with whole(
        "QuantScaledDotProductAttention: scores_bit_width=4 is given, but scores_quant is None. Write "
        "scores_quant=Int8Act too, or leave scores_bit_width out."
    ):
        attention(scores_bit_width=4)
    with whole(
        "QuantScaledDotProductAttention: return_quant_tensor=True needs output_quant, which is None. Write "
        "output_quant=Int8Act."
    ):
        attention(return_quant_tensor=True)


def test_masks_are_checked():
    model = nn.ModuleDict({"attention": attention()})
    x = torch.randn(2, 3, 4)
    mask = torch.ones(3, 3, dtype=torch.bool)
    with whole(
        "QuantScaledDotProductAttention: is_causal=True is given with a mask, and each of them says which keys take "
        "part. Leave one out."
    ):
        model["attention"](x, x, x, mask, is_causal=True)
    with whole(
        "QuantScaledDotProductAttention: the mask is torch.int64, expected torch.bool or torch.float32. Write "
        "mask.bool() if it is True where a key takes part."
    ):
        model["attention"](x, x, x, mask.long())
    with whole(
        "QuantScaledDotProductAttention: enable_gqa=True shares keys and values among groups of query heads, and 2 "
        "heads of the query are no multiple of 3."
    ):
        model["attention"](x, torch.randn(3, 3, 4), x, enable_gqa=True)


def test_nested_tensors_are_refused():
    nested = torch.nested.nested_tensor([torch.randn(2, 3, 4), torch.randn(2, 5, 4)], layout=torch.jagged)
    with whole(
        "QuantScaledDotProductAttention: the input is a nested tensor, which can't be quantized. Pad it, "
        "x.to_padded_tensor(0.0); if nn.TransformerEncoder made it, write enable_nested_tensor=False there."
    ):
        attention()(nested, nested, nested)


# An LLM's block: rotary embeddings, grouped queries, causal


def rotated(x: Tensor) -> Tensor:
    """Rotary position embeddings (Su et al., 2021) of (N, heads, tokens, width)."""
    half = x.shape[-1] // 2
    angles = torch.arange(x.shape[-2]).unsqueeze(-1) * 100.0 ** (-torch.arange(half) / half)
    first, second = x.chunk(2, -1)
    return torch.cat([first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()], -1)


class Block(nn.Module):
    def __init__(self, width: int = 16, heads: int = 4, groups: int = 2, **options: object) -> None:
        super().__init__()
        self.head = width // heads
        self.query = qnn.QuantLinear(width, width, bias=False)
        self.key_value = qnn.QuantLinear(width, 2 * groups * self.head, bias=False)
        self.attention = qnn.QuantScaledDotProductAttention(**options)
        self.out = qnn.QuantLinear(width, width, bias=False)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head)).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        key, value = self._heads(self.key_value(x)).chunk(2, 1)
        out = self.attention(rotated(self._heads(self.query(x))), rotated(key), value, is_causal=True, enable_gqa=True)
        return x + self.out(out.transpose(1, 2).flatten(2))


def test_a_block_of_an_llm_trains():
    """It learns to say which token came before, for which only attention to the right place can be."""
    torch.manual_seed(0)
    table, block, head = nn.Embedding(8, 16), Block(attention_calibration_steps=20), nn.Linear(16, 8)
    model = nn.ModuleList([table, block, head])
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    tokens = torch.randint(8, (64, 10))

    def losses():
        return F.cross_entropy(head(block(table(tokens)))[:, 1:].flatten(0, 1), tokens[:, :-1].flatten())

    before = losses().item()
    for _ in range(80):
        optimizer.zero_grad()
        losses().backward()
        optimizer.step()
    assert losses().item() < 0.5 * before
    model.eval()
    x = table(tokens)
    changed = x.clone()
    changed[:, 6:] = 0.0
    torch.testing.assert_close(block(changed)[:, :6], block(x)[:, :6])  # later tokens are not seen

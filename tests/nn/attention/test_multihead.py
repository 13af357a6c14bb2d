"""Multi-head attention: torch's layer without quantizers, and with them the products that its slots say."""

import copy
import math
import pickle
import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import bitwright.nn as qnn
from bitwright.export import integers, run_integers
from bitwright.nn import intercepted, quantizers_of
from bitwright.qcore import QuantizerError, QuantTensor, values_of
from bitwright.quantizers import (
    Int4WeightPerTensor,
    Int8Act,
    Int8ActPerChannel,
    Int8WeightPerChannel,
    Int8WeightPerTensor,
    Int32Bias,
)

SLOTS = (*("weight", "bias", "input", "query", "key", "value", "scores", "attention", "context", "output"),)
FLOAT = {f"{slot}_quant": None for slot in SLOTS}
ALL = {
    **{f"{slot}_quant": Int8Act for slot in ("input", "scores", "context", "output")},
    "bias_quant": Int32Bias,
}


def attention(*args, **options):
    return qnn.QuantMultiheadAttention(*(args or (8, 2)), **options)


@st.composite
def calls(draw):
    """Constructor arguments, and arguments of one call."""
    batched = draw(st.booleans())
    dims = draw(st.sampled_from([{}, {"kdim": 6}, {"vdim": 10}, {"kdim": 6, "vdim": 10}]))
    made = {name: draw(st.booleans()) for name in ("bias", "add_bias_kv", "add_zero_attn", "batch_first")} | dims
    same = draw(st.sampled_from(["self", "key is value", "query is value", "none"]))
    queries = draw(st.integers(1, 5))
    keys = queries if same in ("self", "query is value") else draw(st.integers(1, 6))
    batch, generator = draw(st.integers(1, 3)), torch.Generator().manual_seed(draw(st.integers(0, 99)))

    def randn(tokens, width):
        shape = ((batch, tokens) if made["batch_first"] else (tokens, batch)) if batched else (tokens,)
        return torch.randn(*shape, width, generator=generator, dtype=torch.float64)

    query, key, value = randn(queries, 8), randn(keys, made.get("kdim", 8)), randn(keys, made.get("vdim", 8))
    if not dims:
        key = query if same == "self" else key
        value = {"self": key, "key is value": key, "query is value": query}.get(same, value)

    def mask(kind, *shape):
        left_out = torch.rand(shape, generator=generator) < 0.3
        if kind == "float":
            return torch.randn(shape, generator=generator, dtype=torch.float64).masked_fill(left_out, -torch.inf)
        return left_out

    options = {name: draw(st.booleans()) for name in ("need_weights", "average_attn_weights")}
    kind, padding = (draw(st.sampled_from([None, "bool", "float"])) for _ in range(2))
    heads = 2 * (batch if batched else 1)
    if kind and draw(st.booleans()):
        options["attn_mask"] = mask(kind, queries, keys)
    elif kind:
        options["attn_mask"] = mask(kind, heads, queries, keys)
    if padding == kind or (padding and not kind):  # torch warns of masks of two types
        options["key_padding_mask"] = mask(padding, *((batch, keys) if batched else (keys,))) if padding else None
    if kind is None and draw(st.booleans()):
        options |= {"attn_mask": torch.ones(queries, keys, dtype=torch.bool).triu(1), "is_causal": True}
        options.pop("key_padding_mask" if padding == "float" else "", None)
    return made, (query, key, value), options


@given(calls())
def test_without_quantizers_it_is_torchs(call):
    made, tensors, options = call
    torchs = nn.MultiheadAttention(8, 2, **made, dtype=torch.float64)
    ours = attention(**made, **FLOAT, dtype=torch.float64)
    ours.load_state_dict(torchs.state_dict(), strict=True)
    results = []
    for module in (torchs, ours):
        given_ = {id(each): each.clone().requires_grad_() for each in tensors}
        leaves = [given_[id(each)] for each in tensors]
        out, weights = module(*leaves, **options)
        out.sum().backward()
        results.append((out, weights, [each.grad for each in leaves]))
    (out, weights, grads), (our_out, our_weights, our_grads) = results
    torch.testing.assert_close(our_out, out, equal_nan=True)
    torch.testing.assert_close(our_grads, grads, equal_nan=True)
    assert (weights is None) == (our_weights is None)
    if weights is not None:
        torch.testing.assert_close(our_weights, weights, equal_nan=True)


@given(calls(), st.booleans())
def test_all_slots_take_every_call(call, training):
    """Every argument with every slot filled: a result of torch's shape, and near it."""
    made, tensors, options = call
    torchs = nn.MultiheadAttention(8, 2, **made, dtype=torch.float64)
    ours = attention(
        **made, **{key: each for key, each in ALL.items() if made["bias"] or key != "bias_quant"}, dtype=torch.float64
    )
    ours.load_state_dict(torchs.state_dict(), strict=True)
    ours(*tensors, **options)
    out, weights = ours.train(training)(*tensors, **options)
    expected, expected_weights = torchs(*tensors, **options)
    assert out.shape == expected.shape
    assert torch.isfinite(out).all()
    known = torch.isfinite(expected)  # torch's is NaN where all keys are masked
    torch.testing.assert_close(out[known], expected[known], rtol=0.1, atol=0.1)
    assert (weights is None) == (expected_weights is None)
    assert weights is None or weights.shape == expected_weights.shape


@pytest.mark.parametrize("need_weights", [True, False])
def test_dropout_is_torchs(need_weights):
    torchs, ours = nn.MultiheadAttention(8, 2, dropout=0.5), attention(8, 2, 0.5, **FLOAT)
    ours.load_state_dict(torchs.state_dict())
    x = torch.randn(5, 3, 8)
    results = []
    for module in (torchs, ours):
        torch.manual_seed(1)
        results.append(module(x, x, x, need_weights=need_weights))
    torch.testing.assert_close(results[0], results[1])
    assert not torch.equal(ours(x, x, x)[0], ours(x, x, x)[0])
    ours.eval()
    assert torch.equal(ours(x, x, x)[0], ours(x, x, x)[0])


# By hand


def by_hand(layer: Any, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Self-attention of (N, L, E) with the quantizers of a layer, in evaluation."""
    x = layer.input_quant(x)
    projected = F.linear(x, layer.in_proj_weight_quant(layer.in_proj_weight), layer.in_proj_bias)
    q, k, v = (each.unflatten(-1, (layer.num_heads, -1)).transpose(1, 2) for each in projected.chunk(3, -1))
    q, k, v = layer.query_quant(q / math.sqrt(q.shape[-1])), layer.key_quant(k), layer.value_quant(v)
    scores = layer.scores_quant(q @ k.mT) + mask
    weights = layer.attention_quant(scores.softmax(-1))
    context = layer.context_quant((weights @ v).transpose(1, 2).flatten(2))
    out = F.linear(context, layer.out_proj.weight_quant(layer.out_proj.weight), layer.out_proj.bias)
    return layer.output_quant(out), weights


def test_the_quantizers_are_where_they_belong():
    layer = attention(8, 2, batch_first=True, **{**ALL, "bias_quant": None}, weight_bit_width=4)
    x, mask = torch.randn(3, 5, 8), nn.Transformer.generate_square_subsequent_mask(5)
    for _ in range(2):
        layer(x, x, x, attn_mask=mask)
    layer.eval()
    out, weights = layer(x, x, x, attn_mask=mask, average_attn_weights=False)
    expected, expected_weights = by_hand(layer, x, mask)
    step = layer.output_quant.grid(out).scale
    assert ((out - expected).abs() <= 1.01 * step).all()  # sums in another order may round otherwise
    assert ((out - expected).abs() > 1e-5).float().mean() < 0.05
    torch.testing.assert_close(weights, expected_weights, rtol=0, atol=0.01)
    torch.testing.assert_close(layer(x, x, x, attn_mask=mask)[1], weights.mean(1))


def test_numbers():
    """One head of width 1, weights 1: query, key and value are the input."""
    scales = {"query_scale": 0.25, "key_scale": 0.25, "value_scale": 0.25, "attention_scale": 0.25}
    halves = {"input_quant": Int8Act(scale=0.5), "context_quant": Int8Act(scale=0.5)}
    layer = attention(1, 1, bias=False, weight_quant=None, **halves, **scales)
    with torch.no_grad():
        layer.in_proj_weight.fill_(1.0)
        layer.out_proj.weight.fill_(2.0)
    x = torch.tensor([[0.6], [-0.9]])  # .5, -1
    out, weights = layer(x, x, x)
    # scores .25, -.5 and -.5, 1: softmax .679, .321 and .182, .818, in quarters .75, .25 and .25, .75
    assert weights.tolist() == [[0.75, 0.25], [0.25, 0.75]]
    # .375 - .25 = .125 and .125 - .75 = -.625: on halves 0 and -.5, times 2
    assert out.tolist() == [[0.0], [-1.0]]


def test_one_tensor_is_quantized_once():
    layer = attention(**ALL)
    calls = []

    def count(path):
        def counted(quant, x, *context):
            calls.append(path)
            return quant._quantize(x, *context)

        return counted

    x, y, z = torch.randn(3, 5, 4, 8)
    with intercepted(quantizers_of(layer), count):
        for inputs, expected in (((x, x, x), 1), ((x, y, y), 2), ((x, y, x), 2), ((x, y, z), 3)):
            calls.clear()
            layer(*inputs)
            assert calls.count("input_quant") == expected
            assert calls.count("in_proj_weight_quant") == calls.count("in_proj_bias_quant") == 1


def test_inputs_are_measured_as_one_tensor():
    layer = attention(input_quant=Int8Act)
    x, y = torch.ones(5, 3, 8), torch.full((4, 3, 8), 4.0)
    layer(x, y, y)
    assert layer.input_quant.scaling.magnitude == 4.0  # and not the mean of 1 and 4, which would clip the keys
    assert layer.input_quant.scaling.steps == 1


def test_weights_that_are_not_asked_for_are_torchs_kernel(monkeypatch):
    layer, x = attention(attention_quant=None), torch.randn(5, 3, 8)
    calls, kernel = [], F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a, **k: calls.append(1) or kernel(*a, **k))
    expected = layer(x, x, x)[0]
    assert not calls
    torch.testing.assert_close(layer.eval()(x, x, x, need_weights=False)[0], expected)
    assert calls


@pytest.mark.parametrize("quantized", [True, False])
@pytest.mark.parametrize("need_weights", [True, False])
def test_rows_without_any_key(quantized, need_weights):
    """As torch: 0 by its kernel, NaN where weights are asked for; with a quantizer of the weights 0 in any case."""
    layer = attention(**({} if quantized else FLOAT))
    with torch.no_grad():
        layer.out_proj.bias.fill_(0.5)
    x = torch.randn(4, 2, 8)
    padding = torch.tensor([[False] * 4, [True] * 4])
    out, weights = layer(x, x, x, key_padding_mask=padding, need_weights=need_weights)
    if need_weights and not quantized:
        assert out[:, 1].isnan().all()
    else:
        assert (out[:, 1] == 0.5).all()
    assert torch.isfinite(out[:, 0]).all()
    if need_weights and quantized:
        assert (weights[1] == 0).all()


# Biases on the scale of the products


def bias_grid(layer, *inputs):
    """The grid of in_proj_bias in one forward."""
    found = []

    def note(path):
        def noted(quant, x, *context):
            values, grid = quant._quantize(x, *context)
            if path == "in_proj_bias_quant":
                found.append(grid)
            return values, grid

        return noted

    with intercepted(quantizers_of(layer), note):
        layer(*inputs)
    return found[0]


@pytest.mark.parametrize("dims", [{}, {"kdim": 8, "vdim": 8, "batch_first": True}, {"kdim": 7}])
def test_each_third_of_the_bias_follows_its_own_input(dims):
    layer = attention(4, 1, bias_quant=Int32Bias, context_quant=Int8Act, weight_scale=2.0**-6, **dims)
    scales = (0.5, 0.25, 0.125)
    widths = (4, layer.kdim, layer.vdim)
    inputs = [
        qnn.QuantIdentity(scale=scale, return_quant_tensor=True)(torch.randn(3, 3, width))
        for scale, width in zip(scales, widths, strict=True)
    ]
    grid = bias_grid(layer, *inputs)
    assert grid.scale.tolist() == [scale * 2.0**-6 for scale in scales for _ in range(4)]
    if not dims:
        assert bias_grid(layer, *inputs[:1] * 3).scale == 0.5 * 2.0**-6


def test_per_channel_weights_give_the_bias_a_scale_for_each_output():
    layer = attention(4, 1, weight_quant=Int8WeightPerChannel, bias_quant=Int32Bias, context_quant=Int8Act)
    x, y = (qnn.QuantIdentity(scale=scale, return_quant_tensor=True)(torch.randn(3, 2, 4)) for scale in (0.5, 0.25))
    rows = layer.in_proj_weight_quant.grid(layer.in_proj_weight).scale.reshape(-1)
    assert torch.equal(bias_grid(layer, x, x, x).scale, 0.5 * rows)
    factors = torch.tensor([0.5, 0.25, 0.25]).repeat_interleave(4)
    assert torch.equal(bias_grid(layer, x, y, y).scale, factors * rows)


def test_a_bias_is_not_clipped_where_weights_are_tiny():
    layer = attention(
        4,
        1,
        weight_quant=Int8WeightPerChannel,
        bias_quant=Int32Bias,
        input_quant=Int8Act(scale=1e-3),
        context_quant=Int8Act,
    )
    with torch.no_grad():
        layer.in_proj_weight[0] = 1e-12
        layer.in_proj_bias[0] = 5.0
    x = torch.randn(3, 2, 4)
    grid = bias_grid(layer, x, x, x)
    assert grid.scale[0] * 2**31 > 5.0
    assert torch.isclose(grid.from_int(grid.to_int(layer.in_proj_bias.detach()))[0], torch.tensor(5.0))


def test_integers_are_those_of_the_model():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = attention(8, 2, batch_first=True, **ALL)

        def forward(self, x):
            return self.attention(x, x, x, need_weights=False)[0]

    model, x = Model(), torch.randn(3, 5, 8)
    model(x)
    qnn.finish_calibration(model)
    found = integers(model.eval(), x)
    assert list(found) == ["attention", "attention.out_proj"]
    assert run_integers(model, x).outputs.shape == (3, 5, 8)


# State


def test_torchs_checkpoint_loads_strictly_and_scales_follow_it():
    torchs = nn.MultiheadAttention(8, 2, add_bias_kv=True)
    layer = attention(8, 2, add_bias_kv=True, **ALL, weight_bit_width=4)
    x = torch.randn(5, 3, 8)
    layer(x, x, x)
    assert str(layer.load_state_dict(torchs.state_dict(), strict=True)) == "<All keys matched successfully>"
    for name, parameter in torchs.named_parameters():
        assert torch.equal(layer.get_parameter(name), parameter)
    own = [key for key in layer.state_dict() if "_quant." not in key]
    assert sorted(own) == sorted(torchs.state_dict())
    assert "in_proj_weight_quant.scheme" in layer.state_dict()
    assert "out_proj.input_quant.scheme" in layer.state_dict()


def test_copies():
    layer = attention(8, 2, **ALL)
    x, y = torch.randn(5, 3, 8), torch.randn(4, 3, 8)
    layer(x, y, y)
    expected = layer.eval()(x, y, y)[0]
    loaded = attention(8, 2, **ALL).eval()
    loaded.load_state_dict(layer.state_dict())
    for each in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), loaded):
        assert torch.equal(each(x, y, y)[0], expected)
        each.weight_quant = Int4WeightPerTensor
        assert not torch.equal(each(x, y, y)[0], expected)
        assert torch.equal(layer(x, y, y)[0], expected)


def test_parameters_are_reset_as_torchs():
    for options in ({}, {"kdim": 6}):
        layer = attention(8, 2, **options)
        torch.manual_seed(0)
        torchs = nn.MultiheadAttention(8, 2, **options)
        torch.manual_seed(0)
        built = attention(8, 2, **options)
        torch.manual_seed(0)
        layer.out_proj.reset_parameters()
        layer._reset_parameters()
        for name, parameter in torchs.named_parameters():
            assert torch.equal(built.get_parameter(name), parameter)
            assert torch.equal(layer.get_parameter(name), parameter)


def test_a_layer_of_torch_changes_its_class():
    torchs = nn.MultiheadAttention(8, 2, batch_first=True)
    held, x = dict(torchs.named_parameters()), torch.randn(3, 5, 8)
    expected = torchs(x, x, x)[0]
    torchs.__class__ = qnn.QuantMultiheadAttention
    torchs._convert({**FLOAT, "return_quant_tensor": False}, None, None)
    assert all(parameter is held[name] for name, parameter in torchs.named_parameters())
    torch.testing.assert_close(torchs(x, x, x)[0], expected)
    torchs.weight_quant = Int8WeightPerTensor
    assert list(torchs.weight_quant) == ["in_proj_weight", "out_proj_weight"]


def test_kept_results_are_those_of_the_quantizers_there_are():
    layer, x = attention(8, 2, **ALL), torch.randn(5, 3, 8)
    layer(x, x, x)
    layer.eval()
    with qnn.frozen(layer), torch.no_grad():
        before = layer(x, x, x)[0]
        assert torch.equal(layer(x, x, x)[0], before)
        layer.out_proj_weight_quant = Int4WeightPerTensor
        coarse = layer(x, x, x)[0]
        assert not torch.equal(coarse, before)
    assert torch.equal(layer(x, x, x)[0], coarse)


# Slots


def test_keywords_reach_all_matrices_or_one():
    layer = attention(8, 2, kdim=6, weight_bit_width=4, k_proj_weight_bit_width=6, out_proj_weight_quant=None)
    widths = {name: quant and quant.bit_width for name, quant in layer.weight_quant.items()}
    assert widths == {"q_proj_weight": 4, "k_proj_weight": 6, "v_proj_weight": 4, "out_proj_weight": None}
    layer.weight_quant = Int8WeightPerTensor
    assert {quant.bit_width for quant in layer.weight_quant.values()} == {8}
    assert layer.out_proj.weight_quant.bit_width == 8
    layer.context_quant = Int8Act
    assert layer.out_proj.input_quant is layer.context_quant
    layer.context_quant = None
    assert layer.out_proj.input_quant is None


def test_quant_tensors_out():
    layer = attention(8, 2, batch_first=True, output_quant=Int8Act(scale=0.125), return_quant_tensor=True)
    x = torch.randn(3, 5, 8)
    for each in (x, x[0]):
        out = layer(each, each, each)[0]
        assert isinstance(out, QuantTensor)
        assert out.scale == 0.125
        assert torch.equal(out.int(), (out.value / 0.125).to(torch.int8))
    layer.return_quant_tensor = False
    assert not layer.out_proj.return_quant_tensor
    assert type(layer(x, x, x)[0]) is Tensor
    sums = attention(8, 2, bias_quant=Int32Bias, input_quant=Int8Act, context_quant=Int8Act, return_quant_tensor=True)
    assert sums(x, x, x)[0].bit_width > 16


def test_quant_tensors_in():
    x = qnn.QuantIdentity(scale=0.125, return_quant_tensor=True)(torch.randn(5, 3, 8))
    layer = attention(8, 2, bias_quant=Int32Bias, context_quant=Int8Act)
    out = layer(x, x, x)[0]
    assert torch.equal(layer.eval()(x, x, x)[0], out)
    plain = values_of(x)
    free = attention(8, 2)
    free.load_state_dict(layer.state_dict(), strict=False)
    torch.testing.assert_close(free.eval()(plain, plain, plain)[0], out, rtol=0, atol=0.05)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_precisions(dtype):
    layer = attention(8, 2, dtype=dtype, **ALL)
    x = torch.randn(5, 3, 8, dtype=dtype)
    for need_weights in (True, False):
        out, _ = layer(x, x, x, torch.zeros(3, 5, dtype=torch.bool), need_weights)
        assert out.dtype == dtype


def test_autocast():
    layer = attention(8, 2, **ALL)
    x = torch.randn(5, 3, 8)
    expected, _ = layer(x, x, x)
    with torch.autocast("cpu", torch.bfloat16):
        out, weights = layer(x, x, x, torch.zeros(3, 5, dtype=torch.bool))
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), expected, rtol=0.1, atol=0.1)
    assert weights is not None


@pytest.mark.slow
@pytest.mark.parametrize("training", [True, False])
def test_compiled(training):
    x, y = torch.randn(2, 3, 5, 8)
    causal = {"attn_mask": nn.Transformer.generate_square_subsequent_mask(5), "is_causal": True, "need_weights": False}
    for options, inputs, call in (
        (ALL, (x, x, x), {}),
        (ALL, (x, y, y), causal),
        ({"attention_quant": None}, (x, x, x), causal),
    ):
        torch._dynamo.reset()  # in torch 2.13 one layer's guards on x, x, x fail on another's quantizers
        layer = attention(8, 2, batch_first=True, **options)
        layer(x, x, x)
        twin = copy.deepcopy(layer.train(training))
        compiled = torch.compile(twin, backend="aot_eager", fullgraph=True)
        out, expected = compiled(*inputs, **call)[0], layer(*inputs, **call)[0]
        assert torch.equal(out, expected)
        out.sum().backward()
        expected.sum().backward()
        for parameter, other in zip(twin.parameters(), layer.parameters(), strict=True):
            torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-4, atol=1e-5)


# Torch's fast paths


def test_torchs_encoder_calls_the_layer():
    layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True)
    layer.self_attn = attention(8, 2, batch_first=True, weight_bit_width=2)
    x = torch.randn(3, 5, 8)
    layer(x)
    layer.eval()
    expected = layer(x)
    with torch.no_grad():
        assert torch.equal(layer(x), expected)


def test_torchs_encoder_makes_no_nested_tensors_for_the_layer():
    """Also one that was built before its layers were quantized."""
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True), 2)
    assert encoder.use_nested_tensor
    for layer in encoder.layers:
        layer.self_attn = attention(8, 2, batch_first=True, out_proj_weight_quant=None)
    x, padding = torch.randn(3, 5, 8), torch.tensor([[False] * 5, [False] * 4 + [True], [False] * 5])
    encoder(x, src_key_padding_mask=padding)
    encoder.eval()
    expected = encoder(x, src_key_padding_mask=padding)
    with torch.no_grad():
        assert torch.equal(encoder(x, src_key_padding_mask=padding), expected)


# Errors


def whole(message):
    return pytest.raises(QuantizerError, match=f"^{re.escape(message)}$")


NAME = "QuantMultiheadAttention"


def test_settings_are_checked():
    with whole(
        f"{NAME}(): queries_bit_width=4 is for no quantizer of this layer: keywords start with one of weight_, bias_, "
        "input_, query_, key_, value_, scores_, attention_, context_, output_. Did you mean query_bit_width=4?"
    ):
        attention(queries_bit_width=4)
    with whole(
        f"{NAME}(): context_bit_width=4 is given, but context_quant is None. Write context_quant=Int8Act too, or leave "
        "context_bit_width out."
    ):
        attention(context_bit_width=4)
    with whole(
        "QuantLinear(in_features=8, out_features=8, bias=False): bias_quant=Int32Bias is given, but there is no bias. "
        "Write bias=True, or leave bias_quant out."
    ):
        attention(bias=False, bias_quant=Int32Bias, context_quant=Int8Act)
    with whole(f"{NAME}: batch_first='yes' is not possible: expected True or False."):
        attention(batch_first="yes")


def test_what_follows_the_context_needs_its_quantizer():
    with whole(
        f"{NAME}(): the scale of out_proj_bias_quant follows the grid of the input of out_proj, and context_quant is "
        "None. Write context_quant=Int8Act, or out_proj_bias_quant=None."
    ):
        attention(bias_quant=Int32Bias)
    attention(bias_quant=Int32Bias, out_proj_bias_quant=None)
    for bias in (True, False):
        with whole(
            f"{NAME}(): return_quant_tensor=True without output_quant needs the grid of the input of out_proj, and "
            "context_quant is None. Write context_quant=Int8Act, or output_quant=Int8Act."
        ):
            attention(bias=bias, return_quant_tensor=True)
    layer = attention(**ALL)
    with whole(
        f"{NAME}(): the scale of out_proj_bias_quant follows the grid of the input of out_proj, and context_quant is "
        "None. Write context_quant=Int8Act, or out_proj_bias_quant=None."
    ):
        layer.context_quant = None
    assert layer.context_quant.bit_width == 8


def test_granularities_are_checked():
    with whole(
        f"{NAME}(): in_proj_weight_quant has several scales (axis 2), and the matrix has 2 dimensions. Write "
        "weight_quant=Int8WeightPerChannel for one scale for each output, or Int8WeightPerTensor for one."
    ):
        attention(in_proj_weight_axis=2)
    with whole(
        f"{NAME}(): in_proj_weight_quant has several scales (axis 1), and a bias on the scale of the products needs "
        "a common one for all products that an output sums. Write weight_quant=Int8WeightPerChannel for one scale for "
        "each output, or Int8WeightPerTensor for one."
    ):
        attention(in_proj_weight_axis=1, bias_quant=Int32Bias, context_quant=Int8Act)
    attention(in_proj_weight_axis=1)


def test_biases_without_a_grid_say_what_to_do():
    x = torch.randn(5, 3, 8)
    with whole(
        "in_proj_bias_quant: this bias quantizer needs the scales of input and weight, and the input is a plain "
        "tensor. Set return_quant_tensor=True on the layer before, or give this one input_quant=Int8Act, or choose a "
        "bias with a scale of its own: bias_quant=Int8BiasOwnScale."
    ):
        attention(bias_quant=Int32Bias, context_quant=Int8Act)(x, x, x)
    with whole(
        "in_proj_bias_quant: the input has 3 scales (axis 1), so its products with the weight have no "
        "common one for the bias. Quantize the input per tensor (axis=None), or choose bias_quant=Int8BiasOwnScale."
    ):
        attention(bias_quant=Int32Bias, context_quant=Int8Act, input_quant=Int8ActPerChannel)(x, x, x)


def test_shapes_and_masks_are_checked():
    layer, x = attention(), torch.randn(5, 3, 8)
    with whole(
        f"{NAME}: query, key and value have 3, 2 and 3 dimensions, expected 3 each, or 2 each for one sequence without "
        "a batch."
    ):
        layer(x, x[0], x)
    with whole(
        f"{NAME}: key and value have the shapes (5, 3, 8) and (4, 3, 8), and must agree in all but the last dimension."
    ):
        layer(x, x, x[:4])
    with whole(
        f"{NAME}: query has a batch of 3, and key one of 2. They must agree; with batch_first=False, dimension 1 is "
        "the batch."
    ):
        layer(x, x[:, :2], x[:, :2])
    with whole(f"{NAME}: query has 6 features, expected 8."):
        layer(x[..., :6], x, x)
    with whole(f"{NAME}: key_padding_mask has the shape (5, 3), expected (3, 5)."):
        layer(x, x, x, torch.zeros(5, 3, dtype=torch.bool))
    with whole(f"{NAME}: attn_mask has the shape (5, 4), expected (5, 5) or (6, 5, 5)."):
        layer(x, x, x, attn_mask=torch.zeros(5, 4))
    with whole(
        f"{NAME}: attn_mask is torch.int64, expected torch.bool or floats. Write attn_mask.bool() if it is True where "
        "a key is left out."
    ):
        layer(x, x, x, attn_mask=torch.zeros(5, 5, dtype=torch.long))
    with whole(
        f"{NAME}: is_causal=True says that attn_mask is causal, and there is none. Write "
        "attn_mask=nn.Transformer.generate_square_subsequent_mask(length) too."
    ):
        layer(x, x, x, is_causal=True)


def test_nested_tensors_are_refused():
    model = nn.ModuleDict({"attention": attention(batch_first=True)})
    nested = torch.nested.nested_tensor([torch.randn(3, 8), torch.randn(5, 8)], layout=torch.jagged)
    with whole(
        f"{NAME}: the input is a nested tensor, which can't be quantized. Pad it, x.to_padded_tensor(0.0); if "
        "nn.TransformerEncoder made it, write enable_nested_tensor=False there."
    ):
        model["attention"](nested, nested, nested)

"""Layers of transformers: torch's without quantizers, and never passed by with them."""

import copy
import pickle
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import bitwright.nn as qnn
from bitwright.nn import quantizers_of
from bitwright.qcore import QuantizerError, QuantTensor
from bitwright.qcore.errors import ReadOnlyError
from bitwright.quantizers import (
    Int4WeightPerTensor,
    Int8Act,
    Int8WeightPerChannel,
    Int8WeightPerTensor,
    Int32Bias,
    Uint8Act,
)

ENCODER, DECODER = qnn.QuantTransformerEncoderLayer, qnn.QuantTransformerDecoderLayer
FLOAT = {f"{slot.name}_quant": None for slot in ENCODER.slots}
ALL = {
    **{f"{slot}_quant": Int8Act for slot in ("input", "scores", "context", "output")},
    "linear2_input_quant": Uint8Act,
    "bias_quant": Int32Bias,
}


@st.composite
def layers(draw):
    """Constructor arguments, and the sizes of a call."""
    made = {name: draw(st.booleans()) for name in ("batch_first", "norm_first", "bias")}
    made["activation"] = draw(st.sampled_from(["relu", "gelu", torch.tanh]))
    made["layer_norm_eps"] = draw(st.sampled_from([1e-5, 0.1]))
    batched = draw(st.booleans())
    masks = [draw(st.sampled_from([None, "bool", "float"])) for _ in range(2)]
    return made, batched, draw(st.integers(1, 5)), draw(st.integers(1, 5)), masks, draw(st.integers(0, 99))


def inputs_for(layer, batched, *tokens, seed=0):
    generator, first = torch.Generator().manual_seed(seed), layer.self_attn.batch_first
    for each in tokens:
        shape = ((3, each) if first else (each, 3)) if batched else (each,)
        yield torch.randn(*shape, 8, generator=generator, dtype=torch.float64)


def mask_for(kind, queries, keys):
    left_out = torch.ones(queries, keys, dtype=torch.bool).triu(1)
    left_out[:, 0] = False
    return None if kind is None else left_out if kind == "bool" else left_out * -2.0


@given(layers(), st.booleans())
def test_an_encoder_layer_without_quantizers_is_torchs(drawn, training):
    made, batched, tokens, _, (kind, _), seed = drawn
    torchs = nn.TransformerEncoderLayer(8, 2, 16, 0.3, **made, dtype=torch.float64).train(training)
    ours = ENCODER(8, 2, 16, 0.3, **made, **FLOAT, dtype=torch.float64).train(training)
    ours.load_state_dict(torchs.state_dict(), strict=True)
    (x,) = inputs_for(ours, batched, tokens, seed=seed)
    mask = mask_for(kind, tokens, tokens)
    outs = []
    for module in (torchs, ours):
        torch.manual_seed(seed)
        outs.append(module(x, src_mask=mask))
    torch.testing.assert_close(*outs)
    with torch.no_grad():
        if not training:
            torch.testing.assert_close(ours(x, mask), torchs(x, mask))


@given(layers(), st.booleans())
def test_a_decoder_layer_without_quantizers_is_torchs(drawn, training):
    made, batched, targets, tokens, kinds, seed = drawn
    torchs = nn.TransformerDecoderLayer(8, 2, 16, 0.3, **made, dtype=torch.float64).train(training)
    ours = DECODER(8, 2, 16, 0.3, **made, **FLOAT, dtype=torch.float64).train(training)
    ours.load_state_dict(torchs.state_dict(), strict=True)
    x, memory = inputs_for(ours, batched, targets, tokens, seed=seed)
    masks = mask_for(kinds[0], targets, targets), mask_for(kinds[1], targets, tokens)
    outs = []
    for module in (torchs, ours):
        torch.manual_seed(seed)
        outs.append(module(x, memory, *masks, tgt_is_causal=masks[0] is not None and kinds[0] == "bool"))
    torch.testing.assert_close(*outs)


@pytest.mark.parametrize("norm_first", [True, False])
def test_parts_are_quantized_where_they_are(norm_first):
    """The layer is what torch's own layer computes with the same parts in their places."""
    layer = ENCODER(8, 2, 16, 0.0, norm_first=norm_first, **{**ALL, "output_quant": None})
    x = torch.randn(5, 3, 8)
    layer(x)
    by_hand = nn.TransformerEncoderLayer(8, 2, 16, 0.0, norm_first=norm_first)
    for name in ("self_attn", "linear1", "linear2", "norm1", "norm2"):
        setattr(by_hand, name, copy.deepcopy(getattr(layer, name)))
    assert torch.equal(by_hand.eval()(x), layer.eval()(x))


@pytest.mark.parametrize("kind", [ENCODER, DECODER])
def test_evaluation_without_gradients_is_evaluation(kind):
    """Torch has fused kernels for it, which read weights and call none of the layers."""
    torch.manual_seed(0)
    layer = kind(8, 2, 16, 0.0, batch_first=True, weight_bit_width=2, weight_quant=Int8WeightPerChannel)
    x, padding = torch.randn(3, 5, 8), torch.tensor([[False] * 5, [False] * 3 + [True] * 2, [False] * 5])
    if kind is ENCODER:
        model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        run = lambda: model(x, src_key_padding_mask=padding)  # noqa: E731
    else:
        model = nn.TransformerDecoder(layer, 2)
        run = lambda: model(x, x + 1, memory_key_padding_mask=padding)  # noqa: E731
    trained = run()
    assert len(quantizers_of(model)) == (2 * 8 if kind is ENCODER else 2 * 14)
    expected = model.eval()(x, *([x + 1] if kind is DECODER else []))
    assert torch.equal(run().detach(), trained.detach())
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            assert torch.equal(run(), trained)
            assert torch.equal(model(x, *([x + 1] if kind is DECODER else [])), expected)


def test_numbers():
    """Attention that sees one token, weights of 1 and no biases: relu of the norm, times the two matrices."""
    layer = ENCODER(
        2,
        1,
        1,
        0.0,
        bias=False,
        weight_quant=None,
        linear1_input_quant=Int8Act(scale=0.5),
        linear2_input_quant=Uint8Act(scale=0.25),
        output_quant=Int8Act(scale=0.25),
    )
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            parameter.fill_(0.0 if "attn" in name else 1.0)
    layer.norm2 = nn.Identity()
    x = torch.tensor([[3.0, 1.0]])
    # attention adds 0; norm1 gives 1, -1, which lie on halves: their sum is 0
    assert layer(x).tolist() == [[1.0, -1.0]]
    with torch.no_grad():
        layer.linear1.weight[0, 1] = -0.3  # 1 + .3, on quarters 1.25
    assert layer(x).tolist() == [[2.25, 0.25]]


def test_keywords_reach_all_parts_or_one():
    layer = DECODER(8, 2, 16, weight_bit_width=4, linear1_weight_bit_width=8, self_attn_weight_bit_width=6)
    assert {name: quant.bit_width for name, quant in layer.weight_quant.items()} == {
        "self_attn_in_proj_weight": 6,
        "self_attn_out_proj_weight": 6,
        "multihead_attn_in_proj_weight": 4,
        "multihead_attn_out_proj_weight": 4,
        "linear1_weight": 8,
        "linear2_weight": 4,
    }
    layer.weight_quant = Int4WeightPerTensor
    assert {quant.bit_width for quant in layer.weight_quant.values()} == {4}
    assert layer.multihead_attn.out_proj.weight_quant.bit_width == 4
    layer.multihead_attn_key_quant = None
    assert layer.multihead_attn.key_quant is None
    assert list(layer.key_quant) == ["self_attn_key", "multihead_attn_key"]
    assert layer.output_quant is None
    assert {quant for name, quant in layer.input_quant.items()} == {None}


def test_quant_tensors_in_and_out():
    layer = ENCODER(8, 2, 16, 0.0, output_scale=0.25, output_quant=Int8Act, return_quant_tensor=True)
    x = torch.randn(5, 3, 8)
    out = layer(x)
    assert isinstance(out, QuantTensor)
    assert out.scale == 0.25
    assert torch.equal(out.int(), (out.value / 0.25).to(torch.int8))
    twice = layer.eval()(out)
    assert torch.equal(twice.value, layer(out.value).value)
    layer.return_quant_tensor = False
    assert type(layer(x)) is Tensor


def test_copies():
    layer, x = ENCODER(8, 2, 16, 0.0, **ALL), torch.randn(5, 3, 8)
    layer(x)
    expected = layer.eval()(x)
    loaded = ENCODER(8, 2, 16, 0.0, **ALL).eval()
    loaded.load_state_dict(layer.state_dict(), strict=True)
    for each in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), loaded):
        assert torch.equal(each(x), expected)
        each.weight_quant = Int4WeightPerTensor
        assert not torch.equal(each(x), expected)


@pytest.mark.parametrize(
    ("torchs", "ours"), [(nn.TransformerEncoderLayer, ENCODER), (nn.TransformerDecoderLayer, DECODER)]
)
def test_a_layer_of_torch_changes_its_class(torchs, ours):
    layer = torchs(8, 2, 16, 0.0)
    held = dict(layer.named_parameters())
    layer.__class__ = ours
    layer._convert({"weight_bit_width": 4, "return_quant_tensor": False}, None, None)
    assert all(parameter is held[name] for name, parameter in layer.named_parameters() if name in held)
    built = ours(8, 2, 16, 0.0, weight_bit_width=4)
    assert repr(layer) == repr(built)
    assert list(layer.state_dict()) == list(built.state_dict())


@pytest.mark.slow
@pytest.mark.parametrize("training", [True, False])
def test_compiled(training):
    torch._dynamo.reset()
    layer, x = ENCODER(8, 2, 16, 0.0, **ALL), torch.randn(5, 3, 8)
    layer(x)
    twin = copy.deepcopy(layer.train(training))
    compiled = torch.compile(twin, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x), layer(x))


# Errors


def whole(message, error=QuantizerError):
    return pytest.raises(error, match=f"^{re.escape(message)}$")


NAME = "QuantTransformerEncoderLayer"


def test_settings_are_checked():
    with whole(
        f"{NAME}(): weights_bit_width=4 is for no quantizer of this layer: keywords start with one of weight_, bias_, "
        "input_, query_, key_, value_, scores_, attention_, context_, self_attn_output_, linear1_output_, "
        "grad_, linear2_output_, output_. Did you mean weight_bit_width=4?"
    ):
        ENCODER(8, 2, 16, weights_bit_width=4)
    with whole(f"{NAME}(): return_quant_tensor=True needs output_quant, which is None. Write output_quant=Int8Act."):
        ENCODER(8, 2, 16, return_quant_tensor=True)
    with whole(
        f"{NAME}(): weight_bit_width=4 can't be set on a layer that is built. Write layer.weight_quant = "
        "Int8WeightPerTensor(bit_width=4).",
        ReadOnlyError,
    ):
        ENCODER(8, 2, 16).weight_bit_width = 4


def test_parts_that_compute_in_their_own_way_are_refused():
    class Own(nn.Linear):
        pass

    layer = nn.TransformerEncoderLayer(8, 2, 16)
    layer.linear2 = Own(16, 8)
    layer.__class__ = ENCODER
    with whole(
        f"{NAME}: linear2 is a Own, and only an nn.Linear there can become a QuantLinear. Put one there, or quantize "
        "the parts one by one."
    ):
        layer._convert({}, None, None)


def test_nested_tensors_are_refused():
    layer = ENCODER(8, 2, 16, batch_first=True).eval()
    nested = torch.nested.nested_tensor([torch.randn(3, 8), torch.randn(5, 8)], layout=torch.jagged)
    with whole(
        "self_attn: the input is a nested tensor, which can't be quantized. Pad it, x.to_padded_tensor(0.0); if "
        "nn.TransformerEncoder made it, write enable_nested_tensor=False there."
    ):
        layer(nested)


@pytest.mark.parametrize("kind", [qnn.QuantTransformerEncoderLayer, qnn.QuantTransformerDecoderLayer])
def test_the_slots_of_the_class_have_the_quantizers_of_the_constructor(kind):
    usual = {slot.name: kind.usual_quantizer(slot) for slot in kind.slots}
    assert {name: quantizer for name, quantizer in usual.items() if quantizer is not None} == {
        "weight": Int8WeightPerTensor,
        "query": Int8Act,
        "key": Int8Act,
        "value": Int8Act,
        "attention": Uint8Act,
    }
    layer = kind(8, 2, 16)
    for slot in layer.slots:
        assert (getattr(layer, f"{slot.name}_quant") is None) == (kind.usual_quantizer(slot) is None), slot.name

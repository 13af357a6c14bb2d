"""Torch's modules that read a weight past the layer: their fast paths stand back, or the layer says so."""

import copy
import inspect
import pickle
import types

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize, prune
from torch.utils import mkldnn

import bitwright.nn as qnn
from bitwright.export import integers
from bitwright.qcore import QuantizerError
from bitwright.quantizers import Int8Act

X = torch.linspace(-200, 200, 160).reshape(2, 5, 16).sin()
MASK = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
REFUSED = (
    "MultiheadAttention reads the weight of this layer and never calls it, so its quantizers would do nothing. Put an "
    "nn.Linear there, and a QuantMultiheadAttention in the place of the MultiheadAttention."
)


def quantized(linear, **settings):
    layer = qnn.QuantLinear(linear.in_features, linear.out_features, **settings)
    layer.load_state_dict(linear.state_dict())
    return layer


def coder(*names, kind=nn.TransformerEncoderLayer, activation="relu"):
    """A layer of torch's, the named linears quantized to 2 bits, and the float layer that computes the same."""
    torch.manual_seed(0)
    layer = kind(16, 2, 32, 0.0, batch_first=True, activation=activation).eval()
    same = copy.deepcopy(layer)
    for name in names:
        setattr(layer, name, quantized(getattr(layer, name), weight_bit_width=2).eval())
        with torch.no_grad():
            getattr(same, name).weight.copy_(getattr(layer, name).quant_weight().value)
    return layer, same


@pytest.fixture
def fast(monkeypatch):
    """Grows whenever torch takes the fast path."""
    taken = []
    kernel = vars(torch)["_transformer_encoder_layer_fwd"]
    monkeypatch.setattr(torch, "_transformer_encoder_layer_fwd", lambda *args: taken.append(1) or kernel(*args))
    return taken


# The fast path of nn.TransformerEncoderLayer


@pytest.mark.parametrize("names", [("linear1",), ("linear2",), ("linear1", "linear2")])
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_an_encoder_layer_calls_its_quantized_linears(names, context):
    layer, same = coder(*names)
    with context():
        torch.testing.assert_close(layer(X), same(X))
        assert (layer(X) - coder()[0](X)).abs().max() > 0.1


def test_the_fast_path_is_left_alone_otherwise(fast):
    layer, same = coder()
    layer.linear1 = quantized(layer.linear1, weight_quant=None).eval()
    layer.activation = qnn.QuantReLU(act_quant=None)  # without quantizers both are torch's
    with torch.no_grad():
        torch.testing.assert_close(layer(X), same(X))
        assert len(fast) == 2
        layer.linear1 = quantized(layer.linear1).eval()
        layer(X)
    assert len(fast) == 2


@pytest.mark.parametrize("kind", [qnn.QuantReLU, qnn.QuantGELU])
def test_an_encoder_layer_calls_its_quantized_activation(kind):
    layer, _ = coder(activation=kind(act_quant=Int8Act, scale=0.25))
    seen = []
    layer.linear2.forward = lambda x: seen.append(x) or F.linear(x, layer.linear2.weight, layer.linear2.bias)
    with torch.no_grad():
        layer(X)
    assert torch.equal(seen[0] * 4, (seen[0] * 4).round())


def test_an_encoder_layer_calls_a_quantizer_anywhere_in_it(fast):
    layer, _ = coder()
    layer.dropout = qnn.QuantIdentity(scale=0.25)
    with torch.no_grad():
        layer(X)
    assert not fast


def test_the_mark_of_a_quantizer_is_copied_and_changes_nothing():
    quant = qnn.QuantReLU(scale=0.25).act_quant
    assert quant is not None
    for each in (quant, copy.deepcopy(quant), pickle.loads(pickle.dumps(quant))):
        assert len(each._forward_pre_hooks) == 1
        assert each(torch.tensor([0.3, 99.0])).tolist() == [0.25, 63.75]


def test_a_compiled_and_an_exported_encoder_layer_call_their_linears():
    layer, same = coder("linear1", "linear2")
    with torch.no_grad():
        program = torch.export.export(layer, (X,)).module()
        torch.testing.assert_close(program(X), same(X))
        compiled = torch.compile(layer, backend="aot_eager")
        torch.testing.assert_close(compiled(X), same(X))


# nn.TransformerEncoder, which makes nested tensors for that path


@pytest.mark.parametrize("mask", [None, MASK])
def test_an_encoder_calls_its_quantized_linears(mask):
    layer, same = coder("linear1", "linear2")
    encoder, expected = (nn.TransformerEncoder(each, 2, enable_nested_tensor=False).eval() for each in (layer, same))
    nesting = nn.TransformerEncoder(layer, 2).eval()
    assert nesting.use_nested_tensor
    with torch.no_grad():
        right = expected(X, src_key_padding_mask=mask)
        torch.testing.assert_close(encoder(X, src_key_padding_mask=mask), right)
        torch.testing.assert_close(nesting(X, src_key_padding_mask=mask), right)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_an_activation_refuses_nested_tensors():
    encoder = nn.TransformerEncoder(coder(activation=qnn.QuantReLU(scale=0.25))[0], 2).eval()
    with torch.no_grad(), pytest.raises(QuantizerError) as caught:
        encoder(X, src_key_padding_mask=MASK)
    assert str(caught.value) == (
        "layers.0.activation: the input is a nested tensor, which can't be quantized. Pad it, "
        "x.to_padded_tensor(0.0); if nn.TransformerEncoder made it, write enable_nested_tensor=False there."
    )


# Attention, which never calls out_proj


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("settings", [{}, {"weight_quant": None, "input_quant": Int8Act}])
def test_attention_is_refused_a_quantized_projection(settings, training):
    attention = nn.MultiheadAttention(16, 2, batch_first=True)
    attention.out_proj = quantized(attention.out_proj, **settings)
    attention.train(training)
    with pytest.raises(QuantizerError) as caught:
        attention(X, X, X)
    assert str(caught.value) == f"out_proj: {REFUSED}"
    with torch.no_grad(), pytest.raises(QuantizerError, match=r"^out_proj: "):
        attention(X, X, X, need_weights=False)


@pytest.mark.parametrize("fullgraph", [False, True])
def test_attention_that_is_compiled_first_computes_in_floats(fullgraph):
    """Compiled code isn't watched; the documented way to find out is one eager forward before, or any export."""
    torch._dynamo.reset()
    attention = nn.MultiheadAttention(16, 2, batch_first=True)
    expected = attention(X, X, X)[0]
    attention.out_proj = quantized(attention.out_proj, weight_bit_width=2)
    compiled = torch.compile(attention, backend="eager", fullgraph=fullgraph)
    torch.testing.assert_close(compiled(X, X, X)[0], expected)
    for eager in (lambda: attention(X, X, X), lambda: integers(attention, (X, X, X))):
        with pytest.raises(QuantizerError) as caught:
            eager()
        assert str(caught.value) == f"out_proj: {REFUSED}"


def test_the_refusal_names_the_path():
    for layer in (coder()[0], coder(kind=nn.TransformerDecoderLayer)[0]):
        name = "multihead_attn" if hasattr(layer, "multihead_attn") else "self_attn"
        attention = getattr(layer, name)
        attention.out_proj = quantized(attention.out_proj)
        with pytest.raises(QuantizerError) as caught:
            nn.Sequential(layer)(X) if name == "self_attn" else layer(X, X)
        path = "0.self_attn.out_proj" if name == "self_attn" else "multihead_attn.out_proj"
        assert str(caught.value) == f"{path}: {REFUSED}"


def test_attention_takes_a_projection_without_quantizers():
    attention = nn.MultiheadAttention(16, 2, batch_first=True)
    expected = attention(X, X, X)[0]
    attention.out_proj = quantized(attention.out_proj, weight_quant=None)
    torch.testing.assert_close(attention(X, X, X)[0], expected)


def test_a_decoder_layer_calls_its_quantized_linears():
    layer, same = coder("linear1", "linear2", kind=nn.TransformerDecoderLayer)
    with torch.no_grad():
        torch.testing.assert_close(layer(X, X), same(X, X))


@pytest.mark.filterwarnings("ignore:.torch.jit.script")  # which the conversion is written with
def test_a_conversion_that_would_drop_the_quantizers_is_refused():
    with pytest.raises(QuantizerError) as caught:
        mkldnn.to_mkldnn(nn.Sequential(qnn.QuantLinear(4, 4)).eval())
    assert str(caught.value) == (
        "QuantLinear: MkldnnLinear reads the weight of this layer and never calls it, so its quantizers would do "
        "nothing. Put an nn.Linear there."
    )


# Everyone else gets the parameter


def test_the_weight_is_a_parameter_like_any():
    layer = qnn.QuantLinear(4, 3)
    assert layer.weight is layer._parameters["weight"]
    assert type(layer.weight) is nn.Parameter
    assert [name for name, _ in layer.named_parameters()] == ["weight", "bias"]
    layer.reset_parameters()
    nn.init.ones_(layer.weight)
    assert layer.quant_weight().value.tolist() == [[1.0] * 4] * 3
    other = qnn.QuantLinear(4, 3)
    other.weight = layer.weight
    assert other.weight is layer.weight
    assert "weight" in dir(layer)
    assert inspect.getattr_static(qnn.QuantLinear, "weight") is qnn.QuantLinear.weight


def test_a_weight_that_is_not_there_is_missed_as_ever():
    layer = qnn.QuantLinear(4, 3)
    del layer.weight
    assert not hasattr(layer, "weight")
    with pytest.raises(AttributeError, match=r"^'QuantLinear' object has no attribute 'weight'$"):
        _ = layer.weight
    assert not hasattr(qnn.QuantLinear.__new__(qnn.QuantLinear), "weight")


@pytest.mark.parametrize(
    ("layer", "shapes"),
    [
        (qnn.QuantLayerNorm(4, elementwise_affine=False), [(2, 4)]),
        (qnn.QuantRMSNorm(4, elementwise_affine=False), [(2, 4)]),
        (qnn.QuantGroupNorm(2, 4, affine=False), [(2, 4, 3)]),
        (qnn.QuantBatchNorm1d(4, affine=False), [(2, 4)]),
        (qnn.QuantMultiheadAttention(4, 2, kdim=3, vdim=5), [(6, 2, 4), (7, 2, 3), (7, 2, 5)]),
    ],
    ids=lambda each: type(each).__name__,
)
def test_a_parameter_that_a_layer_lacks_is_none_in_compiled_code_too(layer, shapes):
    torch.manual_seed(0)
    inputs = [torch.randn(shape) for shape in shapes]
    layer(*inputs)
    expected = layer.eval()(*inputs)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")(*inputs)
    torch.testing.assert_close(compiled, expected)


def test_what_takes_its_place_is_found():
    layer = qnn.QuantLinear(4, 3, weight_scaling="constant", weight_scale=0.25)
    x = torch.eye(4)
    given = torch.full((3, 4), 0.6)
    assert torch.func.functional_call(layer, {"weight": given, "bias": torch.zeros(3)}, (x,)).unique().item() == 0.5
    pruned = prune.l1_unstructured(copy.deepcopy(layer), "weight", amount=6)
    assert "weight" in vars(pruned)
    assert (pruned.weight == 0).sum() == 6
    pruned(x)

    class Ones(nn.Module):
        def forward(self, weight):
            return torch.ones_like(weight)

    parametrize.register_parametrization(layer, "weight", Ones())
    assert layer.weight.unique().item() == 1.0
    assert (layer(x) - layer.bias).unique().round(decimals=5).tolist() == [1.0]


WEIGHT_LAYERS = [each for each in qnn.__all__ if each.startswith(("QuantLinear", "QuantConv"))]


@pytest.mark.parametrize("name", WEIGHT_LAYERS)
def test_every_layer_with_a_weight_is_watched(name):
    def forward(self, x):
        return self.inner.weight.sum() * x

    within_torch = types.FunctionType(forward.__code__, {"__name__": "torch.nn.modules.reader"}, "forward")
    reader = type("Reader", (nn.Module,), {"forward": within_torch})()
    reader.inner = getattr(qnn, name)(*((4, 4) if name == "QuantLinear" else (4, 4, 1)))
    with pytest.raises(QuantizerError) as caught:
        reader(X)
    assert str(caught.value) == (
        "inner: Reader reads the weight of this layer and never calls it, so its quantizers would do nothing. Put an "
        f"nn.{name.removeprefix('Quant')} there."
    )

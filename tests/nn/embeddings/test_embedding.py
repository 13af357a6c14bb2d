"""Embeddings: torch's over its argument space, rows on the table's grid, what is refused."""

import copy
import re
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._pytree import tree_map

import bitwright.nn as qnn
from bitwright.graph import GraphError, quantize
from bitwright.qcore import QuantizerError, QuantTensor
from bitwright.quantizers import (
    Int4WeightPerGroup,
    Int8Act,
    Int8WeightPerChannel,
    Int8WeightPerChannelLearned,
    Int8WeightPerTensor,
    Int8WeightPerTensorLearned,
    ShiftedUint8WeightPerTensor,
)

TABLE = torch.tensor([[0.5, -1.27, 0.0], [0.3, 0.014, 0.016], [-0.01, 0.02, 1.0]])


def message(text):
    return f"^{re.escape(text)}$"


@st.composite
def arguments(draw):
    """Arguments of nn.Embedding, which may look up any row."""
    rows = draw(st.integers(2, 7))
    by_frequency = draw(st.booleans())
    return {
        "num_embeddings": rows,
        "embedding_dim": draw(st.integers(1, 5)),
        "padding_idx": draw(st.none() | st.integers(-rows, rows - 1)),
        "max_norm": draw(st.none() | st.floats(0.25, 2.0)),
        "norm_type": draw(st.sampled_from([1.0, 2.0, 3.0])),
        "scale_grad_by_freq": by_frequency,
        "sparse": not by_frequency and draw(st.booleans()),  # torch has no gradient for both
        "_freeze": draw(st.booleans()),
        "dtype": draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16])),
    }


def looked_up(module, rows):
    """The output, and the gradient of the table."""
    out = module(rows)
    if module.weight.requires_grad:
        out.float().square().sum().backward()
    grad = module.weight.grad
    return out, grad if grad is None or not grad.is_sparse else grad.to_dense()


def same(ours, torchs, rows):
    for one, other in zip(looked_up(ours, rows), looked_up(torchs, rows), strict=True):
        assert (one is None) == (other is None)
        assert one is None or torch.equal(one, other)
    assert torch.equal(ours.weight, torchs.weight)  # max_norm changes it


@given(arguments(), st.lists(st.integers(0, 1), min_size=1, max_size=6), st.booleans())
def test_without_quantizers_it_is_torchs(made, picked, int32):
    ours = qnn.QuantEmbedding(**made, weight_quant=None)
    torchs = nn.Embedding(**made)
    torchs.load_state_dict(ours.state_dict())
    same(ours, torchs, torch.tensor(picked, dtype=torch.int32 if int32 else torch.int64))


@given(
    st.sampled_from(["sum", "mean", "max"]),
    st.booleans(),
    st.none() | st.integers(0, 3),
    st.none() | st.floats(0.25, 2.0),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
def test_bags_without_quantizers_are_torchs(mode, last, padding_idx, max_norm, by_frequency, sparse, offsets):
    made = {"mode": mode, "include_last_offset": last, "padding_idx": padding_idx, "max_norm": max_norm}
    if mode != "max":
        made |= {"scale_grad_by_freq": by_frequency, "sparse": sparse and not by_frequency}
    ours = qnn.QuantEmbeddingBag(4, 3, **made, weight_quant=None)
    torchs = nn.EmbeddingBag(4, 3, **made)
    torchs.load_state_dict(ours.state_dict())
    rows = torch.tensor([0, 3, 1, 1, 2, 0])
    inputs: tuple[Any, ...] = (rows, torch.tensor([0, 2, 2, 6])) if offsets else (rows.reshape(2, 3),)
    if mode == "sum":
        weights = torch.linspace(-1, 1, 6).reshape(inputs[0].shape)
        inputs = (inputs[0], inputs[1] if offsets else None, weights)
    outs = [module(*inputs) for module in (ours, torchs)]
    assert torch.equal(*outs)
    for out in outs:
        out.square().sum().backward()
    grads = [each.weight.grad.to_dense() for each in (ours, torchs)]
    assert torch.equal(*grads)


def test_rows_lie_on_the_grid_of_the_table():
    embedding = qnn.QuantEmbedding.from_pretrained(TABLE, return_quant_tensor=True)
    out = embedding(torch.tensor([[2, 0]]))
    assert isinstance(out, QuantTensor)
    assert out.int().tolist() == [[[-1, 2, 100], [50, -127, 0]]]
    assert round(out.scale.item(), 6) == 0.01
    assert embedding.int_weight().tolist() == [[50, -127, 0], [30, 1, 2], [-1, 2, 100]]


def test_a_scale_for_each_row():
    embedding = qnn.QuantEmbedding.from_pretrained(TABLE, weight_quant=Int8WeightPerChannel)
    assert embedding.int_weight().tolist() == [[50, -127, 0], [127, 6, 7], [-1, 3, 127]]
    assert torch.equal(embedding.quant_weight().scale, TABLE.abs().amax(1, keepdim=True) / 127)
    assert torch.equal(embedding(torch.tensor([1])), embedding.quant_weight().value[1:2])


def test_a_scale_for_each_column_follows_the_rows():
    embedding = qnn.QuantEmbedding.from_pretrained(TABLE, weight_axis=1, return_quant_tensor=True)
    out = embedding(torch.tensor([[2, 0]]))
    assert out.grid.axis == 2
    assert out.scale.shape == (1, 1, 3)
    assert out.is_valid
    assert torch.equal(out.int()[0], embedding.int_weight()[[2, 0]])


def test_a_zero_point_goes_along():
    embedding = qnn.QuantEmbedding.from_pretrained(
        TABLE, weight_quant=ShiftedUint8WeightPerTensor, return_quant_tensor=True
    )
    out = embedding(torch.tensor([0, 1]))
    assert out.is_valid
    assert torch.equal(out.int(), embedding.int_weight()[:2])
    columns = qnn.QuantEmbedding.from_pretrained(
        TABLE, weight_quant=ShiftedUint8WeightPerTensor, weight_axis=1, return_quant_tensor=True
    )
    assert columns(torch.tensor([0, 1])).is_valid


def test_groups():
    embedding = qnn.QuantEmbedding(5, 40, weight_quant=Int4WeightPerGroup)
    assert embedding.quant_weight().scale.shape == (5, 2)
    assert embedding.int_weight().abs().max() == 7


def test_the_output_may_be_quantized():
    embedding = qnn.QuantEmbedding.from_pretrained(
        TABLE, weight_quant=Int8WeightPerChannel, output_quant=Int8Act, output_scale=0.25, return_quant_tensor=True
    )
    assert embedding(torch.tensor([0])).int().tolist() == [[2, -5, 0]]


def test_the_largest_of_a_bag_lie_on_the_grid():
    bag = qnn.QuantEmbeddingBag.from_pretrained(TABLE, mode="max", return_quant_tensor=True)
    assert bag(torch.tensor([[0, 1], [2, 2]])).int().tolist() == [[50, 1, 2], [-1, 2, 100]]
    empty = bag(torch.tensor([0]), torch.tensor([0, 1]))
    assert empty.int().tolist() == [[50, -127, 0], [0, 0, 0]]


def test_a_bag_sums_rows_of_the_quantized_table():
    bag = qnn.QuantEmbeddingBag.from_pretrained(TABLE, mode="sum", weight_bit_width=2)
    assert not bag.weight.requires_grad
    assert torch.equal(bag(torch.tensor([[0, 2]])), bag.quant_weight().value[[0, 2]].sum(0, keepdim=True))
    weighted = bag(torch.tensor([[0, 2]]), per_sample_weights=torch.tensor([[2.0, 0.5]]))
    assert torch.equal(weighted, (bag.quant_weight().value[[0, 2]] * torch.tensor([[2.0], [0.5]])).sum(0, keepdim=True))


def test_the_row_of_padding_gets_no_gradient():
    embedding = qnn.QuantEmbedding(4, 3, padding_idx=-3)
    with torch.no_grad():
        embedding.weight[1] = 9.0  # it decides the scale
    embedding(torch.tensor([0, 1, 2, 2])).sum().backward()
    assert embedding.weight.grad[1].tolist() == [0, 0, 0]
    assert embedding.weight.grad[2].tolist() == [2, 2, 2]
    plain = copy.deepcopy(embedding)
    plain.padding_idx = None
    plain.weight.grad = None
    plain(torch.tensor([0, 1, 2, 2])).sum().backward()
    assert plain.weight.grad[1].abs().sum() > 0


def test_frequent_rows_share_a_gradient():
    embedding = qnn.QuantEmbedding(4, 3, scale_grad_by_freq=True, weight_quant=Int8WeightPerChannelLearned)
    embedding(torch.tensor([1, 2, 2])).sum().backward()
    assert embedding.weight.grad[1:3].tolist() == [[1, 1, 1], [1, 1, 1]]


def test_rows_are_renormalized_before_they_are_quantized():
    embedding = qnn.QuantEmbedding.from_pretrained(4 * TABLE, max_norm=1.0).eval()
    with qnn.frozen(embedding), torch.no_grad():
        embedding(torch.tensor([0]))
        assert torch.allclose(embedding.weight.norm(dim=1), torch.tensor([1.0, 1.2030, 4.0010]), atol=1e-4)
        out = embedding(torch.tensor([2]))
    assert torch.allclose(embedding.weight[2].norm(), torch.tensor(1.0))
    assert torch.equal(out, embedding.quant_weight().value[2:])


def test_compiled_it_renormalizes_too():
    embedding = qnn.QuantEmbedding.from_pretrained(4 * TABLE, freeze=False, padding_idx=1, max_norm=1.0)
    twin, rows = copy.deepcopy(embedding), torch.tensor([0, 1])
    out, expected = torch.compile(twin, backend="aot_eager", fullgraph=True)(rows), embedding(rows)
    assert torch.equal(out, expected)
    assert torch.equal(twin.weight, embedding.weight)
    for each in (out, expected):
        each.square().sum().backward()
    torch.testing.assert_close(twin.weight.grad, embedding.weight.grad)


@pytest.mark.parametrize(
    ("keywords", "text"),
    [
        (
            {"sparse": True},
            "QuantEmbedding(10, 4, sparse=True): sparse=True asks for a gradient of the rows that were looked up "
            "alone, and quantizers make a dense one. Write sparse=False, or weight_quant=None.",
        ),
        (
            {"weight_quant": Int8WeightPerChannel, "return_quant_tensor": True},
            "QuantEmbedding(10, 4): return_quant_tensor=True needs outputs that lie on one grid, and the weight has a "
            "scale for each row (axis 0), so that each output has those of its own. Write "
            "weight_quant=Int8WeightPerTensor, or output_quant=Int8Act to quantize the output.",
        ),
        (
            {"weight_quant": Int4WeightPerGroup, "return_quant_tensor": True},
            "QuantEmbedding(10, 4): return_quant_tensor=True needs outputs that lie on one grid, and the weight has a "
            "scale for each group (groups of 32 along axis 1), so that each output has those of its own. Write "
            "weight_quant=Int8WeightPerTensor, or output_quant=Int8Act to quantize the output.",
        ),
        (
            {"weight_quant": None, "return_quant_tensor": True},
            "QuantEmbedding(10, 4): return_quant_tensor=True needs outputs that lie on a grid, and the weight is not "
            "quantized. Set weight_quant=Int8WeightPerTensor, or output_quant=Int8Act to quantize the output.",
        ),
        (
            {"input_bit_width": 4},
            "QuantEmbedding(10, 4): input_bit_width=4 is for no quantizer of this layer: keywords start with one of "
            "weight_, output_, grad_. Did you mean weight_bit_width=4?",
        ),
    ],
)
def test_what_is_refused(keywords, text):
    with pytest.raises(QuantizerError, match=message(text)):
        qnn.QuantEmbedding(10, 4, **keywords)


def test_what_is_refused_of_bags():
    text = (
        "QuantEmbeddingBag(10, 4, mode='mean'): return_quant_tensor=True needs outputs that lie on a grid, and a mean "
        "of rows is computed in floats. Set output_quant=Int8Act to quantize the output."
    )
    with pytest.raises(QuantizerError, match=message(text)):
        qnn.QuantEmbeddingBag(10, 4, return_quant_tensor=True)


def test_a_quantizer_set_later_is_checked_too():
    embedding = qnn.QuantEmbedding(10, 4, return_quant_tensor=True)
    with pytest.raises(QuantizerError, match="a scale for each row"):
        embedding.weight_quant = Int8WeightPerChannel
    assert embedding.weight_quant.quantizer == Int8WeightPerTensor


@pytest.mark.parametrize("layer", [qnn.QuantEmbedding, qnn.QuantEmbeddingBag])
def test_a_table_is_a_matrix(layer):
    text = "from_pretrained: embeddings has 1 dimensions. Pass a table of 2: (rows, columns)."
    with pytest.raises(QuantizerError, match=message(text)):
        layer.from_pretrained(torch.ones(3))


def nested(*lengths):
    return torch.nested.nested_tensor([torch.arange(length) for length in lengths], layout=torch.jagged)


def test_nested_tensors():
    rows = nested(2, 3)
    assert qnn.QuantEmbedding(5, 4)(rows).is_nested
    bag = qnn.QuantEmbeddingBag(5, 4, max_norm=1.0, weight_quant=None)
    torchs = nn.EmbeddingBag(5, 4, max_norm=1.0)
    torchs.load_state_dict(bag.state_dict())
    assert torch.equal(bag(rows), torchs(rows))
    text = (
        "QuantEmbedding: the input is a nested tensor, and so is the output, which can't be quantized. Pad the input: "
        "input.to_padded_tensor(padding_idx)."
    )
    with pytest.raises(QuantizerError, match=message(text)):
        qnn.QuantEmbedding(5, 4, return_quant_tensor=True)(rows)


def test_a_learned_scale_is_derived_from_a_float_checkpoint():
    embedding = qnn.QuantEmbedding(3, 3, weight_quant=Int8WeightPerTensorLearned)
    embedding(torch.tensor([0]))
    embedding.load_state_dict(nn.Embedding.from_pretrained(TABLE).state_dict(), strict=True)
    assert embedding.int_weight()[0].tolist() == [50, -127, 0]


class Scaled(nn.Embedding):
    """A subclass with a forward of its own, as language models have."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return 2.0 * super().forward(input)


def test_a_subclass_with_its_own_forward():
    model = quantize(nn.Sequential(Scaled(5, 4, padding_idx=0)), {nn.Embedding: {"weight_bit_width": 4}})
    assert type(model[0]).__name__ == "QuantScaled"
    rows = torch.tensor([[1, 0]])
    assert torch.equal(model(rows), 2 * model[0].quant_weight().value[rows])


def test_a_subclass_with_its_own_forward_changes_no_quantized_rows():
    text = (
        "quantize: 0, by the rule nn.Embedding: QuantScaled(5, 4, max_norm=1.0): max_norm=1.0 would change rows of the "
        "quantized table, as this layer has a forward of its own. Renormalize the whole table first, and set max_norm "
        "= None."
    )
    with pytest.raises(GraphError, match=message(text)):
        quantize(nn.Sequential(Scaled(5, 4, max_norm=1.0)), {nn.Embedding: {"weight_bit_width": 8}})


def test_rules():
    float_model = nn.Sequential(nn.Embedding(10, 4), nn.EmbeddingBag(10, 4))
    model = quantize(float_model[:1], {nn.Embedding: {"weight_quant": Int8WeightPerChannel, "weight_bit_width": 4}})
    assert type(model[0]) is qnn.QuantEmbedding
    assert model[0].int_weight().abs().max() == 7
    assert type(quantize(float_model[1:], {nn.EmbeddingBag: {}})[0]) is qnn.QuantEmbeddingBag


def test_state():
    embedding = qnn.QuantEmbedding(5, 4, output_quant=Int8Act, weight_quant=Int8WeightPerChannelLearned)
    rows = torch.tensor([0, 3])
    embedding(rows)
    other = qnn.QuantEmbedding(5, 4, output_quant=Int8Act, weight_quant=Int8WeightPerChannelLearned)
    other.load_state_dict(tree_map(lambda each: each.clone(), embedding.state_dict()), strict=True)
    assert torch.equal(other.eval()(rows), embedding.eval()(rows))

"""What rules do with recurrent layers, attention, embeddings, norms and pools."""

import re

import pytest
import torch
from torch import nn

import bitwright.nn as qnn
from bitwright.graph import (
    W4A8,
    W8,
    W8A8,
    GraphError,
    calibrate,
    correct_biases,
    decisions_of,
    explain,
    first,
    integer,
    last,
    load_rules,
    quantize,
    save_rules,
)
from bitwright.graph.conversion.self_check import check_equal, outputs_of
from bitwright.quantizers import Int8Act, Int8WeightPerTensor

TOKENS = torch.tensor([[1, 5, 3, 7, 0], [2, 2, 9, 4, 6]])


class Reader(nn.Module):
    """Embedding, recurrent layers, norm, dropout, linear layer."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(10, 8)
        self.lstm = nn.LSTM(8, 6, 2, batch_first=True, bidirectional=True)
        self.norm = nn.LayerNorm(12)
        self.dropout = nn.Dropout(0.1)
        self.gru = nn.GRU(12, 5, batch_first=True)
        self.head = nn.Linear(5, 3)

    def forward(self, tokens):
        x, _ = self.lstm(self.table(tokens))
        x, _ = self.gru(self.dropout(self.norm(x)))
        return self.head(x[:, -1])


class Translator(nn.Module):
    """An encoder and a decoder."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(10, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.decoder = nn.TransformerDecoderLayer(8, 2, 16, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, tokens):
        x = self.table(tokens)
        return self.head(self.decoder(x, self.encoder(x)))


def widths(model):
    """The bits of the weights by path."""
    return {path: quant.bit_width for path, quant in qnn.quantizers_of(model).items() if quant.of_parameter}


def names(model):
    """The classes of the quantized layers by path, but for the parts of others."""
    parts = {part for each in model.modules() if hasattr(each, "routes") for part in each.modules() if part is not each}
    found = {path: each for path, each in model.named_modules() if isinstance(each, qnn.QuantLayer)}
    return {path: type(each).__name__ for path, each in found.items() if each not in parts}


# Which layers


def test_a_rule_for_all_layers_is_for_those_that_multiply():
    q = quantize(Reader(), W8A8)
    assert names(q) == {"lstm": "QuantLSTM", "gru": "QuantGRU", "head": "QuantLinear"}
    q = quantize(Translator(), W8A8)
    assert names(q) == {
        "encoder.layers.0.self_attn": "QuantMultiheadAttention",
        "encoder.layers.0.linear1": "QuantLinear",
        "encoder.layers.0.linear2": "QuantLinear",
        "decoder.self_attn": "QuantMultiheadAttention",
        "decoder.multihead_attn": "QuantMultiheadAttention",
        "decoder.linear1": "QuantLinear",
        "decoder.linear2": "QuantLinear",
        "head": "QuantLinear",
    }


def test_batch_norms_and_pools_stay_as_they_are():
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.PReLU(2), nn.AvgPool2d(2), nn.Upsample(scale_factor=2)
    )
    assert names(quantize(model, W8A8)) == {"0": "QuantConv2d"}
    assert names(quantize(model, {"*": W8A8})) == {"0": "QuantConv2d"}
    by_type = quantize(model, {nn.BatchNorm2d: W8, nn.PReLU: W8, nn.AvgPool2d: {"bit_width": 4}})
    assert names(by_type) == {"1": "QuantBatchNorm2d", "2": "QuantPReLU", "3": "QuantAvgPool2d"}
    assert by_type[3].act_quant.bit_width == 4


def test_embeddings_and_norms_by_type_and_path():
    q = quantize(Reader(), {nn.Embedding: W8, "norm": {"input_quant": Int8Act}})
    assert names(q) == {"table": "QuantEmbedding", "norm": "QuantLayerNorm"}
    assert q.norm.input_quant.bit_width == 8


def test_a_wildcard_that_reaches_no_matrix_is_about_embeddings_and_norms():
    assert names(quantize(Reader(), {"t*": W8})) == {"table": "QuantEmbedding"}
    assert names(quantize(Reader(), {"*": W8})) == {"lstm": "QuantLSTM", "gru": "QuantGRU", "head": "QuantLinear"}
    by_predicate = {(lambda path, module: isinstance(module, nn.Embedding)): W8}
    assert names(quantize(Reader(), by_predicate)) == {"table": "QuantEmbedding"}


def test_first_and_last_are_layers_that_multiply():
    q = quantize(Reader(), {first(): {"weight_bit_width": 4}, last(): {"weight_bit_width": 6}}, examples=TOKENS)
    assert names(q) == {"lstm": "QuantLSTM", "head": "QuantLinear"}


def test_a_transformer_layer_is_its_parts_unless_its_type_is_named():
    q = quantize(Translator(), {nn.Linear: W8})
    assert set(names(q).values()) == {"QuantLinear"}
    q = quantize(Translator(), {nn.TransformerEncoderLayer: {**W8, "linear2_weight_bit_width": 4}})
    assert names(q) == {"encoder.layers.0": "QuantTransformerEncoderLayer"}
    assert widths(q) == {
        "encoder.layers.0.self_attn.in_proj_weight_quant": 8,
        "encoder.layers.0.self_attn.out_proj.weight_quant": 8,
        "encoder.layers.0.linear1.weight_quant": 8,
        "encoder.layers.0.linear2.weight_quant": 4,
    }
    q = quantize(Translator(), {**W8, nn.TransformerEncoderLayer: None})
    assert not [path for path in names(q) if path.startswith("encoder")]


# Settings


def test_keywords_for_all_matrices_for_some_and_for_one():
    rules = {nn.LSTM: {"weight_bit_width": 4, "weight_hh_bit_width": 6, "weight_hh_l1_reverse_bit_width": 8}}
    assert widths(quantize(Reader(), rules)) == {
        "lstm.weight_ih_l0_quant": 4,
        "lstm.weight_hh_l0_quant": 6,
        "lstm.weight_ih_l0_reverse_quant": 4,
        "lstm.weight_hh_l0_reverse_quant": 6,
        "lstm.weight_ih_l1_quant": 4,
        "lstm.weight_hh_l1_quant": 6,
        "lstm.weight_ih_l1_reverse_quant": 4,
        "lstm.weight_hh_l1_reverse_quant": 8,
    }


def test_keywords_for_some_matrices_pass_other_layers_by():
    q = quantize(Reader(), {**W4A8, "weight_hh_bit_width": 8})
    assert widths(q)["gru.weight_hh_l0_quant"] == 8
    assert widths(q)["head.weight_quant"] == 4
    q = quantize(Translator(), {**W4A8, "out_proj_weight_bit_width": 8})
    assert widths(q)["decoder.self_attn.out_proj.weight_quant"] == 8
    assert widths(q)["decoder.self_attn.in_proj_weight_quant"] == 4


def test_a_later_rule_for_all_matrices_wins_over_an_earlier_one_for_some():
    rules = [("gru", {"weight_hh_bit_width": 3}), (nn.GRU, {"weight_bit_width": 5})]
    assert set(widths(quantize(Reader(), rules)).values()) == {5}
    rules = [("gru", {"weight_hh_bit_width": 3}), (nn.GRU, {"weight_hh_quant": Int8WeightPerTensor})]
    assert widths(quantize(Reader(), rules)) == {"gru.weight_ih_l0_quant": 8, "gru.weight_hh_l0_quant": 8}


def test_some_matrices_alone():
    rules = {nn.GRU: {"weight_quant": None, "weight_hh_quant": Int8WeightPerTensor, "weight_hh_bit_width": 4}}
    assert widths(quantize(Reader(), rules)) == {"gru.weight_hh_l0_quant": 4}


def test_settings_that_no_layer_has():
    message = (
        "quantize: no layer that the rule nn.GRU matches has a slot for cell_bit_width=16. They are GRU (1). Did you "
        "mean gate_bit_width?"
    )
    with pytest.raises(GraphError, match=f"^{re.escape(message)}$"):
        quantize(Reader(), {nn.GRU: {**W8, "cell_bit_width": 16}})


def test_weights_alone_need_no_ranges():
    for model in (Reader(), Translator()):
        quantizers = qnn.quantizers_of(quantize(model, W8))
        assert quantizers
        assert all(each.of_parameter for each in quantizers.values())


def test_what_flows_inside_is_quantized_where_the_input_is():
    q = quantize(Reader(), W8A8)
    assert q.lstm.hidden_l1_quant.bit_width == 8
    assert q.lstm.cell_l0_quant is None
    q = quantize(Translator(), W8A8)
    attention = q.decoder.self_attn
    assert attention.key_quant.bit_width == attention.context_quant.bit_width == 8
    assert attention.scores_quant is None
    q = quantize(Reader(), {nn.LSTM: qnn.QuantLSTM})
    assert q.lstm.hidden_l0_quant.bit_width == 8
    q = quantize(Reader(), {nn.LSTM: {"hidden_bit_width": 6}})
    assert q.lstm.hidden_l1_quant.bit_width == 6


def test_layers_without_a_parameter_have_no_slot_for_it():
    model = nn.Sequential(nn.LayerNorm(4, elementwise_affine=False), nn.LayerNorm(4), nn.LSTM(4, 2, bias=False))
    q = quantize(model, {nn.LayerNorm: W8, nn.LSTM: integer(8, 8)})
    assert widths(q) == {"1.weight_quant": 8, "2.weight_ih_l0_quant": 8, "2.weight_hh_l0_quant": 8}


def test_rules_in_files(tmp_path):
    rules = {nn.LSTM: {**W4A8, "weight_hh_bit_width": 8}, nn.Embedding: qnn.QuantEmbedding}
    save_rules(rules, tmp_path / "rules.toml")
    loaded = load_rules(tmp_path / "rules.toml")
    assert widths(quantize(Reader(), loaded)) == widths(quantize(Reader(), rules))


# With examples


@pytest.mark.parametrize("model", [Reader, Translator])
@pytest.mark.parametrize("placement", ["inputs", "outputs"])
def test_it_computes_something_near_and_trains(model, placement):
    floats = model().eval()
    q = quantize(floats, integer(8, 8), examples=TOKENS, placement=placement)
    report = calibrate(q, [TOKENS], progress=False)
    assert report.unreached == []
    assert not torch.equal(q(TOKENS), floats(TOKENS))
    assert (q(TOKENS) - floats(TOKENS)).abs().max() < 0.1 * floats(TOKENS).abs().max()
    with torch.no_grad():  # where torch takes its fast path
        torch.testing.assert_close(q(TOKENS), q(TOKENS.clone()))
    q.train()(TOKENS).sum().backward()
    assert not [path for path, each in q.named_parameters() if each.grad is None and "scaling" not in path]
    q.load_state_dict(model().state_dict())


def test_the_states_of_a_recurrent_layer_are_the_input_of_the_next():
    q = quantize(Reader(), integer(8, 8), examples=TOKENS, placement="outputs")
    assert q.gru.return_quant_tensor
    assert q.head.input_quant is None
    assert q.gru.input_quant.bit_width == 8  # behind a norm


def test_attention_keeps_its_input_quantizer_unless_all_inputs_have_grids():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.query, self.attention = nn.Linear(8, 8), nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x):
            return self.attention(self.query(x), x, x)[0]

    q = quantize(Two(), integer(8, 8), examples=torch.randn(2, 5, 8), placement="outputs")
    assert q.attention.input_quant.bit_width == 8
    q = quantize(Two(), W8A8, examples=torch.rand(2, 5, 8))
    assert q.attention.input_quant.signed


def test_all_slots_are_listed():
    q = quantize(Translator(), {**W4A8, "out_proj_weight_bit_width": 8}, examples=TOKENS)
    found = explain(q)["decoder.self_attn"]
    assert [each.slot for each in found.quantizers] == [
        *("in_proj_weight", "out_proj_weight", "input", "query", "key", "value", "attention", "context"),
    ]
    assert found.quantizers[1].text == "Int4WeightPerChannel(bit_width=8): int8 narrow, axis 0"
    assert found.quantizers[3].why == ("usual in QuantMultiheadAttention",)
    assert "decoder.self_attn.out_proj" not in [layer.path for layer in explain(q).layers]
    decided = {each.path: each for each in decisions_of(q)}
    assert decided["decoder.self_attn"].slots["key"].quantizer == Int8Act
    assert [each.slot for each in explain(quantize(Reader(), W8))["gru"].quantizers] == ["weight_ih_l0", "weight_hh_l0"]


def test_what_each_layer_costs():
    q = quantize(Reader(), W8A8, examples=TOKENS)
    calibrate(q, [TOKENS], progress=False)
    found = explain(q, TOKENS)
    assert {layer.path for layer in found.worst} == {"lstm", "gru", "head"}
    assert all(layer.sqnr > 20 for layer in found.worst)


def test_ranges_of_states_are_those_of_all_steps():
    model = nn.GRU(1, 1, batch_first=True)
    with torch.no_grad():
        for each in model.parameters():
            each.fill_(0.5)
    x = torch.tensor([[[0.0], [0.0], [9.0]]])
    q = quantize(model, {nn.GRU: {**W8A8, "hidden_scaling": "calibrated"}}, examples=x)
    report = calibrate(q, [x], statistic="abs_max", progress=False)
    states, _ = model(x)
    assert report["hidden_l0_quant"].largest == pytest.approx(states.max().item(), rel=1e-5)
    assert report["hidden_l0_quant"].samples == 1


def test_passes_leave_them_alone():
    model = Translator().eval()
    q = quantize(model, W4A8, examples=TOKENS)
    calibrate(q, [TOKENS], progress=False)
    report = correct_biases(q, [TOKENS, TOKENS.flip(0)], model)
    assert report.sqnr_after >= report.sqnr_before
    assert report["decoder.self_attn"].reason == "is neither a linear layer nor a convolution"
    assert "decoder.self_attn.out_proj" not in [entry.path for entry in report]


# The self-check


def test_recurrent_layers_and_attention_may_round_otherwise():
    model = nn.Sequential(nn.Identity(), nn.MultiheadAttention(4, 2))
    attention = model[1]

    class Once(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention, self.relu = attention, nn.ReLU()
            self.offset = 0.0

        def forward(self, x):
            return self.relu(self.attention(x, x, x)[0] + self.offset)

    net, x = Once().eval(), torch.randn(3, 1, 4)
    before = outputs_of(net, x)
    assert list(before.kept) == ["attention"]
    with torch.no_grad():
        net.attention.out_proj.bias += 1e-7
    check_equal(before, net, x, {})
    with torch.no_grad():
        net.attention.out_proj.bias += 1e-2
    with pytest.raises(GraphError, match=r"^quantize: with all quantizers off, attention \(MultiheadAttention\) does"):
        check_equal(before, net, x, {})


def test_subclasses_with_a_forward_of_their_own_are_refused():
    class Twice(nn.GRU):
        def forward(self, x):  # type: ignore[override]
            return super().forward(2 * x)

    message = (
        "quantize: the rule nn.GRU is for 0 (Twice), and Twice computes in its own way, which QuantGRU can't run. "
        "Write a quantized layer of your own, and name it in a rule: {Twice: QuantTwice}."
    )
    with pytest.raises(GraphError, match=f"^{re.escape(message)}$"):
        quantize(nn.Sequential(Twice(4, 2)), {nn.GRU: W8})


def test_subclasses_without_one_become_quantized():
    class Named(nn.GRU):
        """Nothing of its own."""

    q = quantize(nn.Sequential(Named(4, 2)), W8)
    assert type(q[0]).__name__ == "QuantNamed"
    assert widths(q) == {"0.weight_ih_l0_quant": 8, "0.weight_hh_l0_quant": 8}

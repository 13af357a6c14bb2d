import torch
from torch import nn

import bitwright.nn as qnn
from bitwright.graph.porting.names import renamed


def names(model, *keys):
    return [*renamed(dict.fromkeys(keys, torch.empty(0)), model)]


def test_parts_of_layers():
    model = nn.Sequential(qnn.QuantMultiheadAttention(4, 2), qnn.QuantScaledDotProductAttention(), qnn.QuantAdd())
    assert names(
        model,
        "0.in_proj.weight",
        "0.in_proj.bias",
        "0.in_proj.weight_quant.tensor_quant.scaling_impl.value",
        "0.in_proj.input_quant.x",
        "0.out_proj.weight",
        "0.q_scaled_quant.act_quant.x",
        "0.softmax_input_quant.act_quant.x",
        "1.k_transposed_quant.act_quant.x",
        "1.v_quant.act_quant.x",
        "1.attn_output_weights_quant.act_quant.x",
        "1.sdpa_output_quant.act_quant.x",
        "2.output_quant.x",
        "2.input_quant.x",
    ) == [
        "0.in_proj_weight",
        "0.in_proj_bias",
        "0.in_proj_weight_quant.tensor_quant.scaling_impl.value",
        "0.input_quant.x",
        "0.out_proj.weight",
        "0.query_quant.x",
        "0.scores_quant.x",
        "1.key_quant.x",
        "1.value_quant.x",
        "1.attention_quant.x",
        "1.output_quant.x",
        "2.act_quant.x",
        "2.input_quant.x",
    ]


def test_others_keep_their_names():
    model = nn.Sequential(qnn.QuantLinear(2, 2))
    assert names(model, "0.output_quant.x", "0.weight", "in_proj.weight") == [
        "0.output_quant.x",
        "0.weight",
        "in_proj.weight",
    ]


def test_layer_at_the_root():
    assert names(qnn.QuantAdd(), "output_quant.x") == ["act_quant.x"]

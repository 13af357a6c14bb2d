import re

import pytest
import torch
from torch import nn

import bitwright.nn as qnn
from bitwright.nn.losses.products import products_of
from bitwright.qcore import LearnedBitWidth, PerAxis, QuantizerError
from bitwright.quantizers import Fp8e4m3WeightPerTensor, Int4WeightPerGroup, Int8Act, Int8WeightPerChannel

X = torch.linspace(-1, 1, 72).reshape(1, 2, 6, 6)


def learned(width, **settings):
    return {"weight_bit_width": LearnedBitWidth, "weight_initial_bit_width": width, **settings}


def network():
    return nn.Sequential(
        qnn.QuantIdentity(scale=0.1, bit_width=LearnedBitWidth, initial_bit_width=6),
        qnn.QuantConv2d(2, 3, 3, **learned(4)),  # 54 weights, 3 * 16 results of 18 products
        qnn.QuantReLU(scale=0.1, bit_width=5),
        nn.MaxPool2d(2),
        nn.Flatten(),
        qnn.QuantLinear(12, 2, weight_bit_width=3),
    )


@pytest.mark.parametrize(
    ("counts", "bits", "of_weights", "of_input"),
    [
        ("weight_bits", 54 * 4 + 24 * 3, 54, None),
        ("multiply_bits", 864 * 4 * 6 + 24 * 3 * 5, 864 * 6, 864 * 4),
        ("memory", 54 * 4 + 24 * 3 + 72 * 6 + 48 * 5, 54, 72),
    ],
)
def test_counts(counts, bits, of_weights, of_input):
    model = network()
    loss = qnn.bit_loss(model, counts, None if counts == "weight_bits" else X)
    assert (loss.item(), loss.shape) == (bits, ())
    loss.backward()
    assert model[1].weight_quant.bit_width.offset.grad.item() == of_weights
    grad = model[0].act_quant.bit_width.offset.grad
    assert (None if grad is None else grad.item()) == of_input


def test_measuring_leaves_no_trace():
    model = network().train()
    before = {key: each.clone() for key, each in model.state_dict().items()}
    qnn.bit_loss(model, "memory", X)
    assert all(torch.equal(each, before[key]) for key, each in model.state_dict().items())
    assert all(each.training for each in model.modules())
    assert not model[1].return_quant_tensor
    assert not model[1]._forward_hooks
    assert type(model(X)) is torch.Tensor
    assert not any("intercept" in vars(each) for each in qnn.quantizers_of(model).values())


def test_sizes_are_measured_once():
    model = network()
    loss = qnn.BitLoss(model, "multiply_bits", X)
    model.forward = None
    with torch.no_grad():
        model[1].weight_quant.bit_width.offset.fill_(0.4)  # 2 bits in use
    assert loss().item() == 864 * 2 * 6 + 24 * 3 * 5
    model[5].weight_quant = Fp8e4m3WeightPerTensor
    assert loss().item() == 864 * 2 * 6 + 24 * 8 * 5


def test_several_widths_count_by_their_share():
    layer = qnn.QuantLinear(
        10, 2, weight_quant=Int8WeightPerChannel, **learned(4, weight_bit_width_granularity="scale")
    )
    groups = Int4WeightPerGroup(bit_width=LearnedBitWidth, bit_width_granularity="scale", group_size=4)
    grouped = qnn.QuantLinear(10, 1, weight_quant=groups)
    with torch.no_grad():
        layer.weight_quant.bit_width.offset.copy_(torch.tensor([0.0, 6.0]))
        grouped.weight_quant.bit_width.offset.copy_(torch.tensor([1.0, 2.0, 6.0]))
    assert qnn.bit_loss(layer).item() == 10 * 2 + 10 * 8
    assert qnn.bit_loss(grouped).item() == 4 * 3 + 4 * 4 + 2 * 8
    assert qnn.bit_loss(layer, "multiply_bits", torch.ones(3, 10)).item() == 3 * 20 * 5 * 32
    qnn.bit_loss(grouped).backward()
    assert grouped.weight_quant.bit_width.offset.grad.tolist() == [4, 4, 2]


def test_what_is_shared():
    """A shared quantizer counts for the weight of each layer, a shared weight is stored once, and multiplied twice."""
    first = qnn.QuantLinear(4, 4, **learned(8))
    assert qnn.bit_loss(nn.Sequential(first, qnn.QuantLinear(4, 2, weight_quant=first.weight_quant))).item() == 192
    twice = nn.Sequential(first, first)
    assert qnn.bit_loss(twice).item() == 128
    assert qnn.bit_loss(twice, "multiply_bits", torch.ones(1, 4)).item() == 2 * 16 * 8 * 32
    tied = qnn.QuantLinear(4, 4, weight_bit_width=5)
    tied.weight = first.weight
    assert qnn.bit_loss(nn.Sequential(first, tied)).item() == 128


def test_inputs_of_layers():
    own = qnn.QuantLinear(4, 2, **learned(8, input_quant=Int8Act, input_scale=0.1, input_bit_width=3))
    assert qnn.bit_loss(own, "multiply_bits", torch.ones(1, 4)).item() == 8 * 8 * 3
    half = qnn.QuantLinear(4, 2, dtype=torch.bfloat16, **learned(8))
    assert qnn.bit_loss(half, "multiply_bits", torch.ones(1, 4, dtype=torch.bfloat16)).item() == 8 * 8 * 16
    lstm = qnn.QuantLSTM(3, 4, **learned(8), hidden_quant=Int8Act, hidden_scale=0.1, hidden_bit_width=6)
    assert qnn.bit_loss(lstm, "multiply_bits", torch.zeros(5, 2, 3)).item() == 10 * (48 * 8 * 32 + 64 * 8 * 6)


@pytest.mark.parametrize(
    ("layer", "shape", "products"),
    [
        (nn.Linear(4, 3), (2, 5, 4), 2 * 5 * 12),
        (nn.Conv1d(4, 6, 3, groups=2), (2, 4, 8), 2 * 6 * 6 * 6),
        (nn.ConvTranspose2d(2, 4, 3, stride=2), (1, 2, 5, 5), 50 * 36),
        (nn.LayerNorm(4), (3, 4), 12),
    ],
)
def test_products(layer, shape, products):
    x = torch.zeros(shape)
    assert products_of(layer, layer.weight, x, layer(x)) == products


def test_products_of_tables_and_packed_sequences():
    table = nn.Embedding(5, 2)
    tokens = torch.tensor([1, 2])
    assert products_of(table, table.weight, tokens, table(tokens)) == 0
    lstm = nn.LSTM(3, 4)
    packed = nn.utils.rnn.pack_sequence([torch.zeros(3, 3), torch.zeros(1, 3)])
    assert products_of(lstm, lstm.weight_ih_l0, packed, lstm(packed)[0]) == 4 * 48


def test_training_lowers_the_bits():
    torch.manual_seed(0)
    layer = qnn.QuantLinear(
        8, 2, weight_quant=Int8WeightPerChannel, **learned(8, weight_bit_width_granularity=PerAxis(0))
    )
    x = torch.randn(64, 8)
    y = x @ torch.tensor([[1.0], [0.01]]).T.repeat(8, 1)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
    for _ in range(60):
        optimizer.zero_grad()
        ((layer(x) - y).square().mean() + 0.005 * qnn.bit_loss(layer)).backward()
        optimizer.step()
    assert qnn.bit_loss(layer).item() <= 16 * 6


def test_counts_without_gradients_what_is_not_learned():
    with torch.no_grad():
        assert qnn.bit_loss(qnn.QuantLinear(4, 2)).item() == 64
        assert qnn.bit_loss(qnn.QuantLinear(4, 2, weight_quant=None)).item() == 256


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((3,), "bit_loss: 3 is not a model. Pass a torch.nn.Module, such as qnn.QuantLinear(8, 4)."),
        (
            (nn.Linear(2, 2),),
            "bit_loss: this Linear has no quantized weight that could be counted. Give it layers such as "
            "qnn.QuantLinear(8, 4, weight_bit_width=LearnedBitWidth).",
        ),
        (
            (qnn.QuantLinear(4, 2), "multiply_bit"),
            "bit_loss: counts='multiply_bit' is not one of 'weight_bits', 'multiply_bits', 'memory'. Did you mean "
            "'multiply_bits'?",
        ),
        (
            (qnn.QuantLinear(4, 2), "memory"),
            "bit_loss: counts='memory' depends on the size of the input. Give an example, such as "
            "bit_loss(model, 'memory', torch.randn(1, 3, 32, 32)); a tuple holds several arguments.",
        ),
        (
            (qnn.QuantLinear(4, 2), "weight_bits", X),
            "bit_loss: counts='weight_bits' needs no examples. Leave them out.",
        ),
        (
            (qnn.QuantLinear(4, 2),),
            "bit_loss: no bit width that counts for 'weight_bits' is learned, so training can't lower the 64 bits "
            "there are. Write weight_bit_width=LearnedBitWidth in a layer, or bit_width= in an activation; under "
            "torch.no_grad() bit_loss only counts.",
        ),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(QuantizerError, match=f"^{re.escape(message)}$"):
        qnn.bit_loss(*arguments)

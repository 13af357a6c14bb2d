"""Rules for functions: where they are called, what becomes of them."""

import copy
import operator
import pickle
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bitwright.nn as qnn
from bitwright.graph.conversion.conversion import quantize
from bitwright.graph.conversion.decisions import decisions_of
from bitwright.graph.errors import GraphError, GraphWarning
from bitwright.graph.rules.ready import W4, W8A8
from bitwright.quantizers import Int4Act, Int8Act, Uint8Act


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.one, self.other = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x):
        y = torch.relu(self.one(x))
        y = y + x
        y += self.other(y)
        return y


class Net(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.blocks = nn.Sequential(Block(width), Block(width))
        self.head = nn.Linear(2 * width, 3)

    def forward(self, x):
        x = self.blocks(x)
        x = torch.cat([x, x.softmax(-1)], 1)
        return self.head(x)


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, x, double=False):
        x = x + 1
        if double:
            x = x + x
        return self.head(x)


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net().eval()


X = torch.linspace(-1, 1, 12).reshape(3, 4)


def functions(q):
    return {path: each for path, each in q.named_modules() if isinstance(each, qnn.QuantFunction)}


@pytest.mark.parametrize("function", [torch.add, operator.add, operator.iadd, torch.Tensor.add_, torch.Tensor.__add__])
def test_one_function_by_many_names(net, function):
    q = quantize(net, {function: {"input_quant": Int8Act}}, examples=X)
    assert list(functions(q)) == ["blocks.0.add", "blocks.0.add_2", "blocks.1.add", "blocks.1.add_2"]
    with qnn.unquantized(q):
        assert torch.equal(q(X), net(X))
    assert "self.add(y, x)" in type(q.blocks[0]).forward.source
    assert not functions(net)


def test_operands_and_results(net):
    rules = {torch.softmax: {"act_quant": Uint8Act, "bit_width": 4}, torch.cat: {"input_quant": Int8Act, "share": True}}
    q = quantize(net, rules, examples=X)
    assert q.softmax.act_quant.quantizer == Uint8Act(bit_width=4)
    assert q.cat.input_quant.quantizer == Int8Act
    assert list(functions(q)) == ["softmax", "cat"]


def test_signs_of_operands_and_results(net):
    rules = {
        F.softmax: {"act_quant": Int8Act},
        torch.cat: {"input_quant": Int8Act},
        torch.add: {"input_quant": Int8Act},
    }
    q = quantize(net, rules, examples=X)
    assert q.softmax.act_quant.quantizer == Int8Act(signed=False)
    assert [each.quantizer for each in (q.cat.input_1_quant, q.cat.input_2_quant)] == [Int8Act, Int8Act(signed=False)]
    assert q.blocks[0].add.input_1_quant.quantizer == Int8Act(signed=False)
    assert q.blocks[0].add.input_2_quant.quantizer == Int8Act


def test_places_go_by_paths(net):
    rules = [
        (torch.add, {"input_quant": Int8Act}),
        ("blocks.0.*", {"input_bit_width": 4, "weight_bit_width": 2}),
        ("blocks.1.add", None),
        ("softmax", {"act_quant": Uint8Act}),
    ]
    q = quantize(net, rules, examples=X)
    assert list(functions(q)) == ["blocks.0.add", "blocks.0.add_2", "blocks.1.add_2", "softmax"]
    assert q.blocks[0].add.input_2_quant.bit_width == 4
    assert q.blocks[1].add_2.input_2_quant.bit_width == 8
    assert q.blocks[0].one.weight_quant.bit_width == 2
    decided = {each.path: each for each in decisions_of(q)}
    assert decided["blocks.1.add"].float_reason == 'by the rule "blocks.1.add"'
    assert decided["blocks.0.add_2"].slots["input_2"].why == ("torch.add", '"blocks.0.*"')
    assert decided["blocks.0.add_2"].slots["input_2"].quantizer == Int8Act(bit_width=4)
    assert decided["softmax"].layer == "QuantFunction"
    assert "cat" not in decided


def test_a_wildcard_quantizes_no_function(net):
    q = quantize(net, {"*": {**W8A8, "input_quant": Int8Act}}, examples=X)
    assert functions(q) == {}


def test_a_quantizer_starts_its_slot_anew(net):
    rules = [(torch.add, {"input_quant": Int8Act, "input_bit_width": 4}), ("blocks.0.add", {"input_quant": Int4Act})]
    q = quantize(net, rules, examples=X)
    assert q.blocks[0].add.input_2_quant.quantizer == Int4Act
    assert q.blocks[1].add.input_2_quant.quantizer == Int8Act(bit_width=4)


def test_copies_and_pickles(net):
    q = quantize(net, {**W8A8, torch.add: {"input_quant": Int8Act}}, examples=X).train()
    q(X)
    q.eval()
    for each in (copy.deepcopy(q), pickle.loads(pickle.dumps(q))):
        assert torch.equal(each(X), q(X))
    q.load_state_dict(net.state_dict())


def test_compiles_and_trains(net):
    q = quantize(net, {**W8A8, torch.add: {"input_quant": Int8Act}}, examples=X).train()
    q(X).sum().backward()
    assert q.blocks[0].one.weight.grad is not None
    q.eval()
    assert torch.equal(torch.compile(q, fullgraph=True, backend="eager")(X), q(X))


def test_what_no_example_reached():
    message = (
        "quantize: Branching.forward: 1 addition was not reached by the examples (test_sites.py:{line}) and stays "
        "float. Pass an example for each branch."
    )
    with pytest.warns(GraphWarning) as caught:
        quantize(Branching(), {torch.add: {"input_quant": Int8Act}}, examples=X)
    line = Branching.forward.__code__.co_firstlineno + 3
    assert [str(each.message) for each in caught] == [message.format(line=line)]
    assert caught[0].filename == __file__


def test_examples_for_each_branch():
    model = Branching()
    q = quantize(model, {torch.add: {"input_quant": Int8Act}}, examples=[X, (X, True)])
    assert list(functions(q)) == ["add", "add_2"]
    with qnn.unquantized(q):
        assert torch.equal(q(X, True), model(X, True))


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (
            {torch.mul: {"input_quant": Int8Act}},
            "quantize: the rule torch.mul matched nothing: the examples reach no call of it. The functions that they "
            "reach are add (4), relu (2), softmax (1), cat (1).",
        ),
        (
            {torch.add: W4},
            "quantize: weight_quant=Int4WeightPerChannel of the rule torch.add is for no quantizer of a function. "
            "Write input_quant for its operands, act_quant for its result.",
        ),
        (
            {torch.add: {"input_bit_width": 4}},
            "quantize: input_bit_width=4 of the rule torch.add changes no quantizer: input_quant is None in "
            "blocks.0.add. Write input_quant=Int8Act too.",
        ),
        (
            {torch.add: qnn.QuantReLU},
            "quantize: the rule torch.add says QuantReLU, and functions become qnn.QuantFunction. Write its keywords, "
            "such as dict(input_quant=Int8Act).",
        ),
        (
            {torch.add: {"input_quant": Int8Act, "input_bits": 4}},
            "quantize: blocks.0.add, by the rule torch.add: QuantFunction(operator.add): nothing in Int8Act uses "
            "input_bits=4. It takes: after, axis, bit_width, calibration_steps, channels, clip_first, granularity, "
            "int_range, max_value, min_scale, momentum, narrow_range, number_format, pass_clipped, percentile, "
            "restriction, rounding, scale, scale_gradient, scaling, shape, signed, statistic, transform, zero_point.",
        ),
        (
            {"blocks.0.ad": None},
            'quantize: the rule "blocks.0.ad" matched nothing. Near it are blocks.0.add, blocks.0.add_2, blocks.1.add.',
        ),
    ],
)
def test_rules_that_do_nothing(net, rules, message):
    with pytest.raises(GraphError) as raised:
        quantize(net, rules, examples=X)
    assert str(raised.value) == message


def test_what_cannot_be_rewritten():
    class Sum(nn.Module):
        def forward(self, x):
            return sum([x, x * 2])

    with pytest.raises(GraphError, match=r"^add is computed by sum\(\.\.\.\) at test_sites\.py:\d+ in .*Sum\.forward"):
        quantize(Sum(), {torch.add: {"input_quant": Int8Act}}, examples=X)


def test_inplace_that_fails_leaves_the_code(net):
    before = [type(each) for each in net.modules()]
    with pytest.raises(GraphError, match=re.escape("nothing in Int8Act uses")):
        quantize(
            net,
            {torch.add: {"input_quant": Int8Act}, nn.Linear: {"input_quant": Int8Act, "input_bits": 3}},
            examples=X,
            inplace=True,
        )
    assert [type(each) for each in net.modules()] == before
    assert list(net.blocks[0]._modules) == ["one", "other"]


class Attention(nn.Module):
    def forward(self, x, mask=None):
        return F.scaled_dot_product_attention(x, x, x, mask)


MASK = torch.tensor([[0.0, -1e30], [0.0, 0.0]])


PAIR = torch.tensor([[0.3, 1.1], [0.6, -0.2]])


@pytest.mark.parametrize("examples", [PAIR, (PAIR, MASK), [PAIR, (PAIR, MASK)]], ids=["plain", "mask", "both"])
def test_query_key_and_value_go_by_their_names_and_a_mask_is_none_of_them(examples):
    rules = {
        F.scaled_dot_product_attention: {"input_quant": Int8Act, "query_quant": None, "input_scale": 0.25},
        "attention": {"key_bit_width": 4, "value_scale": 0.5},
    }
    attention = quantize(Attention(), rules, examples=examples).attention
    assert {name: quant.bit_width for name, quant in qnn.quantizers_of(attention).items()} == {
        "input_2_quant": 4,
        "input_3_quant": 8,
    }
    key, value = torch.tensor([[0.25, 1.0], [0.5, -0.25]]), torch.tensor([[0.5, 1.0], [0.5, 0.0]])
    for mask in (None, MASK):
        expected = F.scaled_dot_product_attention(PAIR, key, value, mask)
        assert torch.equal(attention(PAIR, PAIR, PAIR, mask), expected)


class Rectified(nn.Module):
    def forward(self, x, mask=None):
        return F.scaled_dot_product_attention(x, x, x.relu(), mask)


def test_signs_of_operands_beside_a_mask():
    found = quantize(
        Rectified(), {F.scaled_dot_product_attention: {"input_quant": Int8Act}}, examples=[PAIR, (PAIR, MASK)]
    )
    assert [quant.signed for quant in qnn.quantizers_of(found.attention).values()] == [True, True, False]


def test_attention_names_its_operands():
    expected = (
        "quantize: scores_quant=Int8Act of the rule F.scaled_dot_product_attention is for no quantizer of a function. "
        "Write input_quant, query_quant, key_quant, value_quant for its operands, act_quant for its result."
    )
    with pytest.raises(GraphError, match=f"^{re.escape(expected)}$"):
        quantize(Rectified(), {F.scaled_dot_product_attention: {"scores_quant": Int8Act}}, examples=PAIR)

"""Quantizers at the outputs of what makes a tensor, and on one grid where tensors meet."""

import copy
import pickle
import re

import pytest
import torch
from torch import nn

import bitwright.nn as qnn
from bitwright.graph.conversion.conversion import quantize
from bitwright.graph.conversion.decisions import decisions_of
from bitwright.graph.errors import GraphError, GraphWarning
from bitwright.graph.rules.ready import W8A8, integer
from bitwright.graph.rules.rules import last
from bitwright.qcore import QuantTensor, grid_of
from bitwright.quantizers import Int4Act, Int8Act, Int16Bias, Int32Bias, Uint4Act


class Block(nn.Module):
    """One ReLU serves twice, as in ResNets."""

    def __init__(self, width, norm=False):
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width) if norm else nn.Identity()
        self.relu = nn.ReLU()

    def forward(self, x):
        out = self.relu(self.conv1(x))
        out = self.norm(self.conv2(out))
        out += x
        return self.relu(out)


class Net(nn.Module):
    def __init__(self, norm=False, width=4):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3)
        self.relu = nn.ReLU()
        self.pool = nn.MaxPool2d(2)
        self.blocks = nn.Sequential(Block(width, norm), Block(width, norm))
        self.head = nn.Linear(width, 5)

    def forward(self, x):
        x = self.blocks(self.pool(self.relu(self.stem(x))))
        return self.head(x.mean((2, 3)))


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net().eval()


X = torch.randn(2, 3, 10, 10, generator=torch.Generator().manual_seed(0))


def slots(q):
    """Path of a layer -> its slots that have a quantizer, without weights."""
    found = {}
    for path, layer in q.named_modules():
        if isinstance(layer, qnn.QuantLayer):
            names = [slot.name for slot in layer.slots if getattr(layer, f"{slot.name}_quant") is not None]
            found[path] = [name for name in names if name != "weight"]
    return found


def grids_into(q, x=X):
    """What every layer with weights gets: None, or the bits of the grid that arrives."""
    found = {}

    def look(layer, args):
        for path, each in q.named_modules():
            if each is layer:
                grid = grid_of(args[0])
                found[path] = None if grid is None else int(grid.bit_width)

    handles = [each.register_forward_pre_hook(look) for each in q.modules() if isinstance(each, qnn.WeightLayer)]
    q(x)
    for handle in handles:
        handle.remove()
    return found


def calibrated(q, x=X):
    with qnn.calibrating(q):
        q(x)
    return q.eval()


# Outputs


def test_outputs(net):
    q = quantize(net, W8A8, examples=X, placement="outputs")
    assert slots(q) == {
        "stem": ["bias", "input"],  # the model's input
        "relu": ["act"],
        "blocks.0.conv1": ["bias"],
        "blocks.0.conv2": ["bias", "output"],  # to the sum
        "blocks.0.relu": ["act"],
        "blocks.0.relu_2": ["act"],
        "blocks.1.conv1": ["bias"],
        "blocks.1.conv2": ["bias", "output"],
        "blocks.1.relu": ["act"],
        "blocks.1.relu_2": ["act"],
        "head": ["bias", "input"],  # a mean lies on no grid
    }
    assert q.stem.bias_quant.quantizer == Int32Bias
    assert q.relu.act_quant.quantizer == Int8Act(signed=False)
    assert q.blocks[0].conv2.output_quant.quantizer == Int8Act
    assert "return self.relu_2(out)" in type(q.blocks[0]).forward.source


def test_outputs_compute_like_the_float_model(net):
    q = quantize(net, W8A8, examples=X, placement="outputs")
    with qnn.unquantized(q):
        assert torch.equal(q(X), net(X))
    calibrated(q)
    error = (q(X) - net(X)).square().mean() / net(X).square().mean()
    assert error < 1e-3  # 30 dB
    assert grids_into(q) == {
        "stem": None,
        "head": None,
        **dict.fromkeys(["blocks.0.conv1", "blocks.0.conv2", "blocks.1.conv1", "blocks.1.conv2"], 8),
    }


def test_outputs_are_decided_with_a_reason(net):
    q = quantize(net, {nn.Conv2d: W8A8}, examples=X, placement="outputs")
    decided = {each.path: each for each in decisions_of(q)}
    assert decided["blocks.0.relu"].slots["act"].why == ("the input of blocks.0.conv2",)
    assert decided["blocks.0.relu_2"].slots["act"].why == ("the input of blocks.1.conv1",)
    assert decided["blocks.0.conv2"].slots["output"].why == ("placement='outputs'",)
    assert decided["stem"].slots["bias"].why == ("placement='outputs'",)
    assert decided["stem"].slots["input"].why == ("nn.Conv2d",)
    assert decided["head"].float_reason == "no rule is for it"


def test_rules_say_what_activations_are(net):
    rules = {nn.Conv2d: W8A8, nn.ReLU: {"act_quant": Uint4Act}, "blocks.1.relu_2": None}
    for placement in ("inputs", "outputs"):
        q = quantize(net, rules, examples=X, placement=placement)
        assert q.blocks[0].relu.act_quant.quantizer == Uint4Act
        assert q.blocks[0].relu_2.act_quant.quantizer == Uint4Act
        assert type(q.blocks[1].relu_2) is nn.ReLU


def test_rules_say_what_biases_are(net):
    q = quantize(
        net,
        {nn.Conv2d: W8A8, "stem": {"bias_quant": Int16Bias}, "blocks.0.conv1": {"bias_quant": None}},
        examples=X,
        placement="outputs",
    )
    assert q.stem.bias_quant.quantizer == Int16Bias
    assert q.blocks[0].conv1.bias_quant is None
    assert q.blocks[0].conv2.bias_quant.quantizer == Int32Bias


def test_a_layer_that_stays_float_gets_no_quantizer(net):
    q = quantize(net, {**W8A8, "blocks.0.relu": None, "blocks.1.conv2": None}, examples=X, placement="outputs")
    assert type(q.blocks[0].relu) is nn.ReLU
    assert slots(q)["blocks.0.conv2"] == ["bias", "input", "output"]
    assert type(q.blocks[1].conv2) is nn.Conv2d


def test_narrower_inputs_keep_their_quantizer(net):
    """The first consumer says how many bits a tensor has; one that takes fewer quantizes once more."""

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.act, self.a, self.b = nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            x = self.act(x)
            return self.a(x) - self.b(x)

    q = quantize(Two(), {**W8A8, "b": {"input_quant": Int4Act}}, examples=torch.randn(2, 4), placement="outputs")
    assert slots(q) == {"act": ["act"], "a": ["bias", "output"], "b": ["bias", "input", "output"]}
    assert q.b.input_quant.quantizer == Int4Act(signed=False)


def test_inputs_of_one_tensor_share_one_quantizer_where_no_grid_arrives():
    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.LayerNorm(4)
            self.q, self.k, self.v = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            x = self.norm(x)
            return self.q(x) @ self.k(x).transpose(-1, -2) @ self.v(x)

    for placement in ("inputs", "outputs"):
        q = quantize(Heads(), W8A8, examples=torch.randn(2, 3, 4), placement=placement)
        assert q.q.input_quant is q.k.input_quant is q.v.input_quant
        decided = {each.path: each for each in decisions_of(q)}
        assert decided["v"].slots["input"].why[-1] == "shared with q"


def test_integer_rules_export_what_they_say(net):
    q = calibrated(quantize(net, integer(4, 8), examples=X, placement="outputs"))
    assert q.blocks[0].conv1.int_bias().dtype == torch.int32
    assert q.blocks[0].conv1.int_weight().abs().max() <= 7


def test_copies_pickles_and_trains(net):
    q = quantize(net, W8A8, examples=X, placement="outputs", joins="shared").train()
    q(X).square().sum().backward()
    assert q.stem.weight.grad is not None
    calibrated(q)
    for each in (copy.deepcopy(q), pickle.loads(pickle.dumps(q))):
        assert torch.equal(each(X), q(X))
        assert each.blocks[0].conv2.output_quant is each.relu.act_quant
    q.load_state_dict(net.state_dict())


def test_integer_biases_where_no_grid_arrives():
    """Two grids meet in a concatenation, so that what takes it quantizes it anew."""

    class Merging(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.ReLU(), nn.Tanh(), nn.Linear(8, 2)

        def forward(self, x):
            return self.c(torch.cat([self.a(x), self.b(x)], -1))

    q = quantize(Merging(), integer(8, 8), examples=torch.randn(2, 4), placement="outputs")
    assert slots(q) == {"a": ["act"], "b": ["act"], "c": ["bias", "input"]}
    shared = quantize(Merging(), integer(8, 8), examples=torch.randn(2, 4), placement="outputs", joins="shared")
    assert slots(shared) == {"a": ["act"], "b": ["act"], "c": ["bias"]}
    calibrated(shared, torch.randn(2, 4))


# Joins


def test_sums_on_one_grid(net):
    q = quantize(net, W8A8, examples=X, joins="shared")
    assert q.blocks[0].conv2.output_quant is q.relu.act_quant
    assert q.blocks[1].conv2.output_quant is q.blocks[0].relu_2.act_quant
    assert q.blocks[0].conv2.output_quant is not q.blocks[1].conv2.output_quant
    assert slots(q)["blocks.0.conv1"] == []  # its input lies on the grid of the sum
    calibrated(q)
    sums = []
    q.blocks[0].relu_2.register_forward_pre_hook(lambda layer, args: sums.append(args[0]))
    q(X)
    assert isinstance(sums[0], QuantTensor)
    assert sums[0].bit_width == 9
    with qnn.unquantized(q):
        assert torch.equal(q(X), net(X))
    assert decisions_of(q)[1].slots["act"].why == ("on one grid in blocks.0.add",)


def test_unsigned_only_if_all_operands_are():
    class Positive(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.ReLU(), nn.Sigmoid()
            self.c = nn.Linear(8, 2)

        def forward(self, x):
            return self.c(torch.cat([self.a(x), self.b(x)], -1))

    q = quantize(Positive(), W8A8, examples=torch.randn(2, 4), joins="shared")
    assert q.a.act_quant is q.b.act_quant
    assert q.a.act_quant.quantizer == Int8Act(signed=False)
    assert slots(q)["c"] == []


def test_a_rule_for_the_function_shares_there(net):
    q = quantize(net, {nn.Conv2d: W8A8, torch.add: {"input_quant": Int8Act}}, examples=X, joins="shared")
    assert q.blocks[0].add.share
    assert q.blocks[0].add.input_quant.quantizer == Int8Act
    assert q.blocks[0].conv2.output_quant is None
    free = quantize(net, {torch.add: {"input_quant": Int8Act}}, examples=X)
    assert not free.blocks[0].add.share


def test_a_rule_for_one_producer_says_what_all_have(net):
    q = quantize(
        net, {**W8A8, "blocks.0.conv2": {"output_quant": Int8Act, "output_bit_width": 6}}, examples=X, joins="shared"
    )
    assert q.relu.act_quant is q.blocks[0].conv2.output_quant
    assert q.relu.act_quant.bit_width == 6


def test_what_can_not_be_shared_is_told():
    model = Net(norm=True).eval()
    message = (
        "quantize: joins='shared' leaves blocks.0.add, blocks.1.add as they are: an operand of blocks.0.add comes from "
        "blocks.0.norm (BatchNorm2d), which has no quantizer of its result. Call fold_batch_norms before."
    )
    with pytest.warns(GraphWarning, match=f"^{re.escape(message)}$"):
        quantize(model, W8A8, examples=X, joins="shared")


def test_functions_before_sums_are_told():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(4, 4)

        def forward(self, x):
            return self.a(x) + torch.exp(x)

    message = (
        "quantize: joins='shared' leaves add as it is: an operand of add comes from exp (exp), which has no "
        'quantizer of its result. Quantize the operands there by a rule: "add": dict(input_quant=Int8Act).'
    )
    with pytest.warns(GraphWarning, match=f"^{re.escape(message)}$"):
        quantize(Sum(), W8A8, examples=torch.randn(2, 4), joins="shared")


@pytest.mark.parametrize("option", [{"placement": "outputs"}, {"joins": "shared"}])
def test_without_examples(net, option):
    ((name, value),) = option.items()
    message = (
        f"quantize: {name}={value!r} asks which layer makes which tensor, and that is seen by running the model. Pass "
        "examples=(x,)."
    )
    with pytest.raises(GraphError, match=f"^{re.escape(message)}$"):
        quantize(net, W8A8, **option)


# Inputs


def test_unsigned_inputs(net):
    q = quantize(net, {**W8A8, last(): {"input_signed": True}}, examples=X)
    signs = {path: each.input_quant.quantizer for path, each in q.named_modules() if isinstance(each, qnn.WeightLayer)}
    unsigned = Int8Act(signed=False)
    assert signs == {
        "stem": Int8Act,
        "blocks.0.conv1": unsigned,
        "blocks.0.conv2": unsigned,
        "blocks.1.conv1": unsigned,
        "blocks.1.conv2": unsigned,
        "head": Int8Act(signed=True),
    }
    decided = {each.path: each for each in decisions_of(q)}
    assert decided["blocks.0.conv1"].slots["input"].why == (
        "weight_quant=Int8WeightPerChannel, input_quant=Int8Act",
        "what was recorded is never negative",
    )
    assert decided["blocks.0.conv1"].slots["input"].rules == (0,)


def test_ends_count_in_order_of_calls():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.head, self.stem = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.head(self.stem(x))

    q = quantize(Backwards(), {last(): {"weight_bit_width": 4}}, examples=torch.ones(1, 4))
    assert slots(q) == {"head": []}
    assert slots(quantize(Backwards(), {last(): {"weight_bit_width": 4}})) == {"stem": []}


def test_a_rule_for_activations_gives_each_tensor_its_quantizer(net):
    q = quantize(net, {nn.ReLU: {}}, examples=X)
    assert q.blocks[0].relu.act_quant is not q.blocks[0].relu_2.act_quant
    assert "relu_2" not in quantize(net, {nn.ReLU: {}}).blocks[0]._modules

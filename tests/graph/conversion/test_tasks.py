"""What users want of quantize, as they type it, on models in plain torch."""

import copy
import pickle
import re

import pytest
import torch
from torch import nn

import bitwright.nn as qnn
from bitwright.graph.conversion.conversion import quantize
from bitwright.graph.conversion.decisions import decisions_of
from bitwright.graph.errors import GraphError
from bitwright.graph.rules.ready import W8A8, integer
from bitwright.graph.rules.rules import first, last
from bitwright.quantizers import Int4WeightPerGroup, Int8Act, Int8WeightPerChannel
from tests.graph.models.resnet import ResNet
from tests.graph.models.zoo import ZOO


class MyWeight(Int8WeightPerChannel):
    """A scale from the spread of the weights."""

    statistic = "mean_sigma"
    sigma = 3.0


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return ResNet((1, 1, 1, 1), width=4, classes=5).eval()


X = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def bits(q):
    return {
        path: (each.weight_quant.bit_width, None if each.input_quant is None else each.input_quant.bit_width)
        for path, each in q.named_modules()
        if isinstance(each, qnn.WeightLayer)
    }


def test_1_four_bits_with_eight_at_the_ends(model):
    rules = {
        nn.Conv2d: W8A8,
        nn.Linear: W8A8,
        "*": {"weight_bit_width": 4, "input_bit_width": 4},
        first(): {"weight_bit_width": 8, "input_bit_width": 8},
        last(): {"weight_bit_width": 8, "input_bit_width": 8},
    }
    found = bits(quantize(model, rules))
    assert {path for path, widths in found.items() if widths == (8, 8)} == {"conv1", "fc"}
    assert set(found.values()) == {(8, 8), (4, 4)}


def test_2_weights_of_a_language_model():
    tiny = ZOO["minilm"].build()
    q = quantize(tiny, {nn.Linear: {"weight_bit_width": 4}, "encoder.layer.1.*": None})
    assert set(bits(q).values()) == {(4, None)}
    assert not [path for path in bits(q) if path.startswith("encoder.layer.1")]


def test_3_training_with_quantized_sums(model):
    q = quantize(model, {nn.Conv2d: W8A8, torch.add: {"input_quant": Int8Act}}, examples=(X,)).train()
    optimizer = torch.optim.SGD(q.parameters(), lr=0.01)
    before = q.layer1[0].conv1.weight.detach().clone()
    q(torch.cat([X, -X])).square().sum().backward()
    optimizer.step()
    assert not torch.equal(q.layer1[0].conv1.weight, before)
    assert q.layer1[0].add.input_1_quant.calibrating


def test_4_after_training(model):
    q = quantize(model, integer(8, 8), examples=(X,))
    with qnn.calibrating(q):
        q(X)
    error = (q(X) - model(X)).square().mean() / model(X).square().mean()
    assert error < 1e-2  # 20 dB


def test_5_groups():
    linear = nn.Sequential(nn.Linear(256, 8))
    q = quantize(linear, {nn.Linear: {"weight_quant": Int4WeightPerGroup, "weight_group_size": 128}})
    assert q[0].quant_weight().scale.shape == (8, 2)


def test_6_bits_by_path(model):
    widths = {"layer1.0.conv1": 3, "layer4.0.conv2": 5}
    q = quantize(model, {nn.Conv2d: W8A8, **{path: {"weight_bit_width": width} for path, width in widths.items()}})
    found = bits(q)
    assert (found["layer1.0.conv1"], found["layer4.0.conv2"], found["conv1"]) == ((3, 8), (5, 8), (8, 8))


def test_7_what_was_decided(model):
    q = quantize(model, {nn.Conv2d: W8A8, "layer1.*": None})
    decided = {each.path: each for each in decisions_of(q)}
    assert decided["layer2.0.conv1"].slots["weight"].why == ("nn.Conv2d",)
    assert decided["layer1.0.conv1"].float_reason == 'by the rule "layer1.*"'


def test_8_what_stays_float(model):
    rules = {nn.Conv2d: W8A8, torch.add: {"input_quant": Int8Act}, "layer3.*": None, "layer1.0.add": None}
    q = quantize(model, rules, examples=(X,))
    adds = [path for path, each in q.named_modules() if isinstance(each, qnn.QuantFunction)]
    assert adds == ["layer2.0.add", "layer4.0.add"]
    assert not [path for path in bits(q) if path.startswith("layer3")]


def test_9_a_scheme_of_ones_own(model):
    q = quantize(model, {nn.Conv2d: W8A8, "layer3.0.conv1": {"weight_quant": MyWeight, "weight_sigma": 2.5}})
    assert q.layer3[0].conv1.weight_quant.quantizer == MyWeight(sigma=2.5)


def test_10_resuming(model):
    rules = {nn.Conv2d: W8A8}
    q = quantize(model, rules, examples=(X,))
    with qnn.calibrating(q):
        q(X)
    again = quantize(model, rules, examples=(X,))
    again.load_state_dict(q.state_dict())
    assert torch.equal(again(X), q(X))
    other = quantize(model, {**rules, "conv1": {"weight_bit_width": 4}}, examples=(X,))
    with pytest.raises(RuntimeError, match="the file holds int8 narrow"):
        other.load_state_dict(q.state_dict())


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({nn.Conv1d: W8A8}, "quantize: the rule nn.Conv1d matched nothing. This model's layers are "),
        ({"layer1.0.conv3": None}, 'quantize: the rule "layer1.0.conv3" matched nothing. Near it are '),
        ({"lm_head": None, nn.Linear: W8A8}, 'quantize: the rule "lm_head" matched nothing. '),
        ({torch.add: W8A8}, "quantize: torch.add is a function, and which functions a model calls is seen by running"),
        ({nn.Linear: {"weight_bitwidth": 4}}, "quantize: fc, by the rule nn.Linear: QuantLinear(in_features=32, "),
        ({"fc": {"weight_bit_width": "4"}}, 'quantize: fc, by the rule "fc": QuantLinear(in_features=32, '),
    ],
)
def test_mistyped(model, rules, message):
    with pytest.raises(GraphError, match=f"^{re.escape(message)}"):
        quantize(model, rules)


@pytest.mark.parametrize("entry", list(ZOO.values()), ids=list(ZOO))
@pytest.mark.filterwarnings("ignore::bitwright.graph.errors.GraphWarning")
@pytest.mark.parametrize("options", [{}, {"placement": "outputs", "joins": "shared"}], ids=["inputs", "outputs"])
def test_every_model(entry, options):
    float_model = entry.build()
    calls = entry.examples()
    before = {key: item.clone() for key, item in float_model.state_dict().items()}
    classes = [type(each) for each in float_model.modules()]
    q = quantize(float_model, W8A8, examples=calls, **options)
    assert any(isinstance(each, qnn.WeightLayer) for each in q.modules())
    assert [type(each) for each in float_model.modules()] == classes
    assert all(torch.equal(item, before[key]) for key, item in float_model.state_dict().items())
    q.load_state_dict(float_model.state_dict())
    with qnn.calibrating(q):
        for call in calls:
            q(*call)
    copies = [copy.deepcopy(q)]
    if entry.name != "weight_norm":  # torch does not pickle parametrized modules
        copies.append(pickle.loads(pickle.dumps(q)))
    for each in copies:
        assert _alike(each(*calls[0]), q(*calls[0]))


def _alike(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_alike(one[key], other[key]) for key in one)
    return len(one) == len(other) and all(map(_alike, one, other))

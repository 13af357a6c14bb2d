"""Activation functions become layers where their results are to lie on a grid."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import bitwright.nn as qnn
from bitwright.graph import W8A8, GraphWarning, calibrate, integer, quantize, record
from bitwright.graph.placement.activations import activations_as_layers
from bitwright.quantizers import Uint8Act

X = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))


class Every(nn.Module):
    """Each way to write it, and what stays."""

    def forward(self, x):
        x = F.relu(x) + x.sigmoid() + torch.tanh(x)
        x = F.leaky_relu(x, 0.2) + F.gelu(x, approximate="tanh") + F.relu(x, inplace=False)
        x = x.clone().relu_()
        return F.relu6(*[x])


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        x = F.relu(self.a(x))
        return F.relu(self.b(x) + x)


def test_calls_with_the_tensor_alone():
    model = Every()
    expected = model(X)
    graph = record(model, X)
    assert activations_as_layers(model, graph, graph.nodes, ()) == ["relu", "sigmoid", "tanh"]
    assert {name: type(layer) for name, layer in model.named_children()} == {
        "relu": nn.ReLU,
        "sigmoid": nn.Sigmoid,
        "tanh": nn.Tanh,
    }
    assert torch.equal(model(X), expected)


def test_those_that_are_meant():
    model = Every()
    graph = record(model, X)
    assert activations_as_layers(model, graph, [graph.node("tanh")], ()) == ["tanh"]
    assert activations_as_layers(model, graph, [graph.node("sigmoid")], ("sigmoid",)) == []


def test_sums_of_functions_lie_on_one_grid():
    torch.manual_seed(0)
    q = quantize(Residual(), W8A8, examples=X, joins="shared")
    assert q.relu.act_quant is q.b.output_quant
    assert not hasattr(q, "relu_2")  # nothing meets there
    calibrate(q, [X])
    with torch.no_grad():
        assert q.relu(q.a(X)).scale == q.b(q.relu(q.a(X))).scale


def test_every_result_lies_on_a_grid():
    torch.manual_seed(0)
    q = quantize(Residual(), integer(8, 8), examples=X, placement="outputs")
    assert [type(q.relu), type(q.relu_2)] == [qnn.QuantReLU, qnn.QuantReLU]
    assert (q.relu.act_quant.bit_width, q.relu.act_quant.signed, q.relu_2.act_quant.signed) == (8, False, False)
    assert q.b.input_quant is None
    assert q.b.bias_quant.bit_width == 32


def test_functions_that_rules_are_for_stay_functions():
    rules = {**W8A8, F.relu: {"act_quant": Uint8Act}}
    q = quantize(Residual(), list(rules.items()), examples=X, placement="outputs")
    assert type(q.relu) is qnn.QuantFunction
    assert q.relu.act_quant.bit_width == 8


def test_without_source_they_stay():
    namespace = {"nn": nn, "F": F}
    exec(
        "class Unwritten(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.a = nn.Linear(4, 4)\n"
        "    def forward(self, x):\n"
        "        return self.a(x) + F.relu(x)\n",
        namespace,
    )
    model = namespace["Unwritten"]()
    with pytest.warns(GraphWarning, match=r"^quantize: joins='shared' leaves add as it is: "):
        q = quantize(model, W8A8, examples=X, joins="shared")
    assert [name for name, _ in q.named_children()] == ["a"]

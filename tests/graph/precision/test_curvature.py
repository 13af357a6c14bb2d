"""Scores from derivatives, where they are known."""

import pytest
import torch
from torch import nn

import bitwright.nn as qnn
from bitwright.graph import sensitivity
from bitwright.graph.precision.curvature import traces
from bitwright.graph.precision.study import Study
from bitwright.graph.precision.trials import Trial
from bitwright.quantizers import Int8WeightPerTensor


def study(model, x, loss=None, calls=1):
    paths = [path for path, each in model.named_modules() if isinstance(each, qnn.QuantLayer)]
    batches = [((each,), {}) for each in x.chunk(calls)]
    return Study(model, {"2": Trial(model, paths, "2", {"weight_bit_width": 2})}, batches, [None] * calls, loss=loss)


def linear(*shape):
    return nn.Sequential(qnn.QuantLinear(*shape, bias=False, weight_quant=Int8WeightPerTensor))


def test_a_diagonal_hessian_is_exact():
    """With inputs that are unit vectors, each weight is an output."""
    curvature = torch.tensor([[3.0], [-1.0], [0.5]])
    found = traces(study(linear(3, 1), torch.eye(3), lambda out, batch: (curvature * out.square()).sum() / 2))
    assert found == {("0", "weight"): (pytest.approx(2.5), 3)}


def test_a_known_hessian():
    """Half the squared outputs of a linear layer: x x' for each of them; two layers: one by one."""
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    (trace, _), *_ = traces(study(linear(4, 3), x, calls=2)).values()
    assert trace == pytest.approx(3 * x.square().sum().item(), rel=0.1)
    deep = nn.Sequential(linear(4, 5)[0], linear(5, 2)[0])
    found = traces(study(deep, x))
    hidden = x @ deep[0].weight.T
    first = x.square().sum() * deep[1].weight.square().sum()
    assert found["0", "weight"][0] == pytest.approx(first.item(), rel=0.2)
    assert found["1", "weight"][0] == pytest.approx(2 * hidden.square().sum().item(), rel=0.2)


def test_negative_traces_count_as_zero():
    table = sensitivity(linear(3, 1), torch.eye(3), [2], score="hessian", loss=lambda out, batch: -out.square().sum())
    assert table["0", 2].damage == 0.0


def test_a_linear_loss_has_no_curvature():
    table = sensitivity(linear(3, 1), torch.eye(3), [2], score="hessian", loss=lambda out, batch: out.sum())
    assert table["0", 2].damage == 0.0


def test_weights_that_need_no_gradients_and_a_layer_called_twice():
    layer = linear(2, 2)[0].requires_grad_(False)
    layer.weight.copy_(torch.tensor([[1.0, 0.4], [0.4, 1.0]]))
    x = torch.eye(2)
    once, twice = (sensitivity(nn.Sequential(*[layer] * n), x, [2], score="fisher")["0", 2].damage for n in (1, 2))
    assert once == pytest.approx(2 * 0.16)
    assert twice > once
    assert layer.weight.grad is None
    assert sensitivity(nn.Sequential(layer, layer), x, [2], score="hessian")["0", 2].damage > 0


def test_attention_has_second_derivatives():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.v = linear(4, 4)[0], linear(4, 4)[0]

        def forward(self, x):
            return nn.functional.scaled_dot_product_attention(self.q(x), x, self.v(x))

    x = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    assert min(each.damage for each in sensitivity(Attention(), x, [2], score="hessian")) > 0

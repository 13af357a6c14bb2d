"""Looking at what a model computes, without a trace."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

import bitwright.nn as qnn
from bitwright.graph.measuring.evaluation import evaluating, numbers_in, observed
from bitwright.quantizers import Int8Act


def test_evaluating():
    model = nn.Sequential(nn.Dropout(), qnn.QuantLinear(2, 2, input_quant=Int8Act, input_scale=0.1)).train()
    model[0].eval()
    model[1](torch.ones(1, 2))
    seen = model[1]._seen
    with evaluating(model, nn.ReLU()):
        assert not any(each.training for each in model.modules())
        assert not model(torch.ones(1, 2)).requires_grad
        assert model[1]._seen is not seen
    with pytest.raises(RuntimeError), evaluating(model):
        model(torch.ones(1, 3))
    assert [each.training for each in model] == [False, True]
    assert model[1]._seen is seen
    assert torch.is_grad_enabled()


def test_nothing_kept_is_used():
    layer = qnn.QuantLinear(2, 2, bias=False, weight_bit_width=8).eval()
    x = torch.ones(1, 2)
    with qnn.frozen(layer), torch.no_grad():
        before = layer(x)
        layer.weight.mul_(2)
        with evaluating(layer):
            assert torch.equal(layer(x), 2 * before)
        assert torch.equal(layer(x), before)


def test_observed():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    own = []
    model[1].register_forward_hook(lambda module, args, out: own.append(float(out)))
    seen = []

    def see(path, module, args, kwargs, out):
        seen.append((path, module is model[int(path)], kwargs))
        return torch.tensor(7.0) if path == "1" else None

    with observed({"0": model[0], "1": model[1]}, see):
        assert model(torch.ones(2)) == 7
    assert seen == [("0", True, {}), ("1", True, {})]
    assert own == [7.0]  # the user's hook comes later
    assert len(model[0]._forward_hooks) == 0
    assert len(model[1]._forward_hooks) == 1


def test_numbers_in():
    @dataclass
    class Result:
        boxes: torch.Tensor
        name: str = "x"

    one, two = torch.ones(1), torch.ones(2)
    assert [len(each) for each in numbers_in((one, [two], {"a": torch.tensor([1])}, None, Result(two), 3))] == [1, 2, 2]
    assert numbers_in("text") == []
    assert type(numbers_in(qnn.QuantIdentity(return_quant_tensor=True)(one))[0]) is torch.Tensor

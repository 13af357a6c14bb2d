"""A model as it was."""

import pytest
import torch
from torch import nn

from bitwright.graph.conversion.snapshot import restored_on_failure


class Other(nn.Linear):
    pass


def change_and_fail(model):
    model[0].__class__ = Other
    model[0].weight = nn.Parameter(torch.ones(3, 3))
    model[0].extra = 5
    model[0]._forward_hooks.clear()
    model[1].train(False)
    model.add_module("more", nn.ReLU())
    raise ValueError("no")


def test_everything_is_put_back():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    handle = model[0].register_forward_hook(lambda *_: None)
    weight, names = model[0].weight, [list(vars(each)) for each in model.modules()]
    with pytest.raises(ValueError, match=r"^no$"), restored_on_failure(model):
        change_and_fail(model)
    assert type(model[0]) is nn.Linear
    assert model[0].weight is weight
    assert [list(vars(each)) for each in model.modules()] == names
    assert model[1].training
    handle.remove()
    assert not model[0]._forward_hooks


def test_nothing_is_put_back_without_a_failure():
    model = nn.Sequential(nn.Linear(2, 2))
    with restored_on_failure(model):
        model.add_module("more", nn.ReLU())
    assert len(model) == 2

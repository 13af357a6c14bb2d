import torch
from torch import nn

from bitwright.qcore import path_of


class Told(nn.Module):
    """Says its path when it is called."""

    def forward(self, x):
        return path_of(self)


class Block(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x)


def test_path_in_the_outermost_model():
    model = nn.Sequential(nn.Identity(), Block(Block(Told())))
    assert model(0) == "1.inner.inner"
    assert model[1](0) == "inner.inner"


def test_class_name_without_a_model():
    assert Told()(0) == "Told"
    assert path_of(nn.ReLU()) == "ReLU"


def test_models_that_do_not_hold_it_are_passed_over():
    told = Block(Told())

    class Outside(nn.Module):
        def forward(self, x):
            return told(x)

    assert Outside()(0) == "inner"


def test_first_path_of_a_shared_module():
    told = Told()
    assert nn.Sequential(Block(told), told)(0) == "0.inner"


def test_objects_that_are_no_modules_are_passed_over():
    class Trainer:
        def run(self, model):
            return model(0)

    assert Trainer().run(Block(Told())) == "inner"


def test_class_name_in_a_compiled_function():
    inner = nn.ReLU()

    def named(x):
        return x + len(path_of(inner))

    assert torch.compile(named, fullgraph=True, backend="eager")(torch.zeros(1)).tolist() == [4]

"""What the workloads themselves do, on small inputs."""

import pytest
import torch
from torch import nn

from benchmarks.constructing import modules, without_initialisation
from benchmarks.layers import Layers, Scheme
from benchmarks.layers_bitwright import BitwrightLayers
from benchmarks.memory import peak_bytes
from benchmarks.models import Network
from benchmarks.networks import evaluated, graphs, step_of
from benchmarks.quantizing import forward_backward


def tiny(layers: Layers) -> nn.Module:
    model = nn.Sequential()
    model.add_module("entry", layers.identity())
    model.add_module("head", layers.linear(4, 3))
    return model


TINY = Network("tiny", tiny, (2, 4), 3)


def test_step_moves_no_weight():
    step = step_of(TINY, Scheme(4, 4), False, False, "bitwright")
    before = [parameter.clone() for parameter in step.model.parameters()]
    step()
    assert all(map(torch.equal, before, step.model.parameters()))
    assert all(parameter.grad is not None for parameter in step.model.parameters())


def test_scale_of_the_input_can_be_frozen():
    step = step_of(TINY, Scheme(4, 4), True, False, "bitwright")
    assert [name for name, each in step.model.named_parameters() if each.grad is None] == [
        "entry.act_quant.scaling.magnitude_offset"
    ]


@pytest.mark.parametrize(("steps", "phase"), [(1, False), (10**9, True)])
def test_phase_is_that_of_the_scheme(steps, phase):
    step = step_of(TINY, Scheme(4, 4, calibration_steps=steps), False, False, "bitwright")
    assert step.model.entry.act_quant.scaling.calibrating is phase


def test_frozen_evaluation_keeps_the_weight():
    model, layers = evaluated(TINY, Scheme(4, 4), "bitwright"), BitwrightLayers(Scheme(4, 4))
    with layers.frozen(model), torch.no_grad():
        first = model(TINY.batch()[0])
        model.head.weight.zero_()
        assert torch.equal(model(TINY.batch()[0]), first)


def test_torch_ao_observes_only_in_training():
    model = evaluated(TINY, Scheme(4, 4), "torch.ao")
    assert not model.training
    assert model.entry.observer_enabled.item() == 0
    assert model.entry.fake_quant_enabled.item() == 1


def test_graphs_are_counted(monkeypatch):
    monkeypatch.setattr("benchmarks.networks.STEPS", 2)
    assert graphs(TINY, Scheme(), "float")() == 1


def test_gradients_do_not_add_up():
    x = torch.ones(3, requires_grad=True)
    (gradient,) = forward_backward(lambda: x * 2, [x])()
    assert gradient.shape == (3,)
    assert x.grad is None


def test_peak_is_more_than_what_is_left():
    x = torch.ones(1000)

    def call():
        y = torch.add(x, x)
        z = torch.add(y, y)
        del y
        return torch.add(z, z)  # two of the three alive at any time

    assert peak_bytes(call) == 8000


def test_initialisation_is_skipped_and_comes_back():
    original = nn.Linear.reset_parameters
    with without_initialisation():
        torch.manual_seed(0)
        nn.Linear(2, 2)
        assert torch.equal(torch.rand(1), torch.rand(1, generator=torch.Generator().manual_seed(0)))
    assert nn.Linear.reset_parameters is original


def test_modules_are_counted():
    assert modules(lambda layers: layers.linear(2, 2), Scheme(), "float")() == 1

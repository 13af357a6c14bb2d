"""A recording leaves no trace."""

import copy
import random
import sys
import threading

import pytest
import torch
from torch import nn
from torch.nn.modules import module as torch_module

from bitwright.graph.recording.preserving import evaluating
from bitwright.graph.recording.recorder import record

X = torch.tensor([[1.0, -2.0]])


class Messy(nn.Module):
    """Writes to all it can get at."""

    def __init__(self, fails=False):
        super().__init__()
        self.fc = nn.Linear(2, 2)
        self.norm = nn.BatchNorm1d(2)
        self.drop = nn.Dropout()
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("mean", torch.zeros(2))
        self.count, self.log, self.cache, self.seen = 0, ["start"], {"a": 1}, {1}
        self.fails = fails
        self.fc.register_forward_hook(lambda *_: None)

    def forward(self, x):
        x *= 2
        self.steps += 1
        self.mean = self.mean + x.mean(0)
        self.count += 1
        self.late = x
        self.log.append(x)
        self.cache["b"] = self.cache.pop("a")
        self.seen.add(x)
        self.extra = nn.Linear(1, 1)
        self.fc.register_forward_hook(lambda *_: None)
        with torch.no_grad():
            self.fc.weight.data.clamp_(-0.1, 0.1)
            self.fc.bias.add_(1)
        x = self.drop(self.norm(self.fc(x + torch.randn(2) * random.random())))
        self.norm.train()
        if self.fails:
            raise RuntimeError("at the end")
        return x


def state(model):
    """Everything about a model, by identity or by bits."""
    attributes = {path: dict(vars(each)) for path, each in model.named_modules()}
    contents = {
        (path, name): copy.copy(value)
        for path, found in attributes.items()
        for name, value in found.items()
        if isinstance(value, (dict, list, set))
    }
    tensors = {name: each.detach().clone() for name, each in [*model.named_parameters(), *model.named_buffers()]}
    return attributes, contents, tensors


def assert_same(before, after):
    attributes, contents, tensors = before
    assert attributes.keys() == after[0].keys()
    for path, found in attributes.items():
        assert list(found) == list(after[0][path])
        assert all(found[name] is after[0][path][name] for name in found), path
    assert contents.keys() == after[1].keys()
    for name, value in contents.items():
        assert list(value) == list(after[1][name]), name
    assert all(torch.equal(each, after[2][name]) for name, each in tensors.items())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("fails", [True, False])
def test_model_examples_and_generators_are_as_before(training, fails):
    torch.manual_seed(3)
    model = Messy(fails).train(training)
    model.drop.train(not training)
    x = X.clone()
    before = state(model)
    hooks = len(torch_module._global_forward_hooks), len(torch_module._global_forward_pre_hooks)
    generators = torch.get_rng_state(), random.getstate()
    traced = sys.gettrace()
    if fails:
        with pytest.raises(RuntimeError, match=r"^at the end$"):
            record(model, x)
    else:
        record(model, x)
    assert_same(before, state(model))
    assert torch.equal(x, X)
    assert (len(torch_module._global_forward_hooks), len(torch_module._global_forward_pre_hooks)) == hooks
    assert torch.equal(torch.get_rng_state(), generators[0])
    assert random.getstate() == generators[1]
    assert torch.backends.mha.get_fastpath_enabled()
    assert torch.is_grad_enabled()
    assert sys.gettrace() is traced


def test_parameters_that_share_memory_are_restored():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            flat = torch.arange(4.0)
            self.a, self.b = nn.Parameter(flat[:2]), nn.Parameter(flat[2:])

        def forward(self, x):
            self.a.data[0] = 9
            torch.add(self.b.data, 1, out=self.b.data)
            return x + self.a + self.b

    model = Net()
    record(model, X)
    assert (model.a.tolist(), model.b.tolist()) == ([0, 1], [2, 3])


def test_the_flag_is_set_without_calling_eval():
    class Merges(nn.Module):
        def train(self, mode=True):
            raise AssertionError("merges its weights")

        def forward(self, x):
            assert not self.training
            return x + 1

    assert [each.path for each in record(Merges(), X).functions()] == ["add"]


@pytest.mark.parametrize("layer", [nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.LSTM(8, 4), nn.ReLU()])
def test_the_forward_that_is_recorded_is_that_of_evaluation(layer):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.drop, self.layer = nn.Dropout(), layer

        def forward(self, x):
            out = self.layer(self.drop(x))
            results.append(out[0] if isinstance(out, tuple) else out)
            return out

    results = []
    model, x = Net(), torch.randn(2, 3, 8)
    record(model, x)
    model.eval()(x)  # with gradients, which keeps torch from its fused attention
    assert torch.equal(results[0], results[1])
    assert results[1].requires_grad == (not isinstance(layer, nn.ReLU))
    assert not results[0].requires_grad


def test_inference_mode():
    def check(model, x):
        graph = record(model, x)
        assert torch.equal(x, X)
        assert torch.is_inference_mode_enabled()
        assert graph.node("mul").inputs == [(graph.node("input"), 0)]
        assert graph.node("fc").inputs == [(graph.node("add_2"), 0)]
        assert graph.node("add_2").inputs[0] == (graph.node("mul"), 0)

    class Fills(nn.Module):
        def forward(self, x):
            y = x + 1
            y[0] = 3
            return y * 2

    x, model = X.clone(), Messy()
    with torch.inference_mode():
        filled = record(Fills(), X.clone())
        assert filled.node("mul").inputs == [(filled.node("setitem"), 0)]
        check(model, x)
        check(Messy(), X.clone())


def test_other_threads_are_not_recorded():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.act = nn.ReLU()

        def forward(self, x):
            thread = threading.Thread(target=lambda: self.act(x + 1))
            thread.start()
            thread.join()
            return x * 2

    assert [each.path for each in record(Net(), X).nodes] == ["input", "mul", "output"]


def test_fused_attention_is_off_and_flags_are_set():
    model = nn.ReLU()
    with evaluating(model, []):
        assert not torch.backends.mha.get_fastpath_enabled()
        assert not torch.is_grad_enabled()
        assert not model.training
    assert model.training


def test_inputs_are_restored_only_if_written():
    x = X.clone()
    with evaluating(nn.ReLU(), [x]):
        pass
    assert x._version == 0
    with evaluating(nn.ReLU(), [x]):
        x.add_(1)
    assert torch.equal(x, X)


def test_a_compiled_model_is_recorded_without_compiling():
    compiled = []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(2, 2)

        def forward(self, x):
            return self.fc(x) + x

    graph = record(torch.compile(Net(), backend=backend), X)
    assert [each.path for each in graph.nodes] == ["input", "_orig_mod.fc", "_orig_mod.add", "output"]
    assert compiled == []

"""Recording every model of the zoo."""

import copy
from itertools import pairwise

import pytest
import torch
from torch import nn

from bitwright.graph.recording.recorder import is_leaf, record
from tests.graph.models.zoo import ZOO, applied

NAMES = sorted(ZOO)


@pytest.fixture
def layer_by_layer():
    """torch's fused attention off, as it is in a recording: its numbers are a little different."""
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(True)


@pytest.mark.parametrize("name", NAMES)
def test_outputs_are_those_of_a_plain_forward(name, layer_by_layer):
    model, call = ZOO[name].build(), ZOO[name].example()
    outputs = [(each.shape, each.low, each.high) for each in record(model, call).nodes if each.kind == "output"]
    assert outputs == [(tuple(t.shape), float(t.min()), float(t.max())) for t in applied(model, copy.deepcopy(call))]


@pytest.mark.parametrize("name", NAMES)
def test_edges_lead_from_the_inputs_to_the_outputs(name):
    graph = record(ZOO[name].build(), ZOO[name].example())
    before = set()
    for node in graph.nodes:
        assert all(source in before for source, _ in node.sources), node
        assert all(node in source.users for source, _ in node.sources), node
        before.add(node)
    reached = {node for node in graph.nodes if node.kind == "input"}
    for node in graph.nodes:
        if any(source in reached for source, _ in node.sources):
            reached.add(node)
    assert {node for node in graph.nodes if node.kind == "output"} <= reached


@pytest.mark.parametrize("name", NAMES)
def test_every_layer_is_called_and_nothing_is_unreached_by_an_example_for_each_branch(name):
    model = ZOO[name].build()
    graph = record(model, ZOO[name].examples())
    inside = [path for path, each in model.named_modules() if is_leaf(each)]  # what a layer is made of
    layers = [
        path
        for path, each in model.named_modules()
        if is_leaf(each) and not any(path.startswith(f"{outer}.") for outer in inside)
    ]
    assert [path for path in layers if path not in graph.called] == []
    assert [path for path in layers if not graph.calls(path)] == []
    assert graph.unreached == []


@pytest.mark.parametrize("name", NAMES)
def test_sites_are_named_by_their_places(name):
    graph = record(ZOO[name].build(), ZOO[name].examples())
    places = {}
    for node in graph.functions():
        assert node.place is not None, node
        assert places.setdefault(node.path, node.place.key) == node.place.key
    assert len(places) == len({(node.owner, node.kind, node.place) for node in graph.functions()})


@pytest.mark.parametrize("name", NAMES)
def test_the_model_is_as_before_and_another_recording_the_same(name):
    model, call = ZOO[name].build(), ZOO[name].example()
    for number, module in enumerate(model.modules()):
        module.training = number % 2 == 0
    state, modes = copy.deepcopy(model.state_dict()), [each.training for each in model.modules()]
    graphs = [str(record(model, call)) for _ in range(2)]
    assert graphs[0] == graphs[1]
    assert [each.training for each in model.modules()] == modes
    assert all(torch.equal(each, state[key]) for key, each in model.state_dict().items())


def test_a_branch_that_the_example_does_not_take():
    entry = ZOO["branching"]
    both = [record(entry.build(), each).unreached for each in entry.examples()]
    assert all(both)
    assert not set(both[0]) & set(both[1])
    assert record(entry.build(), entry.examples()).unreached == []


def test_mobilenet_is_a_chain_with_residual_sums():
    model = ZOO["mobilenet_v2"].build(tiny=False)
    graph = record(model, torch.randn(1, 3, 32, 32))
    convolutions = [node for node in graph.nodes if node.kind == "Conv2d"]
    assert (len(convolutions), len(graph.functions({"add"}))) == (52, 10)
    for node, following in pairwise(graph.nodes):
        if node.kind == "Conv2d":
            assert (following.kind, following.inputs) == ("BatchNorm2d", [(node, 0)])
    assert all(node.low >= 0 for node in graph.nodes if node.function is nn.ReLU6)

import torch
from torch import nn

from bitwright.graph.porting.matching import matched, suggestion


def test_groups_by_module():
    model = nn.Sequential(nn.Linear(2, 1), nn.BatchNorm1d(1))
    found = matched(model, model.state_dict(), {"0.weight": torch.ones(1, 2), "O.bias": torch.ones(1)})
    assert found.problems == [
        "0: the file has nothing for bias. Write bias=False.",
        "1: the file has nothing for weight, bias, running_mean and running_var. If it is merged into the layer before "
        "it, leave it out here and write bias=True there.",
        "O: the file has bias, and the model has no such module.",
    ]
    assert found.state["1.num_batches_tracked"] == 0  # early files have none


def test_names_at_the_root():
    fc = nn.Linear(2, 1)
    found = matched(fc, fc.state_dict(), {"scale": torch.ones(1)})
    assert found.problems == [
        "the model: the file has nothing for weight and bias.",
        "the file: the file has scale, and Linear has nothing of that name.",
    ]


def test_nearest_module_of_the_file():
    model = nn.Sequential()
    model.add_module("features", nn.Linear(2, 1))
    file = {"feature.weight": torch.ones(1, 2), "feature.bias": torch.ones(1)}
    assert matched(model, model.state_dict(), file).problems == [
        "features: the file has nothing for weight and bias. Did you mean feature?",
        "feature: the file has weight and bias, and the model has no such module. Did you mean features?",
    ]


def test_lazy_layers_take_any_shape():
    lazy = nn.LazyLinear(3)
    found = matched(lazy, lazy.state_dict(keep_vars=True), {"weight": torch.ones(3, 5), "bias": torch.ones(3)})
    assert found.problems == []


def test_suggestion_needs_something_near():
    assert suggestion("layer1.conv", ["layer1.conv1", ""]) == " Did you mean layer1.conv1?"
    assert suggestion("stem", ["head", ""]) == ""

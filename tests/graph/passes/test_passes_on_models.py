"""Passes over the models of the other tests: how many layers each changes, and that results stay."""

import pytest
import torch
from torch import nn

from bitwright.graph import GraphError, equalize, fold_batch_norms, smooth
from bitwright.graph.passes.splitting import split_channels
from bitwright.graph.recording.recorder import record
from bitwright.graph.regions.regions import Regions
from tests.graph.models.zoo import ZOO, applied

# What fold_batch_norms, equalize, equalize with ReLU6 replaced, smooth and split_channels change; the last four in the
# folded model
CHANGED = {
    "resnet18": (12, 13, 13, 1, 13),
    "mobilenet_v2": (16, 8, 28, 1, 8),
    "minilm": (0, 4, 4, 12, 0),
    "torch_minilm": (0, 0, 0, 4, 0),
    "digit_cnn": (0, 5, 5, 2, 5),
    "speaker": (0, 0, 0, 1, 0),
    "branching": (0, 0, 0, 1, 0),
    "detector": (2, 0, 0, 1, 0),
    "padded": (4, 0, 4, 1, 0),
    "called_twice": (0, 3, 3, 1, 0),
    "tied": (0, 0, 0, 1, 0),
    "weight_norm": (0, 0, 0, 0, 0),
    "late_norm": (0, 0, 0, 1, 0),
    "uneven": (0, 3, 3, 1, 2),
    "decoder": (4, 4, 4, 0, 0),
}


def changed(change, model, entry):
    """How many layers a pass changes, and the new model; 0 and the model itself if it finds nothing."""
    try:
        result = change(model, entry.examples())
    except GraphError as error:
        if ": nothing to " not in str(error):
            raise
        return 0, model
    return len(result.report.changed), result


def assert_same(model, other, entry, tolerance=1e-5):
    for call in entry.examples():
        for one, two in zip(applied(model, call), applied(other, call), strict=True):
            torch.testing.assert_close(two, one, rtol=0, atol=tolerance * float(one.abs().max()))


@pytest.mark.parametrize("name", ZOO)
def test_passes(name):
    entry = ZOO[name]
    model = entry.build()
    before = {key: each.clone() for key, each in model.state_dict().items()}
    folds, folded = changed(fold_batch_norms, model, entry)
    assert_same(model, folded, entry)
    counts = [folds]
    for change in (equalize, "replace", smooth, split_channels):
        replaces = change == "replace"
        count, result = changed((lambda *args: equalize(*args, relu6="replace")) if replaces else change, folded, entry)
        counts.append(count)
        if not replaces or not any("replaced" in each.action for each in getattr(result, "report", ())):
            assert_same(folded, result, entry)
    assert tuple(counts) == CHANGED[name]
    assert all(torch.equal(each, before[key]) for key, each in model.state_dict().items())


def test_whole_networks_with_residual_sums_and_depthwise_convolutions():
    """The number of BatchNorms and regions, without ReLU6 and through it."""
    found = {}
    for name in ("resnet18", "mobilenet_v2"):
        model, x = ZOO[name].build(tiny=False), torch.randn(1, 3, 32, 32)
        folded = fold_batch_norms(model, x)
        assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
        graph = record(folded, x)
        regions = [len(Regions(graph, folded, relu6=relu6).free()) for relu6 in (False, True)]
        found[name] = (len(folded.report.changed), *regions)
    assert found == {"resnet18": (20, 12, 12), "mobilenet_v2": (52, 7, 42)}

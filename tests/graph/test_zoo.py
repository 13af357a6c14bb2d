"""The models of the other tests: that they are what their entries say."""

import copy
import pickle
from contextlib import nullcontext

import pytest
import torch

from tests.graph.models.minilm import MiniLM, TorchMiniLM, torch_keys
from tests.graph.models.mobilenet import MobileNetV2
from tests.graph.models.resnet import ResNet
from tests.graph.models.zoo import TINY_SIZES, ZOO, applied, tensors_of

entries = pytest.mark.parametrize("entry", ZOO.values(), ids=ZOO)


@entries
def test_tiny_models_are_small_deterministic_and_alive(entry):
    model = entry.build()
    assert sum(each.numel() for each in model.parameters()) < 100_000
    assert not model.training
    for call in entry.examples():
        found = applied(model, call)
        assert found
        assert all(each.isfinite().all() and each.std() > 0.01 for each in found)
        again = applied(entry.build(), call)
        assert all(torch.equal(one, two) for one, two in zip(found, again, strict=True))


@entries
def test_models_copy_and_pickle(entry):
    model, call = entry.build(), entry.example()
    copies = [copy.deepcopy(model)]
    if entry.name != "weight_norm":  # torch pickles no parametrized module
        copies.append(pickle.loads(pickle.dumps(model)))
    for each in copies:
        assert all(torch.equal(*pair) for pair in zip(applied(model, call), applied(each, call), strict=True))


@entries
def test_batches_differ(entry):
    one, two = (tensors_of(call) for call in entry.batches(2))
    assert not all(torch.equal(*pair) for pair in zip(one, two, strict=True))


@pytest.mark.slow
@entries
def test_float_models_compile_where_the_entry_says_so(entry):
    model = entry.build()
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    if not entry.compiles:
        assert entry.why
        with pytest.raises(torch._dynamo.exc.Unsupported):
            applied(compiled, entry.example())
        return
    call = entry.example()
    assert all(torch.equal(*pair) for pair in zip(applied(model, call), applied(compiled, call), strict=True))


@pytest.mark.slow
@entries
def test_float_models_export_where_the_entry_says_so(entry, tmp_path):
    pytest.importorskip("onnxscript")
    model, call = entry.build(), entry.example()
    args = (*call, {}) if isinstance(call[-1], dict) else call
    assert entry.exports or entry.why
    with nullcontext() if entry.exports else pytest.raises(torch.onnx.errors.OnnxExporterError):
        torch.onnx.export(model, args, tmp_path / "model.onnx", dynamo=True, verbose=False)


def test_networks_have_the_published_sizes():
    """Parameters of torchvision's networks, and of all-MiniLM-L6-v2 without its pooler."""
    sizes = [sum(each.numel() for each in make().parameters()) for make in (ResNet, MobileNetV2, MiniLM, TorchMiniLM)]
    assert sizes == [11_689_512, 3_504_872, 22_565_376, 22_565_376]
    keys = list(ResNet().state_dict())
    assert keys[:3] == ["conv1.weight", "bn1.weight", "bn1.bias"]
    assert {"layer2.0.downsample.0.weight", "layer2.0.downsample.1.running_var", "fc.bias"} <= {*keys}


def test_both_encoders_are_one_function():
    plain, torchs = ZOO["minilm"].build(), TorchMiniLM(TINY_SIZES).eval()
    torchs.load_state_dict(torch_keys(plain.state_dict()))
    call = ZOO["minilm"].example()
    torch.testing.assert_close(applied(torchs, call), applied(plain, call), rtol=1e-5, atol=1e-6)


def test_branches_differ():
    """Both ways of the branching model are among its examples."""
    entry = ZOO["branching"]
    assert [bool(call[0].mean() > 0) for call in entry.examples()] == [True, False]

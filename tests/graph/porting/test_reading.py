import re

import pytest
import torch
from torch import nn

from bitwright.graph.porting.problems import CheckpointError
from bitwright.graph.porting.reading import tensors_of

FILE = {"weight": torch.ones(2), "bias": torch.zeros(2)}


def read(checkpoint, model=None):
    return tensors_of("load_brevitas", checkpoint, model or nn.Linear(1, 1))


@pytest.mark.parametrize("wrapper", ["state_dict", "model_state_dict", "model"])
def test_wrappers(wrapper):
    assert read({wrapper: FILE, "epoch": 3}) == FILE


def test_prefix_of_distributed_training():
    replicated = {f"module.{name}": each for name, each in FILE.items()}
    assert read(replicated) == FILE
    assert read({"state_dict": replicated}) == FILE
    assert [*read({**FILE, **replicated})] == ["weight", "bias", "module.weight", "module.bias"]  # not of all names
    whole = nn.Module()
    whole.module = nn.Linear(1, 1)
    assert [*read(replicated, whole)] == ["module.weight", "module.bias"]  # the model's own name


@pytest.mark.parametrize("as_text", [True, False])
def test_files(tmp_path, as_text):
    path = tmp_path / "model.pth"
    torch.save({"state_dict": FILE, "epoch": 3}, path)
    found = read(str(path) if as_text else path)
    assert [*found] == ["weight", "bias"]
    assert torch.equal(found["weight"], FILE["weight"])


def test_empty_file():
    assert read({}) == {}


@pytest.mark.parametrize(
    ("checkpoint", "found"),
    [
        (nn.Linear(1, 1), "found a Linear"),
        ({**FILE, "epoch": 3}, "'epoch' holds a int"),
        ({1: torch.ones(1)}, "found a dict"),
    ],
)
def test_something_else(checkpoint, found):
    with pytest.raises(
        CheckpointError,
        match=re.escape(
            "load_brevitas: 1 thing doesn't fit, and nothing was loaded.\n"
            f"  the checkpoint: {found}. Pass a state dict, which has a tensor for each name: model.state_dict()."
        )
        + r"\Z",
    ):
        read(checkpoint)

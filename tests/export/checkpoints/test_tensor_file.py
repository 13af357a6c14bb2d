import re

import pytest
import torch
from safetensors.torch import load_file

from bitwright.export import ExportError
from bitwright.export.checkpoints.tensor_file import DTYPES, described, writing


def test_every_type_and_shape_in_any_order(tmp_path):
    tensors = {str(dtype): torch.arange(6).reshape(2, 3).to(dtype).t() for dtype in DTYPES}
    tensors |= {"none": torch.zeros(0, 2), "one": torch.tensor(1.5)}
    with writing("test", tmp_path / "f", {name: described(each) for name, each in tensors.items()}, {"a": "b"}) as put:
        for name in sorted(tensors):
            put(name, tensors[name])
    held = load_file(tmp_path / "f")
    assert held.keys() == tensors.keys()
    assert all(torch.equal(held[name].double(), each.double()) for name, each in tensors.items())
    assert all(held[name].dtype is each.dtype for name, each in tensors.items())


def test_nothing_is_left_of_a_file_that_was_not_finished(tmp_path):
    path = tmp_path / "f"
    one = {"one": described(torch.ones(2))}
    with pytest.raises(ExportError, match=r"^test: one was not written\.$"), writing("test", path, one, {}):
        pass
    with (
        pytest.raises(ExportError, match=r"^test: one changed while it was written\.$"),
        writing("test", path, one, {}) as put,
    ):
        put("one", torch.ones(3))
    message = "test: one is of type torch.complex64, which safetensors files don't hold."
    complex_one = {"one": described(torch.ones(2, dtype=torch.complex64))}
    with pytest.raises(ExportError, match=f"^{re.escape(message)}$"), writing("test", path, complex_one, {}):
        pass
    assert list(tmp_path.iterdir()) == []

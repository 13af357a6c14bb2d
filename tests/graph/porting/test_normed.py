import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from bitwright.graph.porting.normed import named_otherwise

G, V = torch.tensor([[2.0]]), torch.tensor([[3.0, 4.0]])
HALVES = {"fc.weight_g": G, "fc.weight_v": V}
ORIGINALS = {"fc.parametrizations.weight.original0": G, "fc.parametrizations.weight.original1": V}


@pytest.mark.parametrize(("file", "other"), [(HALVES, ORIGINALS), (ORIGINALS, HALVES)])
def test_halves_of_the_other_form(file, other):
    for key, source in zip(other, file, strict=True):
        found = named_otherwise(key, file)
        assert found is not None
        assert found[0] is file[source]
        assert found[1] == (source,)


@pytest.mark.parametrize("file", [HALVES, ORIGINALS])
def test_weight_that_they_make(file):
    found = named_otherwise("fc.weight", file)
    assert found is not None
    torch.testing.assert_close(found[0], torch.tensor([[1.2, 1.6]]))
    assert found[1] == (*file,)


def test_at_the_root():
    assert named_otherwise("weight_g", {"parametrizations.weight.original0": G}) == (
        G,
        ("parametrizations.weight.original0",),
    )


@pytest.mark.parametrize("key", ["fc.bias", "fd.weight", "fc.weight_g.x"])
def test_nothing(key):
    assert named_otherwise(key, HALVES) is None


def test_one_half_is_none():
    assert named_otherwise("fc.weight", {"fc.weight_v": V}) is None


@pytest.mark.parametrize("dim", [0, 1, 2, None])
def test_dimension_of_the_norm(dim):
    layer = nn.Conv1d(3, 4, 2)
    expected = weight_norm(layer, dim=dim).weight.detach()
    found = named_otherwise("weight", layer.state_dict())
    assert found is not None
    torch.testing.assert_close(found[0], expected)

"""Second moments: of batches, of groups, and of several processes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitwright.graph.layerwise.walking import moments
from bitwright.graph.layerwise.walking.moments import Moments, Sums

DEVICE = torch.device("cpu")


def of(rows, floats=None):
    found = Moments()
    found.add(Sums.of(rows, floats))
    return found


@given(st.lists(st.integers(0, 5), min_size=1, max_size=4), st.integers(1, 3))
def test_rows_weigh_the_same_however_they_come(sizes, groups):
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(1 + sum(sizes), groups, 4, generator=generator)
    floats = rows + torch.randn(rows.shape, generator=generator)
    found = Moments()
    for part, others in zip(rows.split([1, *sizes]), floats.split([1, *sizes]), strict=True):
        found.add(Sums.of(part, others))
    assert found.count == len(rows)
    weight = torch.randn(groups, 2, 4, generator=generator)
    torch.testing.assert_close(found.gram, torch.einsum("rgi,rgj->gij", rows, rows) / len(rows), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        found.cross, torch.einsum("rgi,rgj->gij", floats, rows) / len(rows), rtol=1e-4, atol=1e-5
    )
    wanted = torch.einsum("goi,rgi->rgo", weight, floats).double().square().mean(0)
    torch.testing.assert_close(found.signal(weight), wanted, rtol=1e-4, atol=1e-5)


def test_groups_that_were_gathered_apart():
    one, other = of(torch.ones(2, 1, 3)), of(torch.full((5, 1, 3), 2.0))
    found = Moments.stacked([(one, 1), (other, 2)])
    assert found.count == 2
    assert found.gram[:, 0, 0].tolist() == [1.0, 4.0, 4.0]
    assert found.cross is None
    assert found.signal(torch.ones(3, 1, 3)) is None
    assert Moments.stacked([(one, 1)]) is one
    assert Moments.stacked([(one, 1), (Moments(), 1)]).count == 0


@pytest.mark.parametrize("crossed", [False, True])
def test_moments_of_several_processes(crossed, monkeypatch):
    """The other one has three rows of 2, and this one has one row of 1, or nothing."""
    rows = torch.ones(1, 1, 2)
    other = of(torch.full((3, 1, 2), 2.0), torch.full((3, 1, 2), 4.0))
    for own, mean in ((of(rows, rows), 3.25), (Moments(), 4.0)):
        total = own.count + 3
        told = iter(
            [
                torch.tensor([3.0], dtype=torch.float64),
                *(p * 3 / total for p in (other.gram, other.cross, 4 * other.gram)),
            ]
        )
        monkeypatch.setattr(moments, "distributed", lambda: True)
        monkeypatch.setattr(moments, "summed", lambda each, told=told: each + next(told))
        own.pool(1, 2, DEVICE, crossed)
        assert own.count == total
        assert torch.allclose(own.gram, torch.full((1, 2, 2), mean))
        assert (own.cross is None) is not crossed


def test_processes_that_saw_nothing(monkeypatch):
    monkeypatch.setattr(moments, "distributed", lambda: True)
    monkeypatch.setattr(moments, "summed", lambda each: each)
    own = Moments()
    own.pool(1, 2, DEVICE, True)
    assert own.count == 0

"""Adaptive pooling in other operations: the same numbers."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from bitwright.nn.pooling.adaptive import expressible, largest, means

AVERAGES = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}
MAXIMA = {1: F.adaptive_max_pool1d, 2: F.adaptive_max_pool2d, 3: F.adaptive_max_pool3d}


@pytest.mark.parametrize("dims", [1, 2, 3])
@given(data=st.data())
def test_they_are_torchs(dims, data):
    sizes = data.draw(st.lists(st.integers(1, 7), min_size=dims, max_size=dims))
    counts = data.draw(st.tuples(*(st.integers(1, size) for size in sizes)))
    x = torch.randn(2, *sizes, dtype=torch.float64)
    torch.testing.assert_close(means(x, counts), AVERAGES[dims](x, counts))
    assert torch.equal(largest(x, counts), MAXIMA[dims](x, counts))


def test_a_single_window_has_a_form_of_its_own():
    x = torch.ones(1, 4, 6)
    assert not expressible(x, [1, 1])
    assert expressible(x, [1, 2])

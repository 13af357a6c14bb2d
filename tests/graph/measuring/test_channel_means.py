"""Means of output channels."""

import pytest
import torch

from bitwright.graph.measuring.channel_means import ChannelMeans

X = torch.arange(48, dtype=torch.float32).reshape(4, 3, 2, 2)  # (N, C, H, W)


@pytest.mark.parametrize(
    ("x", "axis"), [(X, 1), (X.permute(0, 2, 3, 1), -1), (X.movedim(1, 0), 0)], ids=["convolution", "linear", "first"]
)
def test_mean_of_each_channel(x, axis):
    means = ChannelMeans()
    means.add("a", x, axis)
    assert means["a"].tolist() == [19.5, 23.5, 27.5]


def test_parts_weigh_by_their_size():
    means = ChannelMeans()
    for part in X.split([1, 3]):
        means.add("a", part, 1)
    assert means["a"].tolist() == [19.5, 23.5, 27.5]
    assert list(means) == ["a"]
    assert "b" not in means


def test_samples_apart():
    for x, axis, dim in ((X, 1, 0), (X.movedim(0, 2), 0, 2), (X.movedim(0, 3), 0, 3)):
        means = ChannelMeans()
        means.add("a", x, axis, dim, 4)
        assert means.of_samples("a").tolist() == [[1.5 + 12 * n + 4 * c for c in range(3)] for n in range(4)]
    means = ChannelMeans()
    means.add("a", X, 1, 0, 2)  # two positions of each sample in dimension 0
    assert means.of_samples("a")[:, 0].tolist() == [7.5, 31.5]
    assert means["a"].tolist() == [19.5, 23.5, 27.5]


def test_a_single_row():
    means = ChannelMeans()
    means.add("a", torch.tensor([1.0, 2.0]), 0)
    means.add("a", torch.tensor([3.0, 4.0]), -1)
    assert means["a"].tolist() == [2.0, 3.0]
    assert means.of_samples("a").tolist() == [[1.0, 2.0], [3.0, 4.0]]


def test_float64():
    means = ChannelMeans()
    means.add("a", torch.tensor([[2.0**25], [1.0], [1.0], [1.0]]), 1)
    assert means["a"].tolist() == [(2**25 + 3) / 4]


def test_empty_tensors_count_for_nothing():
    means = ChannelMeans()
    means.add("a", torch.ones(0, 3), 1)
    assert "a" not in means
    assert list(means) == []


def test_pooled():
    one, other = ChannelMeans(), ChannelMeans()
    one.add("a", X[:1], 1)
    one.add("b", X[:1], 1)
    other.add("a", X[1:], 1)
    both = one.with_those_of(other)
    assert both["a"].tolist() == [19.5, 23.5, 27.5]
    assert list(both) == ["a"]


def test_magnitude():
    means = ChannelMeans(magnitudes=True)
    means.add("a", torch.tensor([[3.0, 4.0]]), 1)
    means.add("a", torch.tensor([[0.0, 5.0]]), 1)
    assert means.magnitude("a") == 12.5**0.5

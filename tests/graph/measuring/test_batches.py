import re

import pytest
import torch
from torch import nn

from bitwright.graph import GraphError
from bitwright.graph.measuring.batches import batches_of

X, Y = torch.ones(1), torch.zeros(2)


class Two(nn.Module):
    """A model with two inputs."""

    def forward(self, x, y):
        return x, y


MODEL = Two()


@pytest.mark.parametrize(
    ("data", "calls"),
    [
        (X, [((X,), {})]),
        ((X, Y), [((X, Y), {})]),
        ({"x": X}, [((), {"x": X})]),
        ([X, Y], [((X,), {}), ((Y,), {})]),
        ([[X, Y], (Y, X), {"x": X}], [((X, Y), {}), ((Y, X), {}), ((), {"x": X})]),
        (iter([X]), [((X,), {})]),
    ],
)
def test_what_forwards_are_called_with(data, calls):
    assert [(list(map(id, args)), kwargs) for args, kwargs in batches_of("smooth", MODEL, data)] == [
        (list(map(id, args)), kwargs) for args, kwargs in calls
    ]


def test_labels_are_left_out():
    assert batches_of("smooth", nn.Linear(1, 2), [(X, Y)]) == [((X,), {})]


def test_a_tuple_of_batches_is_no_batch():
    message = (
        "smooth: data is a tuple of 3, which is one batch, and forward takes 1 positional argument. Pass a list of "
        "batches: list(data)."
    )
    with pytest.raises(GraphError, match=f"^{re.escape(message)}$"):
        batches_of("smooth", nn.Linear(1, 2), torch.ones(3, 1).split(1))


@pytest.mark.parametrize("data", [5, "text", None])
def test_no_batch(data):
    message = f"smooth: data={data!r} is no batch. Pass a tensor, or a list or loader of batches."
    with pytest.raises(GraphError, match=f"^{re.escape(message)}$"):
        batches_of("smooth", MODEL, data)


def test_no_batches():
    message = "smooth: data holds no batch. Pass a tensor, or a list or loader of batches."
    with pytest.raises(GraphError, match=f"^{re.escape(message)}$"):
        batches_of("smooth", MODEL, iter([]))


def test_a_batch_without_samples():
    message = "gptq: batch 1 of data holds no sample. Pass a tensor, or a list or loader of batches."
    with pytest.raises(GraphError, match=f"^{re.escape(message)}$"):
        batches_of("gptq", nn.Linear(2, 2), [torch.ones(1, 2), torch.ones(0, 2)])

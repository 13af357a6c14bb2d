import re

import pytest
import torch
from torch import nn

from bitwright.graph import GraphError
from bitwright.graph.passes.batches import batches_of

X, Y = torch.ones(1), torch.zeros(2)


class Takes(nn.Module):
    def forward(self, x, y=None):
        return x if y is None else y


class TakesAny(nn.Module):
    def forward(self, *args, **kwargs):
        return args, kwargs


def calls(data, model=None):
    """Calls with tensors by their identity."""
    found = batches_of("smooth", Takes() if model is None else model, data)
    return [([id(each) for each in args], {key: id(each) for key, each in kwargs.items()}) for args, kwargs in found]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (X, [([X], {})]),
        ((X, Y), [([X, Y], {})]),
        ({"x": X}, [([], {"x": X})]),
        ([X, Y], [([X], {}), ([Y], {})]),
        ([[X, Y], (Y, X), {"x": X}], [([X, Y], {}), ([Y, X], {}), ([], {"x": X})]),
        (iter([X]), [([X], {})]),
    ],
)
def test_what_forwards_are_called_with(data, expected):
    assert calls(data) == [
        ([id(each) for each in args], {key: id(each) for key, each in kwargs.items()}) for args, kwargs in expected
    ]


def test_labels_that_forward_does_not_take_are_left_out():
    assert calls([(X, Y)], nn.Linear(1, 1)) == [([id(X)], {})]
    assert calls([(X, Y, X)]) == [([id(X), id(Y)], {})]
    assert calls([(X, Y, X)], TakesAny()) == [([id(X), id(Y), id(X)], {})]


@pytest.mark.parametrize("data", [5, "text", None])
def test_no_data(data):
    message = f"smooth: data={data!r} is no batch. Pass a tensor, or a list or loader of batches."
    with pytest.raises(GraphError, match=f"^{re.escape(message)}$"):
        batches_of("smooth", Takes(), data)


def test_no_batch():
    message = (
        "smooth: a batch of data is 5. Pass a tensor, a tuple of positional arguments, or a dict of keyword arguments."
    )
    with pytest.raises(GraphError, match=f"^{re.escape(message)}$"):
        batches_of("smooth", Takes(), [X, 5])


def test_no_batches():
    message = "smooth: data holds no batch. Pass a tensor, or a list or loader of batches."
    with pytest.raises(GraphError, match=f"^{re.escape(message)}$"):
        batches_of("smooth", Takes(), iter([]))

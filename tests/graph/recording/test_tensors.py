"""Tensors among arguments, and memory that they share."""

import math
from collections import OrderedDict, namedtuple
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitwright.graph.recording.tensors import named_tensors, overlap, range_of, storage_of, tensors_in

Pair = namedtuple("Pair", "a b")


@dataclass
class Output:
    logits: torch.Tensor
    states: list[torch.Tensor]
    name: str = "x"


def test_tensors_in_containers():
    a, b, c, d = (torch.ones(1) * number for number in range(4))
    value = (a, [Output(b, [c, c]), "text", None, Output], OrderedDict(x=Pair(d, 3)), {4})
    assert [each.item() for each in tensors_in(value)] == [0, 1, 2, 2, 3]
    names = ["input", "logits", "states", "states_2", "x"]
    assert [name for name, _ in named_tensors(value, "input")] == names


@given(
    st.tuples(*[st.tuples(st.integers(0, 3), st.integers(1, 3), st.integers(1, 4))] * 2),
)
def test_two_views_overlap_if_a_write_to_one_shows_in_the_other(views):
    memory = torch.zeros(16)
    one, other = (memory.as_strided((count,), (stride,), start) for start, stride, count in views)
    one.fill_(1)
    assert overlap(one, other) == bool(other.any())
    assert storage_of(one) == storage_of(other) == storage_of(memory)


def test_views_of_another_dtype_may_overlap():
    x = torch.zeros(2)
    assert overlap(x, x.view(torch.int32))


@pytest.mark.parametrize(
    ("tensor", "low", "high"),
    [(torch.tensor([3.0, -1.0]), -1, 3), (torch.tensor([4, 7], dtype=torch.uint8), 4, 7), (torch.tensor(2.0), 2, 2)],
)
def test_range(tensor, low, high):
    assert range_of(tensor) == (low, high)


@pytest.mark.parametrize(
    "tensor",
    [
        *(torch.ones(0), torch.ones(2) > 0, torch.ones(2).to_sparse(), torch.ones(2, device="meta")),
        *(torch.tensor([1.0, math.nan]), torch.ones(1, dtype=torch.complex64)),
    ],
)
def test_no_range(tensor):
    assert [math.isnan(each) for each in range_of(tensor)] == [True, True]


def test_a_tensor_without_memory():
    assert storage_of(torch.ones(2).to_sparse()) is None
    assert storage_of(torch.ones(2, device="meta")) is None

"""The masks of one call, checked and joined."""

import torch
from torch import nn

from bitwright.nn.attention.masks import Masks

NEVER = -torch.inf


def masks(padding=None, attention=None, dtype=torch.float32):
    layer, x = nn.MultiheadAttention(4, 2), torch.zeros(2, 3, 4)  # two tokens, a batch of three
    return Masks.of(layer, x, x, x, padding, attention, dtype)


def test_booleans_become_floats_to_add():
    found = masks(torch.tensor([[False, True]] * 3), torch.tensor([[False, True], [False, False]]), torch.float64)
    assert found.padding.tolist() == [[0.0, NEVER]] * 3
    assert found.attention.tolist() == [[0.0, NEVER], [0.0, 0.0]]
    assert found.attention.dtype == torch.float64
    given = torch.tensor([[0.5, 1.0], [0.0, -2.0]])
    assert masks(attention=given).attention is given


def test_added_keys_take_part():
    found = masks(torch.tensor([[True, True]] * 3), torch.ones(6, 2, 2)).extended(2)
    assert found.padding.tolist() == [[NEVER, NEVER, 0.0, 0.0]] * 3
    assert found.attention[5].tolist() == [[1.0, 1.0, 0.0, 0.0]] * 2
    assert Masks(None, None).extended(2) == (None, None)
    one = masks(attention=torch.ones(2, 2))
    assert one.extended(0).attention is one.attention


def test_both_are_joined():
    padding = torch.tensor([[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]])
    assert Masks(None, None).joined(3, 2) is None
    assert Masks(None, padding).joined(3, 2).shape == (3, 1, 1, 2)
    assert Masks(torch.ones(2, 2), None).joined(3, 2).shape == (2, 2)
    each = torch.arange(6.0).reshape(6, 1, 1).expand(6, 2, 2)
    whole = Masks(each, padding).joined(3, 2)
    assert whole.shape == (3, 2, 2, 2)
    assert whole[1, 1].tolist() == [[5.0, 6.0]] * 2  # 3, of the fourth, and 2 and 3, of the second sequence

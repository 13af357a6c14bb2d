"""What a recorded function was called with."""

import torch
from torch import nn

from bitwright.graph import record
from bitwright.graph.recording.tensors import TENSOR


class Moves(nn.Module):
    def forward(self, x, y):
        z = torch.cat([x, y], dim=1)[:, 1:]
        return z.transpose(0, 1).sum(dim=(0,), keepdim=True) + 2


def test_tensors_are_left_out():
    graph = record(Moves(), (torch.ones(2, 3), torch.ones(2, 3)))
    assert {node.kind: node.arguments for node in graph.functions()} == {
        "cat": (([TENSOR, TENSOR],), {"dim": 1}),
        "getitem": ((TENSOR, (slice(None), slice(1, None))), {}),
        "permute": ((TENSOR, 0, 1), {}),
        "sum": ((TENSOR,), {"dim": (0,), "keepdim": True}),
        "add": ((TENSOR, 2), {}),
    }

"""Sequences as single operators, under `torch.compile`: a compiler would unroll every step, for minutes."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .kernel import Form, Kernel, Tensors

__all__ = ["compiled"]


def compiled(kernel: Kernel, tensors: Tensors, form: Form, learned: bool) -> Sequence[Tensor]:
    raise NotImplementedError

"""What tests of recurrent layers share."""

import warnings

import pytest
import torch
from torch import nn


@pytest.fixture(scope="session", autouse=True)
def torch_has_warned():
    """Torch says, once in a process, that it has no fast kernel for projections."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nn.LSTM(2, 2, proj_size=1)(torch.zeros(1, 1, 2))

"""The penalty on PACT's clipping levels."""

import re

import pytest
import torch
from torch import nn

import bitwright.nn as qnn
from bitwright.nn import range_penalty
from bitwright.qcore import QuantizerError
from bitwright.quantizers import Uint4Act, Uint4ActPACT


def test_range_penalty():
    model = nn.Sequential(
        qnn.QuantReLU(act_quant=Uint4ActPACT, max_value=3.0),
        qnn.QuantReLU(act_quant=Uint4ActPACT, max_value=2.0),
        qnn.QuantReLU(act_quant=Uint4Act),
    )
    penalty = range_penalty(model)
    assert penalty.item() == 13
    penalty.backward()
    assert [each.grad for each in model.parameters()] == [torch.tensor([6.0]), torch.tensor([4.0]), None]
    assert range_penalty(nn.ReLU()).item() == 0


def test_range_penalty_takes_a_model():
    expected = "range_penalty: 3 is not a model. Pass a torch.nn.Module, such as qnn.QuantLinear(8, 4)."
    with pytest.raises(QuantizerError, match=f"^{re.escape(expected)}$"):
        range_penalty(3)  # type: ignore[arg-type]

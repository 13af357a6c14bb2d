import re

import pytest
import torch
from torch import nn

import bitwright.nn as qnn
from bitwright.qcore import Anneal, QuantizerError


def test_goes_to_the_end():
    shared = qnn.QuantLinear(4, 4, weight_bit_width=Anneal(8, 4, steps=10, after=5))
    model = nn.Sequential(
        shared,
        qnn.QuantLinear(4, 4, weight_quant=shared.weight_quant),
        qnn.QuantReLU(after=3, bit_width=2, scale=1.0),
        qnn.QuantLinear(4, 2),
    )
    qnn.finish_schedules(model)
    assert model[0].weight_quant.clock.steps.item() == 30
    assert model[1].quant_weight().bit_width == 4
    assert model[2](torch.tensor([0.3])).item() == 0  # in training, too
    qnn.finish_schedules(model.eval())
    assert model[2].act_quant.clock.steps.item() == 4  # nothing is counted back


def test_needs_a_model():
    message = "finish_schedules: 3 is not a model. Pass a torch.nn.Module, such as qnn.QuantLinear(8, 4)."
    with pytest.raises(QuantizerError, match=re.escape(message)):
        qnn.finish_schedules(3)

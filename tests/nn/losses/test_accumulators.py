import re
from typing import Any

import pytest
import torch
from torch import nn

import bitwright.nn as qnn
from bitwright.nn import accumulator_penalty
from bitwright.qcore import QuantizerError
from bitwright.quantizers import Int8WeightPerChannelA2Q, Int8WeightPerChannelA2QPlus, Uint4Act

KINDS = [Int8WeightPerChannelA2Q, Int8WeightPerChannelA2QPlus]


def layer(kind: Any) -> qnn.QuantLinear:
    torch.manual_seed(0)
    made = qnn.QuantLinear(64, 3, weight_quant=kind(accumulator_bit_width=10), input_quant=Uint4Act, input_scale=0.1)
    made(torch.rand(2, 64))
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_logarithm_of_norm_over_limit(kind: Any) -> None:
    found = layer(kind)
    norm = found.weight_quant.transform.norm  # type: ignore[union-attr]
    assert accumulator_penalty(found).item() == pytest.approx(0.0, abs=1e-4)  # at the start norms are at the limit
    with torch.no_grad():
        norm.magnitude_offset.copy_(torch.tensor([1.0, -2.0, 0.5]))
    penalty = accumulator_penalty(found)
    assert penalty.item() == pytest.approx(1.5, abs=1e-4)
    penalty.backward()
    assert norm.magnitude_offset.grad.tolist() == [1.0, 0.0, 1.0]


def test_sum_over_the_model() -> None:
    first, second = layer(KINDS[0]), layer(KINDS[1])
    for each in (first, second):
        with torch.no_grad():
            each.weight_quant.transform.norm.magnitude_offset.fill_(1.0)  # type: ignore[union-attr]
    model = nn.ModuleList([first, second, qnn.QuantLinear(3, 2), nn.ReLU()])
    assert accumulator_penalty(model).item() == pytest.approx(6.0, abs=1e-3)


def test_nothing_to_add() -> None:
    assert accumulator_penalty(nn.Sequential(qnn.QuantLinear(3, 2), nn.ReLU())).item() == 0.0
    declared = qnn.QuantLSTM(
        4, 3, weight_quant=KINDS[0](input_bit_width=8, input_signed=True, accumulator_bit_width=32)
    )  # of several weights
    assert accumulator_penalty(declared).item() == 0.0


def test_refused() -> None:
    message = "accumulator_penalty: 3 is not a model. Pass a torch.nn.Module, such as qnn.QuantLinear(8, 4)."
    with pytest.raises(QuantizerError, match=f"^{re.escape(message)}$"):
        accumulator_penalty(3)  # type: ignore[arg-type]
    message = (
        "accumulator_penalty: 0: the grid of the input is not known. Call it after the forward of the model, or say "
        "which integers there are: weight_input_bit_width=8, weight_input_signed=False."
    )
    with pytest.raises(QuantizerError, match=f"^{re.escape(message)}$"):
        accumulator_penalty(nn.Sequential(qnn.QuantLinear(3, 2, weight_quant=KINDS[0])))

from typing import Any

import pytest
import torch

import bitwright.nn as qnn
from bitwright.qcore import A2Q, A2QPlus, LearnedScaling, PerAxis, TowardZero, WeightNorm, settings
from bitwright.quantizers import Int8WeightPerChannelA2Q, Int8WeightPerChannelA2QPlus, Int8WeightPerChannelNorm

INPUT = {"weight_input_bit_width": 8, "weight_input_signed": False}


@pytest.mark.parametrize(
    ("quantizer", "transform", "given"),
    [
        (Int8WeightPerChannelNorm, WeightNorm, {}),
        (Int8WeightPerChannelA2Q, A2Q, INPUT),
        (Int8WeightPerChannelA2QPlus, A2QPlus, INPUT),
    ],
)
def test_what_the_name_says(quantizer: Any, transform: type, given: dict[str, Any]) -> None:
    layer = qnn.QuantConv2d(3, 4, 3, weight_quant=quantizer, **given)
    quant: Any = layer.weight_quant
    assert type(quant.transform) is transform
    assert (quant.bit_width, quant.signed, quant.narrow_range) == (8, True, True)
    assert quant.granularity == PerAxis(0)
    assert isinstance(quant.scaling, LearnedScaling)
    assert isinstance(quant.rounding, TowardZero) == (transform is not WeightNorm)
    assert layer.quant_weight().scale.shape == (4, 1, 1, 1)  # type: ignore[union-attr]
    assert settings(quantizer)["quantizes"].declared == "weight"


def test_accumulators_have_32_bits_unless_said() -> None:
    layer = qnn.QuantConv2d(3, 4, 3, weight_quant=Int8WeightPerChannelA2Q, **INPUT)
    assert layer.weight_quant.transform.accumulator_bit_width == 32  # type: ignore[union-attr]
    assert repr(layer.weight_quant.transform).startswith("A2Q(\n  32 bits, inputs from 0 to 255\n")  # type: ignore[union-attr]
    plain = qnn.QuantConv2d(3, 4, 3, weight_rounding="toward_zero")
    plain.load_state_dict({"weight": layer.weight, "bias": layer.bias}, strict=False)
    plain.weight_quant = Int8WeightPerChannelNorm(rounding="toward_zero")
    assert torch.equal(layer.int_weight(), plain.int_weight())

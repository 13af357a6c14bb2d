"""Ready rules are dicts of keywords."""

import re

import pytest

from bitwright.graph.errors import GraphError
from bitwright.graph.rules import ready
from bitwright.graph.rules.ready import W2, W3, W4, W4A4, W4A8, W8, W8A8, integer
from bitwright.quantizers import (
    Int2WeightPerChannel,
    Int3WeightPerChannel,
    Int4Act,
    Int4WeightPerChannel,
    Int8Act,
    Int8WeightPerChannel,
    Int32Bias,
)


def test_what_they_say():
    assert W8A8 == {"weight_quant": Int8WeightPerChannel, "input_quant": Int8Act}
    assert W4A8 == {"weight_quant": Int4WeightPerChannel, "input_quant": Int8Act}
    assert W4A4 == {"weight_quant": Int4WeightPerChannel, "input_quant": Int4Act}
    assert [each["weight_quant"] for each in (W8, W4, W3, W2)] == [
        Int8WeightPerChannel,
        Int4WeightPerChannel,
        Int3WeightPerChannel,
        Int2WeightPerChannel,
    ]
    assert {type(getattr(ready, name)) for name in ready.__all__ if name != "integer"} == {dict}


def test_integer():
    assert integer(4, 8) == {**W4A8, "bias_quant": Int32Bias}
    assert integer(12, 16)["weight_quant"] == Int8WeightPerChannel(bit_width=12)
    assert integer(12, 16)["input_quant"] == Int8Act(bit_width=16)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((1, 8), "integer: weights=1 is not possible: expected a whole number of bits from 2 to 16."),
        ((8, 8.0), "integer: activations=8.0 is not possible: expected a whole number of bits from 2 to 16."),
        ((True, 8), "integer: weights=True is not possible: expected a whole number of bits from 2 to 16."),
    ],
)
def test_bits_that_no_integers_have(args, message):
    with pytest.raises(GraphError, match=f"^{re.escape(message)}$"):
        integer(*args)

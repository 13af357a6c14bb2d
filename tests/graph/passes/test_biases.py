"""Biases that a pass changes."""

import pytest
import torch
from torch import nn

import bitwright.nn as qnn
from bitwright.graph.passes.biases import Biases
from bitwright.quantizers import Int8Act, Int32Bias


def layer(bias=1.0, **settings):
    made = qnn.QuantLinear(1, 1, bias is not None, **settings)
    if bias is not None:
        nn.init.constant_(made.bias, bias)
    return made


def test_what_is_not_kept_is_as_before():
    biases = Biases({"a": layer(1.0), "b": layer(2.0), "c": layer(None)})
    parameter = biases["a"]
    with biases.changing():
        for path in "abc":
            assert biases.add(path, torch.tensor([0.5])).tolist() == [0.5]
        assert [biases[path].item() for path in "abc"] == [1.5, 2.5, 0.5]
        biases.reset(["b"])
        assert biases["b"].item() == 2.0
        biases.keep(["a"])
    assert [each.bias is None for each in biases.layers.values()] == [False, False, True]
    assert [biases[path].item() for path in "ab"] == [1.5, 2.0]
    assert biases["a"] is parameter


def test_an_exception_puts_everything_back():
    biases = Biases({"a": layer(1.0), "c": layer(None)})
    with pytest.raises(RuntimeError), biases.changing():
        biases.add("a", torch.ones(2))  # of another shape: after the other layer has got its zeros
    assert biases["a"].item() == 1.0
    assert biases.layers["c"].bias is None


def test_as_floats():
    biases = Biases({"a": layer(1.0), "c": layer(None)})
    for shift in (0.5, 0.25):
        with biases.changing():
            for path in "ac":
                biases.add(path, torch.tensor([shift]))
            biases.keep("ac")
    with biases.as_floats():
        assert [biases[path].item() for path in "ac"] == [1.0, 0.0]
    assert [biases[path].item() for path in "ac"] == [1.75, 0.75]
    nn.init.constant_(biases["a"], 3.0)
    with biases.as_floats():
        assert [biases[path].item() for path in "ac"] == [3.0, 0.0]


def test_quantized_biases_move_by_whole_steps():
    """The scale is 0.5 x 0.5: a shift of 0.3 moves the bias to 1.3, and the outputs by 0.25."""
    made = layer(1.0, input_quant=Int8Act, input_scale=0.5, bias_quant=Int32Bias, weight_scale=0.5)
    made(torch.ones(1, 1))
    biases = Biases({"a": made})
    with biases.changing():
        assert biases.add("a", torch.tensor([0.3])).tolist() == [0.25]
        assert biases["a"].item() == pytest.approx(1.3)
        biases.reset("a")
        assert biases["a"].item() == 1.0

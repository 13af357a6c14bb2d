import contextlib

import pytest
import torch

import bitwright.nn as qnn
from bitwright.qcore import BitwrightWarning, Grid, resolve
from bitwright.quantizers import (
    Int8Act,
    Int8Bias,
    Int8BiasOwnScale,
    Int8WeightPerChannel,
    Int16Bias,
    Int16BiasOwnScale,
    Int24Bias,
    Int32Bias,
)

BIAS = torch.tensor([1.27, -0.3, 100.0])


@pytest.mark.parametrize(
    ("quantizer", "codes"),
    [
        (Int32Bias, [12700, -3000, 1000000]),
        (Int24Bias, [12700, -3000, 1000000]),
        (Int16Bias, [12700, -3000, 32767]),
        (Int8Bias, [127, -128, 127]),
    ],
)
def test_scale_of_the_products(quantizer, codes):
    quant, grids = resolve(quantizer), (Grid(torch.tensor(0.01)), Grid(torch.tensor(0.01)))
    clips = codes[-1] != 1000000
    with pytest.warns(BitwrightWarning, match="is clipped") if clips else contextlib.nullcontext():
        values, grid = quant.quantize(BIAS, *grids)
    assert torch.equal(quant.quantize(BIAS, *grids)[0], values)  # and no second warning
    assert grid.scale.item() == pytest.approx(1e-4)
    assert grid.to_int(values).tolist() == codes


@pytest.mark.parametrize(
    ("quantizer", "scale", "codes"),
    [
        (Int8BiasOwnScale, 100 / 127, [2, 0, 127]),
        (Int16BiasOwnScale, 100 / 32767, [416, -98, 32767]),
        (Int8BiasOwnScale(restriction="power_of_two"), 1.0, [1, 0, 100]),
    ],
    ids=repr,
)
def test_scale_of_its_own(quantizer, scale, codes):
    values, grid = resolve(quantizer).quantize(BIAS)
    assert grid.scale.item() == pytest.approx(scale)
    assert grid.to_int(values).tolist() == codes


def test_scale_of_the_products_in_a_layer():
    layer = qnn.QuantLinear(
        4, 3, weight_quant=Int8WeightPerChannel, bias_quant=Int32Bias, input_quant=Int8Act(scale=0.5)
    )
    layer(torch.randn(2, 4))
    assert torch.equal(layer.quant_bias().scale, 0.5 * layer.quant_weight().scale.reshape(-1))
    torch.testing.assert_close(layer.quant_bias().scale * layer.int_bias(), layer.bias, rtol=0, atol=0.01)

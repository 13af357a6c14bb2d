import pytest
import torch

import bitwright.nn as qnn
from bitwright.qcore import resolve, settings
from bitwright.quantizers import (
    Int4Act,
    Int8Act,
    Int8ActPerChannel,
    Int8ActPowerOfTwo,
    Int16ActPowerOfTwo,
    ShiftedUint4Act,
    ShiftedUint8Act,
    ShiftedUint8ActPerChannel,
    Uint2Act,
    Uint8Act,
    Uint8ActPerChannel,
    Uint8ActPowerOfTwo,
)

X = torch.tensor([[-1.0, 0.5, 0.25], [1.55, 0.0, -0.1]])


@pytest.mark.parametrize(
    ("quantizer", "scale", "zero_point", "codes"),
    [
        (Int8Act, [1.55 / 128], None, [[-83, 41, 21], [127, 0, -8]]),
        (Uint8Act, [1.55 / 255], None, [[0, 82, 41], [255, 0, 0]]),
        (Int4Act, [1.55 / 8], None, [[-5, 3, 1], [7, 0, -1]]),
        (Uint2Act, [1.55 / 3], None, [[0, 1, 0], [3, 0, 0]]),
        (Int8ActPowerOfTwo, [2 / 128], None, [[-64, 32, 16], [99, 0, -6]]),
        (Int16ActPowerOfTwo, [2 / 2**15], None, [[-16384, 8192, 4096], [25395, 0, -1638]]),
        (Uint8ActPowerOfTwo, [2 / 256], None, [[0, 64, 32], [198, 0, 0]]),
        (Int8ActPerChannel, [1.55 / 128, 0.5 / 128, 0.25 / 128], None, [[-83, 127, 127], [127, 0, -51]]),
        (Uint8ActPerChannel, [1.55 / 255, 0.5 / 255, 0.25 / 255], None, [[0, 255, 255], [255, 0, 0]]),
        (ShiftedUint8Act, [0.01], [100], [[0, 150, 125], [255, 100, 90]]),
        (ShiftedUint4Act, [2.55 / 15], [6], [[0, 9, 7], [15, 6, 5]]),
        (ShiftedUint8ActPerChannel, [0.01, 0.5 / 255, 0.35 / 255], [100, 0, 73], [[0, 255, 255], [255, 0, 0]]),
    ],
    ids=lambda each: repr(each) if isinstance(each, type) else "",
)
def test_numbers(quantizer, scale, zero_point, codes):
    """After one batch, whose range is used as it is."""
    quant = resolve(quantizer)
    values, grid = quant.quantize(X)
    assert grid.scale.reshape(-1).tolist() == pytest.approx(scale)
    assert (None if grid.zero_point is None else grid.zero_point.reshape(-1).tolist()) == zero_point
    assert grid.to_int(values).tolist() == codes
    quant.eval()
    assert torch.equal(quant(X), values)


def test_ranges_are_collected_over_300_batches():
    quant = resolve(Int8Act)
    for batch in range(301):
        assert quant.scaling.calibrating == (batch < 300)
        quant(X)
    assert (quant.scaling.calibration_steps, quant.scaling.momentum, quant.scaling.statistic.percentile) == (
        300,
        0.1,
        99.999,
    )


def test_outliers_are_cut_off_by_percentile():
    x = torch.cat([torch.full((99,), 1.28), torch.tensor([100.0])])
    quant = resolve(Int8Act(percentile=99.0))
    assert quant.quantize(x)[1].scale.item() == pytest.approx(0.01)
    shifted = resolve(ShiftedUint8Act(high_percentile=99.0))
    assert shifted.quantize(x)[1].scale.item() == pytest.approx(1.28 / 255)
    assert resolve(ShiftedUint8Act(low_percentile=2.0)).quantize(-x)[1].zero_point.item() == 255


def test_axis_by_keyword():
    x = torch.rand(2, 3, 4)
    for axis, shape in ((0, (2, 1, 1)), (2, (1, 1, 4)), (-1, (1, 1, 4))):
        assert resolve(Int8ActPerChannel(axis=axis)).quantize(x)[1].scale.shape == shape
        assert resolve(Int8Act(axis=axis)).quantize(x)[1].scale.shape == shape


@pytest.mark.parametrize(
    ("quantizer", "scale"), [(Int8Act, 6 / 128), (Uint8Act, 6 / 255), (Int8ActPowerOfTwo, 8 / 128)]
)
def test_constant_range(quantizer, scale):
    quant = resolve(quantizer(max_value=6.0))
    assert quant.quantize(X)[1].scale.item() == pytest.approx(scale)
    assert list(quant.parameters()) == []


def test_every_activation_layer_takes_one():
    for layer in (qnn.QuantIdentity, qnn.QuantReLU, qnn.QuantSigmoid, qnn.QuantTanh):
        for quantizer in (Int8Act, Uint8Act, ShiftedUint8Act, Int8ActPerChannel):
            y = layer(act_quant=quantizer, return_quant_tensor=True)(X)
            assert y.is_valid


def test_activations_have_one_scale_but_where_they_say_so():
    assert {settings(each)["axis"].declared for each in (Int8Act, Uint8Act, ShiftedUint8Act)} == {None}
    assert {settings(each)["axis"].declared for each in (Int8ActPerChannel, ShiftedUint8ActPerChannel)} == {1}

import pytest
import torch

from bitwright.qcore import resolve
from bitwright.quantizers import (
    Int2WeightPerTensor,
    Int4WeightPerChannel,
    Int8WeightPerChannel,
    Int8WeightPerChannelLearned,
    Int8WeightPerChannelMSE,
    Int8WeightPerChannelPowerOfTwo,
    Int8WeightPerTensor,
    Int8WeightPerTensorLearned,
    Int8WeightPerTensorMSE,
    Int8WeightPerTensorPowerOfTwo,
    ShiftedUint4WeightPerTensor,
    ShiftedUint8WeightPerChannel,
    Uint4WeightPerTensor,
    Uint8WeightPerChannel,
)

WEIGHT = torch.tensor([[-1.27, 0.5, 0.004], [0.02, 0.635, -0.3]])


def quantized(quantizer):
    quant = resolve(quantizer, {"channel_axis": 0, "channels": 2, "shape": (2, 3)})
    values, grid = quant.quantize(WEIGHT)
    zero_point = None if grid.zero_point is None else grid.zero_point.reshape(-1).tolist()
    return grid.scale.reshape(-1).tolist(), zero_point, grid.to_int(values).tolist()


@pytest.mark.parametrize(
    ("quantizer", "scale", "zero_point", "codes"),
    [
        (Int8WeightPerTensor, [0.01], None, [[-127, 50, 0], [2, 64, -30]]),
        (Int8WeightPerTensorLearned, [0.01], None, [[-127, 50, 0], [2, 64, -30]]),
        (Int8WeightPerChannel, [0.01, 0.005], None, [[-127, 50, 0], [4, 127, -60]]),
        (Int8WeightPerChannelLearned, [0.01, 0.005], None, [[-127, 50, 0], [4, 127, -60]]),
        (Int2WeightPerTensor, [1.27], None, [[-1, 0, 0], [0, 0, 0]]),
        (Int4WeightPerChannel, [1.27 / 7, 0.635 / 7], None, [[-7, 3, 0], [0, 7, -3]]),
        (Int8WeightPerTensorPowerOfTwo, [2 / 128], None, [[-81, 32, 0], [1, 41, -19]]),
        (Int8WeightPerChannelPowerOfTwo, [2 / 128, 1 / 128], None, [[-81, 32, 0], [3, 81, -38]]),
        (Uint4WeightPerTensor, [1.27 / 15], None, [[0, 6, 0], [0, 8, 0]]),
        (Uint8WeightPerChannel, [1.27 / 255, 0.635 / 255], None, [[0, 100, 1], [8, 255, 0]]),
        (ShiftedUint4WeightPerTensor, [1.905 / 15], [10], [[0, 14, 10], [10, 15, 8]]),
        (ShiftedUint8WeightPerChannel, [1.77 / 255, 0.935 / 255], [183, 82], [[0, 255, 184], [87, 255, 0]]),
    ],
    ids=lambda each: repr(each) if isinstance(each, type) else "",
)
def test_numbers(quantizer, scale, zero_point, codes):
    found = quantized(quantizer)
    assert found[0] == pytest.approx(scale)
    assert found[1] == zero_point
    assert found[2] == codes


@pytest.mark.parametrize("quantizer", [Int8WeightPerTensorMSE, Int8WeightPerChannelMSE])
def test_search_for_the_least_squared_error(quantizer):
    torch.manual_seed(0)
    weight = torch.randn(4, 500)
    errors = []
    for each in (quantizer, quantizer(statistic="abs_max")):
        quant = resolve(each(bit_width=3), {"channel_axis": 0, "channels": 4})
        errors.append((quant(weight) - weight).square().mean().item())
    assert errors[0] < 0.7 * errors[1]


@pytest.mark.parametrize(
    ("quantizer", "shares"),
    [
        (Int8WeightPerTensor, [[-2.125, 0, 0], [0, 0, 0]]),
        (Int8WeightPerChannel, [[0.75, 0, 0], [0, 1.75, 0]]),
    ],
)
def test_detached_scale(quantizer, shares):
    """The scale's share in the gradient goes to the largest magnitude, and is left out; the values are the same.

    Scales are 1/128, or 1/128 and 1/256: what is added up is exact in every order.
    """
    outer = torch.arange(6.0).reshape(2, 3)
    gradients, values = [], []
    for detached in (False, True):
        leaf = (torch.tensor([[-127.0, 50.25, 0.25], [1.125, 63.5, -15.25]]) / 128).requires_grad_()
        quant = resolve(quantizer(detach_scale=detached), {"channel_axis": 0})
        values.append(quant(leaf))
        gradients.append(torch.autograd.grad((values[-1] * outer).sum(), leaf)[0])
    assert torch.equal(*values)
    assert torch.equal(gradients[1], outer)
    torch.testing.assert_close(gradients[0], outer + torch.tensor(shares) / 127, rtol=1e-6, atol=0)

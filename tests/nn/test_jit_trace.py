import io
import itertools

import pytest
import torch
from torch import nn

import bitwright.nn as qnn
from bitwright.quantizers import Int8WeightPerChannel, Int8WeightPerTensorLearned, Int32Bias, ShiftedUint8Act

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),  # torch's word about its own tracer
    pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning"),  # and from 2.15 on
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]

WAYS = list(itertools.product([True, False], [True, False], [0, 1]))


def plain():
    return nn.Sequential(qnn.QuantConv2d(3, 4, 3), qnn.QuantReLU(calibration_steps=1))


def carried():
    return nn.Sequential(
        qnn.QuantIdentity(act_quant=ShiftedUint8Act, calibration_steps=1, return_quant_tensor=True),
        qnn.QuantConv2d(3, 4, 3, weight_quant=Int8WeightPerTensorLearned, bias_quant=Int32Bias),
        qnn.QuantReLU(calibration_steps=1),
        qnn.QuantConv2d(4, 2, 3, weight_quant=Int8WeightPerChannel),
    )


@pytest.mark.parametrize(("gradients", "check", "forwards"), WAYS)
@pytest.mark.parametrize("make", [plain, carried])
def test_a_traced_model_computes_the_same(make, gradients, check, forwards):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8)
    model = make()
    model(x)
    model.eval()
    with torch.set_grad_enabled(gradients):
        for _ in range(forwards):
            model(x)
        traced = torch.jit.trace(model, x, check_trace=check)
        torch.jit.save(traced, io.BytesIO())
        torch.testing.assert_close(traced(2 * x), model(2 * x), rtol=0, atol=1e-6)

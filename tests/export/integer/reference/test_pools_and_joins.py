"""Pools, sums, products and concatenations in a run on integers: the model's own integers."""

import pytest
import torch
from torch import nn

import bitwright.nn as qnn
from bitwright.export import integers, run_integers
from bitwright.qcore import values_of
from bitwright.quantizers import Int8Act, Int8ActPerChannel, Int32Bias, ShiftedUint8Act

POOLS = {
    "two by two": lambda: qnn.TruncAvgPool2d(2),
    "floor": lambda: qnn.TruncAvgPool2d(2, rounding="floor"),
    "padded": lambda: qnn.TruncAvgPool2d(3, 2, 1, True, False),
    "a divisor": lambda: qnn.TruncAvgPool2d(2, divisor_override=1),
    "four bits": lambda: qnn.TruncAvgPool2d(2, bit_width=4),
    "eight bits of three by three": lambda: qnn.TruncAvgPool2d(3, bit_width=8),
    "adaptive": lambda: qnn.TruncAdaptiveAvgPool2d(3),
    "its own quantizer": lambda: qnn.TruncAvgPool2d(2, input_quant=Int8Act, input_bit_width=6),
}


def image(seed=0):
    return torch.randn(2, 4, 8, 7, generator=torch.Generator().manual_seed(seed))


class Clamped(nn.Module):
    def __init__(self):
        super().__init__()
        self.quantize = qnn.QuantIdentity(scale=0.1, return_quant_tensor=True)

    def forward(self, x):
        return self.quantize(x).clamp(-1, 1)


@pytest.mark.parametrize("entry", [Int8Act, ShiftedUint8Act, Int8ActPerChannel])
@pytest.mark.parametrize("name", POOLS)
def test_truncating_pools_compute_the_models_integers(name, entry):
    pool = POOLS[name]()
    if entry is ShiftedUint8Act and pool.bit_width is not None:
        pytest.skip("a shift makes zero points fractions")
    pool.return_quant_tensor = True
    convolves = entry is not Int8ActPerChannel
    model = nn.Sequential(
        qnn.QuantIdentity(act_quant=entry, calibration_steps=1, return_quant_tensor=True),
        pool,
        qnn.QuantConv2d(4, 3, 1, bias_quant=Int32Bias) if convolves else nn.Identity(),
    )
    model(image())
    model(image(1))  # a second batch, for a quantizer behind the first
    qnn.finish_calibration(model)
    run = run_integers(model.eval(), image(2))
    assert run.floats == {}
    torch.testing.assert_close(run.outputs, values_of(model(image(2))))
    codes = model[1](model[0](image(2))).int().to(torch.int64)
    seen = {}
    with torch.no_grad():
        handle = model[1].register_forward_hook(lambda module, given, output: seen.update(out=output))
        run_integers(model, image(2))
        handle.remove()
    zero_point = model[1](model[0](image(2))).zero_point
    assert torch.equal(seen["out"].terms[0].codes + zero_point.to(torch.int64), codes)


@pytest.mark.parametrize("entry", [qnn.QuantIdentity(scale=0.1), Clamped()], ids=["plain", "off its grid"])
def test_a_pool_whose_input_is_on_no_grid_computes_in_floats(entry):
    model = nn.Sequential(entry, qnn.TruncAvgPool2d(2)).eval()
    run = run_integers(model, image())
    assert run.floats == {"1": {"avg_pool2d": 1}}
    torch.testing.assert_close(run.outputs, model(image()))


class Joins(nn.Module):
    """Every join of two tensors, and a linear layer that needs its grid."""

    def __init__(self):
        super().__init__()
        self.a, self.b = qnn.QuantIdentity(return_quant_tensor=True), qnn.QuantIdentity(return_quant_tensor=True)
        self.add = qnn.QuantAdd(return_quant_tensor=True)
        self.sum = qnn.QuantAdd(act_quant=None, return_quant_tensor=True)
        self.cat = qnn.QuantCat(return_quant_tensor=True)
        self.mul = qnn.QuantMul()
        self.matmul = qnn.QuantMatmul()
        self.linear = qnn.QuantLinear(7, 3, bias_quant=Int32Bias)

    def forward(self, x):
        a, b = self.a(x), self.b(x.flip(1))
        joined = self.cat([a, b], dim=1)
        return self.add(a, b), self.linear(self.sum(a, b)), joined, self.mul(a, b), self.matmul(a, b.transpose(-1, -2))


def test_joins_need_the_integers_alone():
    model = Joins()
    for seed in range(3):
        model(image(seed))
    qnn.finish_calibration(model)
    model.eval()
    run = run_integers(model, image(3))
    assert run.floats == {}
    for one, other in zip(run.outputs, model(image(3)), strict=True):
        torch.testing.assert_close(one, values_of(other))


def test_operands_that_share_a_quantizer_are_told_apart():
    model = nn.ModuleDict({"add": qnn.QuantAdd(scale=1.0, input_scale=0.5)})
    model.forward = lambda a, b: model["add"](a, b)
    found = integers(model, (torch.tensor([0.6]), torch.tensor([1.1])))
    assert sorted(found["add"].quantizers) == ["act", "input", "input.1"]
    run = run_integers(model, (torch.tensor([0.6]), torch.tensor([1.1])))
    assert run.codes["add.input_quant"].tolist() == [1]
    assert run.codes["add.input_quant.1"].tolist() == [2]
    assert run.outputs.tolist() == [2.0]

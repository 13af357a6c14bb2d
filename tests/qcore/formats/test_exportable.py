"""What `nearest` becomes in ONNX computes the same numbers."""

import math

import pytest
import torch
from torch import nn

from bitwright.qcore import (
    BINARY,
    E2M1,
    E4M3,
    E4M3FNUZ,
    E5M2,
    NF4,
    AdditivePowersOfTwo,
    HalfEven,
    Integers,
    MXScale,
    OddIntegers,
    TwoLevel,
    powers_of_two,
)

onnxruntime = pytest.importorskip("onnxruntime")
FORMATS = [
    E4M3,
    E5M2,
    E4M3FNUZ,
    E2M1,
    powers_of_two(4),
    NF4,
    AdditivePowersOfTwo(4),
    BINARY,
    OddIntegers(2),
    Integers(4),
]


class Nearest(nn.Module):
    def __init__(self, form, restriction=None):
        super().__init__()
        self.form, self.restriction = form, restriction

    def forward(self, x):
        if self.restriction is None:
            return self.form.nearest(x, HalfEven())
        scale = self.restriction.scale(x.abs().amax(1), self.form)[:, None]
        return self.form.nearest(x / scale, HalfEven()) * scale


def exported(module, x):
    program = torch.onnx.export(module.eval(), (x,), dynamo=True, opset_version=21, verbose=False)
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    return torch.tensor(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])


def numbers(form):
    known = torch.tensor([level for level in form.levels if math.isfinite(level)])
    middles = (known.sort().values[1:] + known.sort().values[:-1]) / 2
    around = torch.cat([known, middles, torch.nextafter(middles, torch.tensor(1e9)), torch.randn(200) * form.high])
    return around.reshape(1, -1)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMATS, ids=str)
def test_nearest(form):
    torch.manual_seed(0)
    x = numbers(form)
    assert torch.equal(exported(Nearest(form), x), form.nearest(x, HalfEven()))


@pytest.mark.slow
@pytest.mark.parametrize("restriction", [MXScale("floor"), MXScale("even"), MXScale("rceil"), TwoLevel()], ids=repr)
@pytest.mark.parametrize("form", [E2M1, E4M3], ids=str)
def test_scales_of_blocks(form, restriction):
    torch.manual_seed(0)
    x = torch.randn(64, 16) * 2.0 ** torch.randint(-20, 20, (64, 1))
    module = Nearest(form, restriction)
    assert torch.equal(exported(module, x), module(x))

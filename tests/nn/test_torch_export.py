"""torch.export of evaluated models: graphs of torch's own operations, for any batch size, with the same outputs."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bitwright.nn as qnn
from bitwright.quantizers import (
    Int8Act,
    Int8ActPerChannel,
    Int8BiasOwnScale,
    Int8WeightPerChannel,
    Int8WeightPerChannelLearned,
    Int32Bias,
    ShiftedUint8Act,
    ShiftedUint8WeightPerChannel,
)


class Carried(nn.Module):
    """QuantTensors between layers, branches added on one grid, and at the end."""

    def __init__(self):
        super().__init__()
        kwargs = {"return_quant_tensor": True, "calibration_steps": 2}
        self.inp = qnn.QuantIdentity(**kwargs)
        self.conv1 = qnn.QuantConv2d(3, 4, 3, padding=1, bias_quant=Int32Bias, weight_quant=Int8WeightPerChannelLearned)
        self.act1 = qnn.QuantReLU(**kwargs)
        self.conv2 = qnn.QuantConv2d(4, 4, 3, padding=1, bias_quant=Int32Bias, return_quant_tensor=True)
        self.act2 = qnn.QuantReLU(act_quant=self.act1.act_quant, return_quant_tensor=True)
        self.fc = qnn.QuantLinear(16, 5, bias_quant=Int32Bias, output_quant=ShiftedUint8Act, output_calibration_steps=2)

    def forward(self, x):
        x = self.act1(self.conv1(self.inp(x)))
        x = self.act2(self.conv2(x)) + x
        return self.fc(F.max_pool2d(x, 4).flatten(1))


class Plain(nn.Module):
    """Plain tensors between layers, scales of every kind."""

    def __init__(self):
        super().__init__()
        self.inp = qnn.QuantIdentity(act_quant=Int8ActPerChannel, calibration_steps=2)
        self.conv = qnn.QuantConv2d(3, 4, 3, weight_quant=ShiftedUint8WeightPerChannel, bias_quant=Int8BiasOwnScale)
        self.norm = nn.BatchNorm2d(4)
        self.act = qnn.QuantReLU(scaling="running", bit_width=4)
        self.up = qnn.QuantConvTranspose2d(4, 4, 2, groups=2, weight_quant=Int8WeightPerChannel)
        self.gelu = qnn.QuantGELU(calibration_steps=2)
        self.fc = qnn.QuantLinear(4, 5, input_quant=Int8Act, input_scaling="learned", weight_scale=2**-6)

    def forward(self, x):
        x = self.gelu(self.up(self.act(self.norm(self.conv(self.inp(x))))))
        return self.fc(x.mean((2, 3)))


def batch(step, size=4):
    return torch.randn(size, 3, 8, 8, generator=torch.Generator().manual_seed(step))


def trained(make):
    torch.manual_seed(0)
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    for step in range(5):
        optimizer.zero_grad()
        model(batch(step)).square().mean().backward()
        optimizer.step()
    return model.eval()


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("make", [Carried, Plain])
def test_exported_for_any_batch_size(make, strict):
    model = trained(make)
    sizes = ({0: torch.export.Dim("batch", min=1, max=64)},)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        model(batch(0))  # what is cached must not go into the graph
        program = torch.export.export(model, (batch(0),), strict=strict, dynamic_shapes=sizes)
    assert {node.op for node in program.graph.nodes} == {"placeholder", "call_function", "output"}
    called = {node.target for node in program.graph.nodes if node.op == "call_function"}
    assert {target.namespace for target in called} == {"aten"}
    exported = program.module()
    for size in (1, 4, 9):
        x = batch(10 + size, size)
        out = exported(x)
        assert type(out) is torch.Tensor
        with torch.no_grad():
            torch.testing.assert_close(out, model(x), rtol=0, atol=0)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_an_exported_model_is_saved_with_its_ranges(tmp_path):
    model = trained(Carried)
    torch.export.save(torch.export.export(model, (batch(0),)), tmp_path / "model.pt2")
    program = torch.export.load(tmp_path / "model.pt2")
    for name in ("magnitude_base", "magnitude_offset"):
        key = f"inp.act_quant.scaling.{name}"
        assert torch.equal(program.state_dict[key], model.state_dict()[key])
    assert program.state_dict["inp.act_quant.scaling.magnitude_offset"].any()
    assert torch.equal(program.module()(batch(1)), model(batch(1)))

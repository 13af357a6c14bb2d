"""Tensors of quantizers that torch.export does not list: they are back afterwards, and what reads them works."""

import pytest
import torch
from torch import nn

import bitwright.nn as qnn
from bitwright.export import export_onnx_qdq, verify_onnx
from bitwright.export.capture.record import record
from bitwright.export.onnx.tracing.unlisted import unlisted
from bitwright.nn.contexts.intercepting import quantizers_of
from bitwright.quantizers import Int8Act, Int8DynamicAct

pytest.importorskip("onnxruntime")
X = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))


def model_of(**options):
    model = nn.Sequential(qnn.QuantLinear(8, 4, **options), qnn.QuantReLU(bit_width=4))
    model(X)
    qnn.finish_calibration(model)
    return model.eval()


def test_what_is_not_listed():
    model = model_of(weight_scaling="learned", input_quant=Int8DynamicAct)
    quantizers, before = quantizers_of(model), dict(model.named_parameters()) | dict(model.named_buffers())
    recording = record(model, quantizers, (X,), None)
    expected = model(X)
    with unlisted(model, quantizers, recording):
        inside = {*dict(model.named_parameters()), *dict(model.named_buffers())}
        assert {"0.weight", "0.bias"} <= inside
        assert not any(name.startswith(("0.weight_quant", "1.act_quant")) for name in inside)
        assert torch.equal(model(X), expected)
        assert inside == {*dict(model.named_parameters()), *dict(model.named_buffers())}
    after = dict(model.named_parameters()) | dict(model.named_buffers())
    assert list(after) == list(before)
    assert all(each is before[name] for name, each in after.items())


def test_they_are_back_when_the_block_fails():
    model = model_of(weight_scaling="learned")
    quantizers, before = quantizers_of(model), list(model.state_dict())
    attributes = [set(vars(part)) for part in model.modules()]
    recording = record(model, quantizers, (X,), None)
    with pytest.raises(ZeroDivisionError), unlisted(model, quantizers, recording):
        raise ZeroDivisionError
    assert list(model.state_dict()) == before
    assert [set(vars(part)) for part in model.modules()] == attributes


def test_a_forward_that_lists_them():
    class Listing(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = qnn.QuantLinear(8, 4, input_quant=Int8Act(scale=0.05), weight_scaling="learned")

        def forward(self, x):
            return self.layer(x) + sum(each.sum() + 3 for each in self.layer.weight_quant.parameters())

    model = Listing().eval()
    model(X)
    program = export_onnx_qdq(model, X)
    assert verify_onnx(model, program, -X).differences == 0


def test_a_forward_that_reads_the_module_of_a_scale():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = qnn.QuantLinear(8, 4, input_quant=Int8Act(scale=0.05), weight_scaling="learned")

        def forward(self, x):
            return self.layer(x) * self.layer.weight_quant.scaling(self.layer.weight).detach()

    model = Scaled().eval()
    model(X)
    program = export_onnx_qdq(model, X)
    assert verify_onnx(model, program, -X).differences == 0

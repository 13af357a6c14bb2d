"""What layers compute, before their outputs are quantized."""

import torch
from torch import nn

import bitwright.nn as qnn
from bitwright.graph.measuring.layer_outputs import Run, computed
from bitwright.graph.measuring.samples import deal
from bitwright.quantizers import Uint8Act

X = torch.tensor([[1.0], [2.0], [3.0], [4.0], [8.0]])


def doubled(**settings):
    layer = qnn.QuantLinear(1, 1, bias=False, weight_quant=None, **settings).requires_grad_(False)
    nn.init.constant_(layer.weight, -2.0)
    return layer


def test_means_over_those_that_estimate_and_those_that_judge():
    model = nn.Sequential(doubled())
    layers = {"0": model[0]}
    for calls in ([((X,), {})], [((X[:2],), {}), ((X[2:],), {})]):
        run = Run(model, layers, deal("pass", model, layers, calls))
        assert run.estimated["0"].tolist() == [-8.0]  # 1, 3, 8
        assert run.judged["0"].tolist() == [-6.0]  # 2, 4
        assert run.judged.of_samples("0").tolist() == [[-4.0], [-8.0]]
        assert [each.tolist() for each in run.outputs[0]] == [[[-4.0], [-8.0]]]
        assert run.most_calls == {"0": 1}
        assert run.wanted().magnitudes["0"] == (4 * (1 + 9 + 64) / 3) ** 0.5
        assert run.wanted().pooled().estimated["0"].tolist() == [-7.2]


def test_batches_one_by_one():
    class Mixes(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = doubled()

        def forward(self, x):
            return self.fc(self.fc(x) - x.mean(0))

    model = Mixes()
    layers = {"fc": model.fc}
    dealt = deal("pass", model, layers, [((X[:2],), {}), ((X[2:],), {}), ((X[:1],), {})])
    run = Run(model, layers, dealt)
    assert dealt.both is None
    assert run.most_calls == {"fc": 2}
    assert [len(each[0]) for each in run.outputs] == [3]


def test_before_the_output_is_quantized():
    layer = doubled(output_quant=Uint8Act, output_scale=0.5)
    other = doubled()
    with computed({"a": layer, "b": other}) as of:
        out = layer(X)
        assert out.max() == 0
        assert torch.equal(of(layer, out), -2 * X)
        assert torch.equal(of(other, other(X)), -2 * X)
        with qnn.unquantized(layer):
            assert torch.equal(layer(X), -2 * X)
    with qnn.unquantized(layer), computed({"a": layer}) as of:
        out = layer(X)
        assert torch.equal(out, -2 * X)  # what stood in for the quantizer still does
        assert torch.equal(of(layer, out), -2 * X)
    assert layer.output_quant.intercept is None

"""Large quantized weights: worked out again in backward, to the bit, rather than kept."""

import contextlib
import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import bitwright.nn as qnn
from bitwright.nn import weight_layer
from bitwright.nn.kernels import recompute
from bitwright.qcore import LearnedBitWidth, values_of
from bitwright.qcore.kernels import fused
from bitwright.quantizers import (
    Int8WeightPerChannel,
    Int8WeightPerChannelLearned,
    Int8WeightPerTensor,
    Int8WeightPerTensorLearned,
    ShiftedUint8WeightPerTensor,
    Uint8ActPerChannel,
)

QUANTIZERS = [
    Int8WeightPerTensor,
    Int8WeightPerTensor(detach_scale=True),
    Int8WeightPerTensor(bit_width=4, rounding="floor"),
    Int8WeightPerTensor(bit_width=12),
    Int8WeightPerChannel,
    Int8WeightPerChannel(bit_width=3),
    Int8WeightPerTensorLearned,
    Int8WeightPerChannelLearned,
]
KEPT = [  # what has no form in one step
    Int8WeightPerTensorLearned(restriction="power_of_two"),
    ShiftedUint8WeightPerTensor,
]
LAYERS = {
    "linear": (lambda quant: qnn.QuantLinear(6, 9, weight_quant=quant), (4, 6)),
    "conv": (lambda quant: qnn.QuantConv2d(6, 4, 3, weight_quant=quant), (2, 6, 7, 7)),
    "image": (lambda quant: qnn.QuantConv2d(3, 4, 3, weight_quant=quant), (2, 3, 7, 7)),
    "transposed": (lambda quant: qnn.QuantConvTranspose1d(6, 4, 3, weight_quant=quant), (2, 6, 7)),
}


def all_large(monkeypatch):
    for module in (fused, weight_layer, recompute):
        monkeypatch.setattr(module, "LARGE", 1)
    monkeypatch.setattr(recompute, "_USES", 0)
    worked_out = []
    original = fused.quantize_eagerly
    monkeypatch.setattr(fused, "quantize_eagerly", lambda *args: worked_out.append(args) or original(*args))
    return worked_out


@pytest.fixture
def small_is_large(monkeypatch):
    return all_large(monkeypatch)


def gradients(layer, x):
    leaf = x.clone().requires_grad_()
    out = layer(leaf)
    out.backward(torch.linspace(-1, 1, out.numel()).reshape(out.shape))
    return [out.detach(), leaf.grad, *(parameter.grad for parameter in layer.parameters())]


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("quantizer", [*QUANTIZERS, *KEPT], ids=repr)
def test_the_same_gradients_to_the_bit(kind, quantizer, monkeypatch):
    torch.manual_seed(0)
    make, shape = LAYERS[kind]
    layer, x = make(quantizer), torch.randn(shape)
    layer(x)  # where a learned scale starts
    twin = copy.deepcopy(layer)
    expected = gradients(twin, x)
    worked_out = all_large(monkeypatch)
    for one, other in zip(gradients(layer, x), expected, strict=True):
        assert torch.equal(one, other)
    absolute = quantizer.scaling == "statistic" and quantizer not in KEPT  # its forward has a form of its own
    assert len(worked_out) == (0 if absolute else 1) + (quantizer not in KEPT)


@pytest.mark.parametrize("overrides", [{"weight_rounding": "stochastic"}, {"weight_bit_width": LearnedBitWidth}])
def test_what_is_not_the_same_again_is_kept(small_is_large, overrides):
    layer = qnn.QuantLinear(6, 9, **overrides)
    x = torch.randn(4, 6, requires_grad=True)
    assert peak_kept(layer, x) >= 6 * 9
    layer(x).sum().backward()
    assert layer.weight.grad.shape == (9, 6)


class Residual(nn.Module):
    """Activations that go to a layer, to two, through a pool, into a sum."""

    def __init__(self, carried):
        super().__init__()
        self.entry = qnn.QuantIdentity(calibration_steps=1, return_quant_tensor=carried)
        self.conv1 = qnn.QuantConv2d(2, 4, 3, padding=1)
        self.act1 = qnn.QuantReLU(calibration_steps=1, bit_width=4, return_quant_tensor=carried)
        self.conv2 = qnn.QuantConv2d(4, 4, 3, padding=1)
        self.conv3 = qnn.QuantConv2d(4, 4, 1, weight_quant=Int8WeightPerChannelLearned)
        self.act2 = qnn.QuantReLU(calibration_steps=1, act_quant=Uint8ActPerChannel, return_quant_tensor=carried)
        self.pool = nn.MaxPool2d(2)
        self.fc = qnn.QuantLinear(16, 3)

    def forward(self, x):
        first = self.act1(self.conv1(self.entry(x)))
        second = self.act2(self.conv2(first) + self.conv3(first) + values_of(first))
        return self.fc(values_of(self.pool(second)).flatten(1))


def activations(model):
    torch.manual_seed(1)
    return gradients(model, torch.randn(3, 2, 4, 4))


@pytest.mark.parametrize("carried", [True, False])
def test_activations_give_the_same_gradients_to_the_bit(carried, monkeypatch):
    torch.manual_seed(0)
    model = Residual(carried)
    model(torch.randn(3, 2, 4, 4))
    expected = activations(copy.deepcopy(model))
    worked_out = all_large(monkeypatch)
    for one, other in zip(activations(model), expected, strict=True):
        assert torch.equal(one, other)
    # In forward three activations and a learned weight. In backward, for the quantizers' own sake, four weights, the
    # entry, and the first activation: once for two layers and itself. The second went through a pool, and is kept.
    assert len(worked_out) == 4 + 6


def test_activations_may_be_differentiated_twice_over(small_is_large):
    torch.manual_seed(0)
    model = Residual(False)
    x = torch.randn(3, 2, 4, 4)
    model(x)
    out = model(x).square().sum()
    leaves = list(model.parameters())
    first = torch.autograd.grad(out, leaves, retain_graph=True, allow_unused=True)
    for one, other in zip(first, torch.autograd.grad(out, leaves, allow_unused=True), strict=True):
        assert (one is None and other is None) or torch.equal(one, other)


def test_an_activation_changed_behind_autograds_back(small_is_large):
    torch.manual_seed(0)
    act, conv = qnn.QuantReLU(calibration_steps=1), qnn.QuantConv2d(2, 2, 1, bias=False)
    x = torch.randn(1, 2, 3, 3)
    act(x)
    y = act(x)
    with torch.no_grad():
        y.add_(1)
    (of_weight,) = torch.autograd.grad(conv(y).sum(), conv.weight, retain_graph=True)
    values = conv.quant_weight()
    (expected,) = torch.autograd.grad(conv._compute(y.detach(), values.value, None).sum(), conv.weight)
    assert torch.equal(of_weight, expected)  # of what the layer was given
    with pytest.raises(RuntimeError) as error:
        conv(y).sum().backward()
    assert str(error.value) == (
        "a quantized tensor needed for gradient computation has been modified by an inplace operation: version 4, "
        "expected 3. Write y = y + 1 for y += 1."
    )


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointing_decides_for_activations_too(small_is_large, use_reentrant):
    torch.manual_seed(0)
    model = Residual(True)
    x = torch.randn(3, 2, 4, 4, requires_grad=True)
    model(x)
    expected = torch.autograd.grad(model(x).square().sum(), [x, *model.parameters()])
    checkpoint(model, x, use_reentrant=use_reentrant).square().sum().backward()
    for one, other in zip([x.grad, *(each.grad for each in model.parameters())], expected, strict=True):
        assert torch.equal(one, other)


def test_large_is_a_megabyte():
    layer = qnn.QuantLinear(512, 512, bias=False)
    small = qnn.QuantLinear(512, 511, bias=False)
    x = torch.randn(128, 512, requires_grad=True)
    assert (layer.weight.numel(), small.weight.numel()) == (fused.LARGE, fused.LARGE - 512)
    assert peak_kept(layer, x) < 2048
    assert small.weight.numel() <= peak_kept(small, x) < small.weight.numel() + 2048
    assert peak_kept(layer, x[:127]) >= layer.weight.numel()


def peak_kept(layer, x):
    """Numbers that autograd is handed to keep, weights and inputs left out; hooks see what others left to keep."""
    if not hasattr(torch._C._autograd.SavedTensor, "data"):
        pytest.skip("this torch does not show what it keeps")
    out = layer(x)
    nodes, seen, total = [out.grad_fn], set(), 0
    own = {layer.weight.data_ptr(), x.data_ptr()}
    storages = set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        nodes += [following for following, _ in node.next_functions]
        aside = getattr(node, "aside", None)
        found = [] if aside is None else [aside[0]]
        for name in [each for each in dir(node) if each.startswith("_raw_saved_")]:
            raw = getattr(node, name)
            for saved in raw if isinstance(raw, (list, tuple)) else [raw]:
                with contextlib.suppress(AttributeError, RuntimeError):
                    found.append(saved.data)
        for tensor in found:
            if isinstance(tensor, torch.Tensor) and tensor.data_ptr() not in own | storages:
                storages.add(tensor.data_ptr())
                total += tensor.numel()
    return total


def test_a_weight_changed_before_backward_is_noticed(small_is_large):
    layer = qnn.QuantLinear(6, 9)
    out = layer(torch.randn(4, 6, requires_grad=True)).sum()
    with torch.no_grad():
        layer.weight.mul_(2)
    with pytest.raises(RuntimeError, match=r"has been modified by an inplace operation: .* expected version 1 instead"):
        out.backward()


def test_weights_that_take_part_in_few_products_are_kept(monkeypatch):
    worked_out = all_large(monkeypatch)
    monkeypatch.setattr(recompute, "_USES", 128)
    layer = qnn.QuantLinear(6, 9)
    for batch, times in ((127, 0), (128, 1)):
        del worked_out[:]
        layer(torch.randn(batch, 6, requires_grad=True)).sum().backward()
        assert len(worked_out) == times


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointing_decides_for_itself(small_is_large, use_reentrant):
    torch.manual_seed(0)
    model = nn.Sequential(qnn.QuantLinear(6, 9), nn.Tanh(), qnn.QuantLinear(9, 3))
    x = torch.randn(4, 6, requires_grad=True)
    expected = torch.autograd.grad(model(x).square().sum(), [x, *model.parameters()])
    out = checkpoint(model, x, use_reentrant=use_reentrant)
    out.square().sum().backward()
    for one, other in zip([x.grad, *(each.grad for each in model.parameters())], expected, strict=True):
        assert torch.equal(one, other)


def test_gradients_of_gradients(small_is_large):
    """The weight that was worked out again still stands for the parameter."""
    layer = qnn.QuantLinear(3, 2, weight_detach_scale=True).double()
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    found = []
    for large in (1, 1 << 17):
        weight_layer.LARGE = large
        (of_x,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
        found.append(torch.autograd.grad(of_x.square().sum(), layer.weight)[0])
    assert torch.equal(*found)
    assert found[0].abs().min() > 0


def test_no_grad_and_half_precision_are_left_alone(small_is_large):
    layer = qnn.QuantLinear(6, 9)
    x = torch.randn(4, 6)
    with torch.no_grad():
        assert layer(x).grad_fn is None
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x)
    out.float().sum().backward()
    assert layer.weight.grad.isfinite().all()
    assert qnn.QuantLinear(6, 9, dtype=torch.bfloat16)(x.bfloat16()).dtype == torch.bfloat16

"""Layers whose weights have a scale for each group of input channels."""

import copy
import io

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import bitwright.nn as qnn
from bitwright.qcore import PerGroup as Groups
from bitwright.qcore import QuantizerError, QuantTensor, fake_quant
from bitwright.quantizers import (
    Int2WeightPerGroup,
    Int4WeightPerGroup,
    Int8Act,
    Int8WeightPerGroup,
    Int32Bias,
    ShiftedUint4WeightPerGroup,
)

LAYERS = {
    "linear": (lambda **given: qnn.QuantLinear(20, 6, **given), (3, 20)),
    "conv1d": (lambda **given: qnn.QuantConv1d(20, 6, 3, **given), (2, 20, 7)),
    "conv2d": (lambda **given: qnn.QuantConv2d(20, 6, 3, **given), (2, 20, 5, 5)),
    "conv2d, two groups of channels": (lambda **given: qnn.QuantConv2d(20, 6, 3, groups=2, **given), (2, 20, 5, 5)),
    "depthwise": (lambda **given: qnn.QuantConv2d(20, 20, 3, groups=20, **given), (2, 20, 5, 5)),
    "transposed": (lambda **given: qnn.QuantConvTranspose2d(20, 6, 3, **given), (2, 20, 5, 5)),
    "transposed, two groups": (lambda **given: qnn.QuantConvTranspose2d(20, 6, 3, groups=2, **given), (2, 20, 5, 5)),
}
QUANTIZERS = {
    "statistic": Int4WeightPerGroup,
    "detached": Int4WeightPerGroup(detach_scale=True),
    "learned": Int4WeightPerGroup(scaling="learned"),
    "shifted": ShiftedUint4WeightPerGroup,
    "shifted, learned": ShiftedUint4WeightPerGroup(scaling="learned"),
}


def by_hand(weight, size, axis, low, high):
    """Groups cut with Python's own slices, each quantized for itself."""
    out, rows = torch.empty_like(weight), weight.movedim(axis, -1)
    moved = out.movedim(axis, -1)
    for start in range(0, rows.shape[-1], size):
        part = rows[..., start : start + size]
        scale = (part.abs().amax(-1, keepdim=True) / high).clamp_min(1e-10)
        moved[..., start : start + size] = fake_quant(part, scale, low, high)
    return out


@pytest.mark.parametrize("size", [8, 20, -1, 1, 7])
@pytest.mark.parametrize("kind", ["linear", "conv1d", "conv2d", "conv2d, two groups of channels", "transposed"])
def test_each_group_has_its_own_scale(kind, size):
    make, shape = LAYERS[kind]
    torch.manual_seed(0)
    layer = make(weight_quant=Int4WeightPerGroup, weight_group_size=size)
    axis = 0 if kind == "transposed" else 1
    length = layer.weight.shape[axis]
    expected = by_hand(layer.weight.detach(), length if size == -1 else size, axis, -7, 7)
    assert torch.equal(layer.quant_weight().value, expected)
    x = torch.randn(shape)
    with torch.no_grad():
        reference = copy.deepcopy(layer)
        reference.weight_quant = None
        reference.weight.copy_(expected)
    torch.testing.assert_close(layer(x), reference(x))


@pytest.mark.parametrize("size", [8, -1, 7])
@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_integers_grid_and_training(kind, quantizer, size):
    make, shape = LAYERS[kind]
    torch.manual_seed(0)
    layer = make(weight_quant=QUANTIZERS[quantizer], weight_group_size=size)
    x = torch.randn(shape)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.05)
    before = layer.weight.detach().clone()
    for _ in range(2):
        optimizer.zero_grad()
        layer(x).square().sum().backward()
        optimizer.step()
    assert not torch.equal(layer.weight, before)
    assert all(parameter.grad.isfinite().all() for parameter in layer.parameters() if parameter.grad is not None)
    quantized = layer.quant_weight()
    assert isinstance(quantized, QuantTensor)
    assert quantized.is_valid
    assert torch.equal(quantized.grid.from_int(layer.int_weight()), quantized.value)
    low, high = quantized.grid.bounds
    assert low <= int(layer.int_weight().min()) <= int(layer.int_weight().max()) <= high


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_state_is_saved_and_copied(quantizer):
    torch.manual_seed(0)
    make, shape = LAYERS["linear"]
    layer, x = make(weight_quant=QUANTIZERS[quantizer], weight_group_size=8), torch.randn(shape)
    layer(x)
    expected = layer.eval()(x)
    assert torch.equal(copy.deepcopy(layer)(x), expected)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    fresh = make(weight_quant=QUANTIZERS[quantizer], weight_group_size=8)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(fresh.eval()(x), expected)


def test_file_of_other_groups_is_refused():
    layer, other = (qnn.QuantLinear(20, 6, weight_quant=Int4WeightPerGroup(group_size=size)) for size in (8, 4))
    with pytest.raises(RuntimeError, match="the file holds int4 narrow, groups of 8 along axis 1, float scale"):
        other.load_state_dict(layer.state_dict())


def test_float_checkpoint_sets_learned_scales():
    torch.manual_seed(0)
    layer, source = qnn.QuantLinear(20, 6, weight_quant=QUANTIZERS["learned"], weight_group_size=8), nn.Linear(20, 6)
    layer.load_state_dict(source.state_dict())
    expected = by_hand(source.weight.detach(), 8, 1, -7, 7)
    assert torch.equal(layer.train().quant_weight().value, expected)
    assert layer.weight_quant.scaling.magnitude_base.shape == (18,)


def test_numbers_of_two_groups():
    layer = qnn.QuantLinear(4, 1, bias=False, weight_quant=Int8WeightPerGroup, weight_group_size=2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.27, -0.5, 12.7, 0.1]]))
    assert layer.int_weight().tolist() == [[127, -50, 127, 1]]
    assert layer.quant_weight().scale.tolist() == [pytest.approx([0.01, 0.1])]
    assert layer.quant_weight().grid.granularity == Groups(2, 1)


def test_two_bits():
    layer = qnn.QuantLinear(4, 1, bias=False, weight_quant=Int2WeightPerGroup, weight_group_size=2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, -0.25, -3.0, 2.0]]))
    assert layer.int_weight().tolist() == [[1, 0, -1, 1]]


def test_zero_points_of_groups():
    layer = qnn.QuantLinear(4, 1, bias=False, weight_quant=ShiftedUint4WeightPerGroup, weight_group_size=2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[-0.5, 1.0, 3.0, 1.5]]))
    weight = layer.quant_weight()
    assert weight.zero_point.tolist() == [[5.0, 0.0]]
    assert layer.int_weight().tolist() == [[0, 15, 15, 8]]


def test_sums_of_several_scales_carry_no_integers():
    with pytest.raises(QuantizerError) as error:
        qnn.QuantLinear(20, 6, weight_quant=Int4WeightPerGroup, weight_group_size=8, bias_quant=Int32Bias)
    assert str(error.value) == (
        "QuantLinear(in_features=20, out_features=6, bias=True): with groups of 8 along axis 1 the products that one "
        "output sums have several scales, and a bias on the scale of the products needs a common one. Write "
        "weight_quant=Int8WeightPerChannel for one scale for each output channel, or weight_quant=Int8WeightPerTensor "
        "for one scale."
    )


def test_one_group_a_row_is_a_scale_for_each_output():
    torch.manual_seed(0)
    given = {"bias_quant": Int32Bias, "input_quant": Int8Act, "input_scale": 0.1, "return_quant_tensor": True}
    layer = qnn.QuantLinear(20, 6, weight_quant=Int8WeightPerGroup, weight_group_size=-1, **given)
    torch.manual_seed(0)
    channels = qnn.QuantLinear(20, 6, weight_axis=0, **given)
    x = torch.randn(3, 20)
    assert torch.equal(layer(x).value, channels(x).value)
    assert torch.equal(layer(x).scale, channels(x).scale)


def test_activations_in_groups():
    act = qnn.QuantIdentity(act_quant=Int8Act(granularity=Groups(2), scaling="statistic", statistic="abs_max"))
    out = act(torch.tensor([[1.28, 0.004, 128.0, 0.4]]))
    torch.testing.assert_close(out, torch.tensor([[1.27, 0.0, 127.0, 0.0]]))


SLOW = [pytest.param(each, marks=pytest.mark.slow) for each in ("statistic", "shifted")]


@pytest.mark.parametrize("quantizer", ["learned", *SLOW])
def test_compiled_is_eager(quantizer):
    torch.manual_seed(0)
    layer = qnn.QuantLinear(20, 6, weight_quant=QUANTIZERS[quantizer], weight_group_size=8)
    x = torch.randn(3, 20)
    layer(x)  # what is learned starts
    copied = copy.deepcopy(layer)
    compiled = torch.compile(copied, fullgraph=True, backend="aot_eager")
    found, expected = compiled(x), layer(x)
    torch.testing.assert_close(found, expected)
    (one,) = torch.autograd.grad(found.sum(), [copied.weight])
    (other,) = torch.autograd.grad(expected.sum(), [layer.weight])
    torch.testing.assert_close(one, other)


def test_wrong_dimension():
    with pytest.raises(QuantizerError) as error:
        qnn.QuantLinear(4, 2, weight_quant=Int4WeightPerGroup, weight_group_axis=2)
    assert str(error.value) == (
        "QuantLinear(in_features=4, out_features=2, bias=True): weight_group_axis=2 is not a dimension of the "
        "weight, which has 2. Write weight_group_axis=1."
    )


def test_wrong_sizes():
    with pytest.raises(QuantizerError) as error:
        qnn.QuantLinear(4, 2, weight_quant=Int4WeightPerGroup, weight_group_size=0)
    assert str(error.value) == (
        "QuantLinear(in_features=4, out_features=2, bias=True): weight_group_size=0 is not possible: expected a whole "
        "number of neighbours, 1 or more, or -1 for all."
    )


def test_grouped_values_keep_their_grid_where_groups_stay_whole():
    layer = qnn.QuantLinear(8, 4, weight_quant=Int4WeightPerGroup, weight_group_size=4)
    weight = layer.quant_weight()
    for kept in (weight.clone(), weight.t(), weight.detach(), weight.relu(), weight[None], weight.double()):
        assert isinstance(kept, QuantTensor)
        assert kept.is_valid
    assert weight.t().scale.shape == (2, 4)
    for lost in (weight.flatten(), weight[:, 1:], weight.flip(1), F.pad(weight, (1, 0))):
        assert type(lost) is torch.Tensor

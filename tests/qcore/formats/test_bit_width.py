import copy
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import bitwright.nn as qnn
from bitwright.export import export_onnx_qdq, integers, verify_onnx
from bitwright.qcore import (
    IntRange,
    LearnedBitWidth,
    PerAxis,
    PerGroup,
    PerTensor,
    QuantizerError,
    SettingError,
    bit_width_report,
    resolve,
    size_penalty,
)
from bitwright.qcore.formats.bit_width import block_sizes
from bitwright.quantizers import (
    Int4WeightPerGroup,
    Int8Act,
    Int8ActPerChannel,
    Int8WeightPerChannel,
    Int8WeightPerChannelLearned,
    Int8WeightPerTensor,
    Uint8Act,
)


def test_starts_at_the_initial_width():
    width = LearnedBitWidth(initial_bit_width=6)
    assert (width().item(), width().shape) == (6, ())
    assert width.offset.tolist() == [4]  # not 0-d: it may be sharded
    assert LearnedBitWidth()().item() == 8
    assert list(width.state_dict()) == ["offset"]


@given(st.floats(-10, 10, width=32))
def test_is_whole_and_within_limits(offset):
    width = LearnedBitWidth(4, min_bit_width=3, max_bit_width=7)
    with torch.no_grad():
        width.offset.fill_(offset)
    exact = min(3 + abs(offset), 7)
    assert width.exact().item() == pytest.approx(exact, abs=1e-6)
    assert width().item() in (round(exact - 1e-5), round(exact + 1e-5))
    assert width().item() == round(width().item())


def test_gradient_is_straight_through():
    width = LearnedBitWidth(initial_bit_width=6)
    width().backward()
    assert width.offset.grad.tolist() == [1]
    with torch.no_grad():
        width.offset.fill_(-3.3)
    assert width().item() == 5
    assert torch.autograd.grad(width(), width.offset)[0].item() == -1
    with torch.no_grad():
        width.offset.fill_(9.0)
    assert width().item() == 8
    assert torch.autograd.grad(width(), width.offset)[0].item() == 1  # beyond the largest: training finds back


@pytest.mark.parametrize("initial", [2, 5, 8])
def test_width_can_leave_its_start(initial):
    width = LearnedBitWidth(initial_bit_width=initial)
    assert torch.autograd.grad(width(), width.offset)[0].item() == 1
    assert torch.autograd.grad(width.exact(), width.offset)[0].item() == 1


@pytest.mark.parametrize(("initial", "sign", "found"), [(8, 1, 6), (2, -1, 5)])
def test_training_may_leave_either_end(initial, sign, found):
    """Even after steps that pushed beyond it."""
    width = LearnedBitWidth(initial_bit_width=initial)
    optimizer = torch.optim.SGD(width.parameters(), lr=0.1)
    for step in range(30):
        optimizer.zero_grad()
        (width() * sign * (1 if step >= 5 else -1)).backward()
        optimizer.step()
    assert width().item() == found


def test_size_penalty_alone_lowers_a_width_at_its_largest():
    model = qnn.QuantLinear(4, 2, weight_bit_width=LearnedBitWidth)
    size_penalty(model).backward()
    assert model.weight_quant.bit_width.offset.grad.tolist() == [1]


def test_report():
    width = LearnedBitWidth(initial_bit_width=6, min_bit_width=3, max_bit_width=10)
    with torch.no_grad():
        width.offset.fill_(2.71828)
    assert width.report() == {"bit_width": 6, "exact": 5.7183, "min": 3, "max": 10}
    assert repr(width) == "LearnedBitWidth(min_bit_width=3, max_bit_width=10)"


def test_copies():
    width = LearnedBitWidth(initial_bit_width=5)
    assert pickle.loads(pickle.dumps(width))().item() == copy.deepcopy(width)().item() == 5


def test_moves_and_converts():
    assert LearnedBitWidth(dtype=torch.float64)().dtype == torch.float64
    assert LearnedBitWidth(device="meta").offset.device.type == "meta"


def test_report_of_a_model():
    model = nn.Sequential(
        qnn.QuantLinear(4, 2, weight_bit_width=LearnedBitWidth, weight_initial_bit_width=5),
        qnn.QuantReLU(bit_width=LearnedBitWidth),
        qnn.QuantLinear(2, 2),
    )
    assert bit_width_report(model) == {
        "0.weight_quant.bit_width": {"bit_width": 5, "exact": 5.0, "min": 2, "max": 8},
        "1.act_quant.bit_width": {"bit_width": 8, "exact": 8.0, "min": 2, "max": 8},
    }
    assert bit_width_report(nn.Linear(1, 1)) == {}


def test_size_penalty_weighs_by_size():
    model = nn.Sequential(
        qnn.QuantLinear(30, 1, weight_bit_width=LearnedBitWidth, weight_initial_bit_width=8),
        qnn.QuantReLU(bit_width=LearnedBitWidth),  # no weight: no size
        qnn.QuantLinear(5, 2, weight_bit_width=LearnedBitWidth, weight_initial_bit_width=4),
        qnn.QuantLinear(100, 2),
    )
    penalty = size_penalty(model)
    assert penalty.item() == (30 * 8 + 10 * 4) / 40
    penalty.backward()
    assert model[0].weight_quant.bit_width.offset.grad.item() == 0.75
    assert model[2].weight_quant.bit_width.offset.grad.item() == 0.25
    assert model[1].act_quant.bit_width.offset.grad is None


def test_size_penalty_of_nothing():
    assert size_penalty(nn.Linear(2, 2)).item() == 0


def test_quantizes_with_the_width_in_use():
    quant = resolve(Int8WeightPerTensor(bit_width=LearnedBitWidth, initial_bit_width=3), {"shape": (3,)})
    values, grid = quant.quantize(torch.tensor([3.0, -0.6, 1.4]))
    assert values.tolist() == [3, -1, 1]
    assert (grid.bit_width.item(), grid.bounds, grid.to_int(values).tolist()) == (3, (-3, 3), [3, -1, 1])
    assert not grid.bit_width.requires_grad
    assert quant.scheme() == "learned int narrow, per tensor, float scale"
    with torch.no_grad():
        quant.bit_width.offset.fill_(0.4)
    values, grid = quant.quantize(torch.tensor([3.0, -0.6, 1.6]))
    assert values.tolist() == [3, 0, 3]
    assert grid.bounds == (-1, 1)


@pytest.mark.parametrize("quantizer", [Int8Act, Uint8Act, Uint8Act(narrow_range=True)])
def test_activations_with_the_width_in_use(quantizer):
    quant = resolve(quantizer(bit_width=LearnedBitWidth, initial_bit_width=2, scale=1.0))
    high = 3 - quant.narrow_range if not quant.signed else 1
    assert quant(torch.tensor([9.0, -9.0])).tolist() == [high, -2 if quant.signed else 0]
    assert torch.autograd.grad(quant(torch.tensor([9.0])).sum(), quant.bit_width.offset)[0].abs() > 0


def test_gradient_reaches_the_width():
    """More bits move the largest integer, and the scale the other way."""
    quant = resolve(Int8Act(bit_width=LearnedBitWidth, initial_bit_width=4, scale=0.5))
    (slope,) = torch.autograd.grad(quant(torch.tensor([99.0])).sum(), quant.bit_width.offset)
    assert slope.item() == pytest.approx(0.5 * 8 * 0.6931472)


@pytest.mark.parametrize("weight", [0.0, 0.3])
def test_training_with_the_penalty_lowers_the_bits(weight):
    torch.manual_seed(0)
    x, y = torch.randn(64, 8), torch.randn(64, 2)
    model = qnn.QuantLinear(8, 2, weight_bit_width=LearnedBitWidth)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(80):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), y) + weight * size_penalty(model)
        loss.backward()
        optimizer.step()
    found = bit_width_report(model)["weight_quant.bit_width"]["bit_width"]
    assert (found <= 5) == bool(weight)
    assert model.int_weight().abs().max().item() <= 2 ** (found - 1) - 1


def test_width_travels_with_the_state():
    def build(initial):
        return qnn.QuantLinear(4, 2, weight_bit_width=LearnedBitWidth, weight_initial_bit_width=initial)

    model, other = build(3), build(8)
    parameter = other.weight_quant.bit_width.offset
    other.load_state_dict(model.state_dict())
    assert other.weight_quant.bit_width.offset is parameter
    assert bit_width_report(other)["weight_quant.bit_width"]["bit_width"] == 3


def test_one_width_for_several_layers():
    width = LearnedBitWidth(initial_bit_width=4)
    model = nn.Sequential(qnn.QuantLinear(4, 2, weight_bit_width=width), qnn.QuantLinear(2, 1, weight_bit_width=width))
    assert model[0].weight_quant.bit_width is model[1].weight_quant.bit_width is width
    assert len(bit_width_report(model)) == 1


def test_int_range_takes_any_module_as_width():
    class Three(nn.Module):
        def forward(self):
            return torch.tensor(3.0)

    assert [each.item() for each in IntRange(Three(), signed=True, narrow_range=False).bounds()] == [-4, 3]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"initial_bit_width": 1},
            "initial_bit_width=1 is not possible: expected a whole number from 2 to 32. A narrow signed range of 1 bit "
            "has no levels but 0: one bit is binary quantization (signs times a scale), which is not an integer grid. "
            "Write initial_bit_width=2 for the levels -1, 0, 1.",
        ),
        (
            {"min_bit_width": 0},
            "min_bit_width=0 is not possible: expected a whole number from 2 to 32. Write min_bit_width=2.",
        ),
        (
            {"max_bit_width": 33},
            "max_bit_width=33 is not possible: expected a whole number from 2 to 32. Write max_bit_width=32.",
        ),
        (
            {"max_bit_width": 6.5},
            "max_bit_width=6.5 is not possible: expected a whole number from 2 to 32. Write max_bit_width=6.",
        ),
        (
            {"initial_bit_width": 10},
            "initial_bit_width=10 is not possible: expected a bit width from min_bit_width=2 to max_bit_width=8. "
            "Write max_bit_width=10.",
        ),
        (
            {"initial_bit_width": 3, "min_bit_width": 4},
            "initial_bit_width=3 is not possible: expected a bit width from min_bit_width=4 to max_bit_width=8.",
        ),
    ],
)
def test_impossible_widths(settings, message):
    with pytest.raises(SettingError) as error:
        LearnedBitWidth(**settings)
    assert str(error.value) == message


# Several widths

EACH = {"bit_width": LearnedBitWidth, "bit_width_granularity": "scale"}


def layer_of(quantizer, offsets, shape=(8, 3)):
    """A linear layer whose widths are 2 and the offsets."""
    torch.manual_seed(0)
    layer = qnn.QuantLinear(*shape, weight_quant=quantizer)
    with torch.no_grad():
        layer.weight_quant.bit_width.offset.copy_(torch.tensor(offsets))
    return layer


@pytest.mark.parametrize(
    ("quantizer", "offsets", "widths"),
    [
        (Int8WeightPerChannel(**EACH), [0.0, 1.0, 6.0], [2, 3, 8]),
        (Int8WeightPerChannelLearned(**EACH), [0.0, 1.0, 6.0], [2, 3, 8]),
        (Int4WeightPerGroup(group_size=5, **EACH), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0], [2, 3, 4, 5, 6, 7]),
        (
            Int4WeightPerGroup(group_size=5, bit_width=LearnedBitWidth, bit_width_granularity=PerAxis(0)),
            [0.0, 1.0, 6.0],
            [2, 2, 3, 3, 8, 8],
        ),
        (
            Int4WeightPerGroup(group_size=2, bit_width=LearnedBitWidth, bit_width_granularity=PerGroup(4)),
            [0.0, 1.0, 6.0, 2.0, 3.0, 0.0],
            [2, 2, 3, 3, 8, 8, 4, 4, 5, 5, 2, 2],
        ),
        (Int8WeightPerChannel(bit_width=LearnedBitWidth, bit_width_granularity=PerTensor()), [1.0], [3, 3, 3]),
    ],
)
def test_each_scale_has_its_width(quantizer, offsets, widths):
    layer = layer_of(quantizer, offsets)
    assert layer.weight_quant.bit_width.offset.shape == (len(offsets),)
    layer(torch.ones(1, 8))
    quant = layer.eval().quant_weight()
    codes = quant.grid.granularity.rows(layer.int_weight()).abs().amax(1)
    assert codes.tolist() == [2 ** (width - 1) - 1 for width in widths]  # the largest weight of each scale
    assert int(quant.bit_width) == max(widths)
    layer(torch.ones(1, 8)).sum().backward()
    assert bool((layer.weight_quant.bit_width.offset.grad != 0).all())


def test_several_widths_in_reports_and_files():
    layer = layer_of(Int8WeightPerChannel(**EACH), [0.0, 1.2, 6.0])
    assert bit_width_report(layer)["weight_quant.bit_width"] == {
        "bit_width": [2, 3, 8],
        "exact": [2.0, 3.2, 8.0],
        "min": 2,
        "max": 8,
    }
    assert repr(layer.weight_quant.bit_width) == "LearnedBitWidth(min_bit_width=2, max_bit_width=8, 3 widths, axis 0)"
    assert list(layer.weight_quant.state_dict()) == ["scheme", "bit_width.offset"]
    other = layer_of(Int8WeightPerChannel(**EACH), [6.0, 6.0, 6.0])
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other.int_weight(), layer.int_weight())
    other.load_state_dict(nn.Linear(8, 3).state_dict())  # a float checkpoint
    assert other.weight_quant.bit_width().tolist() == [2, 3, 8]
    assert size_penalty(layer).item() == pytest.approx((2 + 3.2 + 8) / 3)
    uneven = layer_of(Int4WeightPerGroup(group_size=5, **EACH), [0.0, 6.0], (8, 1))
    assert size_penalty(uneven).item() == (5 * 2 + 3 * 8) / 8


def test_compiled_with_several_widths():
    layer = layer_of(
        Int4WeightPerGroup(group_size=5, bit_width=LearnedBitWidth, bit_width_granularity=PerAxis(0)), [0.0, 1.0, 6.0]
    )
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    x = torch.randn(2, 8)
    assert torch.equal(compiled(x), layer(x))


def test_exports_with_several_widths():
    """In the widest of them."""
    pytest.importorskip("onnxruntime")
    model = nn.Sequential(
        qnn.QuantIdentity(scale=2**-5),
        layer_of(Int8WeightPerChannel(**EACH), [0.0, 1.0, 2.0]),
        qnn.QuantReLU(scale=2**-5, bit_width=LearnedBitWidth, initial_bit_width=5),
        layer_of(Int4WeightPerGroup(group_size=2, **EACH), [0.0, 1.0, 4.0, 2.0], (3, 2)),
    ).eval()
    x = torch.randn(20, 8)
    program = export_onnx_qdq(model, x)
    assert verify_onnx(model, program, x).differences == 0
    found = integers(model, x)
    assert [found.layers[name].weight.grid.bit_width for name in ("1", "3")] == [4, 6]
    assert torch.equal(torch.as_tensor(found.layers["1"].weight.codes), model[1].int_weight())


def test_activations_with_several_widths():
    layer = qnn.QuantIdentity(act_quant=Int8ActPerChannel, channels=2, **EACH, scale=1.0)
    with torch.no_grad():
        layer.act_quant.bit_width.offset.copy_(torch.tensor([0.0, 1.0]))
    x = torch.tensor([[9.0, 9.0], [-9.0, -9.0]])
    assert layer(x).tolist() == [[1, 3], [-2, -4]]


def test_block_sizes():
    assert block_sizes(PerTensor(), (2, 5)).tolist() == [10]
    assert block_sizes(PerAxis(1), (2, 3)).tolist() == [2, 2, 2]
    assert block_sizes(PerGroup(4), (1, 10)).tolist() == [4, 4, 2]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: qnn.QuantLinear(4, 2, weight_bit_width=LearnedBitWidth, weight_bit_width_granularity="channel"),
            "QuantLinear(in_features=4, out_features=2, bias=True): weight_bit_width_granularity='channel' is not "
            "possible: expected 'tensor', 'scale', or a Granularity such as PerAxis(0).",
        ),
        (
            lambda: qnn.QuantLinear(4, 2, weight_bit_width=LearnedBitWidth, weight_bit_width_granularity=PerAxis(0)),
            "QuantLinear(in_features=4, out_features=2, bias=True): weight_bit_width_granularity=PerAxis(axis=0) is "
            "not possible: expected 'tensor': there is one scale, and values with a scale in common have a bit width "
            "in common. Take a quantizer with a scale for each bit width, such as Int8WeightPerChannel.",
        ),
        (
            lambda: layer_of(
                Int4WeightPerGroup(group_size=4, bit_width=LearnedBitWidth, bit_width_granularity=PerGroup(6)), [0.0]
            ),
            "QuantLinear(in_features=8, out_features=3, bias=True): in Int4WeightPerGroup(group_size=4, "
            "bit_width=LearnedBitWidth, bit_width_granularity=PerGroup(group_size=6, group_axis=-1)), "
            "bit_width_granularity=PerGroup(group_size=6, group_axis=-1) is not possible: expected blocks of whole "
            "scales, and there is one for each of groups of 4 along axis 1. Take a quantizer with a scale for each bit "
            "width, such as Int8WeightPerChannel.",
        ),
        (
            lambda: qnn.QuantIdentity(act_quant=Int8ActPerChannel, **EACH),
            "QuantIdentity(): bit_width_granularity='scale' is not possible: expected 'tensor' where nobody says how "
            "many of axis 1 there are. Give the quantizer that number too: channels=64.",
        ),
        (
            lambda: qnn.QuantIdentity(bit_width=LearnedBitWidth, bit_width_granularity=PerAxis(1)),
            "QuantIdentity(): bit_width_granularity=PerAxis(axis=1) is not possible: expected 'tensor', 'scale': the "
            "shape of the tensor is not known before there is data.",
        ),
    ],
)
def test_impossible_granularities_of_widths(build, message):
    with pytest.raises(QuantizerError) as error:
        build()
    assert str(error.value) == message

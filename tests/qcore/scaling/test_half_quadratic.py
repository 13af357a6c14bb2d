"""Half-quadratic quantization against the algorithm of its paper, written with numpy and for one row at a time."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import bitwright.nn as qnn
from bitwright.export import ExportError, export_onnx_qdq, integers, run_integers
from bitwright.qcore import (
    AbsMax,
    HalfQuadraticRange,
    HalfQuadraticZeroPoint,
    IntRange,
    LearnedBitWidth,
    MinMax,
    QuantizerError,
    QuantTensor,
    SettingError,
    StatisticScaling,
    UnalignedIntegers,
    composed_fake_quant,
)
from bitwright.quantizers import (
    Int4WeightPerChannelHQO,
    Int8Act,
    Int32Bias,
    ShiftedUint4WeightPerChannelHQO,
    ShiftedUint4WeightPerGroupHQO,
    ShiftedUint4WeightPerTensorHQO,
    ShiftedUint8Act,
)


def levels(bits):
    return IntRange(bits, signed=False)


def parts(rows, bits, **settings):
    """The scales of a range, and the zero points of a search."""
    scaling = StatisticScaling(levels(bits), MinMax(), axis=0)
    zero_point = HalfQuadraticZeroPoint(scaling, levels(bits), axis=0, shape=rows.shape, **settings)
    scale = scaling(rows)
    return scale, zero_point(rows, scale)


def error_of(rows, scale, zero_point, bits, norm=0.7):
    codes = (rows / scale + zero_point).round().clamp(0, 2**bits - 1)
    return ((rows - (codes - zero_point) * scale).abs() ** norm).sum(1)


def by_the_paper(row, bits, norm=0.7, beta=10.0, growth=1.01, steps=20):
    """The least error that the alternation finds, from the zero point of the range on."""
    low, high = min(row.min(), 0.0), max(row.max(), 0.0)
    scale = (high - low) / (2**bits - 1)
    zero_point = start = -low / scale
    tried = [start, float(np.clip(np.round(start), 0, 2**bits - 1))]
    for step in range(steps):
        codes = np.clip(np.round(row / scale + zero_point), 0, 2**bits - 1)
        error = row - (codes - zero_point) * scale
        size = np.maximum(np.abs(error), 1e-30)
        kept = np.sign(error) * np.maximum(np.abs(error) - size ** (norm - 1) / (beta * growth**step), 0)
        zero_point = np.mean(codes - (row - kept) / scale)
        tried.append(zero_point)
    return min(
        np.sum(np.abs(row - (np.clip(np.round(row / scale + z), 0, 2**bits - 1) - z) * scale) ** norm) for z in tried
    )


@given(seed=st.integers(0, 99), bits=st.integers(2, 5), size=st.sampled_from([0.05, 1.0, 20.0]))
def test_paper(seed, bits, size):
    rows = torch.randn(2, 40, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) ** 3 * size
    scale, zero_point = parts(rows, bits)
    found = error_of(rows, scale, zero_point, bits)
    assert found.tolist() == pytest.approx([by_the_paper(row.numpy(), bits) for row in rows], rel=1e-6)


def test_zero_point_between_two_integers():
    """(q - 1.3) / 2 for q = 0 to 3: the range gives 1.3, and nothing is lost."""
    rows = (torch.arange(4.0)[None] - 1.3) / 2
    scale, zero_point = parts(rows, 2)
    assert scale.item() == pytest.approx(0.5)
    assert zero_point.item() == pytest.approx(1.3)
    _, rounded = parts(rows, 2, round_zero_point=True)
    assert rounded.item() == 1


def test_zeros():
    _, zero_point = parts(torch.zeros(2, 4), 4)
    assert zero_point.tolist() == [[0], [0]]


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_range_is_no_worse_than_the_largest_magnitude(bits):
    rows = torch.randn(4, 64, generator=torch.Generator().manual_seed(bits)) ** 3
    form = IntRange(bits, signed=True, narrow_range=True)

    def error(magnitude):
        top = 2 ** (bits - 1) - 1
        return (composed_fake_quant(rows, magnitude[:, None] / top, -top, top) - rows).abs().pow(0.7).sum(1)

    assert (error(HalfQuadraticRange(form)(rows)) <= error(AbsMax()(rows)) * 1.0001).all()
    assert HalfQuadraticRange(form)(torch.zeros(1, 3)).item() == 0


def test_one_step_of_the_range_by_hand():
    """A step of 4 gives 4, 3, 3, 3 the level 1. Errors of -1 are shrunk to -0.9: the mean of 4 and three times 3.9."""
    statistic = HalfQuadraticRange(IntRange(2, signed=True, narrow_range=True), hqo_norm=1, hqo_steps=1)
    assert statistic(torch.tensor([[4.0, 3.0, 3.0, 3.0]])).item() == pytest.approx(3.925)
    assert repr(statistic) == "HalfQuadraticRange()"


# What a float zero point is, and where it is refused


def test_grid():
    torch.manual_seed(0)
    layer = qnn.QuantLinear(64, 3, weight_quant=ShiftedUint4WeightPerGroupHQO)
    weight = layer.quant_weight()
    assert isinstance(weight, QuantTensor)
    assert weight.grid.number_format == UnalignedIntegers(4)
    assert weight.is_valid
    assert weight.int().dtype == torch.uint8
    assert weight.int().max() <= 15
    assert torch.allclose(weight.grid.from_int(weight.int()), weight.value, atol=1e-7)
    assert not torch.equal(weight.zero_point, weight.zero_point.round())
    assert torch.equal(layer.int_weight(), weight.int())


def test_gradient_is_straight_through():
    layer = qnn.QuantLinear(64, 3, weight_quant=ShiftedUint4WeightPerChannelHQO(detach_scale=True), bias=False)
    layer(torch.ones(1, 64)).sum().backward()
    assert layer.weight.grad.unique().tolist() in ([1], [0, 1])  # 0 where the search clipped


def test_sums_lie_on_no_grid():
    expected = (
        "bias_quant: this bias quantizer puts the bias on the grid of the products, and products with the levels of "
        "the weight, uint4 with a float zero point, lie on none. Choose a bias with a scale of its own: "
        "bias_quant=Int8BiasOwnScale."
    )
    layer = qnn.QuantLinear(
        8, 2, weight_quant=ShiftedUint4WeightPerTensorHQO, bias_quant=Int32Bias, input_quant=Int8Act(scale=0.1)
    )
    with pytest.raises(QuantizerError, match=f"^{re.escape(expected)}$"):
        layer(torch.randn(2, 8))


def test_its_codes_can_be_taken_but_not_computed_with():
    model = torch.nn.Sequential(qnn.QuantLinear(8, 2, weight_quant=ShiftedUint4WeightPerTensorHQO)).eval()
    x = torch.randn(2, 8)
    weight = integers(model, x)["0"].weight
    assert weight is not None
    assert weight.values is not None
    assert torch.equal(weight.values, model[0].weight_quant(model[0].weight))
    expected = (
        "run_integers: 1 quantizer of this model can't be given as integers:\n  0.weight_quant: its levels are uint4 "
        "with a float zero point, and run_integers computes with integers. Quantize it to integers, or take its codes: "
        "integers(model, example)."
    )
    with pytest.raises(ExportError, match=f"^{re.escape(expected)}$"):
        run_integers(model, x)


@pytest.mark.slow
@pytest.mark.parametrize("rounded", [False, True])
def test_exports(rounded):
    quantizer = ShiftedUint4WeightPerChannelHQO(round_zero_point=rounded)
    model = torch.nn.Sequential(qnn.QuantLinear(8, 2, weight_quant=quantizer, input_quant=Int8Act(scale=0.1))).eval()
    export_onnx_qdq(model, torch.randn(2, 8))


def test_schemes():
    quantizer = ShiftedUint4WeightPerTensorHQO(round_zero_point=True)
    model = torch.nn.Sequential(qnn.QuantLinear(8, 2, weight_quant=quantizer))
    assert model[0].weight_quant.scheme() == "uint4, per tensor, float scale, zero point"
    quant = qnn.QuantLinear(8, 2, weight_quant=ShiftedUint4WeightPerTensorHQO).weight_quant
    assert quant.scheme() == "uint4, per tensor, float scale, float zero point"
    assert repr(quant.zero_point) == "HalfQuadraticZeroPoint(float)"


def test_files_of_another_kind_of_zero_point_are_told_apart():
    one = qnn.QuantLinear(8, 2, weight_quant=ShiftedUint4WeightPerTensorHQO)
    other = qnn.QuantLinear(8, 2, weight_quant=ShiftedUint4WeightPerTensorHQO(round_zero_point=True))
    with pytest.raises(RuntimeError, match="the file holds uint4, per tensor, float scale, float zero point"):
        other.load_state_dict(one.state_dict())


# Wrong settings


def test_activations():
    expected = (
        "QuantIdentity(): in ShiftedUint8Act(zero_point='hqo'), zero_point='hqo' is not possible: expected another "
        "zero point: half-quadratic quantization is for weights. Write zero_point='range'."
    )
    with pytest.raises(SettingError) as error:
        qnn.QuantIdentity(act_quant=ShiftedUint8Act(zero_point="hqo"))
    assert str(error.value) == expected


@pytest.mark.parametrize("form", [IntRange(4, signed=True), IntRange(4, signed=False, narrow_range=True)], ids=str)
def test_other_integers(form):
    expected = (
        f"zero_point='hqo' is not possible: expected another zero point for {form}: it is for unsigned integers of "
        "2 to 16 bits. Write signed=False and narrow_range=False."
    )
    with pytest.raises(SettingError, match=f"^{re.escape(expected)}$"):
        HalfQuadraticZeroPoint(StatisticScaling(form, MinMax()), form, shape=(2, 3))


def test_learned_bit_width():
    with pytest.raises(SettingError, match="another zero point for learned uint"):
        qnn.QuantLinear(4, 2, weight_quant=ShiftedUint4WeightPerTensorHQO, weight_bit_width=LearnedBitWidth)


@pytest.mark.parametrize(
    ("setting", "found", "expected"),
    [
        ("hqo_norm", 0, "a number above 0, up to 1"),
        ("hqo_norm", 2.0, "a number above 0, up to 1"),
        ("hqo_beta", 0, "a number above 0"),
        ("hqo_beta", "big", "a number above 0"),
        ("hqo_growth", 0.9, "a number from 1 on"),
        ("hqo_steps", 0, "a whole number of steps, 1 or more"),
    ],
)
@pytest.mark.parametrize("quantizer", [ShiftedUint4WeightPerTensorHQO, Int4WeightPerChannelHQO])
def test_wrong_numbers(setting, found, expected, quantizer):
    said = (
        f"QuantLinear(in_features=4, out_features=2, bias=True): weight_{setting}={found!r} is not possible: expected "
    )
    with pytest.raises(SettingError, match=f"^{re.escape(said + expected)}\\.$"):
        qnn.QuantLinear(4, 2, weight_quant=quantizer, **{f"weight_{setting}": found})


def test_flag():
    expected = "round_zero_point=1 is not possible: expected True or False."
    with pytest.raises(SettingError, match=f"^{re.escape(expected)}$"):
        parts(torch.zeros(1, 2), 4, round_zero_point=1)


@pytest.mark.parametrize("shared_by", [pytest.param("tensor", marks=pytest.mark.slow), "scale"])
def test_range_of_learned_bit_widths(shared_by):
    settings = {"weight_bit_width": LearnedBitWidth, "weight_bit_width_granularity": shared_by}
    learned = qnn.QuantLinear(16, 3, weight_quant=Int4WeightPerChannelHQO, **settings)
    fixed = qnn.QuantLinear(16, 3, weight_quant=Int4WeightPerChannelHQO, weight_bit_width=8)
    fixed.weight = learned.weight
    assert torch.equal(learned.quant_weight().value, fixed.quant_weight().value)
    x = torch.randn(2, 16)
    assert torch.equal(torch.compile(learned, backend="aot_eager", fullgraph=True)(x), learned(x))

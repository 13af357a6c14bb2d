"""Dropping the low bits of integers."""

import copy
import re
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import bitwright.nn as qnn
from bitwright.export import compare_integers, export_onnx_qcdq, run_integers, verify_onnx
from bitwright.qcore import (
    Floor,
    Grid,
    HalfEven,
    Integers,
    PerAxis,
    QuantizerError,
    QuantTensor,
    SettingError,
    TruncQuant,
)
from bitwright.qcore.truncation import Truncation
from bitwright.quantizers import Fp8e4m3Act, Int8Act, Int16Bias, ShiftedUint8Act, TruncTo8bit, Uint8Act


@given(st.lists(st.integers(-(2**11), 2**11 - 1), min_size=1, max_size=20), st.integers(2, 12))
def test_integers_are_shifted_to_the_right(codes: list[int], bits: int) -> None:
    scale = torch.tensor(0.3)
    values = torch.tensor(codes, dtype=torch.float32) * scale
    found, grid = TruncQuant(bits).quantize(values, Grid(scale, number_format=Integers(12)))
    assert grid is not None
    assert grid.scale == scale * 2 ** (12 - bits)
    assert grid.to_int(found).tolist() == [code >> (12 - bits) for code in codes]
    assert grid.number_format == Integers(bits)


def test_other_roundings_and_the_end_of_the_range() -> None:
    quant = TruncQuant(4, HalfEven())
    grid = Grid(torch.tensor(1.0), number_format=Integers(8, signed=False))
    values, after = quant.quantize(torch.tensor([8.0, 24.0, 25.0, 255.0]), grid)
    assert values.tolist() == [0.0, 32.0, 32.0, 240.0]
    assert after is not None
    assert str(after.number_format) == "uint4"


def test_a_narrow_grid_is_left_alone() -> None:
    grid = Grid(torch.tensor(0.5), number_format=Integers(4))
    values, after = TruncQuant(8).quantize(torch.tensor([1.5, -4.0]), grid)
    assert values.tolist() == [1.5, -4.0]
    assert after is not None
    assert (after.scale, after.number_format) == (grid.scale, grid.number_format)


def test_each_channel_keeps_its_scale() -> None:
    grid = Grid(torch.tensor([[0.5, 2.0]]), number_format=Integers(8), granularity=PerAxis(1))
    values, after = TruncQuant(4).quantize(torch.tensor([[15.5, 62.0], [-0.5, -2.0]]), grid)
    assert values.tolist() == [[8.0, 32.0], [-8.0, -32.0]]
    assert after is not None
    assert after.scale.tolist() == [[8.0, 32.0]]


def test_floats_that_stand_for_integers_are_no_less() -> None:
    rounding = Truncation(Floor())
    rounding.shift = 3
    assert rounding(torch.tensor([0.9999999, 1.0000001, 0.87])).tolist() == [1.0, 1.0, 0.0]


def test_gradients_pass_straight_through() -> None:
    x = torch.tensor([0.3, 1.7], requires_grad=True)
    TruncQuant(4).quantize(x, Grid(torch.tensor(0.01), number_format=Integers(9)))[0].sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [1.0, 1.0]


def _model() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        qnn.QuantIdentity(scale=0.05, return_quant_tensor=True),
        qnn.QuantLinear(
            16,
            8,
            weight_bit_width=4,
            bias_quant=Int16Bias,
            output_quant=TruncTo8bit,
            output_bit_width=10,
            return_quant_tensor=True,
        ),
        qnn.QuantReLU(scale=0.1, return_quant_tensor=True),
        qnn.QuantLinear(8, 3, bias=False),
    )
    return model


def test_a_layer_cuts_its_sums() -> None:
    model, x = _model(), torch.randn(20, 16)
    model(x).sum().backward()
    model.eval()
    sums = copy.deepcopy(model)
    sums[1].output_quant = None
    whole, cut = sums[1](sums[0](x)), model[1](model[0](x))
    assert isinstance(whole, QuantTensor)
    assert isinstance(cut, QuantTensor)
    dropped = int(whole.bit_width) - 10
    assert dropped > 0
    assert torch.equal(cut.int().long(), whole.int().long() >> dropped)
    assert torch.equal(cut.scale, whole.scale * 2**dropped)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), model(x))


def test_files_and_integers_shift_too(tmp_path: Any) -> None:
    model, x = _model().eval(), torch.randn(20, 16)
    export_onnx_qcdq(model, x, tmp_path / "model.onnx")
    assert verify_onnx(model, tmp_path / "model.onnx", x).differences == 0
    assert compare_integers(model, x).differences == 0
    for requantize in ("scale", "multiplier"):
        run = run_integers(model, x, requantize=requantize)
        cut = model[1](model[0](x))
        assert torch.equal(run.codes["1.output_quant"], cut.int().long())


def test_state_goes_and_comes() -> None:
    model = _model()
    model(torch.randn(2, 16))
    again = _model()
    again.load_state_dict(model.state_dict())
    copy.deepcopy(model).load_state_dict(model.state_dict())
    assert model[1].output_quant.scheme() == "truncated to 10 bits, floor"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda x: qnn.QuantLinear(2, 2, bias=False, output_quant=TruncTo8bit)(x),
            "QuantLinear: output_quant=TruncTo8bit needs a quantized input, and the input is a plain tensor. Set "
            "return_quant_tensor=True on the layer before. If it is set, an operation in between has left the grid, "
            "such as average pooling or an activation function of torch's: put "
            "QuantIdentity(return_quant_tensor=True) behind it. Or give this layer input_quant=Int8Act, or "
            "output_quant=Int8Act.",
        ),
        (
            lambda x: qnn.QuantLinear(2, 2, output_quant=TruncTo8bit),
            "QuantLinear(in_features=2, out_features=2, bias=True): output_quant=TruncTo8bit needs outputs that lie on "
            "a grid, and the bias is not quantized on the scale of the products. Set bias_quant=Int32Bias, or "
            "output_quant=Int8Act to quantize the output.",
        ),
        (
            lambda x: qnn.QuantReLU(act_quant=TruncTo8bit),
            "QuantReLU(): TruncTo8bit drops bits of integers, and this layer computes in floats. Write it as the "
            "act_quant of a QuantIdentity, or act_quant=Int8Act.",
        ),
        (
            lambda x: qnn.QuantIdentity(act_quant=TruncTo8bit)(x),
            "act_quant: truncated to 8 bits, floor drops bits of integers, and the values lie on no grid. Give the "
            "layer a quantized input, or another quantizer: Int8Act.",
        ),
        (
            lambda x: qnn.QuantIdentity(act_quant=TruncTo8bit)(
                qnn.QuantIdentity(act_quant=ShiftedUint8Act, return_quant_tensor=True)(x)
            ),
            "act_quant: truncated to 8 bits, floor shifts integers to the right, and these have a zero point, which a "
            "shift makes a fraction. Quantize the input without one (Int8Act, Uint8Act), or write Int8Act in the place "
            "of this quantizer.",
        ),
        (
            lambda x: qnn.QuantIdentity(act_quant=TruncTo8bit)(
                qnn.QuantIdentity(act_quant=Fp8e4m3Act, return_quant_tensor=True)(x)
            ),
            "act_quant: truncated to 8 bits, floor drops bits of integers, and the values are on a grid of e4m3fn. "
            "Write Int8Act in its place.",
        ),
    ],
)
def test_what_has_no_integers_is_refused(make: Any, message: str) -> None:
    with pytest.raises(QuantizerError, match=re.escape(message)):
        make(torch.ones(3, 2))


def test_a_bit_width_is_2_or_more() -> None:
    with pytest.raises(
        SettingError, match=re.escape("bit_width=1 is not possible: expected a whole number from 2 to 32.")
    ):
        TruncQuant(1)


def test_inputs_that_arrive_with_a_grid_are_cut_where_a_layer_takes_them() -> None:
    x = qnn.QuantIdentity(act_quant=Uint8Act, bit_width=12, scale=1.0, return_quant_tensor=True)(torch.tensor([33.0]))
    layer = qnn.QuantLinear(1, 1, bias=False, weight_quant=None, input_quant=TruncTo8bit)
    layer.weight.data.fill_(1.0)
    assert layer(x).item() == 32.0
    assert Int8Act.bit_width == 8

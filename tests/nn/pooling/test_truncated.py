"""Truncating average pools: integer arithmetic, exactly."""

import copy
import math
import pickle
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import bitwright.nn as qnn
from bitwright.graph import quantize
from bitwright.qcore import Grid, Integers, QuantizerError, QuantTensor, grid_of, values_of
from bitwright.quantizers import Int8Act, Int8ActPerChannel, ShiftedUint8Act, Uint8Act


def on_grid(codes, scale=0.1, bits=8, signed=True, zero_point=None, source=7):
    """A QuantTensor of integers."""
    zero = None if zero_point is None else torch.tensor(float(zero_point))
    grid = Grid(torch.tensor(scale), zero, Integers(bits, signed), source=source)
    return QuantTensor.wrap(grid.from_int(codes), grid)


def half_even(x):
    return round(x)


def half_up(x):
    return math.floor(x + Fraction(1, 2))


ROUNDINGS = {"half_even": half_even, "half_up": half_up, "floor": math.floor, "ceil": math.ceil, "toward_zero": int}


@st.composite
def arguments(draw):
    kernel = draw(st.tuples(*[st.integers(1, 4)] * 2))
    padding = tuple(draw(st.integers(0, each // 2)) for each in kernel)
    stride = draw(st.none() | st.tuples(*[st.integers(1, 4)] * 2))
    shape = [draw(st.integers(max(each - 2 * pad, 1), 6)) for each, pad in zip(kernel, padding, strict=True)]
    flags = draw(st.booleans()), draw(st.booleans()), draw(st.none() | st.integers(1, 20))
    return (kernel, stride, padding, *flags), shape


def exactly(codes, sums, rounding, divisors):
    """Sums over numbers of elements, rounded without a float in between."""
    pairs = zip(sums.flatten().tolist(), divisors.flatten().tolist(), strict=True)
    return [ROUNDINGS[rounding](Fraction(int(total), round(count))) for total, count in pairs]


@given(arguments(), st.sampled_from(sorted(ROUNDINGS)), st.sampled_from([0.1, 0.37, 2**-7]), st.integers(0, 2**31))
def test_it_is_the_rounded_average_of_the_integers(given_, rounding, scale, seed):
    given_, shape = given_
    codes = torch.randint(-128, 128, (2, *shape), generator=torch.Generator().manual_seed(seed))
    out = qnn.TruncAvgPool2d(*given_, rounding=rounding, return_quant_tensor=True)(on_grid(codes, scale))
    sums = F.avg_pool2d(codes.double(), *given_[:4], True, divisor_override=1)
    ones = F.avg_pool2d(torch.ones_like(codes).double(), *given_[:4], True, divisor_override=1)
    averages = F.avg_pool2d(torch.ones_like(codes).double(), *given_)
    divisors = torch.where(averages > 0, ones / averages, 1.0)
    assert out.int().flatten().tolist() == exactly(codes, sums, rounding, divisors)
    assert out.scale == torch.tensor(scale)


@given(st.tuples(*[st.integers(1, 7)] * 2), st.data(), st.sampled_from(sorted(ROUNDINGS)), st.integers(0, 2**31))
def test_adaptive_is_the_rounded_average_of_the_integers(sizes, data, rounding, seed):
    counts = data.draw(st.tuples(*(st.none() | st.integers(1, size) for size in sizes)))
    codes = torch.randint(0, 256, (2, *sizes), generator=torch.Generator().manual_seed(seed))
    layer = qnn.TruncAdaptiveAvgPool2d(counts, rounding=rounding, return_quant_tensor=True)
    out = layer(on_grid(codes, signed=False))
    divisors = F.adaptive_avg_pool2d(torch.ones_like(codes).double(), counts)
    lengths = layer._lengths(sizes)
    divisors = torch.tensor(lengths[0])[:, None] * torch.tensor(lengths[1]) * divisors
    sums = (F.adaptive_avg_pool2d(codes.double(), counts) * divisors).round()
    assert out.int().flatten().tolist() == exactly(codes, sums, rounding, divisors)


def test_literal_numbers():
    q = on_grid(torch.tensor([[[1, 2], [3, 4]], [[-1, -2], [-3, -4]]]))  # averages 2.5 and -2.5
    codes = {
        rounding: qnn.TruncAvgPool2d(2, rounding=rounding, return_quant_tensor=True)(q).int().flatten().tolist()
        for rounding in ROUNDINGS
    }
    assert codes == {
        "half_even": [2, -2],
        "half_up": [3, -2],
        "floor": [2, -3],
        "ceil": [3, -2],
        "toward_zero": [2, -2],
    }


def test_the_result_is_on_the_grid_of_the_input():
    q = on_grid(torch.tensor([[[10, 20], [30, 41]]]))
    out = qnn.TruncAvgPool2d(2, return_quant_tensor=True)(q)
    assert out.grid == q.grid
    assert isinstance(out + q, QuantTensor)
    assert type(qnn.TruncAvgPool2d(2)(q)) is torch.Tensor
    assert torch.equal(qnn.TruncAvgPool2d(2)(q), out.value)


def test_a_zero_point_stays():
    q = on_grid(torch.tensor([[[10, 20], [30, 41]]]), signed=False, zero_point=128)
    out = qnn.TruncAvgPool2d(2, rounding="floor", return_quant_tensor=True)(q)
    assert out.int().tolist() == [[[25]]]  # of (-118 - 108 - 98 - 87) / 4 = -102.75: -103, and the zero point
    assert out.zero_point == 128
    padded = qnn.TruncAvgPool2d(2, 2, 1, return_quant_tensor=True)(q)  # zeros, which are integers 128
    assert padded.int().tolist() == [[[98, 101], [104, 106]]]


def test_bits_keep_the_top_of_the_sum():
    codes = torch.tensor([[[100, 101], [102, 103]]])  # 406, of 10 bits
    eight = qnn.TruncAvgPool2d(2, bit_width=8, return_quant_tensor=True)(on_grid(codes, 0.5, signed=False))
    assert (eight.int().item(), eight.scale.item(), eight.bit_width, eight.signed) == (102, 0.5, 8, False)  # 101.5
    four = qnn.TruncAvgPool2d(2, bit_width=4, rounding="floor", return_quant_tensor=True)(
        on_grid(codes, 0.5, signed=False)
    )
    assert (four.int().item(), four.scale.item(), four.bit_width) == (6, 8.0, 4)  # 406 >> 6
    nine = torch.full((1, 3, 3), 255)  # 2295, of 12 bits, shifted by 4
    out = qnn.TruncAvgPool2d(3, bit_width=8, return_quant_tensor=True)(on_grid(nine, 0.5, signed=False))
    assert (out.int().item(), out.scale.item()) == (143, pytest.approx(0.5 * 16 / 9))
    wide = qnn.TruncAvgPool2d(2, bit_width=16, return_quant_tensor=True)(on_grid(codes, 0.5, signed=False))
    assert (wide.int().item(), wide.scale.item(), wide.bit_width) == (406, 0.125, 16)  # nothing is cut off


def test_bits_clip_what_rounding_carries_over():
    codes = torch.full((1, 257, 1), 255)  # 65535, whose top 8 bits round to 256
    out = qnn.TruncAvgPool2d((257, 1), bit_width=8, return_quant_tensor=True)(on_grid(codes, signed=False))
    assert out.int().item() == 255


@given(st.integers(2, 8), st.booleans(), st.integers(1, 8), st.tuples(*[st.integers(1, 4)] * 2), st.integers(0, 2**31))
def test_bits_are_a_shift(bits, signed, kept, kernel, seed):
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    codes = torch.randint(low, high + 1, (2, 5, 5), generator=torch.Generator().manual_seed(seed))
    layer = qnn.TruncAvgPool2d(kernel, bit_width=kept, rounding="floor", return_quant_tensor=True)
    out = layer(on_grid(codes, bits=bits, signed=signed))
    elements = math.prod(kernel)
    needed = max(each.bit_length() for each in (high * elements, -low * elements - 1 if signed else 0)) + signed
    sums = F.avg_pool2d(codes.double(), kernel, divisor_override=1).to(torch.int64)
    smallest, largest = Integers(kept, signed).bounds
    assert torch.equal(out.int().to(torch.int64), (sums >> max(needed - kept, 0)).clamp(smallest, largest))
    torch.testing.assert_close(out.scale.item(), torch.tensor(0.1).item() * 2 ** max(needed - kept, 0) / elements)


def test_a_small_divisor_needs_more_bits():
    q = on_grid(torch.full((1, 2, 2), -128))
    out = qnn.TruncAvgPool2d(2, divisor_override=1, return_quant_tensor=True)(q)
    assert (out.int().item(), out.bit_width, out.scale) == (-512, 11, torch.tensor(0.1))
    shifted = on_grid(torch.full((1, 2, 2), 255), signed=False, zero_point=128)
    out = qnn.TruncAvgPool2d(2, divisor_override=2, return_quant_tensor=True)(shifted)
    assert (out.int().item(), out.signed, out.zero_point.item()) == (254, True, 0)


def test_sums_that_float32_would_round_are_exact():
    codes = torch.full((1, 200, 200), 255)
    codes[0, 0, 0] = 127  # 10199872 / 40000 = 254.9968
    out = qnn.TruncAdaptiveAvgPool2d(1, rounding="floor", return_quant_tensor=True)(on_grid(codes, signed=False))
    assert out.int().item() == 254
    tie = torch.full((1, 4100, 2050), 255)
    tie[0, ::2] = 254  # 254.5, of a sum beyond 2**31
    out = qnn.TruncAdaptiveAvgPool2d(1, return_quant_tensor=True)(on_grid(tie, signed=False))
    assert out.int().item() == 254


def test_scales_per_channel():
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    q = qnn.QuantIdentity(act_quant=Int8ActPerChannel, calibration_steps=1, return_quant_tensor=True)(x)
    out = qnn.TruncAvgPool2d(2, return_quant_tensor=True)(q)
    assert torch.equal(grid_of(out).scale, grid_of(q).scale)
    assert torch.equal(out.int(), F.avg_pool2d(q.int().double(), 2).round().to(torch.int8))
    with pytest.raises(QuantizerError) as caught:
        qnn.TruncAvgPool2d(2)(q.permute(0, 2, 3, 1))
    assert str(caught.value) == (
        "TruncAvgPool2d: the input has 3 scales (axis 3), so what a window holds lies on no common grid. "
        "Quantize the input per tensor (axis=None), or per channel (axis=1)."
    )


def test_gradients_are_those_of_the_average():
    x = torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    grads = []
    for pool in (qnn.TruncAvgPool2d(3, 1, 1, rounding="floor"), nn.AvgPool2d(3, 1, 1)):
        leaf = x.clone().requires_grad_()
        pool(qnn.QuantIdentity(scale=0.25, return_quant_tensor=True)(leaf)).square().sum().backward()
        grads.append(leaf.grad)
    assert grads[0].abs().sum() > 0
    assert (grads[0] - grads[1]).abs().max() < 0.25


def test_a_quantizer_of_its_own():
    pool = qnn.TruncAvgPool2d(2, input_quant=Uint8Act, input_scale=0.5, input_bit_width=4, return_quant_tensor=True)
    out = pool(torch.tensor([[[1.0, 2.0], [3.0, 99.0]]]))  # 2, 4, 6, 15
    assert (out.int().item(), out.bit_width) == (7, 4)
    with qnn.unquantized(pool):
        assert pool(torch.tensor([[[1.0, 2.0], [3.0, 6.0]]])).item() == 3.0


def test_plain_tensors_are_averaged_in_floats():
    x = torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(qnn.TruncAvgPool2d(2)(x), nn.AvgPool2d(2)(x))
    assert torch.equal(qnn.TruncAdaptiveAvgPool2d(1)(x), nn.AdaptiveAvgPool2d(1)(x))
    model = nn.Sequential(
        qnn.QuantIdentity(scale=0.5, return_quant_tensor=True), qnn.TruncAvgPool2d(2, return_quant_tensor=True)
    )
    model(x)
    with qnn.unquantized(model):
        assert torch.equal(model(x), nn.AvgPool2d(2)(x))


def refusal(call):
    with pytest.raises(QuantizerError) as caught:
        call()
    return str(caught.value)


def test_refusals():
    model = nn.Sequential(qnn.TruncAvgPool2d(2, return_quant_tensor=True))
    assert refusal(lambda: model(torch.ones(1, 2, 2))) == (
        "0: return_quant_tensor=True needs a quantized input, and the input is a plain tensor. Set "
        "return_quant_tensor=True on the layer before. If it is set, an operation in between has left the grid, such "
        "as average pooling or an activation function of torch's: put QuantIdentity(return_quant_tensor=True) behind "
        "it. Or give this layer input_quant=Int8Act."
    )
    shifted = on_grid(torch.ones(1, 2, 2), signed=False, zero_point=3)
    assert refusal(lambda: qnn.TruncAvgPool2d(2, bit_width=8)(shifted)) == (
        "TruncAvgPool2d: bit_width=8 shifts sums of integers to the right, and the input has a zero point, which a "
        "shift makes a fraction. Leave bit_width out, or quantize the input without a zero point (Int8Act, Uint8Act)."
    )
    uneven = qnn.TruncAdaptiveAvgPool2d(3, bit_width=8)
    assert refusal(lambda: uneven(on_grid(torch.ones(1, 5, 6)))) == (
        "TruncAdaptiveAvgPool2d: bit_width=8 shifts all sums by the same number of bits, and windows of an input of "
        "5 x 6 have different numbers of elements. Leave bit_width out."
    )


WRONG = {
    "no bits": (
        {"bit_width": 0},
        "TruncAvgPool2d(kernel_size=2, stride=2, padding=0): bit_width=0 is not possible: expected None, or a number "
        "from 1 to 32.",
    ),
    "no rounding": (
        {"rounding": "nearest"},
        "TruncAvgPool2d: rounding='nearest' is not possible: expected one of 'half_even', 'half_up', 'floor', 'ceil', "
        "'toward_zero', 'stochastic', 'learned', or a class or function of your own that is called with (x).",
    ),
    "no flag": ({"ceil_mode": 2}, "TruncAvgPool2d: ceil_mode=2 is not possible: expected True or False."),
    "no flag of ours": (
        {"return_quant_tensor": 2},
        "TruncAvgPool2d: return_quant_tensor=2 is not possible: expected True or False.",
    ),
    "a setting without a quantizer": (
        {"input_bit_width": 4},
        "TruncAvgPool2d(kernel_size=2, stride=2, padding=0): input_bit_width=4 is given, but input_quant is None. "
        "Write input_quant=Int8Act too, or leave input_bit_width out.",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments(name):
    keywords, message = WRONG[name]
    assert refusal(lambda: qnn.TruncAvgPool2d(2, **keywords)) == message


def toward_even_tens(x):
    return torch.round(x / 10) * 10


def test_a_rounding_of_ones_own():
    q = on_grid(torch.tensor([[[11, 12], [13, 20]]]))
    for rounding in (toward_even_tens, qnn.TruncAvgPool2d(2, rounding="floor").rounding):
        assert qnn.TruncAvgPool2d(2, rounding=rounding, return_quant_tensor=True)(q).int().item() in (10, 14)


def test_copies_compute_the_same_and_say_so():
    layer = qnn.TruncAvgPool2d(2, bit_width=4, rounding="floor", input_quant=Int8Act, input_scale=0.5)
    x = torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(0)) * 9
    for each in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(each(x), layer(x))
        assert repr(each) == repr(layer)
    assert repr(layer).splitlines()[1] == "  kernel_size=2, stride=2, padding=0, bit_width=4, rounding=floor"


def test_rules_name_it():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AvgPool2d(2))
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    quantized = quantize(model, {"1": qnn.TruncAvgPool2d})
    assert type(quantized[1]) is qnn.TruncAvgPool2d
    assert quantized[1].kernel_size == 2
    assert torch.equal(quantized(x), model(x))


@pytest.mark.slow
def test_compiled_is_eager():
    class Pools(nn.Module):
        def __init__(self):
            super().__init__()
            self.entry = qnn.QuantIdentity(scale=0.1, return_quant_tensor=True)
            self.zero = qnn.QuantIdentity(act_quant=ShiftedUint8Act, calibration_steps=1, return_quant_tensor=True)
            self.pools = nn.ModuleList(
                [
                    qnn.TruncAvgPool2d(3, 2, 1, True, False, return_quant_tensor=True),
                    qnn.TruncAvgPool2d(2, bit_width=4, rounding="floor"),
                    qnn.TruncAdaptiveAvgPool2d(3),
                ]
            )

        def forward(self, x):
            q = self.entry(x)
            return [values_of(pool(q)) for pool in self.pools] + [values_of(self.pools[0](self.zero(x)))]

    model = Pools()
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    model(x)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for one, other in zip(compiled(x), model(x), strict=True):
        assert torch.equal(one, other)

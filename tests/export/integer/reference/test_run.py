import math
import re
from fractions import Fraction
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import bitwright.nn as qnn
from bitwright.export import (
    ByMultiplier,
    ExportError,
    IntegerGrid,
    Integers,
    accumulator_report,
    compare_integers,
    integers,
    run_integers,
)
from bitwright.export.integer.reference.journal import Journal
from bitwright.export.integer.reference.tensor import IntegerTensor
from bitwright.export.integer.reference.terms import Term
from bitwright.export.integer.requantize import multiplier_and_shift
from bitwright.qcore import Ceil, Floor, HalfEven, HalfUp, IntQuant, TowardZero
from bitwright.quantizers import (
    Int8Act,
    Int8ActPowerOfTwo,
    Int8BiasOwnScale,
    Int8WeightPerChannel,
    Int8WeightPerChannelPowerOfTwo,
    Int8WeightPerTensor,
    Int8WeightPerTensorPowerOfTwo,
    Int32Bias,
    Uint8Act,
    Uint8ActPowerOfTwo,
)

REQUANTIZATIONS = ["scale", "multiplier", "shift"]


class PowersOfTwo(nn.Module):
    """A residual network whose scales are powers of two: every way to requantize is exact."""

    def __init__(self):
        super().__init__()
        self.inp = qnn.QuantIdentity(act_quant=Int8ActPowerOfTwo, return_quant_tensor=True)
        self.one = self.layer(3, 8, weight_quant=Int8WeightPerTensorPowerOfTwo)
        self.act = qnn.QuantReLU(act_quant=Uint8ActPowerOfTwo(bit_width=6), return_quant_tensor=True)
        self.two = self.layer(8, 8, weight_quant=Int8WeightPerChannelPowerOfTwo(bit_width=4))
        self.sum = qnn.QuantReLU(act_quant=Uint8ActPowerOfTwo, return_quant_tensor=True)
        self.mean = qnn.QuantIdentity(act_quant=Int8ActPowerOfTwo, return_quant_tensor=True)
        self.fc = qnn.QuantLinear(8, 5, weight_quant=Int8WeightPerTensorPowerOfTwo, bias_quant=Int32Bias)

    @staticmethod
    def layer(ins, outs, **options):
        return qnn.QuantConv2d(ins, outs, 3, padding=1, bias_quant=Int32Bias, **options)

    def forward(self, x):
        x = self.act(self.one(self.inp(x)))
        x = self.sum(self.two(x) + x)
        return self.fc(self.mean(F.avg_pool2d(x, 4).flatten(2).mean(2)))


def trained(model, *shape):
    model.train()
    with torch.no_grad():
        for _ in range(2):
            model(torch.randn(*shape))
    qnn.finish_calibration(model)
    return model.eval()


@pytest.mark.parametrize("requantize", REQUANTIZATIONS)
def test_powers_of_two_are_exact(requantize):
    model, x = trained(PowersOfTwo(), 4, 3, 8, 8), torch.randn(16, 3, 8, 8)
    run = run_integers(model, x, requantize=requantize)
    assert run.integer_only
    assert torch.equal(run.outputs, model(x))
    assert str(run) == "4 tensors of integers, 4 layers with sums; nothing computed in floats"


def test_codes_are_those_of_the_fake_quantized_model():
    model = trained(nn.Sequential(qnn.QuantIdentity(return_quant_tensor=True), qnn.QuantReLU(bit_width=4)), 9, 9)
    model[1].return_quant_tensor = True
    x = torch.randn(50, 9)
    run = run_integers(model, x)
    assert torch.equal(run.codes["0.act_quant"], model[0](x).int().to(torch.int64))
    assert torch.equal(run.codes["1.act_quant"], model(x).int().to(torch.int64))


def test_runs_from_a_file(tmp_path):
    model, x = trained(PowersOfTwo(), 4, 3, 8, 8), torch.randn(4, 3, 8, 8)
    integers(model, x).save_npz(tmp_path / "model.npz")
    expected = model(x)
    with torch.no_grad():
        for parameter in model.parameters():  # only the order of operations is left
            parameter.fill_(1.0)
    assert torch.equal(run_integers(model, x, integers=Integers.load(tmp_path / "model.npz")).outputs, expected)


def test_integers_of_another_model():
    model = nn.Sequential(qnn.QuantLinear(3, 2, input_quant=Int8Act(scale=0.5)))
    found = integers(nn.Sequential(qnn.QuantLinear(3, 2)), torch.ones(1, 3))
    with pytest.raises(ExportError) as raised:
        run_integers(model, torch.ones(1, 3), integers=found)
    assert str(raised.value) == (
        "0.input_quant: the integers hold nothing for this quantizer. They have 0.weight_quant. Take them from this "
        "model, with an example that takes the same path: integers(model, example)."
    )


def test_what_is_computed_in_floats_is_listed():
    model = nn.Sequential(
        qnn.QuantLinear(4, 4, input_quant=Int8Act(scale=0.1)),
        nn.BatchNorm1d(4),
        qnn.QuantTanh(scale=2**-7),
        qnn.QuantSigmoid(scale=2**-8),
    ).eval()
    run = run_integers(model, torch.randn(3, 4))
    assert not run.integer_only
    assert run.floats == {
        "0": {"a float bias": 1},
        "1": {"batch_norm": 1},
        "2": {"tanh": 1},
        "3": {"sigmoid": 1},
    }
    assert str(run) == (
        "3 tensors of integers, 1 layer with sums; computed in floats: a float bias in 0; batch_norm in 1; tanh in 2; "
        "sigmoid in 3"
    )
    assert [str(each) for each in run.float_modules] == [
        "0 (QuantLinear): a float bias",
        "1 (BatchNorm1d): batch_norm",
        "2 (QuantTanh): tanh",
        "3 (QuantSigmoid): sigmoid",
    ]


class Branches(nn.Module):
    """Floats before the first quantizer, between two in place and through views, beside them, and behind the last."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv1d(2, 3, 3, padding=1)
        self.inp = qnn.QuantIdentity(scale=0.1, return_quant_tensor=True)
        self.between, self.beside, self.after = nn.Tanh(), nn.Sigmoid(), nn.Softmax(1)
        self.out = qnn.QuantIdentity(scale=0.1, return_quant_tensor=True)
        self.position = nn.Parameter(torch.randn(3, 8))

    def forward(self, x):
        x = self.inp(self.stem((x - 0.5) / 2))
        y = self.between(x).clone()
        y[:, 0].mul_(3)
        beside = self.beside(x)
        position = (self.position * 2).cos()  # of parameters alone
        return self.after(self.out(y.flatten(1).reshape(-1, 3, 8) + position).relu()), beside


def test_where_floats_lie():
    run = run_integers(Branches().eval(), torch.randn(2, 2, 8))
    assert [(each.path, each.operations, each.place) for each in run.float_modules] == [
        ("", ("sub", "div"), "before"),
        ("stem", ("convolution",), "before"),
        ("between", ("tanh",), "between"),
        ("", ("mul_", "add"), "between"),
        ("after", ("softmax",), "after"),
        ("beside", ("sigmoid",), "after"),
    ]
    assert run.floats == {
        "between": {"tanh": 1},
        "": {"mul_": 1, "add": 1},
        "beside": {"sigmoid": 1},
        "after": {"softmax": 1},
    }


def test_arithmetic_of_a_quantizer_of_ones_own_is_float():
    class Own(IntQuant):
        def _quantize(self, x, relu=False, floor=None, *more, **named):
            return super()._quantize(x * 1.0, relu)

    model = nn.Sequential(qnn.QuantIdentity(scale=0.5), qnn.QuantIdentity(scale=0.25)).eval()
    model[1].act_quant.__class__ = Own
    run = run_integers(model, torch.randn(2, 3))
    assert [(str(each), each.place) for each in run.float_modules] == [("1 (QuantIdentity): Own._quantize", "between")]


@pytest.mark.parametrize(("bits", "fits"), [(17, True), (16, False)])
def test_overflow_is_named(bits, fits):
    fc = qnn.QuantLinear(3, 2, bias=False, input_quant=Int8Act(scale=1.0), weight_bit_width=8)
    with torch.no_grad():
        fc.weight.copy_(torch.tensor([[0.5, 0.0, 0.0], [1.27, 1.27, 1.27]]))
    model = nn.Sequential(fc)
    x = torch.tensor([[100.0, 100.0, 100.0]])
    if fits:
        assert run_integers(model, x, accumulator_bits=bits).sums["0"].bits == 17
        return
    with pytest.raises(ExportError) as raised:
        run_integers(model, x, accumulator_bits=bits)
    assert str(raised.value) == (
        "0: the accumulator overflows: a sum reaches 38100 in channel 1, and 16 bits hold -32768 to 32767. Write "
        "accumulator_bits=17 or more, or lower the bit width of weight or input."
    )


def test_accumulators_of_other_widths():
    with pytest.raises(ExportError) as raised:
        run_integers(nn.Sequential(qnn.QuantLinear(2, 2)), torch.ones(1, 2), accumulator_bits=64)
    assert str(raised.value) == "accumulator_bits=64 is not possible: expected 2 to 53. Write 32."


def test_unknown_requantization():
    with pytest.raises(ExportError) as raised:
        run_integers(nn.Sequential(qnn.QuantLinear(2, 2)), torch.ones(1, 2), requantize="multipler")
    assert str(raised.value) == (
        "requantize='multipler' is not possible: expected one of 'scale', 'multiplier', 'shift', or a callable. Did "
        "you mean 'multiplier'?"
    )


def test_sums_that_float64_rounds():
    journal = Journal()
    with pytest.raises(ExportError) as raised:
        journal.require_exact(torch.tensor([2**30]), 2**30)
    assert str(raised.value) == (
        "the model: sums of products may reach 1152921504606846976, more than 53 bits. Lower the bit width of weight "
        "or input."
    )


# Operations: on integers as on values


def tensor(*shape, terms=1, axis=None):
    scales = torch.rand(terms, shape[axis] if axis is not None else 1) + 0.1
    made = []
    for scale in scales:
        view = () if axis is None else tuple(-1 if dim == axis else 1 for dim in range(len(shape)))
        made.append(Term(torch.randint(-50, 50, shape), scale.reshape(view)))
    return IntegerTensor(tuple(made), Journal())


KEEP = {
    "view": lambda x: x.view(2, -1),
    "permuted": lambda x: x.permute(0, 2, 3, 1).reshape(2, -1),
    "transposed": lambda x: x.transpose(1, 2).flatten(1),
    "sliced": lambda x: x[:, 1:, ::2],
    "indexed": lambda x: x[:, [2, 0]],
    "selected": lambda x: x[0],
    "split": lambda x: torch.cat(x.split(2, 1)[::-1], 1),
    "chunked": lambda x: x.chunk(2, 3)[1],
    "unbound": lambda x: x.unbind(1)[2],
    "squeezed": lambda x: x.unsqueeze(2).squeeze(2),
    "expanded": lambda x: x.unsqueeze(0).expand(3, -1, -1, -1, -1),
    "repeated": lambda x: x.repeat(1, 1, 2, 1),
    "flipped": lambda x: x.flip(2),
    "padded": lambda x: F.pad(x, (1, 2, 0, 1)),
    "turned": lambda x: x.rot90(1, (2, 3)),
    "circular": lambda x: F.pad(x, (1, 2, 1, 1), mode="circular"),
    "reflected": lambda x: F.pad(x, (1, 2, 1, 1), mode="reflect"),
    "max_pool": lambda x: F.max_pool2d(x, 3, 2, 1),
    "max_pool_1d": lambda x: F.max_pool1d(x.flatten(1, 2), 2),
    "max_pool_3d": lambda x: F.max_pool3d(x.unsqueeze(2), (1, 2, 3)),
    "max_pool_indices": lambda x: F.max_pool2d(x, 2, return_indices=True)[0],
    "adaptive_max_pool": lambda x: F.adaptive_max_pool2d(x, 2),
    "nearest": lambda x: F.interpolate(x, scale_factor=2.0),
    "relu": lambda x: F.relu(x),
    "relu_in_place": lambda x: F.relu(x.clone(), inplace=True),
    "relu6": lambda x: F.relu6(x),
    "clamp": lambda x: x.clamp(-1, 2).clamp_min(0),
    "negated": lambda x: -x,
    "dropout": lambda x: F.dropout(x, training=False),
    "relu_and_pool": lambda x: F.max_pool2d(F.relu(x), 2),
    "clamp_and_pad": lambda x: F.pad(x.clamp(-1, 2), (1, 1)),
    "contiguous": lambda x: x.contiguous().to(torch.float32),
}
SUMS = {
    "running": lambda x: x.cumsum(3),
    "avg_pool_without_padding": lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
    "avg_pool_ceil": lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True),
    "avg_pool_ceil_without_padding": lambda x: F.avg_pool2d(x, (3, 4), 3, 1, True, False),
    "avg_pool_1d": lambda x: F.avg_pool1d(x.flatten(2), 3, 2, 1, count_include_pad=False),
    "avg_pool_3d": lambda x: F.avg_pool3d(x.unsqueeze(2), (1, 3, 2), (1, 2, 2), (0, 1, 1), True, False),
    "avg_pool_divisor": lambda x: F.avg_pool2d(x, 2, divisor_override=3),
    "adaptive_uneven": lambda x: F.adaptive_avg_pool2d(x, (4, 5)),
    "adaptive_3d": lambda x: F.adaptive_avg_pool3d(x.unsqueeze(2), (1, 4, 2)),
    "bilinear": lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
    "bilinear_corners": lambda x: F.interpolate(x, size=(5, 9), mode="bilinear", align_corners=True),
    "linear": lambda x: F.interpolate(x.flatten(2), scale_factor=4, mode="linear"),
    "halved": lambda x: x / 2,
    "times": lambda x: x * -0.3,
    "leaky": lambda x: F.leaky_relu(x, 0.1),
    "mean": lambda x: x.mean((2, 3)),
    "mean_kept": lambda x: x.mean(3, keepdim=True),
    "sum": lambda x: x.sum((2, 3)),
    "avg_pool": lambda x: F.avg_pool2d(x, 2),
    "avg_pool_padded": lambda x: F.avg_pool2d(x, 3, 1, 1),
    "adaptive": lambda x: F.adaptive_avg_pool2d(x, (2, 3)),
    "global": lambda x: F.adaptive_avg_pool2d(x, 1),
}


LARGEST = {
    "amin": lambda x: x.amin(1),
    "max_of_all": lambda x: x.max(),
    "max": lambda x: x.max(1)[0],
    "min_kept": lambda x: x.min(3, keepdim=True)[0],
    "topk": lambda x: x.topk(3, 2)[0],
    "sorted": lambda x: x.sort(1, descending=True)[0],
    "median": lambda x: x.median(3)[0],
    "largest_so_far": lambda x: x.cummax(2)[0],
    "maximum": lambda x: torch.maximum(x, x.flip(3)),
    "minimum": lambda x: torch.minimum(x, x.flip(2)),
    "positive": lambda x: torch.where(x.flip(3) > 0.5, x, 0.0),
    "masked": lambda x: x.masked_fill(torch.arange(6) > 3, 0),
    "a_mask": lambda x: x * (torch.arange(6) > 3),
    "large": lambda x: F.threshold(x, 1.0, 0.0),
    "magnitudes": lambda x: x.abs(),
    "from_zero": lambda x: sum([x, 0]) + 0,
    "amax": lambda x: x.amax((2, 3)),
    "amax_kept": lambda x: x.amax(3, keepdim=True),
    "amax_of_all": lambda x: x.amax(),
}


SINGLE = {"positive", "large", "magnitudes"}  # a sum of two terms is compared, or loses its sign, in floats


@pytest.mark.parametrize("axis", [None, 1])
@pytest.mark.parametrize("terms", [1, 2])
@pytest.mark.parametrize("name", LARGEST)
def test_selected_integers(name, terms, axis):
    if terms == 2 and name in SINGLE:
        pytest.skip("takes values")
    x = tensor(2, 4, 6, 6, terms=terms, axis=axis)
    out = LARGEST[name](x)
    assert isinstance(out, IntegerTensor)
    assert torch.equal(out.value, LARGEST[name](x.value))
    assert x.journal.floats == {}


def test_places_of_the_largest():
    x = tensor(2, 4, 6, 6)
    assert torch.equal(x.argmax(1), x.value.argmax(1))
    assert torch.equal(x.argsort(3), x.value.argsort(3))
    assert x.journal.floats == {}


def test_integers_are_written_in_place():
    """Zeros and integers on the same scale, through views; what shares the memory changes with them."""
    x = tensor(2, 4)
    before, y = x.value, x.clone()
    y[:, 0] = 0
    y[:, 1] = x[:, 2]
    z = torch.zeros_like(x)
    z[:, 2:] = x[:, :2]
    assert (z.zero, torch.zeros_like(x).zero) == (False, True)
    assert torch.equal(x.value, before)
    assert torch.equal(y.value, torch.stack([0 * before[:, 0], before[:, 2], before[:, 2], before[:, 3]], 1))
    assert torch.equal(z.value, torch.cat([torch.zeros(2, 2), before[:, :2]], 1))
    assert x.journal.floats == {}


def test_bounds_that_are_integers_are_applied_at_once():
    x = IntegerTensor((Term(torch.tensor([-9, 3, 40]), torch.tensor(0.25)),), Journal())
    clipped = F.hardtanh(x, -1.0, 6.0)
    assert (clipped.pending, clipped.terms[0].codes.tolist()) == (False, [-4, 3, 24])
    later = F.hardtanh(x, -1.1, 6.0)
    assert (later.pending, later.terms[0].codes.tolist(), later.value.tolist()) == (
        True,
        [-9, 3, 40],
        [-1.100000023841858, 0.75, 6.0],
    )


def test_slopes_multiply_negative_integers():
    x = IntegerTensor((Term(torch.tensor([-9, 3]), torch.tensor(0.5)),), Journal())
    slope = IntegerTensor((Term(torch.tensor([3]), torch.tensor(0.125)),), Journal())
    out = F.prelu(x, slope)
    assert out.terms[0].codes.tolist() == [-27, 3]
    assert out.terms[0].scale.tolist() == [0.0625, 0.5]


@pytest.mark.parametrize("axis", [None, 1])
@pytest.mark.parametrize("operation", KEEP.values(), ids=KEEP)
@pytest.mark.parametrize("terms", [1, 2])
def test_operations_that_move_integers(operation, axis, terms):
    x = tensor(2, 4, 6, 6, axis=axis, terms=terms)
    out = operation(x)
    assert isinstance(out, IntegerTensor)
    assert torch.equal(out.value, operation(x.value))
    assert x.journal.floats == {}


@pytest.mark.parametrize("axis", [None, 1])
@pytest.mark.parametrize("operation", SUMS.values(), ids=SUMS)
def test_operations_that_add_integers(operation, axis):
    x = tensor(2, 4, 6, 6, axis=axis)
    out = operation(x)
    assert isinstance(out, IntegerTensor)
    torch.testing.assert_close(out.value, operation(x.value))
    assert x.journal.floats == {}


def test_additions_keep_terms():
    x, y, z = (tensor(2, 3) for _ in range(3))
    assert torch.equal((x + y).value, x.value + y.value)
    assert torch.equal((x - y).value, x.value - y.value)
    assert torch.equal((x - (y + z)).value, x.value - (y.value + z.value))
    assert torch.equal(F.relu(x + y).clamp_max(3.0).value, F.relu(x.value + y.value).clamp_max(3.0))
    assert len((x + (y + z)).terms) == 3
    together = x
    together += y
    assert torch.equal(together.value, x.value + y.value)


class Shared(nn.Module):
    """A residual sum on one scale, and what comes between it and the next quantizer, or layer."""

    def __init__(self, shared, operation, last):
        super().__init__()
        self.operation = operation
        self.inp = qnn.QuantIdentity(bit_width=4, return_quant_tensor=True)
        output = self.inp.act_quant if shared == "output_quant" else None
        self.conv = qnn.QuantConv2d(
            3, 3, 3, padding=1, bias_quant=Int32Bias, output_quant=output, return_quant_tensor=True
        )
        own = qnn.QuantIdentity(act_quant=self.inp.act_quant, return_quant_tensor=True)
        self.out = own if shared == "identity" else nn.Identity()
        self.last = last()

    def forward(self, x):
        x = self.inp(x)
        return self.last(self.operation(x, self.out(self.conv(x))))


BEHIND = {
    "max_pool": lambda x, y: F.max_pool2d(x + y, 2),
    "sliced": lambda x, y: (x + y)[:, :, 1:, ::2].contiguous(),
    "turned": lambda x, y: (x - y).permute(0, 1, 3, 2).flip(2),
    "padded": lambda x, y: F.pad(F.relu(x + y), (1, 0, 2, 1)),
    "reshaped": lambda x, y: (y + x).flatten(2).unflatten(2, (4, 16)),
    "joined": lambda x, y: F.max_pool2d(torch.cat([x, y], 2), 2),
    "averaged": lambda x, y: (x + y).mean((2, 3), keepdim=True),
    "twice": lambda x, y: F.max_pool2d(x + y, 2) + F.max_pool2d(y, 2),
}


LAST = {"act": qnn.QuantIdentity, "conv": lambda: qnn.QuantConv2d(3, 2, 1, bias=False)}
ON_ONE_SCALE = [(*case, last) for case in product(["output_quant", "identity"], BEHIND) for last in LAST]
ON_TWO = [("no", name, "act") for name in BEHIND if name != "joined"]  # products and windows of a maximum need one


@pytest.mark.parametrize(("shared", "name", "last"), ON_ONE_SCALE + ON_TWO)
def test_what_follows_a_residual_sum_stays_integer(shared, name, last):
    model, x = trained(Shared(shared, BEHIND[name], LAST[last]), 4, 3, 8, 8), torch.randn(4, 3, 8, 8)
    run = run_integers(model, x)
    assert run.integer_only, run
    with torch.no_grad():
        expected = model(x)
    torch.testing.assert_close(run.outputs, expected, rtol=0, atol=float(expected.abs().max()) / 100)
    if last == "act":  # at most one step apart, where the sum lies halfway between two integers
        assert int((run.outputs != expected).sum()) <= 0.01 * expected.numel()


def test_sums_on_one_scale_are_sums_of_integers():
    act = qnn.QuantIdentity(bit_width=4, scale=0.1, return_quant_tensor=True)

    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.act = act
            self.fc = qnn.QuantLinear(3, 3, bias=False, weight_bit_width=4)

        def forward(self, x):
            return self.fc(self.act(x) - self.act(-2 * x))

    model, x = Sum().eval(), torch.randn(50, 3)
    run = run_integers(model, x)
    assert run.integer_only
    sums = run.codes["act.act_quant"] - run.codes["act.act_quant.1"]
    products = sums @ model.fc.int_weight().long().T
    assert torch.equal(
        run.outputs,
        products.float() * (act.act_quant.scaling.scale.detach() * integers(model, x)["fc"].weight.grid.scale),
    )
    grid = integers(model, x)["fc"].input
    assert str(grid) == "int5, scale 0.1"
    assert grid.name == "act.act_quant - act.act_quant.1"


def test_accumulators_are_exact_above_float32():
    """4608 inputs of 8 bits times weights of 8 bits: sums beyond 2**24, which float32 does not hold."""
    fc = qnn.QuantLinear(4608, 16, bias=False, return_quant_tensor=True)
    act = qnn.QuantIdentity(signed=False, scale=2**-8, return_quant_tensor=True)
    with torch.no_grad():
        fc.weight.copy_(torch.rand(16, 4608) * 2 - 0.5)
    model, x = nn.Sequential(act, fc).eval(), torch.rand(8, 4608)
    run = run_integers(model, x)
    right = run.codes["0.act_quant"] @ fc.int_weight().long().T
    assert int(right.max()) > 2**24
    assert torch.equal(run.accumulators["1"], right)
    assert torch.equal(run.sums["1"].low, right.amin(0))
    assert torch.equal(run.sums["1"].high, right.amax(0))
    row = accumulator_report(model, x)["1"]
    assert torch.equal(row.actual.high, right.amax(0))
    assert row.worst.high.tolist() == (255 * fc.int_weight().long().clamp_min(0).sum(1)).tolist()
    assert compare_integers(model, x).run.sums["1"].high.equal(right.amax(0))


def test_accumulators_hold_the_bias_where_it_adds_to_the_products():
    x = torch.randn(5, 6)
    for bias, adds in ((Int32Bias, True), (Int8BiasOwnScale, False)):
        fc = qnn.QuantLinear(6, 3, bias_quant=bias, input_quant=Int8Act(scale=2**-5)).eval()
        fc(x)
        run = run_integers(nn.Sequential(fc), x)
        products = run.codes["0.input_quant"] @ fc.int_weight().long().T
        assert torch.equal(run.accumulators["0"], products + fc.int_bias() if adds else products)
        assert run.accumulators["0"].dtype is torch.int64


def test_joined_grids_stay_integers():
    x, y = tensor(2, 3, 4), tensor(2, 3, 4)
    joined = torch.cat([x, y], 1)
    assert isinstance(joined, IntegerTensor)
    assert torch.equal(joined.value, torch.cat([x.value, y.value], 1))
    stacked = torch.stack([x, x])
    assert isinstance(stacked, IntegerTensor)
    assert torch.equal(stacked.value, torch.stack([x.value, x.value]))


@pytest.mark.parametrize(
    ("operation", "name"),
    [
        (lambda x: x * torch.ones(3), "mul"),
        (lambda x: x + 1.5, "add"),
        (lambda x: torch.softmax(x, 1), "softmax"),
        (lambda x: F.pad(x, (1, 1), value=1.0), "constant_pad_nd"),
        (lambda x: F.pad(x.clamp(1, 3), (1, 1)), "constant_pad_nd"),
        (lambda x: torch.cat([x, torch.ones(2, 3)], 1), "cat"),
        (lambda x: F.relu(x + x) + x, "add"),
    ],
)
def test_operations_on_values_are_noted(operation, name):
    x = tensor(2, 3)
    out = operation(x)
    assert not isinstance(out, IntegerTensor)
    assert torch.equal(out, operation(x.value))
    assert x.journal.floats == {"": {name: 1}}


def test_shapes_are_no_arithmetic():
    x = tensor(2, 3)
    assert torch.zeros_like(x).shape == (2, 3)
    assert x.new_zeros(4).shape == (4,)
    assert x.journal.floats == {}


@pytest.mark.parametrize(
    ("operation", "name"),
    [
        (lambda x: x.sigmoid_(), "sigmoid"),
        (lambda x: x[:1].relu_(), "relu"),
        (lambda x: x.fill_(1.0), "fill"),
        (lambda x: x[:1].copy_(tensor(1, 3)), "copy"),  # on a scale of its own
        (lambda x: x.t().reshape(-1).zero_(), "zero"),  # a copy in memory
    ],
)
def test_writing_in_place(operation, name):
    message = (
        f"the model: {name}_ changes a quantized tensor in place, and what comes out are no integers on a grid. Write "
        f"the operation that returns a new tensor ({name}; inplace=False)."
    )
    with pytest.raises(ExportError, match=re.escape(message) + "$"):
        operation(tensor(2, 3))


def test_matrix_products_of_activations():
    x, y = tensor(2, 3, 4), tensor(2, 4, 5)
    out = torch.matmul(x, y)
    assert isinstance(out, IntegerTensor)
    torch.testing.assert_close(out.value, x.value @ y.value)


# Requantization


@given(st.floats(2**-40, 2**20), st.integers(4, 31))
def test_multiplier_is_as_near_as_its_bits_allow(ratio, bits):
    (multiplier,), shift = multiplier_and_shift([torch.tensor(ratio, dtype=torch.float64)], bits)
    assert 0 < int(multiplier) < 2**bits
    error = abs(Fraction(int(multiplier)) / Fraction(2) ** int(shift) / Fraction(ratio) - 1)
    assert error <= Fraction(1, 2**bits) or int(shift) <= 62


@given(st.integers(-30, 30))
def test_powers_of_two_are_shifts(exponent):
    (multiplier,), shift = multiplier_and_shift([torch.tensor(2.0**exponent, dtype=torch.float64)])
    assert (int(multiplier), int(shift)) == (1, -exponent)


EXACT = {
    HalfEven(): round,
    Floor(): math.floor,
    Ceil(): math.ceil,
    TowardZero(): math.trunc,
    HalfUp(): lambda each: math.floor(each + Fraction(1, 2)),
}


@pytest.mark.parametrize("rounding", EXACT, ids=lambda rounding: rounding.name)
@given(data=st.data())
def test_multiplier_rounds_exactly(rounding, data):
    codes = data.draw(st.lists(st.integers(-5000, 5000), min_size=2, max_size=2))
    scales = data.draw(st.lists(st.sampled_from([0.125, 0.3, 0.5, 1.0, 3.0]), min_size=2, max_size=2))
    terms = tuple(Term(torch.tensor([code]), torch.tensor(scale)) for code, scale in zip(codes, scales, strict=True))
    grid = IntegerGrid("act", torch.tensor(0.5), torch.tensor(7), 24, signed=True)
    found = ByMultiplier()(IntegerTensor(terms, Journal()), grid, rounding)
    multipliers, shift = multiplier_and_shift([term.scale.double() / 0.5 for term in terms])
    total = sum(Fraction(code * int(each)) for code, each in zip(codes, multipliers, strict=True))
    assert int(found) == EXACT[rounding](total / Fraction(2) ** int(shift)) + 7


def test_multiplier_of_few_bits_moves_codes():
    x = IntegerTensor((Term(torch.arange(1000), torch.tensor(0.01)),), Journal())
    grid = IntegerGrid("act", torch.tensor(0.037), torch.tensor(0), 16, signed=True)
    exact, coarse = (ByMultiplier(bits)(x, grid, HalfEven()) for bits in (31, 4))
    assert int((exact - coarse).abs().max()) > 1


def test_bounds_are_rounded_to_the_grid():
    x = IntegerTensor((Term(torch.tensor([-9, 2, 40]), torch.tensor(0.3)),), Journal(), low=0.0, high=6.0)
    grid = IntegerGrid("act", torch.tensor(0.5), torch.tensor(0), 8, signed=True)
    assert ByMultiplier()(x, grid, HalfEven()).tolist() == [0, 1, 12]


def test_shift_refuses_other_scales():
    model = trained(nn.Sequential(qnn.QuantIdentity(scale=0.5), qnn.QuantReLU(act_quant=Uint8Act(scale=0.3))), 4, 4)
    with pytest.raises(ExportError) as raised:
        run_integers(model, torch.ones(1, 4), requantize="shift")
    assert str(raised.value) == (
        "1.act_quant: requantize='shift' needs scales that are powers of two, and the ratio of input scale to scale "
        "0.3 is none. Write act_quant=Uint8ActPowerOfTwo and the like for every quantizer, or requantize='multiplier'."
    )


def test_roundings_of_ones_own_have_no_multiplier():
    def half_down(x):
        return torch.ceil(x - 0.5)

    model = nn.Sequential(qnn.QuantIdentity(scale=0.5), qnn.QuantReLU(scale=0.3, rounding=half_down)).eval()
    with pytest.raises(ExportError) as raised:
        run_integers(model, torch.ones(1, 4), requantize="multiplier")
    assert str(raised.value) == (
        "1.act_quant: requantize='multiplier' has no rounding 'half_down'. Write rounding= one of 'half_even', "
        "'half_up', 'floor', 'ceil', 'toward_zero', 'stochastic', or requantize='scale'."
    )


def test_products_with_a_multiplier_too_wide():
    x = IntegerTensor((Term(torch.tensor([2**41]), torch.tensor(0.3)),), Journal())
    grid = IntegerGrid("act", torch.tensor(0.5), torch.tensor(0), 8, signed=True)
    with pytest.raises(ExportError) as raised:
        ByMultiplier()(x, grid, HalfEven())
    assert str(raised.value) == (
        "act: the sum of its input times the multiplier reaches 11068046884030382080, more than 64 bits. Write "
        "requantize=ByMultiplier(bits=22)."
    )


@pytest.mark.parametrize("weight", [Int8WeightPerTensor, Int8WeightPerChannel])
@pytest.mark.parametrize("shape", [(2, 6), (2, 3, 6), (6,)])
def test_linear_of_any_rank(weight, shape):
    layer = qnn.QuantLinear(6, 4, weight_quant=weight, bias_quant=Int32Bias, input_quant=Int8Act(scale=2**-5)).eval()
    x = torch.randn(*shape)
    run = run_integers(nn.Sequential(layer), x)
    assert run.integer_only
    torch.testing.assert_close(run.outputs, layer(x), rtol=1e-5, atol=1e-6)


def test_inference_mode():
    model, x = trained(PowersOfTwo(), 4, 3, 8, 8), torch.randn(4, 3, 8, 8)
    with torch.inference_mode():
        assert torch.equal(run_integers(model, x).outputs, model(x))

import shutil
import subprocess
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bitwright.nn as qnn
from bitwright.export import ExportError, Integers, integers, run_integers
from bitwright.quantizers import (
    Int8Act,
    Int8ActPerChannel,
    Int8BiasOwnScale,
    Int8WeightPerChannel,
    Int32Bias,
    ShiftedUint8Act,
    ShiftedUint8WeightPerChannel,
    Uint8Act,
)

COMPILER = shutil.which("gcc") or shutil.which("cc")
compiled = pytest.mark.skipif(COMPILER is None, reason="no C compiler")


def run_c(folder, header, body, numbers=()):
    """What a program prints whose ``main`` has this body; ``next()`` reads a number from its input."""
    (folder / "model.h").write_text(header)
    (folder / "main.c").write_text(
        "#include <stdio.h>\n#include <stdlib.h>\n#include <inttypes.h>\n"
        '#include "model.h"\n#include "model.h"\n'  # its guard
        'int64_t next(void) { int64_t number; if (scanf("%" SCNd64, &number) != 1) exit(1); return number; }\n'
        'void put(int64_t number) { printf("%" PRId64 "\\n", number); }\n'
        f"int main(void) {{\n{body}\nreturn 0;\n}}\n"
    )
    flags = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic", "-O1"]
    subprocess.run([COMPILER, *flags, "main.c", "-o", "main"], cwd=folder, check=True)
    given = "\n".join(str(int(each)) for each in numbers)
    printed = subprocess.run([folder / "main"], input=given, capture_output=True, text=True, check=True).stdout
    return [int(line) for line in printed.splitlines()]


def trained(model, *shape):
    model.train()
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(*shape) + 0.3)
    qnn.finish_calibration(model)
    return model.eval()


# The requantization


@compiled
def test_rounding_is_exact(tmp_path):
    """Ties to even on both sides of 0, every shift, and both ends."""
    generator = torch.Generator().manual_seed(0)
    totals = [*range(-40, 41), *torch.randint(-(2**61), 2**61, (400,), generator=generator).tolist()]
    totals += [sign * (odd << 30) + off for sign in (1, -1) for odd in (1, 3, 5, 7) for off in (-1, 0, 1)]
    cases = [(total, shift, zero) for total in totals for shift in (0, 1, 2, 3, 31, 47, 62) for zero in (0, -7, 100)]
    cases += [(total, -3, 0) for total in range(-9, 10)]
    header = integers(nn.Sequential(qnn.QuantIdentity(scale=0.5), qnn.QuantIdentity(scale=0.3)), torch.ones(1))
    body = f"""
    for (int i = 0; i < {len(cases)}; i++) {{
        const int64_t total = next();
        const int32_t shift = (int32_t)next();
        put(bitwright_requantize(total, shift, next(), -128, 127));
    }}"""
    found = run_c(tmp_path, header.to_c_header(), body, [number for case in cases for number in case])
    expected = [
        min(max(round(Fraction(total) / Fraction(2) ** shift) + zero, -128), 127) for total, shift, zero in cases
    ]
    assert found == expected
    assert {-128, 127} < set(expected)


@compiled
@pytest.mark.parametrize("weight", [1.0, 0.7])
def test_linear_layers(tmp_path, weight):
    """A scale of 1 and a next one of 2: every odd sum, negative ones too, lies halfway between two integers."""
    fc = qnn.QuantLinear(7, 5, bias_quant=Int32Bias, input_quant=Int8Act(scale=1.0), output_quant=Int8Act(scale=2.0))
    with torch.no_grad():
        fc.weight.copy_(torch.randint(-6, 7, (5, 7)) * weight)
        fc.weight[0, 0] = 127 * weight
        fc.bias.copy_(torch.tensor([0.0, 1.0, -30.0, 5.0, 3.0]))
    model = nn.Sequential(fc).eval()
    x = torch.randint(-128, 128, (200, 7)).float()
    x[100:] = x[100:] % 5 - 2  # small sums, which don't saturate
    run = run_integers(model, x, requantize="multiplier")
    body = """
    for (int n = 0; n < 200; n++) {
        int8_t x[L0_WEIGHT_DIM1];
        int32_t sums[L0_WEIGHT_DIM0];
        for (int i = 0; i < L0_WEIGHT_DIM1; i++) x[i] = (int8_t)next();
        l0_sums(x, sums);
        for (int o = 0; o < L0_WEIGHT_DIM0; o++) put(l0_output_requantize(sums[o], o));
    }"""
    found = run_c(tmp_path, integers(model, x).to_c_header(), body, x.reshape(-1))
    assert found == run.codes["0.output_quant"].reshape(-1).tolist()
    assert {-128, 127, 0, -1, 1} <= set(found)


CONVOLUTIONS = {
    "line": (qnn.QuantConv1d(4, 6, 3, stride=2, padding=1, bias_quant=Int32Bias), (9,)),
    "grouped": (
        qnn.QuantConv2d(
            4, 6, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2), groups=2, bias=False,
            weight_quant=Int8WeightPerChannel(bit_width=5),
        ),
        (7, 8),
    ),
    "same": (
        qnn.QuantConv2d(
            4, 3, 3, padding="same", bias_quant=Int32Bias, weight_quant=ShiftedUint8WeightPerChannel(bit_width=4)
        ),
        (5, 6),
    ),
    "valid": (qnn.QuantConv2d(4, 3, 3, padding="valid", bias_quant=Int32Bias), (5, 6)),
    "depthwise": (qnn.QuantConv2d(4, 8, 3, groups=4, padding=2, bias_quant=Int32Bias), (5, 5)),
    "volume": (qnn.QuantConv3d(4, 2, (1, 2, 3), padding=(0, 1, 1), bias_quant=Int32Bias), (2, 3, 4)),
}  # fmt: skip


@compiled
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(tmp_path, name):
    layer, size = CONVOLUTIONS[name]

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.inp = qnn.QuantIdentity(act_quant=ShiftedUint8Act, return_quant_tensor=True)
            self.conv = layer
            self.act = qnn.QuantReLU(act_quant=ShiftedUint8Act, bit_width=6)  # its zero point is not its smallest code

        def forward(self, x):
            return self.act(self.conv(self.inp(x)))

    model = trained(Net(), 8, 4, *size)
    x = torch.randn(1, 4, *size) * 2
    run = run_integers(model, x, requantize="multiplier")
    codes = run.codes["act.act_quant"]
    channels, places = codes.shape[1], codes[0, 0].numel()
    body = f"""
    const int size[] = {{{", ".join(map(str, size))}}};
    uint8_t x[{x.numel()}];
    int32_t sums[{codes.numel()}];
    for (int i = 0; i < {x.numel()}; i++) x[i] = (uint8_t)next();
    conv_sums(x, size, sums);
    for (int o = 0; o < {channels}; o++)
        for (int i = 0; i < {places}; i++) put(act_act_requantize(sums[o * {places} + i], o));
    for (int i = 0; i < {codes.numel()}; i++) put(sums[i]);"""
    found = run_c(tmp_path, integers(model, x).to_c_header(), body, run.codes["inp.act_quant"].reshape(-1))
    assert found[: codes.numel()] == codes.reshape(-1).tolist()
    sums = torch.tensor(found[codes.numel() :]).reshape(channels, places)
    assert bool((sums.amin(1) >= run.sums["conv"].low).all())
    assert bool((sums.amax(1) <= run.sums["conv"].high).all())


@compiled
@pytest.mark.parametrize("act", [Int8Act, ShiftedUint8Act, Int8ActPerChannel(channels=3)])
def test_additions_on_different_grids_and_bounds(tmp_path, act):
    """Two multipliers, one shift; ReLU6 on a grid that goes beyond both of its ends."""

    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.one = qnn.QuantIdentity(scale=0.3, return_quant_tensor=True)
            self.other = qnn.QuantIdentity(act_quant=Uint8Act, scale=0.07, return_quant_tensor=True)
            self.act = qnn.QuantReLU6(act_quant=act)

        def forward(self, x):
            return self.act(self.one(x) + self.other(2 * x))

    model = trained(Sum(), 16, 3, 20)
    if act is not ShiftedUint8Act:
        with torch.no_grad():
            for each in model.act.act_quant.buffers():  # a range of about 3 times what was seen
                each.mul_(3) if each.is_floating_point() else None
    x = torch.randn(4, 3, 20) * 20
    run = run_integers(model, x, requantize="multiplier")
    codes = run.codes["act.act_quant"]
    body = f"""
    for (int i = 0; i < {codes.numel()}; i++) {{
        const int64_t one = next() - ONE_ACT_ZERO_POINT[0];
        put(act_act_requantize(one, next() - OTHER_ACT_ZERO_POINT[0], i / 20 % 3));
    }}"""
    given = torch.stack([run.codes["one.act_quant"], run.codes["other.act_quant"]], -1)
    assert run_c(tmp_path, integers(model, x).to_c_header(), body, given.reshape(-1)) == codes.reshape(-1).tolist()


@compiled
def test_averages_go_into_the_multiplier(tmp_path):
    model = nn.Sequential(
        qnn.QuantIdentity(scale=0.3, return_quant_tensor=True), nn.AvgPool1d(3), qnn.QuantIdentity(scale=0.11)
    ).eval()
    x = torch.randn(1, 2, 30) * 9
    run = run_integers(model, x, requantize="multiplier")
    body = "for (int i = 0; i < 20; i++) put(l2_act_requantize(next() + next() + next(), 0));"
    found = run_c(tmp_path, integers(model, x).to_c_header(), body, run.codes["0.act_quant"].reshape(-1))
    assert found == run.codes["2.act_quant"].reshape(-1).tolist()


# What is in it


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.inp = qnn.QuantIdentity(act_quant=ShiftedUint8Act, return_quant_tensor=True)
        weight = Int8WeightPerChannel(bit_width=5)
        self.conv = qnn.QuantConv2d(2, 3, 3, padding=1, weight_quant=weight, bias_quant=Int32Bias)
        self.act = qnn.QuantReLU(bit_width=4)

    def forward(self, x):
        return self.act(self.conv(self.inp(x)))


@pytest.fixture
def model():
    return trained(Net(), 8, 2, 6, 6)


def test_numbers_are_exact(model):
    header = integers(model, torch.zeros(1, 2, 6, 6)).to_c_header("net")
    grid = integers(model, torch.zeros(1, 2, 6, 6))["inp"].quantizers["act"].grid
    assert f"static const float INP_ACT_SCALE[1] = {{{grid.scale.item().hex()}f}};" in header
    assert f"static const int32_t INP_ACT_ZERO_POINT[1] = {{{grid.zero_point.item()}}};" in header
    assert header.startswith("/* Integers of a quantized model: value = (integer - zero point) * scale. Written by")
    assert "#ifndef NET_H" in header
    assert "static const int8_t CONV_WEIGHT[54] = {" in header
    assert "static const int32_t CONV_BIAS[3] = {" in header
    assert "#define CONV_WEIGHT_BITS 5" in header
    assert "static const int32_t ACT_ACT_MULTIPLIER[3] = {" in header
    assert "static const int8_t ACT_ACT_HIGH[1] = {15};" in header


def test_a_file_says_as_much_as_the_model(model, tmp_path):
    x = torch.zeros(1, 2, 6, 6)
    whole = nn.Sequential(model, nn.Softmax(1)).eval()
    found = integers(whole, x)
    found.save_npz(tmp_path / "net.npz")
    assert Integers.load(tmp_path / "net.npz").to_c_header() == found.to_c_header()
    assert Integers.load(tmp_path / "net.npz") == found


def test_paths_become_names():
    model = nn.Sequential(
        nn.ModuleDict({"a": qnn.QuantLinear(2, 2, bias=False)})["a"], nn.Sequential(qnn.QuantReLU(scale=0.5))
    )
    header = integers(model, torch.ones(1, 2)).to_c_header()
    assert "L0_WEIGHT_BITS" in header
    assert "L1_0_ACT_BITS" in header


def test_the_smallest_int32_is_a_constant_of_c():
    from bitwright.export.integer.c_header import _c_integer

    assert _c_integer(-(2**31)) == "(-2147483647 - 1)"


# What is not in it is named, or refused


def test_floats_around_the_integers_are_named():
    model = nn.Sequential(
        nn.LayerNorm(4),
        qnn.QuantIdentity(return_quant_tensor=True, scale=0.1),
        qnn.QuantLinear(4, 3),
        nn.Softmax(1),
    ).eval()
    lines = integers(model, torch.randn(2, 4)).to_c_header().splitlines()
    assert lines[1:4] == [
        "/* Computed in floats, and not in this file: 0 (LayerNorm): layer_norm */",
        "/* Computed in floats, and not in this file: 2 (QuantLinear): a float bias */",
        "/* Computed in floats, and not in this file: 3 (Softmax): softmax */",
    ]
    assert "/* no l2_sums: its bias is float */" in lines


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (
            qnn.QuantConv1d(4, 4, 3, padding=1, padding_mode="circular", bias=False),
            "it pads with padding_mode='circular'",
        ),
        (qnn.QuantConv1d(4, 4, 2, padding="same", bias=False), "it pads one side more than the other"),
        (
            qnn.QuantConv1d(4, 4, 3, 2, padding="same", bias=False),
            "how much it pads depends on the size of its input",
        ),
        (qnn.QuantConv1d(4, 4, 2, bias_quant=Int8BiasOwnScale), "its bias has a scale of its own"),
        (qnn.QuantConvTranspose1d(4, 4, 2, bias=False), "there is none for QuantConvTranspose1d"),
    ],
)
def test_layers_without_a_function_say_why(layer, reason):
    model = nn.Sequential(qnn.QuantIdentity(return_quant_tensor=True, scale=0.1), layer).eval()
    assert f"/* no l1_sums: {reason} */" in integers(model, torch.randn(2, 4, 8)).to_c_header().splitlines()


def refusal(model, *shape):
    found = integers(model, torch.randn(*shape))
    with pytest.raises(ExportError) as raised:
        found.to_c_header()
    return str(raised.value)


def test_batch_norm_is_refused():
    model = trained(
        nn.Sequential(
            qnn.QuantIdentity(return_quant_tensor=True),
            qnn.QuantConv2d(1, 4, 3, bias=False),
            nn.BatchNorm2d(4),
            qnn.QuantReLU(bit_width=4),
        ),
        *(8, 1, 9, 9),
    )
    assert refusal(model, 2, 1, 9, 9) == (
        "a C header can't express this model:\n"
        "  2 (BatchNorm2d): batch_norm. Fold it into the convolution before that is quantized: "
        "graph.fold_batch_norms(model, examples)."
    )


def test_folding_is_a_remedy():
    conv, bn = qnn.QuantConv2d(1, 4, 3, bias_quant=Int32Bias), nn.BatchNorm2d(4)
    bn(torch.randn(8, 4, 9, 9) * 2 + 1)
    folded = torch.nn.utils.fuse_conv_bn_eval(conv.eval(), bn.eval())
    model = nn.Sequential(qnn.QuantIdentity(return_quant_tensor=True), folded, qnn.QuantReLU(bit_width=4))
    trained(model, 8, 1, 9, 9)
    assert "L2_ACT_MULTIPLIER" in integers(model, torch.randn(2, 1, 9, 9)).to_c_header()


class Own(nn.Module):
    def forward(self, x):
        return x * 0.5 + 1


def test_all_that_lies_between_quantizers_is_named():
    act = {"return_quant_tensor": True, "scale": 0.1}
    model = nn.Sequential(
        qnn.QuantIdentity(**act),
        nn.ModuleDict({"norm": nn.LayerNorm(6)})["norm"],
        qnn.QuantIdentity(**act),
        nn.Sequential(nn.Linear(6, 6), Own()),
        qnn.QuantSigmoid(**act),
        qnn.QuantLinear(6, 6),
        qnn.QuantReLU(**act),
        nn.Unflatten(1, (2, 3)),
        nn.Softplus(),
        qnn.QuantIdentity(**act),
    ).eval()
    other = "There is no integer arithmetic for it: replace it, or use export_onnx_qcdq, which keeps it float."
    assert refusal(model, 2, 6) == (
        "a C header can't express this model:\n"
        f"  1 (LayerNorm): layer_norm. {other}\n"
        "  3.0 (Linear): addmm. Write qnn.QuantLinear with bias_quant=Int32Bias, and quantize its input.\n"
        f"  3.1 (Own): mul, add. {other}\n"
        f"  4 (QuantSigmoid): sigmoid. {other}\n"
        "  5 (QuantLinear): a float bias. Write bias_quant=Int32Bias.\n"
        f"  8 (Softplus): softplus. {other}"
    )


def test_scales_that_depend_on_values_are_refused():
    """Whatever the example: of positive integers alone, too."""
    act = {"return_quant_tensor": True, "scale": 0.1}
    model = nn.Sequential(qnn.QuantIdentity(**act), qnn.QuantLeakyReLU(0.3, **act)).eval()
    for x in (torch.ones(2, 3), torch.randn(2, 3)):
        with pytest.raises(ExportError) as raised:
            integers(model, x).to_c_header()
        assert str(raised.value) == (
            "a C header can't express this model:\n"
            "  1.act_quant: what the integers of its input are worth depends on their values, as behind a LeakyReLU, a "
            "PReLU or the larger of two tensors, and the header has one scale for each channel. Use a ReLU, or one "
            "scale for both."
        )


def test_roundings_and_scales_that_the_header_does_not_have():
    class Joined(nn.Module):
        def __init__(self):
            super().__init__()
            self.one = qnn.QuantIdentity(scale=0.1, return_quant_tensor=True)
            self.two = qnn.QuantIdentity(scale=0.2, return_quant_tensor=True)
            self.floor = qnn.QuantIdentity(scale=0.3, rounding="floor", return_quant_tensor=True)
            self.channels = qnn.QuantIdentity(act_quant=Int8ActPerChannel(scale=[0.1] * 3))

        def forward(self, x):
            return self.channels(torch.cat([self.floor(self.one(x)), self.two(x)], 2))

    assert refusal(Joined().eval(), 2, 3, 4) == (
        "a C header can't express this model:\n"
        "  floor.act_quant: it rounds with Floor, and the header half to even. Write rounding='half_even'.\n"
        "  channels.act_quant: its input has scales that vary along another dimension than its own. Quantize what is "
        "joined or added with one scale, by one quantizer."
    )


def test_pooling_by_selection_needs_no_word():
    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.inp = qnn.QuantIdentity(scale=0.1, return_quant_tensor=True)
            self.out = qnn.QuantIdentity(scale=0.3)

        def forward(self, x):
            x = self.inp(x)
            return self.out(F.max_pool1d(x + x, 2).flatten(1)[:, ::2])

    header = integers(Pooled().eval(), torch.randn(2, 3, 8)).to_c_header()
    assert "in floats" not in header
    assert "OUT_ACT_MULTIPLIER" in header

import shutil
import subprocess

import pytest
import torch
from torch import nn

import bitwright.nn as qnn
from bitwright.export import integers, run_integers
from bitwright.quantizers import Int8WeightPerChannel, Int32Bias, ShiftedUint8Act

COMPILER = shutil.which("gcc") or shutil.which("cc")

PROGRAM = """
#include <stdio.h>
#include <math.h>
#include "model.h"

static int64_t divided(int64_t total, int shift) { /* to nearest, ties to even */
    int64_t floor = total >> shift, rest = 2 * (total - (floor << shift)), step = (int64_t)1 << shift;
    return floor + (rest > step || (rest == step && (floor & 1)));
}

int main(void) {
    enum { SIZE = 6, OUT = CONV_WEIGHT_DIM0, IN = CONV_WEIGHT_DIM1, K = CONV_WEIGHT_DIM2, PAD = CONV_PADDING_0 };
    static int x[IN][SIZE][SIZE];
    for (int c = 0; c < IN; c++)
        for (int i = 0; i < SIZE; i++)
            for (int j = 0; j < SIZE; j++)
                if (scanf("%d", &x[c][i][j]) != 1) return 1;
    for (int o = 0; o < OUT; o++)
        for (int i = 0; i < SIZE; i++)
            for (int j = 0; j < SIZE; j++) {
                int64_t sum = CONV_BIAS[o];
                for (int c = 0; c < IN; c++)
                    for (int u = 0; u < K; u++)
                        for (int v = 0; v < K; v++) {
                            int row = i + u - PAD, column = j + v - PAD;
                            if (row >= 0 && row < SIZE && column >= 0 && column < SIZE)
                                sum += (x[c][row][column] - CONV_INPUT_ZERO_POINT[0])
                                     * (int64_t)CONV_WEIGHT[((o * IN + c) * K + u) * K + v];
                        }
                int64_t q = divided(sum * ACT_MULTIPLIER[o], ACT_SHIFT[o]) + ACT_ACT_ZERO_POINT[0];
                q = q < ACT_ACT_MIN ? ACT_ACT_MIN : q > ACT_ACT_MAX ? ACT_ACT_MAX : q;
                printf("%lld %lld\\n", (long long)sum, (long long)q);
            }
    return CONV_STRIDE_0 == 1 && fabsf(CONV_INPUT_SCALE[0]) > 0 ? 0 : 2;
}
"""


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
    net = Net().train()
    with torch.no_grad():
        net(torch.randn(8, 2, 6, 6) + 0.5)
    return net.eval()


@pytest.mark.skipif(COMPILER is None, reason="no C compiler")
def test_c_computes_the_same_layer(model, tmp_path):
    x = torch.randn(1, 2, 6, 6) + 0.5
    run = run_integers(model, x, requantize="multiplier")
    (tmp_path / "model.h").write_text(integers(model, x).to_c_header())
    (tmp_path / "main.c").write_text(PROGRAM)
    flags = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-Wno-unused-const-variable", "-Wno-unused-variable"]
    subprocess.run([COMPILER, *flags, "main.c", "-o", "main", "-lm"], cwd=tmp_path, check=True)
    codes = " ".join(map(str, run.codes["inp.act_quant"].reshape(-1).tolist()))
    printed = subprocess.run([tmp_path / "main"], input=codes, capture_output=True, text=True, check=True).stdout
    numbers = torch.tensor([[int(each) for each in line.split()] for line in printed.splitlines()])
    assert numbers[:, 1].tolist() == run.codes["act.act_quant"].reshape(-1).tolist()
    per_channel = numbers[:, 0].reshape(3, -1)
    assert bool((per_channel.amin(1) >= run.sums["conv"].low).all())
    assert bool((per_channel.amax(1) <= run.sums["conv"].high).all())


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


def test_paths_become_names():
    model = nn.Sequential(
        nn.ModuleDict({"a": qnn.QuantLinear(2, 2, bias=False)})["a"], nn.Sequential(qnn.QuantReLU(scale=0.5))
    )
    header = integers(model, torch.ones(1, 2)).to_c_header()
    assert "L0_WEIGHT_BITS" in header
    assert "L1_0_ACT_BITS" in header


def test_the_smallest_int32_is_a_constant_of_c():
    from bitwright.export.integer_header import _c_integer

    assert _c_integer(-(2**31)) == "(-2147483647 - 1)"

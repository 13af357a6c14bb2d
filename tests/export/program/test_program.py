"""What a program holds and computes, alone and in another process."""

import copy
import re
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.export import Dim

import bitwright.nn as qnn
from bitwright.export import ExportError, export_program, verify_program
from bitwright.qcore import QuantTensor
from bitwright.quantizers import (
    Int8Act,
    Int8WeightPerChannel,
    Int8WeightPerGroup,
    Int32Bias,
    TruncTo8bit,
)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.entry = qnn.QuantIdentity(return_quant_tensor=True)
        self.conv = qnn.QuantConv2d(4, 4, 3, padding=1, weight_bit_width=4, bias_quant=Int32Bias)
        self.norm = nn.BatchNorm2d(4)
        self.relu = qnn.QuantReLU(bit_width=4)
        self.sum = qnn.QuantIdentity(return_quant_tensor=True)

    def forward(self, x):
        x = self.entry(x)
        return self.sum(self.relu(self.norm(self.conv(x))) + x)


@pytest.fixture
def residual(zoo):
    model = Residual()
    return zoo.trained(model, torch.randn(4, 4, 6, 6))


BATCH = ({0: Dim("batch")},)


class InPlace(Residual):
    def forward(self, x):
        x = self.entry(x)
        out = self.sum(self.relu(self.norm(self.conv(x))))
        out += x
        return out.relu_()


def test_a_model_that_writes_to_its_tensors(zoo):
    model = zoo.trained(InPlace(), torch.randn(4, 4, 6, 6))
    program = export_program(model, torch.randn(2, 4, 6, 6), dynamic_shapes=BATCH)
    report = verify_program(model, program, torch.randn(9, 4, 6, 6))
    assert report.differences == 0
    assert {row.name for row in report.rows} >= {"entry.act_quant", "sum.act_quant"}


def test_a_program_stores_integers_alone(residual):
    program = export_program(residual, torch.randn(2, 4, 6, 6), dynamic_shapes=BATCH)
    assert {name: str(each.dtype) for name, each in program.state_dict.items()} == {
        "norm.weight": "torch.float32",
        "norm.bias": "torch.float32",
        "norm.running_mean": "torch.float32",
        "norm.running_var": "torch.float32",
        "conv.weight_quant.codes": "torch.int8",
        "conv.bias_quant.codes": "torch.int32",
    }
    assert program.constants == {}
    assert torch.equal(program.state_dict["conv.weight_quant.codes"], residual.conv.int_weight())
    targets = [str(each.target) for each in program.graph.nodes if each.op == "call_function"]
    assert not any("bitwright" in each for each in targets)
    shown = {each.name: each.args[1:] for each in program.graph.nodes if "quantized_decomposed" in str(each.target)}
    assert shown["values_conv_weight_quant"][1:] == (0, -7, 7, torch.int8)  # narrow range
    assert shown["codes_relu_act_quant"][1:] == (0, 0, 15, torch.uint8)
    assert verify_program(residual, program, torch.randn(20, 4, 6, 6)).differences == 0


def test_the_program_and_the_model_share_nothing(residual):
    before = copy.deepcopy(residual.state_dict())
    x = torch.randn(2, 4, 6, 6)
    program = export_program(residual.train(), x)
    assert residual.training
    assert all(torch.equal(each, before[name]) for name, each in residual.state_dict().items())
    expected = program.module()(x)
    with torch.no_grad():
        for each in (*residual.parameters(), *residual.buffers()):
            each.zero_()
    assert torch.equal(program.module()(x), expected)


ALONE = """
import sys
class Blocked:
    def find_spec(self, name, *rest):
        if name.split(".")[0] == "bitwright":
            raise ImportError(name)
sys.meta_path.insert(0, Blocked())
import torch
import torch.ao.quantization.fx._decomposed
x, expected = torch.load(sys.argv[2])
assert torch.equal(torch.export.load(sys.argv[1]).module()(x), expected)
assert "bitwright" not in sys.modules
"""


def test_it_runs_in_a_process_without_bitwright(residual, tmp_path):
    path, x = tmp_path / "model.pt2", torch.randn(3, 4, 6, 6)
    export_program(residual, torch.randn(2, 4, 6, 6), path, dynamic_shapes=BATCH)
    assert verify_program(residual, path, torch.randn(5, 4, 6, 6)).ok
    torch.save((x, residual(x).value), tmp_path / "tensors.pt")
    command = [sys.executable, "-c", ALONE, str(path), str(tmp_path / "tensors.pt")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_ties_go_the_models_way_only_where_exact():
    model = qnn.QuantIdentity(scale=0.3).eval()
    x = (torch.arange(-250, 251) * torch.tensor(0.3) / 2)[None]
    reports = [verify_program(model, export_program(model, x, exact=exact), x) for exact in (False, True)]
    assert [each.differences for each in reports] == [0, 0]
    assert reports[0].tie_flips > 0
    assert reports[1].tie_flips == 0


def test_groups_that_no_operator_has_are_rows(zoo):
    groups = Int8WeightPerGroup(group_size=4, bit_width=4)
    model = nn.Sequential(qnn.QuantConv2d(6, 5, 3, weight_quant=Int8WeightPerGroup(group_size=4, group_axis=1)))
    program = export_program(model.eval(), torch.randn(2, 6, 4, 4))
    assert program.state_dict["0.weight_quant.codes"].shape == (5 * 2 * 9, 4)  # 6 channels: two groups, one filled up
    uneven = qnn.QuantLinear(6, 5, weight_quant=groups)
    assert export_program(uneven, torch.randn(2, 6)).state_dict["weight_quant.codes"].shape == (10, 4)


@pytest.mark.parametrize("kind", ["QuantLSTM", "QuantGRU", "QuantRNN"])
@pytest.mark.parametrize("settings", [{}, {"hidden_quant": None, "weight_bit_width": 4}], ids=["states", "weights"])
def test_recurrent_layers_are_unrolled(zoo, kind, settings):
    model = zoo.trained(getattr(qnn, kind)(3, 4, **settings), torch.randn(3, 2, 3))
    program = export_program(model, torch.randn(3, 2, 3), dynamic_shapes=({1: Dim("batch")},))
    report = verify_program(model, program, torch.randn(3, 9, 3))
    assert report.differences == 0, report.table()
    codes = [each.name for each in program.graph.nodes if each.name.startswith("codes_hidden_l0_quant")]
    assert len(codes) == (0 if settings else 3)


def test_attention_and_embedding(zoo):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = qnn.QuantEmbedding(20, 8, weight_quant=Int8WeightPerChannel, weight_bit_width=4)
            self.layer = qnn.QuantTransformerEncoderLayer(8, 2, 16, batch_first=True)

        def forward(self, tokens):
            return self.layer(self.table(tokens))

    model = zoo.trained_on(Model(), torch.randint(0, 20, (2, 5))) if hasattr(zoo, "trained_on") else Model()
    with torch.no_grad():
        model.train()(torch.randint(0, 20, (2, 5)))
    model = zoo.finished(model).eval()
    shapes = ({0: Dim("batch"), 1: Dim("length")},)
    program = export_program(model, torch.randint(0, 20, (2, 5)), dynamic_shapes=shapes)
    assert verify_program(model, program, torch.randint(0, 20, (6, 7))).differences == 0


class InSteps(nn.Module):
    def forward(self, x):
        assert isinstance(x, QuantTensor)
        return x.value / x.scale


def test_modules_that_read_a_grid():
    steps = nn.Sequential(qnn.QuantIdentity(scale=0.5, return_quant_tensor=True), InSteps())
    program = export_program(steps, torch.randn(1, 8))
    assert torch.equal(program.module()(torch.tensor([[1.3] * 8])), torch.full((1, 8), 3.0))


def test_truncation_and_other_roundings(zoo):
    model = nn.Sequential(
        qnn.QuantIdentity(return_quant_tensor=True),
        qnn.QuantLinear(8, 8, bias=False, output_quant=TruncTo8bit),
        qnn.QuantIdentity(rounding="floor", bit_width=4),
    )
    zoo.trained(model, torch.randn(16, 8))
    report = verify_program(model, export_program(model, torch.randn(16, 8)), torch.randn(64, 8))
    assert report.differences == 0, report.table()


def test_a_layer_that_is_called_twice_stores_its_weight_once():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = qnn.QuantLinear(4, 4, weight_bit_width=4)

        def forward(self, x, *, extra):
            return F.relu(self.layer(self.layer(x))) + extra

    model, given = Twice(), {"kwargs": {"extra": torch.ones(2, 4)}}
    program = export_program(model, torch.randn(2, 4), **given)
    assert list(program.state_dict) == ["layer.bias", "layer.weight_quant.codes"]
    assert verify_program(model, program, torch.randn(2, 4), **given).ok


def refused(text, call, *args, **kwargs):
    with pytest.raises(ExportError, match=f"^{re.escape(text)}$"):
        call(*args, **kwargs)


class Dice:
    """A rounding that is random, and does not say so."""

    name = "dice"

    def __call__(self, x):
        return torch.floor(x + torch.rand_like(x))


def test_all_offenders_are_listed_in_one_error():
    model = nn.Sequential(
        qnn.QuantIdentity(bit_width=28, scale=0.1),
        qnn.QuantIdentity(rounding=Dice, scale=0.1),
        qnn.QuantLinear(8, 8, input_quant=Int8Act(scale=0.1), input_rounding=Dice),
    )
    refused(
        "a torch program can't express 3 quantizers of this model:\n"
        "  0.act_quant: 28 bits, signed; a torch program stores 2 to 24. Write bit_width=24 or less.\n"
        "  1.act_quant: rounding 'dice' is random in evaluation, and a file can't repeat it. Write "
        "rounding='half_even', or one that is deterministic in evaluation.\n"
        "  2.input_quant: rounding 'dice' is random in evaluation, and a file can't repeat it. Write "
        "input_rounding='half_even', or one that is deterministic in evaluation.",
        export_program,
        model,
        torch.zeros(2, 8),
    )
    refused(
        "a torch program can't express 1 quantizer of this model:\n"
        "  weight_quant: its input is torch.float64, and the operators compute in float32. Export a float32 model: "
        "model.float().".replace("torch.float64", "float64"),
        export_program,
        qnn.QuantLinear(4, 4).double(),
        torch.zeros(2, 4).double(),
    )


def test_what_is_no_program(residual, tmp_path):
    x = torch.randn(2, 4, 6, 6)
    refused(
        "verify_program: program=5 is not an exported program. Pass what export_program returned, or the path of a "
        ".pt2 file.",
        verify_program,
        residual,
        5,
        x,
    )
    refused("verify_program: there is no file 'none.pt2'.", verify_program, residual, "none.pt2", x)
    refused(
        "export_program(export_path='model.onnx'): torch.export writes files named *.pt2.",
        export_program,
        residual,
        x,
        "model.onnx",
    )
    refused(
        "export_program(export_path='nowhere/model.pt2'): there is no folder 'nowhere'. Make it first.",
        export_program,
        residual,
        x,
        "nowhere/model.pt2",
    )
    program = export_program(residual, x)
    refused(
        "verify_program: the inputs have 3 samples, and the program takes 2 at a time. Pass a multiple, or export with "
        "dynamic_shapes.",
        verify_program,
        residual,
        program,
        torch.randn(3, 4, 6, 6),
    )
    refused(
        "verify_program: inputs and kwargs don't fit the model's forward, Residual(x): too many positional arguments.",
        verify_program,
        residual,
        program,
        (x, x),
    )
    other = qnn.QuantIdentity(scale=0.1)
    refused(
        "verify_program: the program has no tensor for act_quant. Pass the program as export_program made it, of this "
        "model, and inputs like those it was made with.",
        verify_program,
        other,
        program,
        x,
    )


def test_another_scale_or_another_weight_is_a_difference(residual):
    x = torch.randn(2, 4, 6, 6)
    program = export_program(residual, x)
    other = copy.deepcopy(residual)
    with torch.no_grad():
        other.conv.weight[0, 0, 0, 0] *= -1
        other.conv.weight[0, 0, 0, 0] += other.conv.weight.abs().max() / 2
    assert verify_program(other, program, x).differences > 0
    with torch.no_grad():
        residual.conv.weight.mul_(1.5)
    row = next(each for each in verify_program(residual, program, x).rows if each.name == "conv.weight_quant")
    assert row.note == "the program has another scale or zero point"


def test_open_steps_are_refused():
    model = qnn.QuantLSTM(3, 4, hidden_scale=2**-7)
    with pytest.raises(ExportError) as caught:
        export_program(model, torch.randn(3, 2, 3), dynamic_shapes=({0: Dim("steps")},))
    assert str(caught.value).startswith(
        "export_program: torch.export can't leave all the sizes open that dynamic_shapes names. Recurrent layers have "
        "as many steps as the example: leave out that dimension, or write export_onnx_qdq, whose loops are open. torch "
        "says:\n"
    )

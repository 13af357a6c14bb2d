"""Fast files: what they consist of, how far they are from the model, and what is no fast file but a wrong one."""

import re

import onnx
import onnx_ir
import pytest
import torch
from torch import nn

import bitwright.nn as qnn
from bitwright.export import (
    ExportError,
    export_onnx_integer,
    export_onnx_qcdq,
    export_onnx_qdq,
    verify_onnx,
)
from bitwright.export.onnx.protect import protect
from bitwright.export.onnx.runtime.kernels import hasten
from bitwright.export.onnx.runtime.nbits import round_inputs
from bitwright.qcore import BitwrightWarning
from bitwright.quantizers import (
    Fp8e4m3DynamicActPerGroup,
    Int4WeightPerGroup,
    Int8DynamicActPerToken,
    Int8WeightPerChannel,
    ShiftedUint4WeightPerGroup,
)

onnxruntime = pytest.importorskip("onnxruntime")


def used(program, tmp_path):
    """The operators that onnxruntime runs."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(program.model_proto.SerializeToString(), options, ["CPUExecutionProvider"])
    return {node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node}


def normed(weight_quant, bias):
    """Batch normalization with factors of both signs, and 0."""
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(6)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, -2.0, 0.0, 0.5, -0.1, 3.0]))
        norm.bias.uniform_(-1, 1)
        norm.running_mean.uniform_(-1, 1)
        norm.running_var.uniform_(0.5, 2)
    return nn.Sequential(
        qnn.QuantIdentity(scale=0.03, signed=True),
        qnn.QuantConv2d(3, 6, 3, bias=bias, weight_quant=weight_quant),
        norm,
        qnn.QuantReLU(scale=0.02),
        nn.Flatten(),
        qnn.QuantLinear(6 * 36, 5),
    ).eval()


@pytest.mark.filterwarnings("ignore:export_onnx_q")
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("export", [export_onnx_qcdq, export_onnx_qdq])
def test_normalization_and_biases_go_into_the_kernels(export, bias, tmp_path):
    model = normed(Int8WeightPerChannel, bias)
    program = export(model, torch.randn(2, 3, 8, 8), fast=True)
    assert {"QLinearConv", "QGemm"} <= used(program, tmp_path)
    operators = [node.op_type for node in program.model_proto.graph.node]
    assert "BatchNormalization" not in operators
    assert "Sub" not in operators
    report = verify_onnx(model, program, torch.randn(10, 3, 8, 8))
    codes = [row for row in report.rows if row.kind == "activation"]
    assert max(row.largest for row in codes) <= 1
    assert sum(row.differences for row in codes) < 0.01 * sum(row.compared for row in codes)


def weight_only(**settings):
    torch.manual_seed(0)
    return nn.Sequential(qnn.QuantLinear(80, 48, **settings), nn.ReLU(), qnn.QuantLinear(48, 7, bias=False, **settings))


@pytest.mark.parametrize(
    ("settings", "form", "shape"),
    [
        ({"weight_bit_width": 8}, (8, 128, 3), (3, 80)),
        ({"weight_bit_width": 2}, (2, 128, 3), (2, 3, 80)),
        ({"weight_quant": Int8WeightPerChannel, "weight_bit_width": 4}, (4, 128, 3), (3, 80)),
        ({"weight_quant": Int4WeightPerGroup, "weight_group_size": 16}, (4, 16, 3), (2, 3, 80)),
        ({"weight_quant": ShiftedUint4WeightPerGroup, "weight_group_size": 32}, (4, 32, 4), (3, 80)),
    ],
)
def test_weights_alone_are_packed(settings, form, shape):
    """Bits, size of a block, and inputs: zero points only where there are. In float32, nothing is waived."""
    model = weight_only(**settings)
    program = export_onnx_qdq(model, torch.randn(shape), fast=True, accuracy_level=1)  # a warning would be an error
    nodes = [node for node in program.model_proto.graph.node if node.op_type == "MatMulNBits"]
    assert len(nodes) == 2
    found = {each.name: each.i for each in nodes[1].attribute}
    assert (found["bits"], found["accuracy_level"], len(nodes[1].input)) == (form[0], 1, form[2])
    assert found["block_size"] == (form[1] if form[1] < 128 else 64)  # the least that holds 48 inputs
    assert (found["K"], found["N"]) == (48, 7)
    report = verify_onnx(model, program, torch.randn(shape))
    assert report.differences == 0
    assert [row.compared for row in report.rows if row.kind == "stored"] == 2 * [80 * 48, 48 * 7]


def test_groups_that_the_kernel_lacks_stay():
    model = weight_only(weight_quant=Int4WeightPerGroup, weight_group_size=8)
    program = export_onnx_qdq(model, torch.randn(3, 80), fast=True)
    assert "MatMulNBits" not in {node.op_type for node in program.model_proto.graph.node}


def test_the_waiver_is_a_warning():
    model = weight_only(weight_bit_width=4)
    said = (
        r"export_onnx_qdq: fast=True waives exactness, and on the example input outputs are off by 0\.\d+ of their "
        r"range at most, by 0\.\d+ on average; the top class is the same in 3 of 3 samples\. verify_onnx compares on "
        r"other inputs\."
    )
    with pytest.warns(BitwrightWarning) as caught:
        export_onnx_qdq(model, torch.randn(3, 80), fast=True)
    assert re.fullmatch(said, str(caught[0].message))


def spoiled(monkeypatch, ending, change):
    """Exports write another initializer than they should: the first whose name ends so."""

    def wrong(graph):
        hasten(graph)
        name, value = next(each for each in graph.graph.initializers.items() if each[0].endswith(ending))
        array = value.const_value.numpy()
        changed = change(array.copy()).astype(array.dtype)
        value.const_value = onnx_ir.tensor(changed, dtype=value.dtype, name=name)

    monkeypatch.setattr("bitwright.export.onnx.exporter.hasten", wrong)


def first(array, number):
    array.reshape(-1)[0] = number
    return array


BEYOND = (
    "export_onnx_qdq(fast=True): onnxruntime is further from the model than its kernels round, so no file was "
    "written.\n"
)
ALLOWED = (
    "\nIts kernels may be off by 1 in 5% of a tensor's integers (8 in those of more than 8 bits), and in outputs by 1% "
    "of their range, 0.1% on average. Please report it. fast=False writes an exact file, verify=False this one all the "
    "same."
)


@pytest.mark.parametrize(
    ("ending", "change", "tensor"),
    [
        ("1.weight_quant.folded.scale", lambda scale: scale * 1.01, "3.act_quant"),
        ("bias.folded.rounded.codes", lambda codes: codes + 0.1 * abs(codes).max(), "3.act_quant"),
        ("5.bias.rounded.codes", lambda codes: codes * 0, "linear"),
        ("5.weight_quant.codes", lambda codes: first(codes, 3), "5.weight_quant"),
    ],
)
@pytest.mark.filterwarnings("ignore:export_onnx_q")
def test_wrong_integers_are_an_error(monkeypatch, tmp_path, ending, change, tensor):
    model, path = normed(Int8WeightPerChannel, False), tmp_path / "wrong.onnx"
    spoiled(monkeypatch, ending, change)
    with pytest.raises(ExportError) as caught:
        export_onnx_qdq(model, torch.randn(8, 3, 8, 8), path, fast=True)
    said = str(caught.value)
    assert said.startswith(BEYOND)
    assert said.endswith(ALLOWED)
    assert tensor in said
    assert not path.exists()


@pytest.mark.parametrize(
    ("ending", "change", "tensor"),
    [
        (".packed", lambda codes: first(codes, 255 - codes.flat[0]), "0.weight_quant"),
        (".packed.scale", lambda scale: first(scale, 1.001 * scale.flat[0]), "0.weight_quant"),
        (".packed.zero_point", lambda zero_point: first(zero_point, zero_point.flat[0] ^ 1), "0.weight_quant"),
        ("0.bias", lambda bias: bias + 0.01, "linear"),
    ],
)
def test_wrong_packed_weights_are_an_error(monkeypatch, ending, change, tensor):
    """Although rounded inputs alone move outputs further."""
    model = weight_only(weight_quant=ShiftedUint4WeightPerGroup, weight_group_size=32)
    spoiled(monkeypatch, ending, change)
    with pytest.raises(ExportError, match=f"^{re.escape(BEYOND)}(?s:.*){tensor}(?s:.*){re.escape(ALLOWED)}$"):
        export_onnx_qdq(model, torch.randn(3, 80), fast=True)


def test_a_lost_relu_is_an_error(monkeypatch):
    model = nn.Sequential(qnn.QuantIdentity(scale=0.1), nn.ReLU(), qnn.QuantIdentity(scale=0.1))

    def wrong(graph):
        protect(graph)
        relu = next(node for node in graph.graph if node.op_type == "Relu")
        relu.outputs[0].replace_all_uses_with(relu.inputs[0])

    monkeypatch.setattr("bitwright.export.onnx.exporter.hasten", wrong)
    with pytest.raises(ExportError, match=f"^{re.escape(BEYOND)}"):
        export_onnx_qdq(model, torch.randn(2, 8), fast=True)


def test_a_kernel_that_computes_something_else_is_an_error(monkeypatch):
    """At level 4, where the file is right at level 1."""

    def wrong(graph):
        bias = graph.graph.initializers["0.bias"]
        bias.const_value = onnx_ir.tensor(bias.const_value.numpy() + 5, name="0.bias")
        return round_inputs(graph)

    monkeypatch.setattr("bitwright.export.onnx.runtime.acceptance.round_inputs", wrong)
    with pytest.raises(ExportError, match=f"^{re.escape(BEYOND)}"):
        export_onnx_qdq(weight_only(weight_bit_width=4), torch.randn(3, 80), fast=True)


@pytest.mark.parametrize("quant", [Int8DynamicActPerToken, Fp8e4m3DynamicActPerGroup])
def test_scales_that_follow_the_input_need_exact_biases(quant):
    """What is rounded before them gives other scales."""
    layers = [qnn.QuantIdentity(scale=0.03), qnn.QuantLinear(64, 32), qnn.QuantIdentity(act_quant=quant)]
    model = nn.Sequential(*layers, qnn.QuantLinear(32, 5))
    program = export_onnx_qdq(model, torch.randn(4, 64), fast=True)  # a warning would be an error
    assert verify_onnx(model, program, torch.randn(20, 64)).ok
    assert not [name for name in program.model.graph.initializers if "rounded" in name]


@pytest.mark.parametrize(
    ("input_bits", "weight_bits", "rounded"), [(8, 8, True), (7, 8, True), (4, 8, False), (8, 4, False)]
)
def test_biases_are_rounded_where_products_have_many_steps(input_bits, weight_bits, rounded):
    torch.manual_seed(0)
    entry = qnn.QuantIdentity(scale=4 / 2**input_bits, bit_width=input_bits)
    model = nn.Sequential(entry, qnn.QuantLinear(16, 8, weight_bit_width=weight_bits), qnn.QuantIdentity(scale=0.02))
    program = export_onnx_qcdq(model, torch.randn(4, 16), fast=True, verify=False)
    names = [name for name in program.model.graph.initializers if "rounded" in name]
    assert names == (["1.bias.rounded.codes", "1.bias.rounded.scale"] if rounded else [])
    assert verify_onnx(model, program, torch.randn(40, 16)).ok or rounded


def test_integers_of_16_bits_are_as_fine_as_products():
    torch.manual_seed(0)
    act = qnn.QuantIdentity(scale=3 / 2**15, bit_width=16)
    model = nn.Sequential(qnn.QuantIdentity(scale=0.03), qnn.QuantLinear(8, 16), act)
    with pytest.warns(BitwrightWarning) as caught:
        export_onnx_qdq(model, torch.randn(20, 8), fast=True)
    found = re.search(r"input (\d+) of 480 integers differ, by 1 at most; outputs", str(caught[0].message))
    assert found is not None
    assert int(found[1]) > 0.05 * 320


@pytest.mark.parametrize(
    ("given", "said"),
    [
        *(
            ({"fast": fast}, f"export_onnx_qdq(fast={fast!r}) is not possible. Write fast=True or fast=False.")
            for fast in (1, None, "yes")
        ),
        *(
            (
                {"fast": True, "accuracy_level": level},
                f"export_onnx_qdq(accuracy_level={level!r}) is not possible. Write 4, with which MatMulNBits rounds "
                "its inputs to 8 bits, or 1, with which it computes in float32.",
            )
            for level in (2, 0, "4", 4.0, True)
        ),
        *(
            ({wrong: 1}, f"export_onnx_qdq({wrong}=...) is no keyword of torch.onnx.export. Did you mean {meant}?")
            for wrong, meant in {
                "acuracy_level": "accuracy_level",
                "accuracy": "accuracy_level",
                "faster": "fast",
            }.items()
        ),
        (
            {"accuracy_level": 1},
            "export_onnx_qdq(accuracy_level=1) has no effect without fast=True, which writes MatMulNBits. Give both, "
            "or neither.",
        ),
    ],
)
def test_settings(given, said):
    with pytest.raises(ExportError, match=f"^{re.escape(said)}$"):
        export_onnx_qdq(qnn.QuantLinear(8, 4), torch.randn(2, 8), **given)


@pytest.mark.parametrize(
    ("export", "name", "whose"),
    [
        (export_onnx_qcdq, "accuracy_level", "export_onnx_qdq"),
        (export_onnx_integer, "fast", "export_onnx_qcdq and export_onnx_qdq"),
    ],
)
def test_settings_of_other_exports(export, name, whose):
    said = f"{export.__name__}({name}=...) is not possible. It is a keyword of {whose}."
    with pytest.raises(ExportError, match=f"^{re.escape(said)}$"):
        export(qnn.QuantLinear(8, 4), torch.randn(2, 8), **{name: 1})


class Joined(nn.Module):
    def __init__(self, scales, product):
        super().__init__()
        self.one, self.other, self.both = (qnn.QuantIdentity(scale=scale) for scale in scales)
        self.product = product

    def forward(self, x):
        one, other = self.one(x), self.other(x.flip(-1))
        return self.both(one * other if self.product else one + other)


@pytest.mark.parametrize("product", [False, True])
@pytest.mark.parametrize(("scales", "kernel"), [((2**-5, 2**-6, 2**-4), True), ((0.03, 2**-6, 2**-4), False)])
def test_sums_on_powers_of_two_need_no_fence(scales, kernel, product, tmp_path):
    model = Joined(scales, product)
    program = export_onnx_qdq(model, torch.randn(50, 40))
    assert ("QLinearMul" if product else "QLinearAdd") in used(program, tmp_path) or not kernel
    assert ("Sum" in used(program, tmp_path)) == (not kernel)
    assert verify_onnx(model, program, 3 * torch.randn(50, 40)).differences == 0

"""QONNX files: their nodes, and that the executor of qonnx computes what the model does."""

import re
import sys

import pytest
import torch
from torch import nn

import bitwright.nn as qnn
from bitwright.export import ExportError, export_qonnx, verify_qonnx
from bitwright.export.onnx import write
from bitwright.export.optional import installed
from bitwright.qcore import BitwrightWarning, LearnedBitWidth, settings
from bitwright.quantizers import (
    BinaryAct,
    BinaryConnectWeight,
    BinaryWeightPerChannel,
    Int4WeightPerChannel,
    Int8Act,
    Int8ActPerChannel,
    Int8WeightPerTensor,
    Int32Bias,
    TernaryWeightPerChannel,
    TruncTo8bit,
    Uint8Act,
)
from tests.quantizers.shipped import ALONE

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
executed = pytest.mark.skipif(not installed("qonnx"), reason="qonnx is not installed")


def trained(model, x):
    model.train()
    with torch.no_grad():
        model(x)
        model(0.83 * x)
    qnn.finish_calibration(model)
    return model.eval()


def convolutions():
    return nn.Sequential(
        qnn.QuantIdentity(return_quant_tensor=True),
        qnn.QuantConv2d(3, 8, 3, weight_quant=Int4WeightPerChannel, bias_quant=Int32Bias),
        nn.BatchNorm2d(8),
        qnn.QuantReLU(bit_width=4, return_quant_tensor=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        qnn.QuantLinear(8, 5, weight_bit_width=3),
    )


IMAGES = (8, 3, 8, 8)
MODELS = {
    "convolutions": (convolutions, IMAGES),
    "transposed": (
        lambda: nn.Sequential(
            qnn.QuantIdentity(return_quant_tensor=True),
            qnn.QuantConvTranspose2d(3, 4, 3, weight_quant=Int4WeightPerChannel, bias_quant=Int32Bias),
        ),
        IMAGES,
    ),
    "depthwise": (
        lambda: nn.Sequential(qnn.QuantConv2d(3, 3, 3, groups=3, weight_quant=Int4WeightPerChannel), qnn.QuantReLU6()),
        IMAGES,
    ),
    "signs": (
        lambda: nn.Sequential(
            qnn.QuantConv2d(3, 4, 3, weight_quant=BinaryWeightPerChannel),
            qnn.QuantIdentity(act_quant=BinaryAct),
            qnn.QuantConv2d(4, 4, 3, weight_quant=BinaryConnectWeight),
        ),
        IMAGES,
    ),
    "ternary, by channel": (
        lambda: nn.Sequential(
            qnn.QuantIdentity(act_quant=Int8ActPerChannel),
            qnn.QuantConv2d(3, 4, 3, weight_quant=TernaryWeightPerChannel),
        ),
        IMAGES,
    ),
    "learned widths": (
        lambda: nn.Sequential(
            qnn.QuantLinear(16, 8, weight_quant=Int8WeightPerTensor(bit_width=LearnedBitWidth)),
            qnn.QuantReLU(act_quant=Uint8Act(bit_width=LearnedBitWidth)),
        ),
        (8, 5, 16),
    ),
    "roundings": (
        lambda: nn.Sequential(qnn.QuantLinear(16, 16, weight_rounding="half_up"), qnn.QuantReLU(rounding="floor")),
        (8, 16),
    ),
    "truncated": (
        lambda: nn.Sequential(
            qnn.QuantIdentity(bit_width=4, return_quant_tensor=True),
            qnn.QuantLinear(16, 8, weight_bit_width=4, bias_quant=Int32Bias, output_quant=TruncTo8bit),
        ),
        (8, 16),
    ),
    "used twice": (lambda: _twice(qnn.QuantLinear(16, 16, weight_bit_width=4)), (8, 16)),
}


def _twice(layer):
    return nn.Sequential(layer, qnn.QuantReLU(bit_width=4), layer)


@executed
@pytest.mark.parametrize("name", MODELS)
def test_the_executor_agrees(name):
    make, shape = MODELS[name]
    x = torch.randn(shape)
    model = trained(make(), x)
    report = verify_qonnx(model, export_qonnx(model, x[:2], verify=False), 1.7 * x)
    assert report.differences == 0, report.table()
    assert report.compared > 200
    assert {row.optimizations for row in report.rows} == {"qonnx", "plain"}


def _around(name, quantizer):
    kind = settings(quantizer)["quantizes"].declared
    if kind == "activation":
        return nn.Sequential(qnn.QuantLinear(64, 16, input_quant=Int8Act), qnn.QuantIdentity(act_quant=quantizer))
    positive = "A2Q" in name  # which were told of such an input
    first = qnn.QuantReLU if positive else qnn.QuantIdentity
    slot = {f"{kind}_quant": quantizer}
    return nn.Sequential(first(bit_width=8, return_quant_tensor=True), qnn.QuantLinear(64, 6, **slot))


@pytest.mark.slow
@executed
@pytest.mark.filterwarnings("ignore:.* lies outside the range of")  # narrow biases, which are not fitted
def test_every_quantizer_agrees_or_is_refused():
    refused, agreed = {}, set()
    for name, quantizer in ALONE.items():
        model, x = _around(name, quantizer), torch.randn(8, 64)
        trained(model, x)
        try:
            program = export_qonnx(model, x[:4], verify=False)
        except ExportError as error:
            said = r"QONNX can't express 1 part of this model:\n  1\.\w+_quant: .* (Write|Quantize|Choose) .*\."
            refused[name] = bool(re.fullmatch(said, str(error)))
            continue
        report = verify_qonnx(model, program, torch.randn(16, 64))
        assert report.differences == 0, f"{name}\n{report.table()}"
        agreed.add(name)
    assert all(refused.values()), refused
    assert len(agreed) > 70
    assert not {name for name in agreed if name.startswith(("Shifted", "Fp", "MX", "NF4", "NV", "Pot", "Apot", "Odd"))}
    assert {name for name in refused if re.match(r"(Ui|I)nt\d+(Act|Bias|Weight)(Per(Tensor|Channel))?$", name)} == set()


def test_what_the_file_holds():
    x = torch.randn(IMAGES)
    model = trained(convolutions(), x)
    graph = export_qonnx(model, x[:1], verify=False, input_names=["image"]).model_proto.graph
    nodes = [(node.op_type, node.name) for node in graph.node]
    assert nodes == [
        ("Quant", "layer0_act_quant"),
        ("Quant", "layer1_weight_quant"),
        ("Quant", "layer1_bias_quant"),
        ("Conv", "Conv_0"),
        ("BatchNormalization", "BatchNormalization_0"),
        ("Relu", "Relu_0"),
        ("Quant", "layer3_act_quant"),
        ("GlobalAveragePool", "GlobalAveragePool_0"),
        ("Flatten", "Flatten_0"),
        ("Quant", "layer6_weight_quant"),
        ("MatMul", "MatMul_0"),
        ("Add", "Add_0"),
    ]
    assert {node.domain for node in graph.node if node.op_type == "Quant"} == {"qonnx.custom_op.general"}
    held = {each.name: torch.tensor(onnx.numpy_helper.to_array(each)) for each in graph.initializer}
    assert torch.equal(held["layer1_weight"], model[1].weight.data)
    assert torch.equal(held["layer1_bias"], model[1].bias.data)
    assert held["layer1_bias_quant_scale"].shape == (8,)
    assert held["layer1_bias_quant_zero_point"].shape == (1,)
    assert torch.equal(held["layer6_weight"], model[6].weight.data.t())
    assert torch.equal(held["layer1_weight_quant_scale"], model[1].quant_weight().scale)
    assert held["layer1_weight_quant_bit_width"] == 4
    assert held["layer3_act_quant_zero_point"] == 0
    settings_of = {node.name: {each.name: each.s or each.i for each in node.attribute} for node in graph.node}
    assert settings_of["layer1_weight_quant"] == {"signed": 1, "narrow": 1, "rounding_mode": b"ROUND"}
    assert settings_of["layer3_act_quant"] == {"signed": 0, "narrow": 0, "rounding_mode": b"ROUND"}
    known = {each.name for each in (*graph.value_info, *graph.input, *graph.output)}
    assert {name for node in graph.node for name in node.output} <= known
    assert [each.name for each in graph.input] == ["image"]
    readers = [name for node in graph.node for name in node.input if name in held]
    assert len(readers) == len(set(readers)) == len(held)


class Returning(nn.Module):
    """Returns a quantizer's value twice, and another call's."""

    def __init__(self):
        super().__init__()
        self.relu = qnn.QuantReLU(scale=0.1)

    def forward(self, x):
        y = self.relu(x)
        return y, self.relu(2 * x), y


def test_outputs_are_called_by_their_quantizers_or_as_asked():
    def names(**options):
        graph = export_qonnx(Returning(), torch.randn(1, 4), verify=False, **options).model_proto.graph
        return [each.name for each in graph.output]

    assert names() == ["relu_act_quant", "relu_act_quant_1", "relu_act_quant_alias_2"]
    assert names(output_names=["a.first", "b", "c"]) == ["a.first", "b", "c"]


@pytest.mark.parametrize(
    ("clip", "quant", "scale", "expected"),
    [
        (nn.ReLU6(), Uint8Act, 6 / 255, ["Relu", "Quant"]),
        (nn.ReLU6(), Uint8Act, 6.01 / 255, ["Relu", "Quant"]),  # 6 lies nearer to the largest integer than to the next
        (nn.ReLU6(), Uint8Act, 6.02 / 255, ["Clip", "Quant"]),
        (nn.ReLU6(), Int8Act, 6 / 127, ["Relu", "Quant"]),
        (nn.Hardtanh(), Int8Act, 1 / 128, ["Quant"]),
        (nn.Hardtanh(), Int8Act, 1 / 126, ["Clip", "Quant"]),
        (nn.Hardtanh(-1.0, 2.0), Uint8Act, 1 / 255, ["Quant"]),
        (nn.Hardtanh(0.5, 2.0), Uint8Act, 1 / 255, ["Clip", "Quant"]),
    ],
)
def test_a_clip_that_the_quantizer_does_as_well_goes(clip, quant, scale, expected):
    model = nn.Sequential(clip, qnn.QuantIdentity(act_quant=quant, scaling="constant", scale=scale)).eval()
    program = export_qonnx(model, torch.linspace(-9, 9, 2000).reshape(1, -1))
    assert [node.op_type for node in program.model_proto.graph.node] == expected


def test_roundings_of_their_own_leave_the_values_of_the_integers():
    layer = qnn.QuantLinear(16, 8, weight_rounding="ceil").eval()
    graph = export_qonnx(layer, torch.randn(1, 16), verify=False).model_proto.graph
    held = {each.name: torch.tensor(onnx.numpy_helper.to_array(each)) for each in graph.initializer}
    assert torch.equal(held["weight_quant_values"], layer.quant_weight().value.detach().t())
    assert "weight" not in held


def test_a_written_file_is_read(tmp_path):
    layer = qnn.QuantLinear(16, 8).eval()
    export_qonnx(layer, torch.randn(1, 16), tmp_path / "layer.onnx", verify=False)
    assert onnx.load(tmp_path / "layer.onnx").graph.node[0].op_type == "Quant"
    assert [each.name for each in tmp_path.iterdir()] == ["layer.onnx"]


@executed
def test_another_model_differs(tmp_path):
    x = torch.randn(4, 16)
    layer = qnn.QuantLinear(16, 8).eval()
    program = export_qonnx(layer, x, verify=False)
    with torch.no_grad():
        layer.weight[0, 0] *= 3
    report = verify_qonnx(layer, program, x)
    assert report.rows[0].name == "weight_quant"
    assert report.rows[0].differences == report.rows[0].compared == 128
    assert report.rows[0].note == "the file has another scale"


@executed
def test_a_file_that_differs_is_not_written(tmp_path, monkeypatch):
    def narrower(call):
        form = node_of(call)
        return type(form)(form.op_type, form.bit_width - 1, form.signed, form.narrow)

    from bitwright.export.qonnx import lower
    from bitwright.export.qonnx.nodes import node_of

    monkeypatch.setattr(lower, "node_of", narrower)
    with pytest.raises(ExportError) as raised:
        export_qonnx(qnn.QuantLinear(16, 8).eval(), torch.randn(1, 16), tmp_path / "layer.onnx")
    first, *_, last = str(raised.value).splitlines()
    assert first == "export_qonnx: the qonnx executor does not reproduce the model, so no file was written."
    assert last == "Please report it. verify=False writes the file all the same."
    assert "the file has another bit width" in str(raised.value)
    assert list(tmp_path.iterdir()) == []


@executed
@pytest.mark.parametrize(
    ("shape", "said"),
    [
        (
            (3, 16),
            "the inputs have the shape (3, 16), and the file takes (2, 16): QONNX's readers need fixed shapes. Pass a "
            "multiple of its samples, or export with such an input.",
        ),
        (
            (2, 17),
            "the inputs have the shape (2, 17), and the file takes (2, 16): QONNX's readers need fixed shapes. Pass a "
            "multiple of its samples, or export with such an input.",
        ),
    ],
)
def test_inputs_of_another_shape(shape, said):
    layer = qnn.QuantLinear(16, 8).eval()
    program = export_qonnx(layer, torch.randn(2, 16), verify=False)
    with pytest.raises(ExportError, match=re.escape(said)):
        verify_qonnx(layer, program, torch.randn(shape))


def test_without_qonnx(monkeypatch):
    for name in ("qonnx", "qonnx.core", "qonnx.core.onnx_exec"):
        monkeypatch.setitem(sys.modules, name, None)
    layer = qnn.QuantLinear(16, 8).eval()
    program = export_qonnx(layer, torch.randn(2, 16))
    said = "verify_qonnx needs the package qonnx: pip install bitwright[qonnx]"
    with pytest.raises(ExportError, match=f"^{re.escape(said)}$"):
        verify_qonnx(layer, program, torch.randn(2, 16))


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@executed
def test_what_is_too_large_for_the_executor_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr(write, "LARGEST_FILE", 100)
    said = (
        "export_qonnx: the weights don't fit into one file of 2 GB, which the qonnx executor needs, so the file was "
        "not compared with the model. verify=False says the same without this warning."
    )
    with pytest.warns(BitwrightWarning, match=f"^{re.escape(said)}$"):
        export_qonnx(nn.Sequential(qnn.QuantLinear(8, 4)), torch.randn(2, 8), tmp_path / "model.onnx")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
